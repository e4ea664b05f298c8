from __future__ import annotations

from collections.abc import Callable, Iterator
import copy
import logging
import math
import pickle
import subprocess
import sys
from typing import Any
import warnings

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from optuna.testing.storages import StorageSupplier
from optuna.trial import FrozenTrial, Trial, TrialState
import pytest
import sqlalchemy

from optuna_nis.controller.policy import Policy
from optuna_nis.controller.replay import LOG_PROB_KEY, PROPOSAL_KEY
from optuna_nis.controller.sampler import NISSampler
from optuna_nis.controller.settings import PolicySettings
from optuna_nis.space.constraint import AdditiveBudget
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec
from optuna_nis.study.results import is_feasible

SPACE = SearchSpace([EmbeddingSpec("user", 60, 8), EmbeddingSpec("city", 9, 8)], budget=0.3)
STORAGES = ("inmemory", "sqlite", "journal")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def fast(storage: BaseStorage) -> BaseStorage:
    """Without waiting for the disk, which is not what is tested."""
    if isinstance(storage, optuna.storages.RDBStorage):

        @sqlalchemy.event.listens_for(storage.engine, "connect")
        def _unsynchronised(connection: Any, record: object) -> None:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")

        storage.engine.dispose()
    return storage


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest) -> Iterator[BaseStorage]:
    with StorageSupplier(request.param) as supplied:
        yield fast(supplied)


class OnEveryStorage:
    """Each test makes studies of its own, which may share a database.

    What runs of ours is the same on each storage; traced, SQLAlchemy takes twice as long.
    """

    @pytest.fixture(
        scope="class",
        params=["inmemory", "journal", pytest.param("sqlite", marks=pytest.mark.no_cover)],
    )
    def storage(self, request: pytest.FixtureRequest) -> Iterator[BaseStorage]:
        with StorageSupplier(request.param) as supplied:
            yield fast(supplied)

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return NISSampler

    @pytest.fixture(autouse=True)
    def _storage(self, storage: BaseStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        create_study = optuna.create_study

        def create(*args: Any, **kwargs: Any) -> optuna.Study:
            kwargs.setdefault("storage", storage)
            return create_study(*args, **kwargs)

        monkeypatch.setattr(optuna, "create_study", create)
        monkeypatch.setattr(optuna.study, "create_study", create)


class TestBasic(OnEveryStorage, BasicSamplerTestCase):
    pass


class TestRelative(OnEveryStorage, RelativeSamplerTestCase):
    pass


class TestSingleOnly(OnEveryStorage, SingleOnlySamplerTestCase):
    pass


def additive(trial: Trial) -> float:
    return float(sum(trial.suggest_categorical(name, [0, 1, 2, 3]) for name in "abcdef"))


def quality(trial: Trial) -> float:
    allocation = SPACE.suggest(trial)
    assert allocation.num_parameters <= SPACE.budget
    return float(np.log1p(allocation.num_parameters))


def bits(policy: Policy) -> bytes:
    return policy._logits.tobytes() + policy._critic.weights.tobytes()


@pytest.mark.parametrize(("direction", "best"), [("minimize", 0), ("maximize", 18)])
def test_learns_in_both_directions(direction: str, best: int) -> None:
    study = optuna.create_study(direction=direction, sampler=NISSampler(seed=0))
    study.optimize(additive, n_trials=100)
    assert abs(study.best_value - best) <= 1
    late = np.mean([trial.value for trial in study.trials[-20:]])
    assert abs(late - best) <= 5


def test_integers_and_stepped_floats_are_learned() -> None:
    def objective(trial: Trial) -> float:
        return (
            abs(trial.suggest_int("int", 0, 9) - 7)
            + abs(trial.suggest_float("float", 0, 1, step=0.1) - 0.3)
            + trial.suggest_float("continuous", 0, 1)
        )

    sampler = NISSampler(seed=0, warn_independent_sampling=False)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=80)
    policy = sampler.policy(study)
    assert list(policy.choices) == ["float", "int"]
    assert policy.params(policy.mode())[0]["int"] in (6, 7, 8)
    assert {type(trial.params["int"]) for trial in study.trials} == {int}
    assert {type(trial.params["float"]) for trial in study.trials} == {float}


