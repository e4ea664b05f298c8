"""What holds for any space, any budget and any history of trials."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import optuna
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import RandomSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState
import pytest

from optuna_nis import AdditiveBudget, EmbeddingSpec, NISSampler, SearchSpace
from optuna_nis.controller.policy import Policy
from optuna_nis.controller.replay import GROUP_KEY, GROUP_SIZE_KEY, LOG_PROB_KEY, Replay
from optuna_nis.controller.sampler import keeps_to
from optuna_nis.space.constraint import Constraint


@st.composite
def search_spaces(draw: st.DrawFn) -> SearchSpace:
    specs = []
    for index in range(draw(st.integers(1, 3))):
        rows = draw(st.integers(1, 300))
        dim = draw(st.integers(1, 32))
        specs.append(
            EmbeddingSpec(
                f"f{index}",
                rows,
                dim,
                row_blocks=draw(st.none() | st.integers(1, min(rows, 6))),
                col_blocks=draw(st.none() | st.integers(1, min(dim, 5))),
                precisions=draw(st.sampled_from([(32,), (32, 8, 2), (4,)])),
            )
        )
    space = SearchSpace(specs, budget=1.0, mode=draw(st.sampled_from(["multi", "single"])))
    return space.with_budget(draw(st.integers(space.min_parameters, space.full_parameters)))


@st.composite
def additive_budgets(draw: st.DrawFn) -> AdditiveBudget:
    costs = {
        f"p{index}": dict(
            enumerate(draw(st.lists(st.floats(0, 100), min_size=1, max_size=5)), start=1)
        )
        for index in range(draw(st.integers(1, 5)))
    }
    cheapest = sum(min(options.values()) for options in costs.values())
    dearest = sum(max(options.values()) for options in costs.values())
    return AdditiveBudget(cheapest + draw(st.floats(0, 1)) * (dearest - cheapest), costs)


constraints = search_spaces() | additive_budgets()
values = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-1, 1)
events = st.lists(
    st.tuples(
        st.sampled_from(["own", "own", "enqueued", "foreign", "pruned", "failed", "running"]),
        values,
    ),
    max_size=25,
)


def within(constraint: Constraint, params: dict[str, Any]) -> bool:
    if isinstance(constraint, SearchSpace):
        return constraint.fits(constraint.allocation(params))
    assert isinstance(constraint, AdditiveBudget)
    cost = sum(constraint._costs[n][constraint.choices[n].index(params[n])] for n in params)
    return bool(cost <= constraint._limit * (1 + 1e-9) + 1e-9)


def live(constraint: Constraint, history: list[tuple[str, float]], seed: int) -> Study:
    """A study that went through a history; every proposal of the policy is checked."""
    rng = np.random.default_rng(seed)
    own, foreign = NISSampler(budget=constraint, seed=seed), RandomSampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=own)
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(options) for name, options in constraint.choices.items()
    }
    for kind, value in history:
        study.sampler = foreign if kind == "foreign" else own
        if kind == "enqueued":
            name = str(rng.choice(list(constraint.choices)))
            options = constraint.choices[name]
            study.enqueue_trial({name: options[rng.integers(len(options))]})
        trial = study.ask(distributions)
        if kind not in ("enqueued", "foreign"):
            assert within(constraint, trial.params)
            attrs = study._storage.get_trial(trial._trial_id).system_attrs
            # Optuna asks no sampler where there is nothing to choose.
            assert -math.inf < attrs.get(LOG_PROB_KEY, 0.0) <= 1e-9
        assert keeps_to(constraint, trial.params) == within(constraint, trial.params)
        if kind == "pruned":
            trial.report(value, step=1)
            study.tell(trial, state=TrialState.PRUNED)
        elif kind == "failed":
            study.tell(trial, state=TrialState.FAIL)
        elif kind != "running":
            study.tell(trial, value if value == value else None, skip_if_finished=True)
    return study


def bits(policy: Policy) -> bytes:
    return b"".join(array.tobytes() for array in (policy._logits, *policy._critic.arrays()))


@given(constraint=constraints, history=events, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_proposal_over_the_budget_and_a_finite_policy(
    constraint: Constraint, history: list[tuple[str, float]], seed: int
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = live(constraint, history, seed)
    policy = NISSampler(budget=constraint).policy(study)
    assert math.isfinite(policy.entropy())
    assert policy.entropy() >= -1e-9
    for probabilities in policy.probabilities().values():
        assert np.isfinite(probabilities).all()
        assert probabilities.sum() == pytest.approx(1)
    options, log_probs = policy.sample(20, np.random.default_rng(seed))
    assert np.isfinite(log_probs).all()
    for params in policy.params(np.concatenate([options, policy.mode()])):
        assert within(constraint, params)
    for array in (policy._logits, *policy._critic.arrays()):
        assert np.isfinite(array).all()


@given(data=st.data(), constraint=constraints, history=events, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_replay_does_not_depend_on_how_it_is_cut(
    data: st.DataObject, constraint: Constraint, history: list[tuple[str, float]], seed: int
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = live(constraint, history, seed)
    trials = study.get_trials()
    whole = Replay(StudyDirection.MAXIMIZE, constraint)
    whole.learn(trials)
    pieces = Replay(StudyDirection.MAXIMIZE, constraint)
    order = data.draw(st.permutations(trials))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=5)))
    for start, end in zip([0, *cuts], [*cuts, len(order)]):
        pieces.learn(order[start:end])
    assert whole.policy is not None
    assert pieces.policy is not None
    assert bits(pieces.policy) == bits(whole.policy)
    # The sampler that lived through it, trial by trial, knows the same.
    assert isinstance(study.sampler, (NISSampler, RandomSampler))
    assert bits(NISSampler(budget=constraint).policy(study)) == bits(whole.policy)


@given(
    constraint=constraints,
    sizes=st.lists(st.integers(1, 5), max_size=6),
    seed=st.integers(0, 2**32 - 1),
    rewards=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_groups_of_any_size_leave_a_finite_policy(
    constraint: Constraint, sizes: list[int], seed: int, rewards: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    policy = Policy(constraint=constraint)
    study = optuna.create_study(direction="maximize")
    distributions = {n: CategoricalDistribution(c) for n, c in constraint.choices.items()}
    for group, size in enumerate(sizes):
        options, log_probs = policy.sample(size, rng)
        scores = rewards.draw(
            st.lists(st.floats(-1e6, 1e6), min_size=size, max_size=size), label="rewards"
        )
        policy.update(options, scores, log_probs)
        study.add_trials(
            [
                optuna.create_trial(
                    params=params,
                    distributions=distributions,
                    value=score,
                    system_attrs={
                        GROUP_KEY: f"g{group}",
                        GROUP_SIZE_KEY: size,
                        LOG_PROB_KEY: float(log_prob),
                    },
                )
                for params, score, log_prob in zip(policy.params(options), scores, log_probs)
            ]
        )
    assert np.isfinite(policy._logits).all()
    assert bits(NISSampler(budget=constraint).policy(study)) == bits(policy)
