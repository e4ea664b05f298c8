from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
import math

from hypothesis import given
from hypothesis import strategies as st
import pytest

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.reward import Reward, penalised_reward
from optuna_nis.strategy.shortlist import Shortlist, Training

ROUNDS = SearchPlan(shortlist_epochs=(1, 8, 8))
WARM = replace(ROUNDS, warm_rounds=3)


def sizes(*rows: int) -> list[Allocation]:
    return [Allocation([TableAllocation("user", 1000, 8, (Tier(n, 8),))]) for n in rows]


def run(shortlist: Shortlist, value: Callable[[Training], float]) -> list[Training]:
    trainings = []
    while (training := shortlist.ask()) is not None:
        assert shortlist.ask() is training
        trainings.append(training)
        shortlist.tell(value(training))
    return trainings


def rows(trainings: Sequence[Training], number: int) -> list[int]:
    return [t.allocation.num_parameters // 8 for t in trainings if t.round == number]


def test_by_default_the_better_half_is_trained_from_scratch() -> None:
    shortlist = Shortlist(sizes(1000, 500, 250, 125, 60))
    trainings = run(shortlist, lambda t: float(t.allocation.num_parameters))
    assert rows(trainings, 2) == [1000, 500, 250]
    assert [t.epochs for t in trainings] == [1] * 5 + [6] * 3
    assert [t.from_scratch for t in trainings] == [False] * 5 + [True] * 3
    assert [each.is_finalist for each in shortlist.candidates()] == [True] * 3 + [False] * 2


def test_the_better_half_is_trained_on() -> None:
    shortlist = Shortlist(sizes(1000, 500, 250, 125, 60), ROUNDS)
    trainings = run(shortlist, lambda t: float(t.allocation.num_parameters))
    assert rows(trainings, 1) == [1000, 500, 250, 125, 60]
    assert rows(trainings, 2) == [1000, 500, 250]
    assert rows(trainings, 3) == [1000, 500]
    assert [t.epochs for t in trainings] == [1] * 5 + [8] * 3 + [8] * 2
    assert [t.from_scratch for t in trainings] == [False] * 5 + [True] * 3 + [False] * 2
    assert str(trainings[6]) == "round 2 of 3: 2 of 3 from scratch"
    assert str(trainings[9]) == "round 3 of 3: 2 of 2"
    assert shortlist.best() == sizes(1000)[0]


def test_the_best_of_what_is_to_be_kept_stays_until_it_is_trained_from_scratch() -> None:
    keep = sizes(100, 60)
    shortlist = Shortlist(sizes(1000, 500, 250, 100, 60), ROUNDS, keep=keep)
    trainings = run(shortlist, lambda t: float(t.allocation.num_parameters))
    # In a place beside the best one.
    assert rows(trainings, 2) == [1000, 100, 500]
    assert rows(trainings, 3) == [1000, 500]
    assert shortlist.best() == sizes(1000)[0]
    warm = replace(WARM, most_kept=2)
    shortlist = Shortlist(sizes(1000, 500, 250, 100, 60), warm, keep=keep)
    trainings = run(shortlist, lambda t: float(t.allocation.num_parameters))
    assert not any(t.from_scratch for t in trainings)
    assert rows(trainings, 2) == rows(trainings, 3) == [1000, 100]


def test_where_the_best_is_one_of_those_to_be_kept_others_stay_too() -> None:
    shortlist = Shortlist(sizes(1000, 500, 250, 125, 60), keep=sizes(1000))
    trainings = run(shortlist, lambda t: float(t.allocation.num_parameters))
    assert rows(trainings, 2) == [1000, 500, 250]


def test_what_counts_is_the_end_of_rounds_that_begin_with_the_supernet() -> None:
    better = {(1, 8000): 0.9, (3, 8000): 0.1}
    shortlist = Shortlist(sizes(1000, 100), WARM, keep=sizes(100))
    run(shortlist, lambda t: better.get((t.round, t.allocation.num_parameters), 0.5))
    assert shortlist.best() == sizes(100)[0]


@pytest.mark.parametrize(("warm_rounds", "best"), [(0, 0.9), (1, 0.7), (2, 0.6), (3, 0.6)])
def test_what_counts_is_the_best_of_rounds_from_scratch(warm_rounds: int, best: float) -> None:
    shortlist = Shortlist(sizes(1000), replace(ROUNDS, warm_rounds=warm_rounds))
    run(shortlist, lambda t: {1: 0.9, 2: 0.7, 3: 0.6}[t.round])
    assert shortlist.candidates()[0].val_metric == best


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_out(bad: float, caplog: pytest.LogCaptureFixture) -> None:
    shortlist = Shortlist(sizes(1000, 100))
    run(shortlist, lambda t: bad if t.allocation.num_parameters == 8000 else 0.5)
    assert [c.allocation for c in shortlist.candidates()] == sizes(100)
    assert "not a finite number for 1 of the 2 choices" in caplog.text
    shortlist = Shortlist(sizes(1000, 100))
    run(shortlist, lambda t: bad)
    with pytest.raises(FloatingPointError, match="for any of the 2 choices"):
        shortlist.best()


def test_finalists_come_before_what_was_dropped_whatever_that_had() -> None:
    # The small ones look best at first, and what is trained on overfits.
    value = {1: 0.9, 2: 0.8, 3: 0.1}
    shortlist = Shortlist(sizes(1000, 500, 250, 125, 60), WARM)
    trainings = run(shortlist, lambda t: value[t.round] - t.allocation.num_parameters / 1e5)
    found = shortlist.candidates()
    assert rows(trainings, 3) == [60, 125]
    assert [each.allocation.num_parameters // 8 for each in found] == [60, 125, 250, 500, 1000]
    assert [each.is_finalist for each in found] == [True, True, False, False, False]
    assert found[0].val_metric < found[2].val_metric < found[3].val_metric
    assert shortlist.best() == found[0].allocation


def test_all_are_finalists_of_a_single_round() -> None:
    shortlist = Shortlist(sizes(1000, 500, 250), SearchPlan(shortlist_epochs=(1,)))
    run(shortlist, lambda t: 0.5)
    assert [each.is_finalist for each in shortlist.candidates()] == [True] * 3


def test_where_all_finalists_diverge_those_that_came_next_are_finalists() -> None:
    shortlist = Shortlist(sizes(1000, 500, 250, 125, 60), WARM)
    run(shortlist, lambda t: math.nan if t.round == 3 else 0.5 + t.allocation.num_parameters / 1e5)
    found = shortlist.candidates()
    assert [each.allocation.num_parameters // 8 for each in found] == [250, 125, 60]
    assert [each.is_finalist for each in found] == [True, False, False]


def test_what_diverges_late_keeps_what_it_had_from_scratch() -> None:
    shortlist = Shortlist(sizes(1000, 500, 250), ROUNDS)
    run(shortlist, lambda t: math.nan if t.round == 3 else 0.1 * t.round)
    best = shortlist.candidates()[0]
    assert best.is_finalist
    assert best.val_metric == 0.2


def priced(value: float, allocation: Allocation) -> Reward:
    return penalised_reward(value, allocation.num_parameters, 8000, memory_price=0.01)


@pytest.mark.parametrize(("gain", "best"), [(0.005, 125), (0.02, 1000)])
def test_choices_are_compared_by_what_they_are_worth(gain: float, best: int) -> None:
    # A little better for eight times the memory, or much better.
    shortlist = Shortlist(sizes(1000, 500, 250, 125), reward=priced)
    run(shortlist, lambda t: 0.7 + gain * (t.allocation.num_parameters == 8000))
    assert shortlist.best() == sizes(best)[0]
    # What is told is the metric itself.
    found = {each.allocation: each.val_metric for each in shortlist.candidates()}
    assert found[sizes(1000)[0]] == 0.7 + gain


def test_rewards_are_not_asked_of_what_is_no_number() -> None:
    shortlist = Shortlist(sizes(1000, 100), reward=priced)
    run(shortlist, lambda t: math.nan if t.allocation.num_parameters == 800 else 0.5)
    assert shortlist.best() == sizes(1000)[0]


def test_a_shortlist_of_none() -> None:
    with pytest.raises(ValueError, match="`allocations` must hold at least one candidate"):
        Shortlist([])


def test_asking_and_telling_out_of_order() -> None:
    shortlist = Shortlist(sizes(1000))
    with pytest.raises(RuntimeError, match="`tell` answers `ask`"):
        shortlist.tell(0.5)
    with pytest.raises(RuntimeError, match="not done"):
        shortlist.best()


def test_without_rounds_nothing_is_trained() -> None:
    shortlist = Shortlist(sizes(100, 1000), SearchPlan(shortlist_epochs=()))
    assert shortlist.ask() is None
    assert shortlist.candidates() == []


@given(
    values=st.lists(st.floats(-1, 1), min_size=1, max_size=9),
    kept=st.sets(st.integers(0, 8)),
    most_kept=st.integers(1, 4),
)
def test_someone_is_trained_to_the_end(
    values: list[float], kept: set[int], most_kept: int
) -> None:
    given_sizes = sizes(*(1000 - 100 * place for place in range(len(values))))
    keep = [given_sizes[place] for place in kept if place < len(values)]
    value = dict(zip(given_sizes, values))
    shortlist = Shortlist(given_sizes, replace(ROUNDS, most_kept=most_kept), keep=keep)
    trainings = run(shortlist, lambda t: value[t.allocation])
    numbers = [len(rows(trainings, number)) for number in (1, 2, 3)]
    assert numbers[0] >= numbers[1] >= numbers[2] >= 1
    assert max(numbers[1:]) <= most_kept
    if keep and most_kept > 1:
        assert set(rows(trainings, 2)) & {each.num_parameters // 8 for each in keep}
    assert value[shortlist.best()] == max(values)


@pytest.mark.parametrize(("error", "stays"), [(None, True), (0.01, True), (0.001, False)])
def test_a_safe_place_is_lost_by_what_cannot_win(error: float | None, stays: bool) -> None:
    choices = sizes(100, 250, 500, 1000)
    kept = choices[0]
    shortlist = Shortlist(
        choices,
        keep=[kept],
        error=None if error is None else lambda value: value * error,
    )
    trained = []
    while (training := shortlist.ask()) is not None:
        trained.append((training.round, training.allocation))
        shortlist.tell(0.7 + (training.allocation != kept) * 0.01)
    assert ((2, kept) in trained) == stays


@pytest.mark.parametrize(
    ("error", "stays"),
    [(None, [1000, 500, 250]), (math.inf, [1000, 500, 250]), (0.001, [1000, 500, 250])]
    + [(0.02, [1000, 60, 500]), (0.0038, [1000, 250, 500]), (0.007, [1000, 125, 500])],
)
def test_the_smallest_that_ties_with_the_best_goes_on(
    error: float | None, stays: list[int]
) -> None:
    shortlist = Shortlist(
        sizes(1000, 500, 250, 125, 60), error=None if error is None else lambda value: error
    )
    value = {1000: 0.7, 500: 0.699, 250: 0.698, 125: 0.695, 60: 0.69}
    trainings = run(shortlist, lambda t: value[t.allocation.num_parameters // 8])
    assert rows(trainings, 2) == stays


@pytest.mark.parametrize(
    ("error", "finalists", "stays"),
    [
        (None, [1000, 500, 250], [1000, 500]),
        (0.1, [1000, 60, 500], [1000, 500, 60]),
        (0.01, [1000, 500, 250], [1000]),
    ],
)
def test_what_is_near_the_best_from_scratch_goes_on(
    error: float | None, finalists: list[int], stays: list[int]
) -> None:
    shortlist = Shortlist(
        sizes(1000, 500, 250, 125, 60),
        ROUNDS,
        error=None if error is None else lambda value: error,
    )
    trainings = run(shortlist, lambda t: 0.5 + t.allocation.num_parameters / 1e5)
    assert rows(trainings, 2) == finalists
    assert rows(trainings, 3) == stays
