"""The search as any loop sees it, with models that are functions of the choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
import json
import math
from typing import Any, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
import pytest

from optuna_nis import (
    Allocation,
    EmbeddingSpec,
    NISSampler,
    PolicySettings,
    SearchPlan,
    SearchSpace,
    SizeSearch,
)
from optuna_nis.controller.settings import settings_of
from optuna_nis.show.words import how_scored
from optuna_nis.strategy.ending import Ending
from optuna_nis.strategy.proposers import frequent_ids
from optuna_nis.strategy.scoring import Scoring
from optuna_nis.strategy.shortlist import Candidate, Training
from optuna_nis.study.recording import TrialRecorder
from optuna_nis.study.results import best_allocation, is_trained
from optuna_nis.study.searches import searches_of

T = TypeVar("T")
Quality = Callable[[Allocation], float]

PLAN = SearchPlan(warmup=0.7, num_updates=3, group_size=4, proposals=2, proposal_draws=8)
NUM_BATCHES = 20


def space_of(budget: float | str = 0.25) -> SearchSpace:
    counts = [1000 // (rank + 1) for rank in range(100)]
    return SearchSpace(
        [
            EmbeddingSpec.from_counts("user", counts, 8),
            EmbeddingSpec.from_counts("item", counts, 8),
        ],
        budget=budget,
    )


def worth(choice: Allocation) -> float:
    """Users are worth more than items, and everything less the more there is."""
    return (
        0.5 + 0.3 * choice["user"].num_parameters / 808 - 0.1 * choice["item"].num_parameters / 808
    )


def answers(quality: Quality = worth) -> Callable[[Scoring], list[float]]:
    return lambda scoring: [quality(choice) for choice in scoring.choices]


def batches(search: SizeSearch, numbers: Sequence[int], quality: Quality = worth) -> None:
    """Some batches of a training, and what is asked for after each."""
    for number in numbers:
        search.training_choices(12, batches_done=number)
        search.answer(answers(quality))


def searched(search: SizeSearch, quality: Quality = worth, **start: Any) -> SizeSearch:
    """A whole search."""
    search.start(NUM_BATCHES, **start)
    batches(search, range(search.batches_done, NUM_BATCHES), quality)
    search.end_training()
    search.answer(answers(quality))
    return search


def study_of(space: SearchSpace, **options: Any) -> optuna.Study:
    return optuna.create_study(
        direction="maximize", sampler=NISSampler(budget=space, seed=0), **options
    )


def trials_of(search: SizeSearch) -> list[tuple[Any, ...]]:
    """What the trials of a study say, apart from times and random names."""
    return [
        (trial.params, trial.value, trial.user_attrs["fidelity"], trial.user_attrs["step"])
        for trial in search.study.trials
    ]


# What is asked for, and when.


def test_scores_are_asked_for_when_updates_are_due() -> None:
    search = SizeSearch(space_of(), plan=PLAN)
    search.start(NUM_BATCHES)
    asked: list[tuple[int, int, int | None]] = []

    def noted(scoring: Scoring) -> list[float]:
        asked.append((search.batches_done, len(scoring.choices), scoring.num_examples))
        return answers()(scoring)

    for _ in range(NUM_BATCHES):
        search.training_choices()
        search.answer(noted)
    group = PLAN.group_size + 1
    # A warm-up of 14 batches; then the full tables once on all data, and with each group.
    assert asked == [(16, 1, None), (16, group, 2048), (17, group, 2048), (20, group, 2048)]
    asked.clear()
    search.end_training()
    search.answer(noted)
    # The proposals; then the best one without each of its parts, until no more can be left out.
    proposals, simpler = [2048] * PLAN.proposal_groups, [2048, None]
    assert [num_examples for *_, num_examples in asked] == [*proposals, None, *simpler]
    assert search.is_done
    assert search.ask() is None


def test_the_same_is_asked_until_it_is_told() -> None:
    search = SizeSearch(space_of(), plan=PLAN)
    search.start(NUM_BATCHES)
    assert search.ask() is None
    search.training_choices(batches_done=NUM_BATCHES - 1)
    scoring = search.ask()
    assert scoring is not None
    assert search.ask() is scoring
    assert scoring.choices == (search.space.full(),)
    search.tell([0.7])
    group = search.ask()
    assert group is not None
    assert group is not scoring
    assert group.choices[-1] == search.space.full()


def test_nothing_is_told_that_was_not_asked_for() -> None:
    search = SizeSearch(space_of(), plan=PLAN)
    with pytest.raises(RuntimeError, match="has asked for no scores"):
        search.tell([0.5])
    search.start(NUM_BATCHES)
    with pytest.raises(RuntimeError, match="has asked for no scores"):
        search.tell([0.5])
    search.training_choices(batches_done=NUM_BATCHES - 1)
    scoring = search.ask()
    with pytest.raises(ValueError, match="one number for each of 1 choices, got 2"):
        search.tell([0.5, 0.5])
    assert search.ask() is scoring


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_qualities_that_are_no_numbers_are_refused_and_asked_for_again(wrong: float) -> None:
    search = SizeSearch(space_of(), plan=PLAN)
    search.start(NUM_BATCHES)
    search.training_choices(batches_done=NUM_BATCHES - 1)
    for size in (1, PLAN.group_size + 1):
        scoring = search.ask()
        assert scoring is not None
        assert len(scoring.choices) == size
        with pytest.raises(ValueError, match="`quality` must be a finite number"):
            search.tell([wrong] * size)
        again = search.ask()
        assert again is not None
        assert len(again.choices) == size
        search.tell([0.5] * size)
    assert search.updates_done == 1
    assert len(search.study.trials) == PLAN.group_size


def test_a_search_that_has_not_started_says_so() -> None:
    search = SizeSearch(space_of(), plan=PLAN, search_id="one")
    with pytest.raises(RuntimeError, match="no candidates: they are there when"):
        search.record([])
    assert search.ask() is None
    with pytest.raises(RuntimeError, match="`start` the search first"):
        search.training_choices()
    with pytest.raises(RuntimeError, match="`start` the search first"):
        _ = search.policy
    with pytest.raises(RuntimeError, match="no candidates: they are there when"):
        search.shortlist()


def test_a_search_whose_end_was_interrupted_says_how_it_goes_on() -> None:
    search = SizeSearch(space_of(), plan=PLAN)
    search.start(num_batches=0)
    search.end_training()
    assert search.ask() is not None
    with pytest.raises(RuntimeError, match=r"the supernet is trained, but .* call `fit` again"):
        _ = search.candidates


def test_bad_arguments() -> None:
    search = SizeSearch(space_of(), plan=PLAN)
    with pytest.raises(ValueError, match="`num_batches` must be an integer"):
        search.start(-1)
    with pytest.raises(ValueError, match="`choices_per_step` must be an integer"):
        search.start(10, choices_per_step=0)
    with pytest.raises(ValueError, match="`search_id` must be a text"):
        SizeSearch(space_of(), search_id="")
    with pytest.raises(ValueError, match="`seed` must be an integer between 0 and"):
        SizeSearch(space_of(), seed=2**63)
    with pytest.raises(ValueError, match=r"must maximize one reward, got directions \['minimize'"):
        SizeSearch(space_of(), optuna.create_study(sampler=NISSampler(budget=space_of())))
    other = SizeSearch(space_of(), optuna.create_study(direction="maximize"))
    with pytest.raises(TypeError, match="`study` must be a study of Optuna, got 5"):
        SizeSearch(space_of(), 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must have a NISSampler"):
        other.start(10)


@pytest.mark.parametrize("budget", [space_of("100%"), None])
def test_a_sampler_of_another_budget_would_break_it(budget: SearchSpace | None) -> None:
    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=budget))
    search = SizeSearch(space_of(), study)
    with pytest.raises(ValueError, match=r"with `budget=space`.* its sampler is NISSampler with"):
        search.start(10)
    assert not study.user_attrs


def test_how_the_policy_learns_is_noted_and_said_once() -> None:
    slow = PolicySettings(learning_rate=0.05)
    plan = replace(PLAN, policy=slow, num_updates=40)
    search = SizeSearch(space_of(), plan=plan)
    search.start(60)
    for _ in range(60):
        search.training_choices()
        search.answer(answers())
    assert settings_of(search.study) == slow
    study = optuna.create_study(
        direction="maximize", sampler=NISSampler(budget=space_of(), settings=slow)
    )
    SizeSearch(space_of(), study, plan=plan).start(10)
    SizeSearch(space_of(), study, plan=PLAN).start(10)
    other = replace(plan, policy=PolicySettings(learning_rate=5.0))
    with pytest.raises(ValueError, match=r"`plan.policy` must be the settings of the sampler"):
        SizeSearch(space_of(), study, plan=other).start(10)


# Under which choices a batch is trained.


def test_choices_take_turns_or_share_the_batch_in_equal_runs() -> None:
    search = SizeSearch(space_of(), plan=PLAN)
    full = search.space.full()
    search.start(NUM_BATCHES)
    assert [search.training_choices() == [full] for _ in range(6)] == [True, False] * 3
    search.start(NUM_BATCHES, choices_per_step=4)
    assert [len(search.training_choices(n)) for n in (12, 10, 9, 7)] == [4, 2, 3, 1]
    assert len(search.training_choices(None)) == 1


def test_the_plan_says_how_many_choices_share_a_batch_unless_the_start_does() -> None:
    search = SizeSearch(space_of(), plan=SearchPlan(warmup=0.7, choices_per_step=2))
    search.start(NUM_BATCHES)
    assert len(search.training_choices(12)) == 2
    search.start(NUM_BATCHES, choices_per_step=3)
    assert len(search.training_choices(12)) == 3


@settings(max_examples=15, deadline=None)
@given(
    budget=st.floats(0.05, 0.9),
    seed=st.integers(0, 2**32 - 1),
    num_examples=st.integers(1, 64),
    per_step=st.integers(1, 6),
)
def test_every_choice_is_within_the_budget_and_runs_are_equal(
    budget: float, seed: int, num_examples: int, per_step: int
) -> None:
    space = space_of(budget)
    search = SizeSearch(space, plan=PLAN, seed=seed)
    search.start(NUM_BATCHES, choices_per_step=per_step)
    full = space.full()

    def scores(scoring: Scoring) -> list[float]:
        assert all(c == full or c.num_parameters <= space.budget for c in scoring.choices)
        return [worth(choice) for choice in scoring.choices]

    high = max(1.0, PLAN.near_costs[1]) * space.budget
    for number in range(NUM_BATCHES):
        choices = search.training_choices(num_examples)
        assert 1 <= len(choices) <= per_step
        assert num_examples % len(choices) == 0
        if per_step > 1 or number % 2 == 0:
            assert choices[0] == full
        assert all(c == full or c.num_parameters <= high for c in choices)
        search.answer(scores)
    search.end_training()
    search.answer(scores)
    assert search.candidates
    assert all(choice.num_parameters <= space.budget for choice in search.candidates)
    assert len(set(search.candidates)) == len(search.candidates)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("precisions", [(32,), (32, 8, 2)])
def test_no_candidate_costs_more_than_rows_of_full_width(
    precisions: tuple[int, ...], seed: int
) -> None:
    specs = [
        EmbeddingSpec.from_counts("user", [1000 // (rank + 1) for rank in range(100)], 8),
        EmbeddingSpec.from_counts("item", [9, 8, 7, 6], 8),
    ]
    space = SearchSpace(specs, budget=0.5).with_precisions(precisions).with_budget(0.5)
    search = SizeSearch(space, plan=PLAN, seed=seed)
    searched(search)
    assert any(choice["item"].kept for choice in search.candidates)
    for choice in search.candidates:
        assert choice.widened() == choice
        assert choice.nbytes() <= space.budget_nbytes
        assert space.allocation(space.params(choice)) == choice


# What is learned and written.


def test_values_are_apart_from_how_hard_the_examples_are() -> None:
    plain = searched(SizeSearch(space_of(), plan=PLAN))
    shifts = np.random.default_rng(1)

    def shifted(scoring: Scoring) -> list[float]:
        shift = 0.0 if scoring.num_examples is None else shifts.uniform(-0.5, 0.5)
        return [worth(choice) + shift for choice in scoring.choices]

    search = SizeSearch(space_of(), plan=PLAN)
    search.start(NUM_BATCHES)
    for _ in range(NUM_BATCHES):
        search.training_choices(12)
        search.answer(shifted)
    search.end_training()
    search.answer(shifted)
    for ours, theirs in zip(trials_of(search), trials_of(plain), strict=True):
        assert ours[0] == theirs[0]
        assert ours[1] == pytest.approx(theirs[1], abs=1e-12)
    scored = [t for t in search.study.trials if t.user_attrs["fidelity"] == "supernet"]
    for trial in scored:
        choice = search.space.allocation(trial.params)
        assert trial.user_attrs["quality"] == pytest.approx(worth(choice), abs=1e-12)
    assert len(scored) == PLAN.num_updates * PLAN.group_size


def test_the_same_seed_gives_the_same_trials_and_candidates() -> None:
    one, two = (searched(SizeSearch(space_of(), plan=PLAN, seed=3)) for _ in range(2))
    other = searched(SizeSearch(space_of(), plan=PLAN, seed=4))
    assert trials_of(one) == trials_of(two)
    assert one.candidates == two.candidates
    assert trials_of(one) != trials_of(other)


def test_steps_are_batches_unless_the_loop_counts_them() -> None:
    search = SizeSearch(space_of(), plan=PLAN)
    search.start(NUM_BATCHES)
    for number in range(NUM_BATCHES):
        search.training_choices()
        search.answer(answers(), step=10 * (number + 1))
    steps = [trial.user_attrs["step"] for trial in search.study.trials]
    assert sorted(set(steps)) == [160, 170, 200]
    counted = searched(SizeSearch(space_of(), plan=PLAN))
    assert sorted({step for *_, step in trials_of(counted)}) == [16, 17, 20]


def test_the_controller_learns_what_is_worth_more() -> None:
    plan = SearchPlan(num_updates=30, group_size=8)
    search = searched(SizeSearch(space_of(), plan=plan))
    probabilities = search.policy.probabilities()
    rows = {name: float(p[0]) for name, p in probabilities.items()}
    users = [p for name, p in rows.items() if name.startswith("user")]
    items = [p for name, p in rows.items() if name.startswith("item")]
    # The first option of a block is to have no row.
    assert np.mean(users) < np.mean(items)
    best = max(search.candidates, key=worth)
    assert best["user"].num_parameters > best["item"].num_parameters


def test_what_was_trained_for_real_is_best_and_written_once() -> None:
    search = searched(SizeSearch(space_of(), plan=PLAN))
    shortlist = search.shortlist()
    assert set(shortlist.allocations) == set(search.candidates)
    while (training := shortlist.ask()) is not None:
        shortlist.tell(worth(training.allocation) / 10)
    found = shortlist.candidates()
    finalists = [each for each in found if each.is_finalist]
    assert 1 <= len(finalists) <= PLAN.most_kept < len(found) == len(search.candidates)
    for _ in range(2):
        search.record(found)
        kinds = Counter(trial.user_attrs["fidelity"] for trial in search.study.trials)
        assert kinds["trained"] == len(finalists)
        assert kinds["dropped"] == len(found) - len(finalists)
    assert best_allocation(search.study) == found[0].allocation == shortlist.best()
    assert search.study.best_value == found[0].val_metric


def test_of_choices_of_the_same_quality_the_smallest_is_best() -> None:
    search = SizeSearch(space_of(), plan=PLAN)
    search.rewarding.error = lambda quality: 0.01 * quality
    searched(search, lambda _: 0.8)
    assert trial_rewards(search) == pytest.approx(
        {t.number: 0.8 - 0.25 * 0.01 * 0.8 * share_of(t, search) for t in search.study.trials}
    )
    sizes = [choice.num_parameters for choice in search.candidates]
    assert sizes == sorted(sizes)
    # As small as what is left out can make it.
    scored = [t for t in search.study.trials if t.user_attrs["fidelity"] == "validated"]
    assert sizes[0] == min(t.user_attrs["num_parameters"] for t in scored)
    # The whole budget costs .002.
    found = finals(search, lambda t: 0.8 + 0.001 * t.allocation.num_parameters / sizes[-1])
    assert found[0].allocation.num_parameters == sizes[0]
    search.record(found)
    assert search.study.best_trial.user_attrs["num_parameters"] == sizes[0]


def trial_rewards(search: SizeSearch) -> dict[int, float | None]:
    return {trial.number: trial.value for trial in search.study.trials}


def share_of(trial: FrozenTrial, search: SizeSearch) -> float:
    share: float = trial.user_attrs["num_parameters"] / search.space.budget
    return share


@pytest.mark.parametrize("error", [None, lambda _: math.inf, lambda _: 0.0])
def test_where_nothing_is_known_of_the_error_memory_has_no_price(
    error: Callable[[float], float] | None,
) -> None:
    search = SizeSearch(space_of(), plan=PLAN)
    search.rewarding.error = error
    searched(search)
    for trial in search.study.trials:
        assert trial.user_attrs["penalty"] == 0.0
        assert trial.value == trial.user_attrs["quality"]
    assert trials_of(search) == trials_of(searched(SizeSearch(space_of(), plan=PLAN)))


def test_what_validation_shows_is_worth_its_memory() -> None:
    search = SizeSearch(space_of(), plan=PLAN)
    # Users gain up to .3, far more than a quarter of this.
    search.rewarding.error = lambda quality: 0.01
    best = searched(search).candidates[0]
    assert best["user"].num_parameters > 0.5 * search.space.budget
    assert best["item"].num_parameters == 0


def test_the_best_of_the_candidates_also_competes_without_what_its_quality_does_not_show() -> None:
    whole = SizeSearch(space_of(), plan=PLAN)

    def quality(choice: Allocation) -> float:
        """Wide users are worth most, and rare ones or items nothing."""
        tiers = choice["user"].tiers
        return 0.5 + 0.01 * (tiers[0].embedding_dim if tiers else 0)

    searched(whole, quality)
    best = max(map(quality, whole.candidates))
    smallest = min(
        (each for each in whole.candidates if quality(each) == best),
        key=lambda each: each.num_parameters,
    )
    assert smallest["item"].num_parameters == 0
    assert len(smallest["user"].tiers) == 1
    # It is a trial like the others.
    scored = [t for t in whole.study.trials if t.user_attrs["fidelity"] == "validated"]
    (trial,) = (t for t in scored if whole.space.allocation(t.params) == smallest)
    assert trial.value == quality(smallest)
    assert trial.user_attrs["origin"] in {"policy", "formula", "uniform"}
    assert all(t.value == quality(whole.space.allocation(t.params)) for t in scored)


@pytest.mark.parametrize("error", [0.0, 0.02])
def test_what_validation_does_not_show_may_be_left_out_if_that_is_a_little_worse(
    error: float,
) -> None:
    def quality(choice: Allocation) -> float:
        """Users are worth most, and any items a little more than their memory costs."""
        users, items = (choice[name].num_parameters for name in ("user", "item"))
        return 0.5 + 0.1 * users / 808 + 0.004 * (items > 0)

    search = SizeSearch(space_of(), plan=PLAN)
    search.rewarding.error = lambda _: error
    searched(search, quality)
    best = search.candidates[0]
    assert best["item"].num_parameters > 0
    gone = [each for each in search.candidates if each["user"] == best["user"] and each != best]
    assert [each["item"].num_parameters for each in gone] == [0] * (error > 0)


def finals(
    search: SizeSearch, value: Callable[[Training], float] | None = None
) -> list[Candidate]:
    """What comes of the shortlist of a search; by default trainings lose with every round."""
    shortlist = search.shortlist()
    while (training := shortlist.ask()) is not None:
        lost = 0.1 * training.round
        shortlist.tell(value(training) if value else worth(training.allocation) - lost)
    return shortlist.candidates()


def test_what_shared_weights_are_unfair_to_is_trained_from_scratch() -> None:
    search = searched(SizeSearch(space_of(), plan=PLAN))
    safe = search._ending.safe(search.candidates, search._origins)
    frequent = set(frequent_ids(search.space, PLAN))
    simple = [each for each in safe if each not in frequent]
    assert [search._origins[each] for each in simple] == ["formula", "uniform"]
    assert len(safe) == 3
    best = next(each for each in search.candidates if each not in safe)
    from_scratch = set()

    def value(training: Training) -> float:
        if training.round > 1:
            from_scratch.add(training.allocation)
        return 0.9 if training.allocation == best else 0.5 + 0.1 * (training.allocation in simple)

    finals(search, value)
    # Beside the best one of them has a place.
    assert best in from_scratch
    assert from_scratch & {*simple}
    plan = replace(PLAN, keep_simple=False)
    assert set(Ending(search.space, plan).safe(safe, search._origins)) == {*safe} & frequent
    plan = replace(plan, keep_frequent=False)
    assert not Ending(search.space, plan).safe(safe, search._origins)


def test_the_best_trial_is_a_finalist_though_others_had_more_early_on() -> None:
    search = searched(SizeSearch(space_of(), plan=PLAN))
    found = finals(search)
    assert found[0].val_metric < max(each.val_metric for each in found)
    search.record(found)
    states = {"trained": TrialState.COMPLETE, "dropped": TrialState.PRUNED}
    for_real = [t for t in search.study.trials if t.user_attrs["fidelity"] in states]
    assert len(for_real) == len(found)
    for trial in for_real:
        assert trial.state == states[trial.user_attrs["fidelity"]]
    best = search.study.best_trial
    assert best.user_attrs["fidelity"] == "trained"
    assert best.value is not None
    assert any(t.value is not None and t.value > best.value for t in for_real)
    assert search.space.allocation(best.params) == found[0].allocation
    assert best_allocation(search.study) == found[0].allocation


# Endings and resumptions.


def test_a_search_that_was_interrupted_while_its_trainings_were_written_writes_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = searched(SizeSearch(space_of(), plan=PLAN, search_id="mine"))
    found = finals(search)
    before = len(search.study.trials)
    whole = TrialRecorder.record

    def killed(self: TrialRecorder, *args: Any, fidelity: str, **how: Any) -> bool:
        if fidelity == "trained":
            raise KeyboardInterrupt
        return whole(self, *args, fidelity=fidelity, **how)

    with monkeypatch.context() as patch:
        patch.setattr(TrialRecorder, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            search.record(found)
    dropped = [each for each in found if not each.is_finalist]
    assert len(search.study.trials) == before + len(dropped)
    # Nothing says that the search has come to its end.
    assert not any(map(is_trained, search.study.trials))
    with pytest.raises(ValueError, match="No trials are completed"):
        search.study.best_trial  # noqa: B018
    resumed = SizeSearch(space_of(), search.study, plan=PLAN, search_id="mine")
    resumed.load_state_dict(json.loads(json.dumps(search.state_dict())))
    resumed.record(finals(resumed))
    assert len(search.study.trials) == before + len(found)
    kinds = Counter(t.user_attrs["fidelity"] for t in search.study.trials[before:])
    assert kinds == {"dropped": len(dropped), "trained": len(found) - len(dropped)}
    assert best_allocation(search.study) == found[0].allocation


def test_a_search_that_goes_on_still_knows_what_memory_costs() -> None:
    search = SizeSearch(space_of(), plan=PLAN, search_id="mine")
    search.rewarding.error = lambda quality: 0.1
    searched(search)
    resumed = SizeSearch(space_of(), search.study, plan=PLAN, search_id="mine")
    resumed.load_state_dict(json.loads(json.dumps(search.state_dict())))
    resumed.rewarding.error = search.rewarding.error
    assert finals(resumed) == finals(search)
    resumed.record(finals(resumed))
    best = search.study.best_trial
    assert best.user_attrs["penalty"] == pytest.approx(0.025 * share_of(best, search))


def test_a_training_that_was_stopped_leaves_no_candidates() -> None:
    search = SizeSearch(space_of(), plan=PLAN)
    search.start(NUM_BATCHES)
    batches(search, range(16))
    search.end_training(stopped=True)
    assert search.ask() is None
    assert not search.is_done
    with pytest.raises(RuntimeError, match="stopped after 1 of 3 updates of the controller"):
        _ = search.candidates


def test_a_training_that_was_stopped_after_the_last_update_leaves_candidates() -> None:
    search = SizeSearch(space_of(), plan=PLAN)
    search.start(NUM_BATCHES)
    batches(search, range(NUM_BATCHES))
    search.end_training(stopped=True)
    search.answer(answers())
    assert search.is_done


def test_updates_are_made_up_for_where_there_were_fewer_batches_than_was_said() -> None:
    search = SizeSearch(space_of(), plan=PLAN)
    search.start(NUM_BATCHES)
    batches(search, range(16))
    search.end_training()
    search.answer(answers())
    assert search.updates_done == PLAN.num_updates
    assert search.is_done


def test_a_search_of_the_same_name_whose_updates_are_done_knows_what_memory_costs() -> None:
    space = space_of()
    study = study_of(space)
    first = SizeSearch(space, study, plan=PLAN, search_id="mine")
    first.rewarding.error = lambda quality: 0.1
    first.start(NUM_BATCHES)
    batches(first, range(NUM_BATCHES))
    assert first.updates_done == PLAN.num_updates
    second = SizeSearch(space, study, plan=PLAN, search_id="mine")
    second.rewarding.error = first.rewarding.error
    searched(second)
    assert {t.user_attrs["fidelity"] for t in study.trials} == {"supernet", "validated"}
    for trial in study.trials:
        assert trial.user_attrs["penalty"] == pytest.approx(0.025 * share_of(trial, second))


@pytest.mark.parametrize("done", [5, 14, 17, 19, 20])
def test_a_search_goes_on_from_its_state(done: int) -> None:
    whole = searched(SizeSearch(space_of(), plan=PLAN, seed=1))
    study = study_of(space_of())
    first = SizeSearch(space_of(), study, plan=PLAN, seed=1)
    first.start(NUM_BATCHES)
    batches(first, range(done))
    state = json.loads(json.dumps(first.state_dict()))
    second = SizeSearch(space_of(), study, plan=PLAN, seed=99)
    second.load_state_dict(state)
    searched(second, batches_done=done)
    assert trials_of(second) == trials_of(whole)
    assert second.candidates == whole.candidates
    assert list(searches_of(study)) == [first.id] == [second.id]


@pytest.mark.parametrize("made", [1, 2, PLAN.num_updates])
def test_a_search_goes_on_in_the_midst_of_its_last_updates(made: int) -> None:
    plan = replace(PLAN, warmup=1.0)
    # Each group is scored on the examples after those of the one before.
    groups = 0

    def score(scoring: Scoring) -> list[float]:
        nonlocal groups
        groups += scoring.num_examples is not None
        return answers()(scoring)

    whole = SizeSearch(space_of(), plan=plan, seed=1)
    study = study_of(space_of())
    first = SizeSearch(space_of(), study, plan=plan, seed=1)
    for search in (whole, first):
        search.start(NUM_BATCHES)
        batches(search, range(NUM_BATCHES))
    whole.end_training()
    whole.answer(score)
    expected, groups = groups, 0
    state = json.loads(json.dumps(first.state_dict()))
    first.end_training()
    while first.updates_done < made:
        asked = first.ask()
        assert isinstance(asked, Scoring)
        first.tell(answers()(asked))
    assert len(study.trials) == made * plan.group_size
    second = SizeSearch(space_of(), study, plan=plan, seed=99)
    second.load_state_dict(state)
    second.start(NUM_BATCHES, batches_done=NUM_BATCHES)
    second.end_training()
    second.answer(score)
    assert trials_of(second) == trials_of(whole)
    assert second.candidates == whole.candidates
    assert groups == expected


@pytest.mark.parametrize("from_state", [True, False])
def test_what_is_in_the_study_is_not_drawn_again(from_state: bool) -> None:
    # Of a flat policy that hardly moves, draws of the same random numbers would be the same.
    plan = replace(PLAN, policy=PolicySettings(learning_rate=1e-9), num_updates=4)
    first = SizeSearch(space_of(), plan=plan, search_id="mine")
    first.start(NUM_BATCHES)
    state = json.loads(json.dumps(first.state_dict()))
    batches(first, range(NUM_BATCHES - 2))
    done = len(first.study.trials)
    assert done >= PLAN.group_size
    second = SizeSearch(space_of(), first.study, plan=plan, search_id="mine")
    if from_state:
        second.load_state_dict(state)
    second.start(NUM_BATCHES, batches_done=NUM_BATCHES - 2)
    batches(second, range(NUM_BATCHES - 2, NUM_BATCHES))
    trials = [tuple(trial.params.values()) for trial in first.study.trials]
    assert len(trials) > done
    assert trials[done : 2 * done] != trials[: len(trials) - done][:done]
    assert not set(trials[done:]) & set(trials[:done])


def test_a_group_that_was_cut_short_is_no_update() -> None:
    search = SizeSearch(space_of(), plan=PLAN, search_id="mine")
    search.start(NUM_BATCHES)
    batches(search, range(NUM_BATCHES))
    assert search.updates_done == PLAN.num_updates
    study = study_of(space_of())
    for key, value in search.study.user_attrs.items():
        study.set_user_attr(key, value)
    # Of each group the last trial is missing.
    for place, trial in enumerate(search.study.trials):
        if (place + 1) % PLAN.group_size:
            study.add_trial(trial)
    again = SizeSearch(space_of(), study, plan=PLAN, search_id="mine")
    again.start(NUM_BATCHES)
    assert again.updates_done == 0


def test_a_search_whose_trainings_are_written_has_come_to_its_end() -> None:
    search = searched(SizeSearch(space_of(), plan=PLAN, search_id="mine"))
    assert searches_of(search.study)["mine"].seconds is None
    search.record(finals(search))
    seconds = searches_of(search.study)["mine"].seconds
    assert seconds is not None
    assert 0 < seconds < 60
    assert "not ended" not in how_scored(search.study, search.study.best_trial)


def test_candidates_are_part_of_the_state() -> None:
    first = searched(SizeSearch(space_of(), plan=PLAN))
    second = SizeSearch(space_of(), first.study, plan=PLAN)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.is_done
    assert second.candidates == first.candidates
    assert second.ask() is None
    assert second.shortlist().allocations == first.shortlist().allocations


def test_a_search_of_the_same_name_makes_the_updates_that_are_left() -> None:
    space = space_of()
    study = study_of(space)
    first = SizeSearch(space, study, plan=PLAN, search_id="mine")
    first.start(NUM_BATCHES)
    batches(first, range(19))
    assert first.updates_done == 2
    second = SizeSearch(space, study, plan=PLAN, search_id="mine")
    second.start(NUM_BATCHES)
    assert second.updates_done == 2
    np.testing.assert_array_equal(second.policy.entropy(), first.policy.entropy())
    searched(second)
    scored = [t for t in study.trials if t.user_attrs["fidelity"] == "supernet"]
    assert len(scored) == PLAN.num_updates * PLAN.group_size
    other = SizeSearch(space, study, plan=PLAN, search_id="another")
    other.start(NUM_BATCHES)
    assert other.updates_done == 0


class First:
    """The first of several processes, whose values are kept for the others."""

    is_first = True

    def __init__(self) -> None:
        self.shared: list[Any] = []

    def share(self, value: T) -> T:
        self.shared.append(deepcopy(value))
        return value


class Other:
    """Another process, which is given what the first one had."""

    is_first = False

    def __init__(self, first: First) -> None:
        self._shared: Iterator[Any] = iter(first.shared)

    def share(self, value: T) -> T:
        assert value is None or not isinstance(value, str)
        shared: T = next(self._shared)
        return shared


def test_all_processes_do_the_same_and_the_first_one_writes() -> None:
    space = space_of()
    first = First()
    one = SizeSearch(space, study_of(space), plan=PLAN, search_id="mine")
    mine: list[list[Allocation]] = []
    theirs: list[list[Allocation]] = []

    def run(search: SizeSearch, processes: First | Other, seen: list[list[Allocation]]) -> None:
        search.start(NUM_BATCHES, choices_per_step=4, processes=processes)
        for _ in range(NUM_BATCHES):
            seen.append(search.training_choices(12))
            while (scoring := search.ask()) is not None:
                seen.append(list(scoring.choices))
                search.tell(answers()(scoring))
        search.end_training()
        search.answer(answers())

    run(one, first, mine)
    # Of another seed: what it draws must come from the first one.
    two = SizeSearch(space, study_of(space), plan=PLAN, seed=0)
    other = Other(first)
    run(two, other, theirs)
    assert mine == theirs
    assert one.candidates == two.candidates
    assert one.id == two.id == "mine"
    assert len(one.study.trials) > PLAN.num_updates * PLAN.group_size
    assert two.study.trials == []
    assert list(other._shared) == []


def test_the_plan_travels_in_the_study() -> None:
    space = SearchSpace([EmbeddingSpec("user", 100, 8)], budget="50%")
    first = SizeSearch(space, plan=SearchPlan(num_updates=3, policy=PolicySettings(ridge=3.0)))
    first.start(4)
    # Another machine is told nothing but the study.
    assert SizeSearch(space, first.study).plan == first.plan
    own = SizeSearch(space, first.study, plan=SearchPlan(num_updates=5))
    own.start(4)
    assert own.plan.num_updates == 5
    assert SizeSearch(space, first.study).plan == first.plan


def test_by_default_the_controller_learns_when_the_supernet_is_trained() -> None:
    plan = SearchPlan.of(PLAN, {"warmup": 1.0})
    search = SizeSearch(space_of(), plan=plan)
    search.start(num_batches=0)  # How long it takes need not be known.
    for _ in range(50):
        search.training_choices(8)
        assert search.ask() is None
    search.end_training(stopped=True)
    while isinstance(scoring := search.ask(), Scoring):
        search.tell([0.5 + index / 100 for index in range(len(scoring.choices))])
    assert search.updates_done == plan.num_updates
    assert search.candidates
    assert search.shortlist().epoch_batches(100) == round(50 / 24) == 2
    assert search.shortlist().epoch_batches(1) == 1


@given(
    share=st.floats(0.005, 0.6),
    mode=st.sampled_from(["multi", "single"]),
    precisions=st.sampled_from([(32, 16, 8, 4, 2), (8, 2), (4,)]),
    seed=st.integers(0, 100),
)
@settings(max_examples=10, deadline=None)
def test_no_scored_choice_and_no_candidate_takes_more_bytes_than_the_budget(
    share: float, mode: Any, precisions: tuple[int, ...], seed: int
) -> None:
    counts = [1000 // (rank + 1) for rank in range(100)]
    specs = [
        EmbeddingSpec.from_counts(name, counts, 8, precisions=precisions)
        for name in ("user", "item")
    ]
    least = SearchSpace(specs, mode=mode).min_parameters
    space = SearchSpace(specs, budget=max(share, least / 1600), mode=mode)
    search = searched(SizeSearch(space, plan=PLAN, seed=seed))
    assert all(space.fits(choice) for choice in search.candidates)
    for trial in search.study.trials:
        choice = space.allocation(trial.params)
        assert trial.user_attrs["nbytes"] == choice.nbytes()
        if choice != space.full():
            assert choice.nbytes() <= space.budget_nbytes
