"""What a careful person tries; the trainings are pretended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pytest
import tuning

DEFAULTS = {"learning_rate": 0.005, "l2": 0.001, "dropout": 0.0}
LADDER = (1.0, 2.0, 3.0, 4.0, 5.0)

Options = Mapping[str, float]


def climbed(start: float, quality: Callable[[float], float]) -> tuple[float, list[float]]:
    asked: list[float] = []

    def qualities(values: Sequence[float]) -> list[float]:
        asked.extend(values)
        return [quality(value) for value in values]

    return tuning.climb(LADDER, start, qualities), asked


def test_a_peak_at_the_start_takes_three_values() -> None:
    assert climbed(3.0, lambda value: -abs(value - 3)) == (3.0, [2.0, 3.0, 4.0])


@pytest.mark.parametrize(("sign", "asked"), [(1, [2, 3, 4, 5]), (-1, [2, 3, 4, 1])])
def test_a_ladder_is_climbed_as_far_as_it_goes(sign: int, asked: list[float]) -> None:
    best, values = climbed(3.0, lambda value: sign * value)
    assert best == asked[-1]
    assert values == asked


def test_no_further_than_to_the_first_that_is_worse() -> None:
    assert climbed(2.0, {1: 0, 2: 1, 3: 2, 4: 1.5, 5: 9}.__getitem__) == (3.0, [1, 2, 3, 4])


def test_at_an_end_the_next_two_are_tried_and_ties_are_the_start_s() -> None:
    assert climbed(1.0, lambda _: 0.5) == (1.0, [1, 2, 3])
    assert climbed(5.0, lambda _: 0.5) == (5.0, [3, 4, 5])


@pytest.mark.parametrize(
    "defaults",
    [
        DEFAULTS,
        {"learning_rate": 0.002, "l2": 0.0, "dropout": 0.5},
        {"learning_rate": 0.003, "l2": 0.0001, "dropout": 0.2},
    ],
)
def test_defaults_are_on_the_ladders(defaults: dict[str, float]) -> None:
    for name, ladder in tuning.ladders(defaults).items():
        assert defaults[name] in ladder
        assert list(ladder) == sorted(set(ladder))
        assert len(ladder) >= 3


class Pretended:
    """Trainings whose validation is a function of what they are of."""

    def __init__(self, val: Callable[[Any], float]) -> None:
        self.val = val
        self.rounds: list[list[Any]] = []

    def __call__(self, jobs: Sequence[Any]) -> list[dict[str, Any]]:
        self.rounds.append(list(jobs))
        return [{"val": self.val(job), "val_error": 0.01, "job": job} for job in jobs]


def test_options_are_tuned_one_after_the_other() -> None:
    def val(options: Options) -> float:
        rate, dropout = options.get("learning_rate", 0.005), options.get("dropout", 0.0)
        return 0.7 + (rate == 0.0125) * 0.01 - abs(dropout - 0.1)

    train = Pretended(val)
    options, runs = tuning.tune(DEFAULTS, train)

    assert options == {"learning_rate": 0.0125, "dropout": 0.1}
    assert train.rounds[0] == [{"learning_rate": 0.002}, {}, {"learning_rate": 0.0125}]
    # One further rate than the best, then two values each of the others beside the best so far.
    assert len(runs) == 8
    assert all(job["learning_rate"] == 0.0125 for job in train.rounds[-1])


def test_nothing_is_trained_twice_and_ties_are_the_defaults() -> None:
    train = Pretended(lambda options: 0.7)
    options, runs = tuning.tune(DEFAULTS, train)
    assert options == {}
    trained = [job for jobs in train.rounds for job in jobs]
    assert len(trained) == len(runs) == 7
    assert trained.count({}) == 1


def test_options_with_which_a_training_diverges_are_not_chosen() -> None:
    def val(options: Options) -> float:
        return 0.7 if options.get("learning_rate", 0.0) <= 0.005 else -float("inf")

    assert tuning.tune(DEFAULTS, Pretended(val))[0] == {}


def lost(harm: Mapping[str, float]) -> Callable[[Collection[str]], float]:
    """Validation without some features, each of which does so much harm."""
    return lambda out: 0.7 + sum(harm[name] for name in out)


def test_features_are_left_out_as_long_as_that_is_above_noise() -> None:
    train = Pretended(lost({"good": -0.1, "bad": 0.03, "worse": 0.05, "idle": 0.005}))
    out, tried = tuning.leave_out(["good", "bad", "worse", "idle"], train)
    assert out == {"bad", "worse"}
    # All features, each of four, of three, of the two that are left.
    assert list(map(len, train.rounds)) == [1, 4, 3, 2]
    assert len(tried) == 10


def test_the_noise_itself_is_no_improvement() -> None:
    assert tuning.leave_out(["a", "b"], Pretended(lost({"a": 0.01 - 1e-9, "b": 0})))[0] == set()


def test_one_feature_stays() -> None:
    out, _ = tuning.leave_out(["a", "b"], Pretended(lost({"a": 0.1, "b": 0.2})))
    assert out == {"b"}
