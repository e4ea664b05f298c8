from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from optuna_nis.controller.policy import Policy
from optuna_nis.controller.settings import PolicySettings
from optuna_nis.space.constraint import AdditiveBudget
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec

CHOICES = {"x": ("a", "b", "c"), "y": (1, 2), "z": (0.0, 0.5, 1.0, 1.5)}
SPACE = SearchSpace(
    [EmbeddingSpec("user", 1000, 16), EmbeddingSpec("city", 40, 16), EmbeddingSpec("day", 7, 4)],
    budget=0.2,
)


def state(policy: Policy) -> list[np.ndarray]:
    return [policy._logits, *policy._critic.arrays()]


def assert_same(a: Policy, b: Policy) -> None:
    for left, right in zip(state(a), state(b)):
        np.testing.assert_array_equal(left, right)


def taught(policy: Policy, groups: int, size: int, seed: int = 0) -> Policy:
    rng = np.random.default_rng(seed)
    for _ in range(groups):
        options, log_probs = policy.sample(size, rng)
        policy.update(options, options.sum(axis=1) + rng.normal(size=size), log_probs)
    return policy


def test_draw_order_is_that_of_the_constraint_then_the_others() -> None:
    policy = Policy({"other": (1, 2), "city": SPACE.choices["city"]}, SPACE)
    assert list(policy.choices) == [*SPACE.choices, "other"]


def test_untrained_policy_is_uniform_without_a_constraint() -> None:
    policy = Policy(CHOICES)
    for name, probabilities in policy.probabilities().items():
        np.testing.assert_allclose(probabilities, 1 / len(CHOICES[name]))
    assert policy.entropy() == pytest.approx(np.log(3 * 2 * 4))


def test_untrained_policy_starts_from_the_weights_of_the_constraint() -> None:
    budget = AdditiveBudget(10.0, {"x": {0: 0.0, 1: 10.0}, "y": {0: 0.0, 1: 10.0}})
    policy = Policy(constraint=budget)
    weights = budget.initial_log_weights()["x"]
    expected = np.exp(weights) / np.exp(weights).sum()
    np.testing.assert_allclose(policy.probabilities()["x"], expected)


def test_params_and_options_are_inverse() -> None:
    policy = Policy(CHOICES)
    options, _ = policy.sample(20, np.random.default_rng(0))
    np.testing.assert_array_equal(policy.options(policy.params(options)), options)


def test_params_are_the_choices_themselves() -> None:
    (params,) = Policy(CHOICES).params([[2, 0, 3]])
    assert params == {"x": "c", "y": 1, "z": 1.5}
    assert type(params["y"]) is int


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"x": "a", "y": 1}, r"`params\[0\]` must hold a choice for 'z'"),
        ({"x": "a", "y": 3, "z": 0.0}, r"`params\[0\]\['y'\]` must be one of \[1, 2\], got 3"),
    ],
)
def test_options_refuses_unknown_choices(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(CHOICES).options([params])


@pytest.mark.parametrize("policy", [Policy(CHOICES), Policy({"extra": (1, 2)}, SPACE)])
def test_log_prob_is_that_of_the_draw(policy: Policy) -> None:
    policy = taught(policy.copy(), 5, 4)
    options, log_probs = policy.sample(50, np.random.default_rng(1))
    np.testing.assert_array_equal(policy.log_prob(options), log_probs)


def test_log_probs_sum_to_one_over_all_feasible_choices() -> None:
    budget = AdditiveBudget(3, {"x": {0: 0, 1: 1, 2: 2}, "y": {0: 0, 1: 2}, "z": {0: 0, 1: 1}})
    policy = taught(Policy(constraint=budget), 5, 4)
    every = np.array(list(np.ndindex(3, 2, 2)))
    log_probs = policy.log_prob(every)
    assert np.exp(log_probs).sum() == pytest.approx(1)
    costs = every @ [1, 2, 1]
    np.testing.assert_array_equal(np.isfinite(log_probs), costs <= 3)
    np.testing.assert_array_equal(policy.feasible(every), costs <= 3)


def test_draws_follow_the_probabilities() -> None:
    policy = taught(Policy(CHOICES), 3, 8)
    options, _ = policy.sample(20_000, np.random.default_rng(3))
    for column, probabilities in enumerate(policy.probabilities().values()):
        seen = np.bincount(options[:, column], minlength=len(probabilities)) / len(options)
        np.testing.assert_allclose(seen, probabilities, atol=0.015)


def test_probabilities_with_a_constraint_are_those_of_the_draws() -> None:
    policy = taught(Policy(constraint=SPACE), 5, 8)
    options, _ = policy.sample(20_000, np.random.default_rng(3))
    for column, probabilities in enumerate(policy.probabilities().values()):
        seen = np.bincount(options[:, column], minlength=len(probabilities)) / len(options)
        np.testing.assert_allclose(seen, probabilities, atol=0.05)
        assert probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize("constraint", [None, SPACE])
def test_summaries_are_those_of_each_moment(constraint: SearchSpace | None) -> None:
    policy = Policy({"extra": (1, 2, 3)}, constraint)
    logits, probabilities, entropies = [], [], []
    for seed in range(3):
        logits.append(policy.logits)
        probabilities.append(policy.probabilities())
        entropies.append(policy.entropy())
        taught(policy, 4, 4, seed)
    together, entropy = policy.summaries(logits)
    np.testing.assert_array_equal(entropy, entropies)
    assert len(set(entropies)) == 3
    for name, array in together.items():
        np.testing.assert_array_equal(array, [p[name] for p in probabilities])


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 5), groups=st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_no_draw_exceeds_the_budget(seed: int, n: int, groups: int) -> None:
    policy = taught(Policy(constraint=SPACE), groups, 3, seed)
    options, log_probs = policy.sample(n, np.random.default_rng(seed))
    assert np.isfinite(log_probs).all()
    for params in policy.params(np.concatenate([options, policy.mode()])):
        assert SPACE.allocation(params).num_parameters <= SPACE.budget


