from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from optuna_nis.show.figures import _style

FLOATS = st.floats(-1e6, 1e6)


@given(st.lists(FLOATS, min_size=1, max_size=50), st.integers(1, 20))
def test_moving_mean_is_the_mean_of_the_last_values(values, window):
    expected = [np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
    assert _style.moving_mean(values, window) == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 5_000), st.integers(2, 100))
def test_thin_keeps_both_ends_and_the_limit(length, limit):
    kept = _style.thin(length, limit)
    assert kept == sorted(set(kept))
    assert len(kept) == min(length, limit)
    if length:
        assert (kept[0], kept[-1]) == (0, length - 1)


@given(st.text(max_size=80))
def test_labels_are_short_and_have_no_markup(text):
    label = _style.label(text, 20)
    assert "<" not in label
    assert ">" not in label
    assert len(label) <= 20 * len("&amp;")


def test_plotly_shows_quotes_as_they_are_written():
    assert _style.label("say \"hi\" & 'bye' <b>") == "say \"hi\" &amp; 'bye' &lt;b&gt;"


def test_long_labels_keep_both_ends():
    label = _style.label("customer_" + "x" * 50 + "_id", 20)
    assert label.startswith("customer_")
    assert label.endswith("_id")
    assert len(label) == 20


@given(st.floats(1, 1e9), st.floats(1, 1e9))
def test_ticks_of_a_logarithmic_axis_cover_it(one, other):
    low, high = sorted((one, other))
    places, texts = _style.byte_ticks(low, high)
    assert len(places) == len(texts) == len(set(texts))
    assert places == sorted(places)
    assert places[0] <= low * 1.000001
    assert any(place <= high * 1.000001 for place in places)


@given(st.floats(100, 1e9), st.floats(1.25, 1e3))
def test_a_narrow_axis_has_ticks_too(low, ratio):
    places, _ = _style.byte_ticks(low, low * ratio)
    assert sum(low <= place <= low * ratio for place in places) > 1


def test_ticks_have_units():
    places, texts = _style.byte_ticks(900, 2_000_000)
    assert dict(zip(texts, places))["20 kB"] == 20_000
    assert "1 MB" in texts
    assert "100 bytes" in texts


def test_labels_that_are_cut_to_the_same_are_numbered():
    names = [f"customer_{'x' * 20}_{number}_{'y' * 20}" for number in range(3)]
    labels = _style.labels(["short", *names], 20)
    assert labels[0] == "short"
    assert labels[1:] == [f"{_style.label(names[0], 20)} ({number})" for number in (1, 2, 3)]