def test_the_budget_holds_from_the_first_trial() -> None:
    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=SPACE, seed=0))
    study.optimize(quality, n_trials=60)
    assert study.best_value > 0.9 * np.log1p(SPACE.budget)


def test_single_size_spaces_are_searched_too() -> None:
    space = SearchSpace(SPACE.specs, budget=0.3, mode="single")
    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=space, seed=0))
    study.optimize(lambda trial: space.suggest(trial).num_parameters, n_trials=30)
    assert space.budget / 2 < study.best_value <= space.budget


def test_parameters_besides_those_of_the_budget_are_learned() -> None:
    def objective(trial: Trial) -> float:
        return quality(trial) + trial.suggest_categorical("depth", [1, 2, 3])

    sampler = NISSampler(budget=SPACE, seed=0, warn_independent_sampling=False)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=60)
    assert list(sampler.policy(study).choices) == [*SPACE.choices, "depth"]
    assert sampler.policy(study).params(sampler.policy(study).mode())[0]["depth"] == 3


@pytest.mark.parametrize("budget", [1000, 0.25, "64MB"])
def test_a_budget_without_costs_is_refused(budget: object) -> None:
    with pytest.raises(TypeError, match="`budget` must be a `SearchSpace`, which knows the cost"):
        NISSampler(budget=budget)  # type: ignore[arg-type]


def test_same_seed_same_trials() -> None:
    def run(seed: int) -> list[dict[str, Any]]:
        study = optuna.create_study(sampler=NISSampler(seed=seed))
        study.optimize(additive, n_trials=30)
        return [trial.params for trial in study.trials]

    assert run(1) == run(1)
    assert run(1) != run(2)


def proposals(study: optuna.Study) -> list[tuple[tuple[str, Any], ...]]:
    return [tuple(sorted(trial.params.items())) for trial in study.trials]


def mixed(trial: Trial) -> float:
    """What the policy draws, beside what the independent sampler does."""
    return trial.suggest_float("rate", 0, 1) + quality(trial)


@pytest.mark.parametrize(
    ("objective", "budget"),
    [(mixed, SPACE), (quality, SPACE), (additive, None), (additive, SPACE)],
)
def test_a_process_for_each_trial_draws_what_one_process_does(
    objective: Callable[[Trial], float], budget: SearchSpace | None
) -> None:
    storage = optuna.storages.InMemoryStorage()
    for name, jobs in (("many", 8), ("one", 1)):
        for _ in range(jobs):
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                load_if_exists=True,
                direction="maximize",
                sampler=NISSampler(budget=budget, seed=0, warn_independent_sampling=False),
            )
            study.optimize(objective, n_trials=8 // jobs)
    many, one = (
        proposals(optuna.load_study(storage=storage, study_name=name)) for name in ("many", "one")
    )
    assert many == one
    assert len(set(one)) >= 6


def test_workers_with_one_seed_draw_apart() -> None:
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(storage=storage, study_name="s", direction="maximize")
    workers = [
        optuna.load_study(
            storage=storage, study_name="s", sampler=NISSampler(budget=SPACE, seed=0)
        )
        for _ in range(4)
    ]
    asked = [(worker, worker.ask()) for _ in range(3) for worker in workers]
    for worker, trial in asked:
        worker.tell(trial, mixed(trial))
    assert len(set(proposals(workers[0]))) == 12
    assert len({trial.params["rate"] for trial in workers[0].trials}) == 12


def test_the_studies_of_one_sampler_draw_apart() -> None:
    sampler = NISSampler(seed=0, warn_independent_sampling=False)
    first, second = (optuna.create_study(sampler=sampler) for _ in range(2))
    for study in (first, second):
        study.optimize(additive, n_trials=3)
    assert not set(proposals(first)) & set(proposals(second))


def test_parameters_that_nothing_learns_are_drawn_apart() -> None:
    study = optuna.create_study(sampler=NISSampler(seed=0, warn_independent_sampling=False))
    study.optimize(
        lambda trial: sum(trial.suggest_float(name, 0, 1) for name in "xyz"), n_trials=4
    )
    assert len({value for trial in study.trials for value in trial.params.values()}) == 12


@pytest.mark.parametrize("seed", [-1, 1.5, "0"])
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match="`seed` must be an integer of 0 or more, or None, got"):
        NISSampler(seed=seed)


