"""Proposals of what is worth most, asked for from losses that are known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pytest

from optuna_nis import Allocation, EmbeddingSpec, SearchPlan, SearchSpace, SizeSearch
from optuna_nis.space.spec import replace_oov
from optuna_nis.strategy.pricing import Pricer, Pricing
from optuna_nis.strategy.scoring import Scoring

PLAN = SearchPlan(warmup=0.7, num_updates=2, group_size=4, proposals=2, proposal_draws=8)
Worth = dict[str, NDArray[np.float64]]


def space_of(budget: float = 0.25) -> SearchSpace:
    counts = [1000 // (rank + 1) for rank in range(100)]
    specs = [EmbeddingSpec.from_counts(name, counts, 8) for name in ("user", "item")]
    return SearchSpace(specs, budget=budget)


def worth_of(space: SearchSpace) -> Worth:
    """Items are worth nothing, and the first columns of users most."""
    return {
        spec.name: np.full((len(spec.row_blocks), 8), 1.0 if spec.name == "user" else -1.0)
        / np.arange(1, 9)
        for spec in space.specs
    }


def gradients(worth: Worth, pricing: Pricing) -> list[list[dict[str, NDArray[np.float64]]]]:
    """Of a loss that falls by what the columns are worth."""
    return [[{n: -own for n, own in worth.items()} for _ in paths] for paths in pricing.batches]


def propose(
    pricer: Pricer, spaces: list[SearchSpace], worth: Worth, batches: list[int]
) -> list[list[Allocation]]:
    asking = pricer.proposals(spaces, batches)
    pricing = next(asking)
    while True:
        try:
            pricing = asking.send(gradients(worth, pricing))
        except StopIteration as stop:
            found: list[list[Allocation]] = stop.value
            return found


@pytest.mark.parametrize("side_by_side", [True, False])
def test_what_is_worth_most_is_proposed_for_each_budget(side_by_side: bool) -> None:
    spaces = [space_of(0.25), space_of(0.1)]
    rng = np.random.default_rng(0)
    pricer = Pricer(rng, num_examples=64, side_by_side=side_by_side)
    worth = worth_of(spaces[0])
    found = propose(pricer, spaces, worth, [40, 10])
    for space, own in zip(spaces, found):
        assert own[0] == space.most_valuable(worth)
        assert own[0].num_parameters <= space.budget
        assert str(own[0]["item"]).startswith("item: removed")


def test_shared_rows_are_proposed_in_every_number() -> None:
    space = space_of(0.1)
    sharing = SearchSpace([replace_oov(spec, "hash") for spec in space.specs], budget=0.1)
    worth = worth_of(space)
    found = []
    for each in (space, sharing):
        pricer = Pricer(np.random.default_rng(0), num_examples=64, side_by_side=True)
        found.append(propose(pricer, [each], worth, [40])[0])
    numbers = [{table.num_shared for table in each.values()} for each in found[1]]
    assert numbers[:3] == [{1}, {16}, {0}]
    assert all(each.nbytes() <= sharing.budget_nbytes for each in found[1])
    # What is worth most without them is not left out.
    assert found[0][-1] == found[1][-1] == space.most_valuable(worth)


def test_paths_share_a_batch_only_where_choices_may() -> None:
    space = space_of()
    for num_examples, side_by_side, size in ((64, True, 8), (64, False, 1), (None, True, 1)):
        rng = np.random.default_rng(0)
        pricer = Pricer(rng, num_examples=num_examples, side_by_side=side_by_side)
        pricing = next(pricer.proposals([space], [3]))
        assert [len(paths) for paths in pricing.batches] == [size] * 3
        assert pricing.num_examples == num_examples


def test_the_second_paths_are_around_what_the_first_have_found() -> None:
    space = space_of()
    pricer = Pricer(np.random.default_rng(0), num_examples=None, side_by_side=False)
    worth = worth_of(space)
    asking = pricer.proposals([space], [60, 5])
    pricing = asking.send(gradients(worth, next(asking)))
    found = space.widths(space.most_valuable(worth))
    for (path,) in pricing.batches:
        for name, widths in found.items():
            assert all(low <= own for low, own in zip(path.low[name], widths))


def test_where_in_doubt_they_are_around_what_is_best_on_average() -> None:
    space = space_of()
    pricer = Pricer(np.random.default_rng(0), num_examples=None, side_by_side=False)
    rng = np.random.default_rng(1)
    shape = (len(space.specs[0].row_blocks), 8)
    asking = pricer.proposals([space], [30, 40])
    noisy = [
        [{name: -0.05 + rng.choice([-1.0, 1.0], shape) for name in ("user", "item")}]
        for _ in next(asking).batches
    ]
    pricing = asking.send(noisy)
    found = space.widths(space.most_valuable(pricer.values[0]))
    for (path,) in pricing.batches:
        for name, widths in found.items():
            ends = zip(path.low[name], widths, path.high[name])
            assert all(low <= own <= high for low, own, high in ends)


def test_blocks_that_are_worth_nothing_propose_nothing() -> None:
    space = space_of()
    worth = {name: -np.abs(own) for name, own in worth_of(space).items()}
    pricer = Pricer(np.random.default_rng(0), num_examples=8, side_by_side=False)
    assert propose(pricer, [space], worth, [10, 3]) == [[]]


def test_in_doubt_a_block_is_proposed_with_and_without() -> None:
    space = space_of()
    pricer = Pricer(np.random.default_rng(0), num_examples=8, side_by_side=False)
    asking = pricer.proposals([space], [30])
    pricing = next(asking)
    rng = np.random.default_rng(1)
    shape = (len(space.specs[0].row_blocks), 8)

    def noisy() -> dict[str, NDArray[np.float64]]:
        # Users are worth a little, if it is not chance; items surely nothing.
        users = -0.05 + rng.choice([-1.0, 1.0], shape)
        return {"user": users, "item": np.ones(shape)}

    with pytest.raises(StopIteration) as stop:
        asking.send([[noisy()] for _ in pricing.batches])
    careful, hopeful, middle = stop.value.value[0]
    sizes = [each.num_parameters for each in (careful, middle, hopeful)]
    assert 0 < sizes[0] < 0.5 * sizes[1] < 0.5 * sizes[2] <= 0.5 * space.budget
    for each in (careful, middle, hopeful):
        assert str(each["item"]).startswith("item: removed")


def test_what_is_surely_worth_something_is_proposed_once() -> None:
    space = space_of()
    pricer = Pricer(np.random.default_rng(0), num_examples=8, side_by_side=False)
    worth = worth_of(space)
    assert propose(pricer, [space], worth, [30]) == [[space.most_valuable(worth)]]


# In a search.


def score(scoring: Scoring) -> list[float]:
    return [1 / (1 + choice["item"].num_parameters) for choice in scoring.choices]


def trained(search: SizeSearch) -> SizeSearch:
    search.start(10, choices_per_step=4)
    for _ in range(10):
        search.training_choices(32)
        search.answer(score)
    search.end_training()
    return search


def origins(search: SizeSearch) -> set[Any]:
    trials = [t for t in search.study.trials if t.user_attrs["fidelity"] == "validated"]
    return {trial.user_attrs["origin"] for trial in trials}


def test_a_search_asks_for_prices_when_the_supernet_is_trained_if_they_are_wanted() -> None:
    search = trained(SizeSearch(space_of(), plan=PLAN, prices=True))
    worth = worth_of(search.space)
    asked = []

    def price(pricing: Pricing) -> Any:
        asked.append(pricing)
        return gradients(worth, pricing)

    search.answer(score, price)
    assert len(asked) == 2
    assert {len(paths) for pricing in asked for paths in pricing.batches} == {8}
    assert asked[0].num_examples == 32
    assert search.is_done
    assert origins(search) == {"policy", "formula", "uniform", "values"}


def test_a_search_that_goes_on_at_its_end_asks_for_the_same_prices() -> None:
    asked: list[list[tuple[Any, ...]]] = []
    for goes_on in (False, True):
        search = SizeSearch(space_of(), plan=PLAN, prices=True)
        search.start(10, choices_per_step=4)
        for _ in range(10):
            search.training_choices(32)
            search.answer(score)
        if goes_on:
            state = json.loads(json.dumps(search.state_dict()))
            search = SizeSearch(space_of(), search.study, plan=PLAN, prices=True)
            search.load_state_dict(state)
            search.start(10, choices_per_step=4, batches_done=10)
        search.end_training()
        own: list[tuple[Any, ...]] = []

        def price(pricing: Pricing, search: SizeSearch = search, own: list[Any] = own) -> Any:
            own.append((pricing.num_examples, pricing.batches))
            return gradients(worth_of(search.space), pricing)

        search.answer(score, price)
        asked.append(own)
    assert asked[0] == asked[1]


def test_a_space_of_one_size_for_each_feature() -> None:
    space = SearchSpace(space_of().specs, budget=0.25, mode="single")
    search = trained(SizeSearch(space, plan=PLAN, prices=True))
    search.answer(score, lambda pricing: gradients(worth_of(space), pricing))
    assert "values" in origins(search)
    assert all(choice.num_parameters <= space.budget for choice in search.candidates)


def test_loops_that_know_of_no_prices_are_not_asked_for_them() -> None:
    search = trained(SizeSearch(space_of(), plan=PLAN))
    while (asked := search.ask()) is not None:
        assert isinstance(asked, Scoring)
        search.tell(score(asked))
    assert origins(search) == {"policy", "formula", "uniform"}


def test_without_gradients_the_search_goes_on() -> None:
    with_none = trained(SizeSearch(space_of(), plan=PLAN, prices=True))
    with_none.answer(score)
    without = trained(SizeSearch(space_of(), plan=PLAN))
    without.answer(score)
    assert with_none.candidates == without.candidates


def test_a_plan_may_leave_prices_out() -> None:
    plan = SearchPlan.of(PLAN, {"price_shares": ()})
    search = trained(SizeSearch(space_of(), plan=plan, prices=True))
    assert isinstance(search.ask(), Scoring)


def test_random_choices_may_compete() -> None:
    plan = SearchPlan.of(PLAN, {"random_proposals": 3})
    search = trained(SizeSearch(space_of(), plan=plan))
    search.answer(score)
    assert origins(search) == {"policy", "formula", "random", "uniform"}


def test_what_was_trained_for_real_says_what_proposed_it() -> None:
    search = trained(SizeSearch(space_of(), plan=PLAN, prices=True))
    search.answer(score, lambda pricing: gradients(worth_of(search.space), pricing))
    resumed = SizeSearch(search.space, search.study, plan=PLAN, prices=True)
    resumed.load_state_dict(search.state_dict())
    shortlist = resumed.shortlist()
    while (training := shortlist.ask()) is not None:
        shortlist.tell(-training.allocation.num_parameters)
    resumed.record(shortlist.candidates())
    for_real = ("trained", "dropped")
    trials = [t for t in search.study.trials if t.user_attrs["fidelity"] in for_real]
    assert {search.space.allocation(t.params) for t in trials} == set(search.candidates)
    assert len(trials) == len(search.candidates)
    found = {t.user_attrs["origin"] for t in trials}
    assert found <= {"policy", "formula", "values", "uniform"}
    assert len(found) > 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], r"must be those of 5 batches of 8 paths each, got 0\."),
        ([0.5], "must be what `mask_gradients` gives for each of its batches"),
        ([[{}]] * 5, "got 5 of 1"),
        ([[{}] * 8] * 5, "gradients of 'user' must be finite numbers"),
    ],
)
def test_answers_that_are_none(answer: Any, message: str) -> None:
    search = trained(SizeSearch(space_of(), plan=PLAN, prices=True))
    assert isinstance(search.ask(), Pricing)
    with pytest.raises(ValueError, match=message):
        search.tell(answer)
    assert isinstance(search.ask(), Pricing)
