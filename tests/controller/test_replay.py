from __future__ import annotations

from collections.abc import Iterator
import logging
import math
from typing import Any
from unittest.mock import patch

from finished_trials import BUDGET, SPACE, replayed, trial
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
import pytest

from optuna_nis.controller.policy import Policy
from optuna_nis.controller.replay import (
    GROUP_KEY,
    GROUP_SIZE_KEY,
    LOG_PROB_KEY,
    PROPOSAL_KEY,
    Replay,
    fingerprint,
)
from optuna_nis.space.constraint import AdditiveBudget
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, logger="optuna"):
        yield caplog


def bits(replay: Replay) -> bytes:
    if replay.policy is None:
        return b""
    arrays = [replay.policy._logits, *replay.policy._critic.arrays()]
    return b"".join(array.tobytes() for array in arrays)


UNTAUGHT = bits(replayed([]))


finite_or_not = st.sampled_from([0.0, 0.5, 0.7, -3.0, 1e9, math.inf, -math.inf])


@st.composite
def histories(draw: st.DrawFn) -> list[FrozenTrial]:
    trials = []
    for number in range(draw(st.integers(1, 30))):
        params = {
            "x": draw(st.integers(0, 2)),
            "y": draw(st.sampled_from([0, 3])),
            "z": draw(st.integers(0, 1)),
        }
        state = draw(
            st.sampled_from([TrialState.COMPLETE] * 5 + [TrialState.PRUNED, TrialState.FAIL])
        )
        attrs: dict[str, Any] = {}
        if draw(st.booleans()):
            attrs[LOG_PROB_KEY] = draw(
                st.sampled_from([-1.0, -3.0, 0.0, "x", math.nan, None, 1e9])
            )
        if draw(st.booleans()):
            attrs[GROUP_KEY] = draw(st.sampled_from(["a", "b", 7]))
            attrs[GROUP_SIZE_KEY] = draw(st.sampled_from([1, 2, 3, -1, "2", True]))
        distributions = None
        if draw(st.integers(0, 9)) == 0:
            params["w"] = draw(st.integers(0, 5))
        distributions = {**SPACE, "w": IntDistribution(0, 5)}
        reports = None
        if state == TrialState.PRUNED and draw(st.booleans()):
            reports = {1: draw(finite_or_not), 0: 9.0}
        trials.append(
            trial(
                number,
                None if state == TrialState.FAIL else draw(finite_or_not),
                params,
                second=draw(st.integers(0, 40)),
                state=state,
                reports=reports,
                attrs=attrs,
                distributions={name: distributions[name] for name in params},
            )
        )
    return trials


@given(data=st.data(), trials=histories(), budget=st.sampled_from([BUDGET, None]))
@settings(max_examples=150, deadline=None)
def test_pieces_and_their_order_do_not_matter(
    data: st.DataObject, trials: list[FrozenTrial], budget: AdditiveBudget | None
) -> None:
    shuffled = data.draw(st.permutations(trials))
    replay = Replay(StudyDirection.MAXIMIZE, budget)
    start = 0
    with patch("optuna_nis.controller.replay._SNAPSHOT_INTERVAL", 4):
        while start < len(shuffled):
            size = data.draw(st.integers(1, 10))
            replay.learn(shuffled[: start + size])
            start += size
    fresh = replayed(trials, budget)
    assert bits(replay) == bits(fresh)
    assert replay.trial_numbers == fresh.trial_numbers
    assert replay.distributions == fresh.distributions
    for array in [] if fresh.policy is None else fresh.policy.probabilities().values():
        assert np.isfinite(array).all()


@pytest.mark.parametrize("late", [3, 70, 129, 199])
def test_a_late_trial_rolls_back(late: int) -> None:
    rng = np.random.default_rng(0)
    trials = [trial(number, float(rng.normal())) for number in range(200)]
    replay = replayed(trials[:late] + trials[late + 1 :])
    before = bits(replay)
    snapshots = [snapshot.position for snapshot in replay._snapshots]
    assert snapshots == [64, 128, 192]
    replay.learn(trials)
    assert bits(replay) == bits(replayed(trials)) != before