def test_reseeding_changes_the_draws() -> None:
    def run(reseed: bool) -> list[dict[str, Any]]:
        sampler = NISSampler(budget=SPACE, seed=0)
        if reseed:
            sampler.reseed_rng()
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(quality, n_trials=20)
        return [trial.params for trial in study.trials]

    assert run(False) == run(False)
    assert run(False) != run(True)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_continues_alike(clone: Callable[[NISSampler], NISSampler]) -> None:
    study = optuna.create_study(sampler=NISSampler(seed=0))
    study.optimize(additive, n_trials=10)
    twin = clone(study.sampler)
    assert bits(twin.policy(study)) == bits(study.sampler.policy(study))
    trial = study.ask()._cached_frozen_trial
    space = {
        **{name: CategoricalDistribution([0, 1, 2, 3]) for name in "abcdef"},
        "rate": FloatDistribution(0, 1),
    }
    own, copied = (s.sample_relative(study, trial, space) for s in (study.sampler, twin))
    assert own == copied
    assert own.keys() == space.keys()


def test_resumes_on_every_storage(storage: BaseStorage) -> None:
    study = optuna.create_study(
        storage=storage, study_name="s", direction="maximize", sampler=NISSampler(budget=SPACE)
    )
    study.enqueue_trial({"city": 8})
    study.optimize(quality, n_trials=5)

    def pruned(trial: Trial) -> float:
        quality(trial)
        trial.report(1.5, 0)
        raise optuna.TrialPruned

    study.optimize(pruned, n_trials=1)
    study.optimize(lambda trial: quality(trial) * float("inf"), n_trials=1)
    study.optimize(lambda trial: quality(trial) * float("nan"), n_trials=1)
    again = optuna.load_study(
        storage=storage, study_name="s", sampler=NISSampler(budget=SPACE, seed=0)
    )
    assert bits(again.sampler.policy(again)) == bits(study.sampler.policy(study))
    again.optimize(quality, n_trials=3)
    assert bits(again.sampler.policy(again)) == bits(study.sampler.policy(study))
    assert bits(study.sampler.policy(study)) == bits(NISSampler(budget=SPACE).policy(study))


CONTAINERS: dict[str, list[Any]] = {
    "lists": [[64, 32], [128], [256, 128, 64]],
    "tuples": [(3, 3), (5, 5), ((1, 1), (7, 7))],
    "dictionaries": [{"depth": 1}, {"depth": 2, "widths": [4, (2,)]}, {1: {2: None}}],
    "mixed": [None, True, "1", 1.5, [1], (), {}],
    "nan": [math.nan, [math.nan], {"x": (math.nan, None)}, "NaN"],
}