def test_fixed_choices_are_kept_and_leave_the_rest_within_the_budget() -> None:
    policy = Policy({"extra": (1, 2, 3)}, SPACE)
    fixed = {"user[0:50]": 16, "extra": 2, "unknown": 7}
    options, log_probs = policy.sample(200, np.random.default_rng(0), fixed=fixed)
    kept = np.isfinite(log_probs)
    assert kept.any()
    for params, keeps in zip(policy.params(options), kept):
        assert SPACE.allocation(params).num_parameters <= SPACE.budget
        assert (params["user[0:50]"] == 16 and params["extra"] == 2) == keeps


def test_a_choice_unknown_to_the_policy_cannot_be_kept() -> None:
    options, log_probs = Policy(CHOICES).sample(4, np.random.default_rng(0), fixed={"y": 9})
    assert options.shape == (4, 3)
    assert np.isneginf(log_probs).all()


def test_mode_is_the_best_after_learning() -> None:
    policy = taught(Policy(CHOICES), 40, 8)
    assert policy.mode().tolist() == [[2, 1, 3]]


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-4, 0.75), (1e6, -1e7)])
def test_learns_whatever_the_scale_of_the_rewards(size: int, scale: float, shift: float) -> None:
    policy = Policy({name: tuple(range(5)) for name in "abcd"})
    rng = np.random.default_rng(0)
    for _ in range(160 // size):
        options, log_probs = policy.sample(size, rng)
        rewards = shift + scale * (options.sum(axis=1) + 0.3 * rng.normal(size=size))
        policy.update(options, rewards, log_probs)
    assert policy.mode().sum() >= 15


def test_the_shared_part_of_a_group_does_not_matter() -> None:
    policies = [Policy(CHOICES), Policy(CHOICES)]
    rng = np.random.default_rng(0)
    for _ in range(5):
        options, log_probs = policies[0].sample(4, rng)
        rewards = rng.integers(0, 8, size=4).astype(float)
        policies[0].update(options, rewards, log_probs)
        policies[1].update(options, rewards + 1024.0 * rng.integers(-5, 5), log_probs)
    np.testing.assert_allclose(policies[0]._logits, policies[1]._logits)


def test_equal_rewards_teach_nothing_but_that_options_were_seen() -> None:
    policy = Policy(CHOICES)
    for _ in range(10):
        options, log_probs = policy.sample(1, np.random.default_rng(0))
        policy.update(options, [0.5], log_probs)
    for probabilities in policy.probabilities().values():
        np.testing.assert_allclose(probabilities, 1 / len(probabilities))


def test_an_option_never_seen_keeps_the_average_advantage() -> None:
    policy = Policy({"x": tuple(range(4))}, settings=PolicySettings(optimism=0))
    for option in (0, 1, 0, 1, 0, 1):
        policy.update([[option]], [float(option)])
    bad, good, unseen, _ = policy.probabilities()["x"]
    assert bad < unseen < good


def test_optimism_favours_what_was_seen_seldom() -> None:
    policies = [Policy({"x": (0, 1)}, settings=PolicySettings(optimism=o)) for o in (0.0, 1.0)]
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=24)
    for policy in policies:
        for index, reward in enumerate(rewards):
            policy.update([[int(index % 8 == 0)]], [reward])
    assert policies[1].probabilities()["x"][1] > policies[0].probabilities()["x"][1]


