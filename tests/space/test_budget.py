from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from optuna_nis.space.budget import bytes_per_element, parse_budget


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float64", 8), ("float32", 4), ("torch.float32", 4), ("bfloat16", 2), ("int8", 1)],
)
def test_bytes_per_element(dtype: str, size: int) -> None:
    assert bytes_per_element(dtype) == size


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`dtype` must be one of bfloat16.*, got 'complex64'"):
        bytes_per_element("complex64")


@pytest.mark.parametrize(
    ("budget", "parameters"),
    [
        (250, 250),
        (0.25, 250),
        (1.0, 1000),
        ("1.0", 1000),
        (np.int64(70), 70),
        ("25%", 250),
        (" 12.5 % ", 125),
        ("400B", 100),
        ("1kB", 250),
        ("1 KiB", 256),
        ("0.001MB", 250),
        ("250", 250),
        ("0.25", 250),
        (".5", 500),
        ("5e-1", None),
    ],
)
def test_parse_budget(budget: Any, parameters: int | None) -> None:
    if parameters is None:
        with pytest.raises(ValueError, match="`budget` as a string must be"):
            parse_budget(budget, 1000)
    else:
        assert parse_budget(budget, 1000) == parameters


@given(
    percent=st.decimals(min_value="0.01", max_value=100, places=2),
    full=st.integers(10_000, 10**9),
)
def test_shares_are_those_written(percent: Decimal, full: int) -> None:
    exact = int(Fraction(percent) / 100 * full)
    assert parse_budget(f"{percent}%", full) == exact
    assert parse_budget(float(percent / 100), full) == exact


def test_bytes_depend_on_the_dtype() -> None:
    assert parse_budget("1kB", 1000, "float16") == 500


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, "`budget` must be at least one parameter, 4 bytes, got 0"),
        (-5, "`budget` must be at least one parameter, 4 bytes, got -5"),
        ("-5%", "`budget` must be at least one parameter, 4 bytes, got '-5%'"),
        ("3B", "`budget` must be at least one parameter, 4 bytes, got '3B'"),
        (1e-9, "`budget` must be at least one parameter, 4 bytes, got 1e-09"),
        (1001, r"full tables, 4,000 bytes \(1,000 parameters\), got 1001, which is 4,004 bytes"),
        ("5kB", "got '5kB', which is 5,000 bytes"),
        ("1GB", "`budget` must be at most the full tables"),
        ("9" * 400 + "B", "`budget` must be at most the full tables"),
        ("9" * 400 + "%", "`budget` must be at most the full tables"),
        ("101%", "`budget` must be at most the full tables"),
        (1.5, r"`budget` as a float is a fraction of the full tables in \(0, 1\], got 1.5"),
        (0.0, r"`budget` as a float is a fraction of the full tables in \(0, 1\], got 0.0"),
        (float("nan"), r"`budget` as a float is a fraction of the full tables in \(0, 1\]"),
        (float("inf"), r"`budget` as a float is a fraction of the full tables in \(0, 1\]"),
        ("", "`budget` as a string must be bytes"),
        ("12 apples", "`budget` as a string must be bytes"),
        ("1PB", "`budget` as a string must be bytes"),
    ],
)
def test_parse_budget_refuses(budget: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_budget(budget, 1000)


@pytest.mark.parametrize("budget", [None, True, [1], 1j])
def test_parse_budget_refuses_other_types(budget: Any) -> None:
    with pytest.raises(TypeError, match=r"`budget` must be a number of parameters \(int\)"):
        parse_budget(budget, 1000)


@given(full=st.integers(1, 10**12), share=st.floats(1e-12, 1.0))
def test_a_parsed_fraction_is_within_it(full: int, share: float) -> None:
    try:
        parameters = parse_budget(share, full)
    except ValueError:
        assert share * full < 1
    else:
        assert 1 <= parameters <= share * full