def suggest_containers(trial: Trial) -> dict[str, int]:
    """Which of the choices was suggested, by identity."""
    places = {}
    for name, choices in CONTAINERS.items():
        value = trial.suggest_categorical(name, choices)  # type: ignore[call-overload]
        (places[name],) = [place for place, each in enumerate(choices) if each is value]
    return places


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
@pytest.mark.filterwarnings("ignore:GrpcStorageProxy is experimental")
@pytest.mark.parametrize("mode", [*STORAGES, "grpc_rdb"])
def test_choices_may_be_containers(mode: str) -> None:
    seen: list[dict[str, int]] = []

    def objective(trial: Trial) -> float:
        seen.append(suggest_containers(trial))
        return float(sum(seen[-1].values()))

    with StorageSupplier(mode) as storage:
        study = optuna.create_study(
            storage=fast(storage), study_name="s", direction="maximize", sampler=NISSampler(seed=0)
        )
        study.optimize(objective, n_trials=6)
        policy = NISSampler().policy(study)
        trials = study.trials
        assert bits(study.sampler.policy(study)) == bits(policy)
    assert list(policy.choices) == sorted(CONTAINERS)
    assert all(LOG_PROB_KEY in trial.system_attrs for trial in trials[1:])
    # Every trial was learned, as what it was.
    options = policy.options(trial.params for trial in trials)
    assert options.tolist() == [[each[name] for name in policy.choices] for each in seen]
    assert policy._critic._count == len(trials)


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_the_policy_learns_what_containers_are_worth(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def objective(trial: Trial) -> float:
        return float(sum(suggest_containers(trial).values()))

    study = optuna.create_study(direction="maximize", sampler=NISSampler(seed=0))
    study.optimize(objective, n_trials=80)
    (mode,) = study.sampler.policy(study).mode().tolist()
    assert sum(mode) >= sum(len(choices) - 1 for choices in CONTAINERS.values()) - 2
    assert "sampled independently" not in caplog.text


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
@pytest.mark.parametrize("mode", ["inmemory", "sqlite", "journal"])
def test_a_budget_over_tuples(mode: str) -> None:
    budget = AdditiveBudget(12, {n: {(3, 3): 3, (5, 5): 5, (7, 7): 9} for n in "ab"})

    def objective(trial: Trial) -> float:
        kernels = [trial.suggest_categorical(n, list(budget.choices[n])) for n in "ab"]
        assert all(type(kernel) is tuple for kernel in kernels)
        assert (7, 7) not in kernels or (5, 5) not in kernels
        return float(sum(kernel[0] for kernel in kernels))

    with StorageSupplier(mode) as storage:
        study = optuna.create_study(
            storage=fast(storage), direction="maximize", sampler=NISSampler(budget=budget, seed=0)
        )
        study.enqueue_trial({"a": (7, 7) if mode == "inmemory" else [7, 7]})
        study.optimize(objective, n_trials=8, catch=() if mode == "inmemory" else ValueError)
        assert sum(LOG_PROB_KEY in trial.system_attrs for trial in study.trials) == 7
        assert study.sampler.policy(study)._critic._count == (8 if mode == "inmemory" else 7)


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_studies_over_lists_resume(storage: BaseStorage) -> None:
    def objective(trial: Trial) -> float:
        layers = trial.suggest_categorical("x", [[64, 32], [128], None])  # type: ignore[list-item]
        return float(len(layers or []) + trial.suggest_categorical("y", [1, 2]))

    for _ in range(3):
        study = optuna.create_study(
            storage=storage, study_name="s", load_if_exists=True, sampler=NISSampler(seed=0)
        )
        study.enqueue_trial({"x": [128]})
        study.optimize(objective, n_trials=3)
    trials = study.trials
    assert [trial.params["x"] for trial in trials[::3]] == [[128]] * 3
    assert [LOG_PROB_KEY in trial.system_attrs for trial in trials] == [False, True, True] * 3
    assert study.sampler.policy(study)._critic._count == 9


def test_a_proposal_leaves_its_log_probability() -> None:
    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=SPACE, seed=0))
    policy = study.sampler.policy(study)
    study.optimize(quality, n_trials=1)
    (trial,) = study.trials
    assert trial.system_attrs[LOG_PROB_KEY] == policy.log_prob(policy.options([trial.params]))[0]
    assert len(trial.system_attrs[PROPOSAL_KEY]) == 8