@pytest.mark.parametrize("early", [True, False])
def test_an_outlier_does_not_drown_the_others(early: bool) -> None:
    policy = Policy({name: tuple(range(4)) for name in "abc"})
    rng = np.random.default_rng(0)
    for trial in range(120):
        options, log_probs = policy.sample(1, rng)
        outlier = trial == (0 if early else 60)
        reward = -1e9 if outlier else float(options.sum())
        policy.update(options, [reward], log_probs)
    assert policy.mode().sum() >= 8


def test_infinite_rewards_count_as_the_worst_and_best_finite_ones() -> None:
    finite, infinite = Policy(CHOICES), Policy(CHOICES)
    options, log_probs = finite.sample(6, np.random.default_rng(0))
    finite.update(options, [0.0, 1.0, 2.0, 2.0, 0.0, 1.0], log_probs)
    infinite.update(options, [0.0, 1.0, 2.0, np.inf, -np.inf, 1.0], log_probs)
    assert_same(finite, infinite)


def test_infinite_rewards_alone_teach_nothing() -> None:
    policy = Policy(CHOICES)
    policy.update([[0, 0, 0]], [np.inf])
    policy.update([[0, 0, 0], [1, 0, 0]], [np.inf, -np.inf])
    assert_same(policy, Policy(CHOICES))


rewards_strategy = st.one_of(
    st.floats(allow_nan=False, allow_infinity=True),
    st.floats(-1, 1),
    st.just(0.0),
)