def test_many_trials_are_learned_in_chunks() -> None:
    rng = np.random.default_rng(0)
    trials = [trial(number, float(rng.normal())) for number in range(1100)]
    replay = replayed(trials[:1050])
    replay.learn(trials)
    assert bits(replay) == bits(replayed(trials))
    assert len(replay._snapshots) == 8


def test_fewer_copies_of_a_large_policy_are_kept() -> None:
    trials = [trial(number, float(number % 5)) for number in range(270)]
    with patch("optuna_nis.controller.replay._SNAPSHOT_CELLS", 500):
        few = replayed(trials)
    assert few.policy is not None
    assert few.policy.num_copied == 8**2 + 16 * 8
    assert [snapshot.position for snapshot in few._snapshots] == [192, 256]
    with patch("optuna_nis.controller.replay._SNAPSHOT_CELLS", 10):
        assert [snapshot.position for snapshot in replayed(trials)._snapshots] == [256]


def test_a_study_made_anew_is_learned_anew() -> None:
    replay = replayed([trial(number) for number in range(5)])
    anew = [trial(number, float(number), second=100 + number) for number in range(3)]
    replay.learn(anew)
    assert bits(replay) == bits(replayed(anew))


@given(data=st.data(), trials=histories(), budget=st.sampled_from([BUDGET, None]))
@settings(max_examples=50, deadline=None)
def test_a_study_is_followed_as_its_trials_finish(
    data: st.DataObject, trials: list[FrozenTrial], budget: AdditiveBudget | None
) -> None:
    running = [trial(t.number, None, state=TrialState.RUNNING) for t in trials]
    study: list[FrozenTrial] = []
    replay = Replay(StudyDirection.MAXIMIZE, budget)
    for number in data.draw(st.permutations(range(len(trials)))):
        study += running[len(study) : number + 1 + data.draw(st.integers(0, 2))]
        study[number] = trials[number]
        if data.draw(st.booleans()):
            replay.follow(list(study))
    replay.follow(study)
    assert bits(replay) == bits(replayed(trials, budget))


def test_following_looks_at_new_trials_only() -> None:
    class Watched(list[FrozenTrial]):
        looks = 0

        def __getitem__(self, key: Any) -> Any:
            found = super().__getitem__(key)
            self.looks += len(found) if isinstance(key, slice) else 1
            return found

        def __iter__(self) -> Any:
            raise AssertionError("looked at all")

    study = Watched(trial(number, float(number)) for number in range(200))
    replay = Replay(StudyDirection.MAXIMIZE, BUDGET)
    replay.follow(study)
    study += [trial(200), trial(201, None, state=TrialState.RUNNING)]
    study.looks = 0
    replay.follow(study)
    replay.follow(study)
    assert study.looks < 10
    assert bits(replay) == bits(replayed([*study[:201]]))


@pytest.mark.parametrize("length", [0, 3, 5, 8])
def test_a_study_made_anew_is_followed_anew(length: int) -> None:
    replay = Replay(StudyDirection.MAXIMIZE, BUDGET)
    replay.follow([trial(number) for number in range(5)])
    anew = [trial(number, float(number), second=100 + number) for number in range(length)]
    replay.follow(anew)
    assert bits(replay) == bits(replayed(anew))


def test_part_of_a_study_is_followed_too() -> None:
    trials = [trial(number, float(number)) for number in range(6)]
    replay = Replay(StudyDirection.MAXIMIZE, BUDGET)
    replay.follow(trials[::2])
    replay.follow(trials[1::2])
    assert bits(replay) == bits(replayed(trials))


def test_trials_that_did_not_finish_are_passed_over() -> None:
    replay = replayed([trial(0)])
    running = trial(1, None, state=TrialState.RUNNING)
    replay.learn([trial(0), running])
    assert replay.trial_numbers == [0]


@pytest.mark.parametrize(
    "nothing",
    [
        trial(9, None, state=TrialState.FAIL),
        trial(9, None, state=TrialState.PRUNED),
        trial(9, 0.5, state=TrialState.PRUNED, reports={0: math.nan}),
        trial(9, 5.0, {"x": 2, "y": 3, "z": 0}),
        trial(9, 5.0, {"x": 2, "y": 0}),
        trial(
            9,
            5.0,
            {"x": 7, "y": 0, "z": 0},
            distributions={**SPACE, "x": CategoricalDistribution([0, 1, 2, 7])},
        ),
    ],
    ids=["failed", "pruned at once", "pruned at NaN", "over budget", "missing", "unknown choice"],
)
def test_what_teaches_nothing(nothing: FrozenTrial) -> None:
    trials = [trial(number, float(number)) for number in range(4)]
    assert bits(replayed([*trials, nothing])) == bits(replayed(trials))