def test_an_enqueued_choice_leaves_the_rest_within_the_budget() -> None:
    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=SPACE, seed=0))
    for width in (1, 2, 4):
        study.enqueue_trial({"user[0:3]": width})
    study.optimize(quality, n_trials=3)
    assert [trial.params["user[0:3]"] for trial in study.trials] == [1, 2, 4]
    assert all(LOG_PROB_KEY not in trial.system_attrs for trial in study.trials)


@pytest.mark.parametrize("given", ["a", "b"])
def test_a_retried_trial_stays_within_the_budget(given: str) -> None:
    costs = {0: 0, 1: 1, 2: 2}
    budget = AdditiveBudget(2, {"a": costs, "b": costs})
    distributions = {n: CategoricalDistribution(c) for n, c in budget.choices.items()}
    study = optuna.create_study(sampler=NISSampler(budget=budget, seed=0))
    for _ in range(20):
        waiting = optuna.create_trial(
            state=TrialState.WAITING,
            params={given: 2},
            distributions={given: distributions[given]},
        )
        study.add_trial(waiting)
        trial = study.ask(distributions)
        assert trial.params[given] == sum(trial.params.values()) == 2


def test_an_enqueued_choice_beyond_the_budget_is_said(caplog: pytest.LogCaptureFixture) -> None:
    budget = AdditiveBudget(1, {"x": {0: 0, 1: 1}, "y": {0: 0, 5: 5}})
    study = optuna.create_study(sampler=NISSampler(budget=budget, seed=0))
    study.enqueue_trial({"y": 5})
    trial = study.ask({n: CategoricalDistribution(c) for n, c in budget.choices.items()})
    assert trial.params["y"] == 5
    assert "leave no choice within the budget" in caplog.text


