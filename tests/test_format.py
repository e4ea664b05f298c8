from __future__ import annotations

import pytest

from optuna_nis._format import percent, size


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (1e-5, "< 0.01 %"),
        (0.0025, "0.25 %"),
        (0.125, "12.5 %"),
        (0.1, "10 %"),
        (1.0, "100 %"),
        (2.5, "250 %"),
    ],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1_000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (999_500_000, "1 GB"),
        (2.5e12, "2,500 GB"),
    ],
)
def test_sizes_have_three_digits_and_a_unit(num_bytes: float, text: str) -> None:
    assert size(num_bytes) == text