def test_widths_that_grow_with_the_rank_count_as_what_they_mean() -> None:
    space = SearchSpace([EmbeddingSpec("user", 60, 4, row_blocks=(20, 40))], budget=0.9)
    names = list(space.choices)

    def learned(*widths: tuple[int, int]) -> bytes:
        replay = Replay(StudyDirection.MAXIMIZE, space)
        replay.learn(
            trial(n, float(n), dict(zip(names, w)), distributions=space.distributions())
            for n, w in enumerate(widths)
        )
        return bits(replay)

    assert learned((0, 0), (2, 4)) == learned((0, 0), (2, 2)) != learned((0, 0))
    assert learned((0, 0), (2, 2), (4, 4)) == learned((0, 0), (2, 2))  # over the budget


def test_pruned_trials_count_with_their_last_report_or_else_their_value() -> None:
    trials = [trial(0, 0.0), trial(1, 1.0)]
    for value, reports in ((None, {3: 0.25, 0: 9.0}), (7.0, {3: 0.25}), (0.25, None)):
        pruned = trial(2, value, state=TrialState.PRUNED, reports=reports)
        assert bits(replayed([*trials, pruned])) == bits(replayed([*trials, trial(2, 0.25)]))


def test_minimising_is_maximising_the_opposite() -> None:
    values = [0.1, 0.5, -2.0, 3.0]
    minimised = Replay(StudyDirection.MINIMIZE, BUDGET)
    minimised.learn([trial(number, value) for number, value in enumerate(values)])
    maximised = replayed([trial(number, -value) for number, value in enumerate(values)])
    assert bits(minimised) == bits(maximised)


def grouped(number: int, value: float | None, name: Any = "a", size: Any = 3, **kw: Any) -> Any:
    attrs = {GROUP_KEY: name, GROUP_SIZE_KEY: size, LOG_PROB_KEY: -2.0}
    state = TrialState.COMPLETE if value is not None else TrialState.FAIL
    return trial(number, value, attrs=attrs, state=state, **kw)


def test_a_group_is_one_update_once_it_is_complete() -> None:
    trials = [grouped(number, value) for number, value in enumerate([0.1, 0.4, 0.2])]
    assert bits(replayed(trials[:2])) == UNTAUGHT
    policy = Policy(constraint=BUDGET)
    policy.update(policy.options([t.params for t in trials]), [0.1, 0.4, 0.2], np.full(3, -2.0))
    replay = replayed(trials)
    assert replay.policy is not None
    np.testing.assert_array_equal(replay.policy._logits, policy._logits)


def test_groups_may_be_interleaved_and_named_again() -> None:
    values = [0.1, 0.9, 0.4, 0.3, 0.2, 0.6]
    mixed = [grouped(n, v, "ab"[n % 2]) for n, v in enumerate(values)]
    order = [0, 2, 4, 1, 3, 5]
    apart = [grouped(n, values[n], "ab"[n % 2], second=s) for s, n in enumerate(order)]
    assert bits(replayed(mixed)) == bits(replayed(apart))
    again = [grouped(n, values[n], params=mixed[n].params, second=s) for s, n in enumerate(order)]
    assert bits(replayed(again)) == bits(replayed(apart))


def test_a_failed_member_completes_its_group_without_a_reward() -> None:
    failed = [grouped(0, 0.1), grouped(1, None), grouped(2, 0.2)]
    pair = [grouped(0, 0.1, size=2), grouped(2, 0.2, size=2)]
    assert bits(replayed(failed)) == bits(replayed(pair))
    assert bits(replayed([grouped(0, 0.1, size=2), grouped(1, None, size=2)])) == UNTAUGHT