def test_a_trial_that_others_push_over_the_budget_is_infeasible(
    caplog: pytest.LogCaptureFixture,
) -> None:
    costs = {0: 0, 1: 1, 2: 2}
    budget = AdditiveBudget(2, {"a": costs, "b": costs})
    sampler = NISSampler(budget=budget, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def total(trial: Trial) -> float:
        return sum(trial.suggest_categorical(name, [0, 1, 2]) for name in "ab")

    study.optimize(total, n_trials=10)
    learned = bits(sampler.policy(study))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = PartialFixedSampler({"a": 2}, sampler)
    study.optimize(total, n_trials=10)
    over = [trial for trial in study.trials if trial.value > 2]
    assert over
    for trial in study.trials:
        assert is_feasible(trial) == (trial not in over)
    if hasattr(FrozenTrial, "constraints"):  # since Optuna 5
        assert all(trial.constraints == {"budget": 1.0} for trial in over)
        assert study.best_value == 2
    assert caplog.text.count("is over the budget") == len(over)
    study.sampler = sampler
    study.enqueue_trial({"a": 2, "b": 2})
    study.optimize(total, n_trials=1)
    assert not is_feasible(study.trials[-1])
    assert bits(sampler.policy(study)) != learned


def test_other_samplers_may_fix_or_add_parameters() -> None:
    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=SPACE, seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = PartialFixedSampler({"city": 0}, study.sampler)
    study.optimize(quality, n_trials=3)
    study.sampler = RandomSampler(seed=0)
    study.optimize(lambda trial: SPACE.suggest(trial).num_parameters, n_trials=3)
    study.sampler = NISSampler(budget=SPACE, seed=1)
    study.optimize(quality, n_trials=3)
    assert all(LOG_PROB_KEY not in trial.system_attrs for trial in study.trials[:6])
    assert all(LOG_PROB_KEY in trial.system_attrs for trial in study.trials[6:])


def test_one_sampler_may_serve_several_studies() -> None:
    sampler = NISSampler(seed=0)
    studies = [optuna.create_study(sampler=sampler) for _ in range(2)]
    shared = optuna.create_study(storage=studies[0]._storage, sampler=sampler)
    for study in (*studies, shared):
        study.optimize(additive, n_trials=3)
    shared.optimize(lambda trial: trial.suggest_categorical("z", [1, 2]), n_trials=3)
    with pytest.raises(ValueError, match="`study` must have a finished trial"):
        sampler.policy(shared)
    assert bits(sampler.policy(studies[0])) != bits(sampler.policy(studies[1]))


def test_policy_of_an_empty_study() -> None:
    study = optuna.create_study()
    with pytest.raises(ValueError, match="or the sampler a `budget`, got neither"):
        NISSampler().policy(study)
    assert list(NISSampler(budget=SPACE).policy(study).choices) == list(SPACE.choices)


def test_the_policy_given_away_is_a_copy() -> None:
    study = optuna.create_study(sampler=NISSampler(budget=SPACE))
    policy = study.sampler.policy(study)
    before = bits(policy)
    options, log_probs = policy.sample(4, np.random.default_rng(0))
    policy.update(options, [1, 2, 3, 4], log_probs)
    assert bits(policy) != before == bits(study.sampler.policy(study))


def test_settings_reach_the_policy() -> None:
    settings = PolicySettings(learning_rate=0.1)
    sampler = NISSampler(budget=SPACE, settings=settings)
    assert sampler.policy(optuna.create_study()).settings is settings


def test_relative_sampling_fills_in_what_it_does_not_know() -> None:
    study = optuna.create_study(sampler=NISSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_categorical("x", [1, 2]), n_trials=2)
    space = {
        "x": CategoricalDistribution([1, 2]),
        "new": CategoricalDistribution(["a", "b"]),
        "wide": IntDistribution(0, 1000),
        "log": FloatDistribution(1e-3, 1, log=True),
    }
    params = study.sampler.sample_relative(study, study.ask()._cached_frozen_trial, space)
    assert params.keys() == space.keys()
    for name, value in params.items():
        assert space[name]._contains(space[name].to_internal_repr(value))


@pytest.mark.parametrize("warn", [True, False])
def test_independent_sampling_is_warned_about(
    warn: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def objective(trial: Trial) -> float:
        if trial.number:
            trial.suggest_categorical("sometimes", [1, 2])
        return trial.suggest_float("continuous", 0, 1)

    study = optuna.create_study(sampler=NISSampler(warn_independent_sampling=warn))
    with caplog.at_level(logging.WARNING, logger="optuna"):
        study.optimize(objective, n_trials=1)
        assert not caplog.records
        study.optimize(objective, n_trials=1)
    text = caplog.text
    assert ("dynamic search space is not supported by the policy" in text) == warn
    assert ("`continuous` in Trial#1 is sampled independently" in text) == warn
    assert ("the policy learns only over parameters with few distinct values" in text) == warn


def test_the_independent_sampler_hears_of_trials() -> None:
    class Listener(RandomSampler):
        heard = 0

        def before_trial(self, study: Any, trial: Any) -> None:
            self.heard += 1

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            self.heard += 10

    listener = Listener()
    study = optuna.create_study(sampler=NISSampler(independent_sampler=listener))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert listener.heard == 22


def test_threads_share_a_sampler() -> None:
    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=SPACE, seed=0))
    study.optimize(quality, n_trials=60, n_jobs=4)
    assert len(study.trials) == 60
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    assert bits(study.sampler.policy(study)) == bits(NISSampler(budget=SPACE).policy(study))


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=NISSampler())
    with pytest.raises(ValueError, match="NISSampler cannot be used"):
        study.optimize(lambda trial: (trial.suggest_int("x", 0, 1), 0.0), n_trials=1)
    with pytest.raises(ValueError, match="NISSampler cannot be used"):
        study.sampler.policy(study)


def test_hyperband_studies_are_searched() -> None:
    def objective(trial: Trial) -> float:
        value = quality(trial)
        for step in range(4):
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study = optuna.create_study(
        direction="maximize",
        sampler=NISSampler(budget=SPACE, seed=0),
        pruner=optuna.pruners.HyperbandPruner(max_resource=4),
    )
    study.optimize(objective, n_trials=20)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_torch_is_not_imported() -> None:
    code = "import sys, optuna_nis.controller.sampler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("given", [{"c19": 5, "c18": 5}, {"c00": 5, "c10": 5}, {"c07": 3}])