@given(
    groups=st.lists(st.lists(rewards_strategy, min_size=1, max_size=4), max_size=60),
    log_prob=st.floats(max_value=0) | st.just(float("nan")),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_always_finite(groups: list[list[float]], log_prob: float, seed: int) -> None:
    policy = Policy({"extra": (1, 2)}, SPACE)
    rng = np.random.default_rng(seed)
    for rewards in groups:
        options, _ = policy.sample(len(rewards), rng)
        policy.update(options, rewards, np.full(len(rewards), log_prob))
    for array in state(policy):
        assert np.isfinite(array).all()
    assert np.isfinite(policy.entropy())
    assert policy.feasible(policy.mode()).all()


def test_trials_drawn_off_policy_weigh_at_most_the_bound() -> None:
    def moved(log_probs: list[float] | None) -> float:
        policy = Policy(
            {"x": (0, 1, 2)},
            settings=PolicySettings(learning_rate=0, optimism=0, max_importance=2),
        )
        policy.update([[0], [1]], [1.0, -1.0], [-1.0986, -1.0986])
        before = policy._logits.copy()
        policy.update([[0], [1]], [1.0, -1.0], log_probs)
        return float(np.abs(policy._logits - before).max())

    on_policy = moved(None)
    assert 0 < moved([-0.01, -0.01]) < on_policy < moved([-2.0, -2.0])
    assert moved([-10.0, -10.0]) == pytest.approx(moved([-50.0, -50.0]))


def test_a_foreign_trial_weighs_at_most_one() -> None:
    policy = taught(Policy({"x": (0, 1, 2)}), 30, 8)
    drawn, foreign = policy.copy(), policy.copy()
    drawn.update([[2]], [50.0], policy.log_prob([[2]]))
    foreign.update([[2]], [50.0])
    np.testing.assert_array_equal(drawn._logits, foreign._logits)
    drawn.update([[0]], [50.0], policy.log_prob([[0]]))
    foreign.update([[0]], [50.0], [np.nan])
    assert (drawn._logits != foreign._logits).any()


def test_copies_learn_on_their_own() -> None:
    policy = taught(Policy(CHOICES), 3, 4)
    frozen = policy.copy()
    twin = policy.copy()
    before = [array.copy() for array in state(policy)]
    taught(twin, 20, 1)
    for array, old in zip(state(policy), before):
        np.testing.assert_array_equal(array, old)
    taught(frozen, 20, 1)
    assert_same(frozen, twin)


def test_masks_may_be_handed_in() -> None:
    a, b = Policy(constraint=SPACE), Policy(constraint=SPACE)
    options, log_probs = a.sample(4, np.random.default_rng(0))
    a.update(options, [1, 2, 3, 4], log_probs)
    b.update(options, [1, 2, 3, 4], log_probs, b.masks(options))
    assert_same(a, b)


@pytest.mark.parametrize(
    ("options", "rewards", "log_probs", "message"),
    [
        ([[0, 0, 0]], [1.0, 2.0], None, "`rewards` must have one number"),
        ([[0, 0, 0]], [1.0], [0.0, 0.0], "`log_probs` must have one number"),
        ([[0, 0, 0]], [np.nan], None, "`rewards` must not be NaN"),
        ([[0, 0]], [1.0], None, r"`options` must have shape \(n, 3\)"),
        ([[0, 0, 0.5]], [1.0], None, "`options` must be integers"),
        ([[0, 2, 0]], [1.0], None, "`options` must be indices of choices"),
        ([[0, -1, 0]], [1.0], None, "`options` must be indices of choices"),
    ],
)
def test_update_refuses(
    options: list[list[int]], rewards: list[float], log_probs: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(CHOICES).update(options, rewards, log_probs)


def test_under_a_smaller_budget_the_best_per_cost_stays() -> None:
    costs = {name: {0: 0, 1: 1, 2: 2} for name in "xyz"}
    policy = Policy(constraint=AdditiveBudget(6, costs))
    worth = np.array([1.0, 0.5, 0.1])
    rng = np.random.default_rng(0)
    for _ in range(40):
        options, log_probs = policy.sample(8, rng)
        policy.update(options, options @ worth, log_probs)
    before = policy.probabilities()
    assert policy.mode().tolist() == [[2, 2, 2]]
    assert policy.under(AdditiveBudget(2, costs)).mode().tolist() == [[2, 0, 0]]
    same = policy.under(AdditiveBudget(6, costs)).probabilities()
    for name, probabilities in before.items():
        np.testing.assert_allclose(policy.probabilities()[name], probabilities)
        np.testing.assert_allclose(same[name], probabilities, atol=1e-9)
    with pytest.raises(ValueError, match="`constraint` must be over the parameters"):
        policy.under(AdditiveBudget(2, {"x": costs["x"]}))


def test_under_a_smaller_budget_it_keeps_what_rewards_do_not_speak_against() -> None:
    costs = {name: {0: 0, 1: 1, 2: 2} for name in "xyz"}
    policy = Policy(constraint=AdditiveBudget(6, costs))
    rng = np.random.default_rng(0)
    for _ in range(40):
        options, log_probs = policy.sample(8, rng)
        policy.update(options, options @ np.array([1.0, 0.5, 0.1]), log_probs)
    small = policy.under(AdditiveBudget(2, costs))
    before = small.probabilities()
    options, log_probs = small.sample(8, rng)
    small.update(options, np.zeros(8), log_probs)
    for name, probabilities in small.probabilities().items():
        np.testing.assert_allclose(before[name], probabilities, atol=1e-9)


def test_update_refuses_what_breaks_the_constraint() -> None:
    policy = Policy(constraint=AdditiveBudget(1, {"x": {0: 0, 1: 1}, "y": {0: 0, 1: 1}}))
    with pytest.raises(ValueError, match="`options` must keep to the constraint"):
        policy.update([[1, 1]], [1.0])


@pytest.mark.parametrize(
    ("choices", "constraint", "message"),
    [
        ({}, None, "`choices` must name at least one parameter"),
        (None, None, "`choices` must name at least one parameter"),
        ({"x": ()}, None, r"`choices\['x'\]` must hold at least one option"),
        ({"city": (1, 2)}, SPACE, r"`choices\['city'\]` must be those of the constraint"),
    ],
)
def test_constructor_refuses(choices: object, constraint: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(choices, constraint)  # type: ignore[arg-type]


def test_no_trials_teach_nothing() -> None:
    policy = taught(Policy(CHOICES), 2, 3)
    before = policy.copy()
    policy.update(np.empty((0, 3), dtype=np.int64), [])
    assert_same(policy, before)