@pytest.mark.parametrize(
    ("attrs", "named"),
    [
        ({LOG_PROB_KEY: "pickle"}, LOG_PROB_KEY),
        ({LOG_PROB_KEY: math.nan}, LOG_PROB_KEY),
        ({LOG_PROB_KEY: True}, LOG_PROB_KEY),
        ({LOG_PROB_KEY: 3.0}, LOG_PROB_KEY),
        ({LOG_PROB_KEY: -(10**400)}, LOG_PROB_KEY),
        ({LOG_PROB_KEY: [-1.0]}, LOG_PROB_KEY),
        ({LOG_PROB_KEY: -1.0, PROPOSAL_KEY: 12}, PROPOSAL_KEY),
        ({GROUP_KEY: "a"}, GROUP_SIZE_KEY),
        ({GROUP_KEY: "a", GROUP_SIZE_KEY: "2"}, GROUP_SIZE_KEY),
        ({GROUP_KEY: "a", GROUP_SIZE_KEY: 0}, GROUP_SIZE_KEY),
        ({GROUP_KEY: "a", GROUP_SIZE_KEY: 10**9}, GROUP_SIZE_KEY),
        ({GROUP_KEY: {"a": 1}, GROUP_SIZE_KEY: 2}, GROUP_KEY),
        ({GROUP_SIZE_KEY: 2}, GROUP_KEY),
    ],
)
def test_malformed_attributes_are_ignored_with_one_warning(
    attrs: dict[str, Any], named: str, log: pytest.LogCaptureFixture
) -> None:
    plain = [trial(0, 0.0), trial(1, 1.0), trial(2, 2.0)]
    odd = [plain[0], trial(1, 1.0, attrs=attrs), trial(2, 2.0, attrs=attrs)]
    assert bits(replayed(odd)) == bits(replayed(plain))
    assert log.text.count(f"`{named}` of Trial#1 is malformed") == 1
    assert len(log.records) == 1


def test_the_log_probability_of_another_proposal_is_not_believed() -> None:
    policy = Policy(constraint=BUDGET)
    first = trial(0, 0.0)
    options = policy.options([trial(1).params])
    other = policy.options([trial(2).params])

    def second(proposal: str) -> FrozenTrial:
        return trial(1, 1.0, attrs={LOG_PROB_KEY: -6.0, PROPOSAL_KEY: proposal})

    unknown = bits(replayed([first, trial(1, 1.0)]))
    assert bits(replayed([first, second(fingerprint(policy, other))])) == unknown
    assert bits(replayed([first, second(fingerprint(policy, options))])) != unknown


def test_fingerprints_are_the_same_everywhere() -> None:
    policy = Policy({"x": (1, 2), "y": (1, 2)})
    assert fingerprint(policy, np.array([[0, 1]])) == "dcf88078"
    assert fingerprint(policy, np.array([[1, 1]])) != "dcf88078"


def test_a_trial_that_was_pruned_before_it_had_a_value_narrows_nothing() -> None:
    wide = {"a": IntDistribution(0, 3), "x": SPACE["x"]}
    narrow = {"a": wide["a"]}
    whole = trial(0, 1.0, {"a": 1, "x": 1}, distributions=wide)
    for state, value, names in (
        (TrialState.PRUNED, None, ["a", "x"]),
        (TrialState.PRUNED, 1.0, ["a"]),
        (TrialState.COMPLETE, 1.0, ["a"]),
    ):
        early = trial(1, value, {"a": 2}, state=state, distributions=narrow)
        assert list(replayed([whole, early], None).distributions) == names
        assert list(replayed([early, whole], None).distributions) == names


def test_the_space_is_what_trials_have_in_common() -> None:
    wide = {"a": IntDistribution(0, 3), "b": FloatDistribution(0, 1, step=0.5)}
    trials = [
        trial(0, 1.0, {"a": 1, "b": 0.5, "x": 1}, distributions={**wide, "x": SPACE["x"]}),
        trial(1, 1.0, {"a": 2, "b": 0.0}, distributions=wide),
        trial(2, None, {}, state=TrialState.PRUNED),
        trial(3, 1.0, {"a": 2, "b": 0.0}, distributions={**wide, "b": FloatDistribution(0, 1)}),
    ]
    spaces = [list(replayed(trials[:n], None).distributions) for n in range(5)]
    assert spaces == [[], ["a", "b", "x"], ["a", "b"], ["a", "b"], ["a"]]