def test_what_is_enqueued_is_paid_for_before_the_others(given: dict[str, int]) -> None:
    costs = {f"c{index:02}": {cost: cost for cost in range(6)} for index in range(20)}
    budget = AdditiveBudget(10, costs)
    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=budget, seed=0))

    def objective(trial: optuna.Trial) -> float:
        return float(
            sum(trial.suggest_categorical(name, list(own)) for name, own in costs.items())
        )

    study.optimize(objective, n_trials=20)
    study.enqueue_trial(given)
    study.optimize(objective, n_trials=1)
    assert {name: study.trials[-1].params[name] for name in given} == given
    assert study.trials[-1].value is not None
    assert study.trials[-1].value <= 10


def test_tables_with_an_enqueued_size_are_paid_for_first() -> None:
    specs = [EmbeddingSpec(name, 1000 + index, 16) for index, name in enumerate("abcd")]
    space = SearchSpace(specs, budget="30%")
    last = next(name for name in reversed(space.distributions()) if name.startswith("d["))
    largest = [name for name in space.distributions() if name.startswith("d[")]
    sampler = NISSampler(budget=space, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(20):
        study.enqueue_trial(dict.fromkeys(largest, 16) | {last: 8})
        allocation = space.suggest(trial := study.ask())
        assert space.fits(allocation)
        assert trial.params[last] == 8
        study.tell(trial, 0.0)


@pytest.mark.parametrize("budget", ["20%", "30%"])
def test_enqueued_widths_that_rise_cost_what_they_mean(
    budget: str, caplog: pytest.LogCaptureFixture
) -> None:
    specs = [EmbeddingSpec("user", 1000, 8), EmbeddingSpec("city", 40, 8)]
    space = SearchSpace(specs, budget=budget)
    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=space, seed=0))
    for _ in range(40):
        study.enqueue_trial({"user[0:50]": 4, "user[50:150]": 6})
        allocation = space.suggest(trial := study.ask())
        assert space.fits(allocation)
        assert trial.params["user[50:150]"] == 6
        study.tell(trial, 0.0)
    assert "no choice" not in caplog.text


def test_an_enqueued_value_that_is_no_choice_is_said(caplog: pytest.LogCaptureFixture) -> None:
    study = optuna.create_study(sampler=NISSampler(seed=0))
    both = {"x": IntDistribution(0, 9), "y": IntDistribution(0, 9)}
    for _ in range(3):
        study.tell(study.ask(both), 0.0)
    study.enqueue_trial({"x": 50})
    with pytest.warns(UserWarning, match="out of range"):
        study.ask(both)
    assert "{'x': 50} of Trial#3 are none of the choices" in caplog.text
    assert "within the budget" not in caplog.text


def test_a_trial_without_a_parameter_of_the_budget_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    budget = AdditiveBudget(3, {name: {0: 0, 1: 1} for name in ("x", "y ", "z")})
    study = optuna.create_study(sampler=NISSampler(budget=budget, seed=0))

    def objective(trial: optuna.Trial) -> float:
        return float(sum(trial.suggest_categorical(name, [0, 1]) for name in ("x", "y", "z")))

    study.optimize(objective, n_trials=4)
    assert caplog.text.count("has no value of ['y '], of which `budget` has costs") == 1


@pytest.mark.parametrize(
    "options",
    [{"settings": {"temperature": 2}}, {"independent_sampler": optuna.samplers.TPESampler}],
)
def test_arguments_of_other_types_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(TypeError, match=f"`{name}` must be "):
        NISSampler(**options)


def test_names_are_any_text_that_optuna_takes() -> None:
    # Such as a file name that is no UTF-8 gives.
    study = optuna.create_study(sampler=NISSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_categorical("a\udc80", [1, 2, 3]), n_trials=5)
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 5
