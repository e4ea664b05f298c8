from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from optuna_nis.controller.critic import Critic
from optuna_nis.controller.policy import Policy
from optuna_nis.controller.reward_scale import Observed, RewardScale


def test_critic_solves_the_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    policy = Policy({"x": (0, 1, 2), "y": ("sum", "mean")})
    options = np.stack([rng.integers(0, 3, 300), rng.integers(0, 2, 300)], axis=1)
    rewards = 0.1 * rng.uniform(-1, 1, 300) + options.sum(axis=1)
    for row, reward in zip(options, rewards):
        policy.update(row[None], [reward])
    rows = np.concatenate([np.eye(3)[options[:, 0]], np.eye(2)[options[:, 1]]], axis=1)
    rows = np.concatenate([rows, np.ones((300, 1))], axis=1)
    alike = [[1, 0.9, 0.81], [0.9, 1, 0.9], [0.81, 0.9, 1]]  # numbers, unlike names
    prior = np.diag([2.0] * 5 + [0.01])
    prior[:3, :3] = 2.0 * np.linalg.inv(alike)
    origin = policy._critic._origin
    solved = np.linalg.solve(rows.T @ rows + prior, rows.T @ (rewards - origin))
    np.testing.assert_allclose(policy._critic.weights, solved, atol=1e-8)


def test_what_was_thought_before_is_refined_by_rewards() -> None:
    rng = np.random.default_rng(0)
    policy = Policy({"x": (0, 1, 2), "y": ("sum", "mean", "max")})
    for _ in range(20):
        options = rng.integers(0, 3, (8, 2))
        policy.update(options, 0.1 * rng.uniform(-1, 1, 8) + options.sum(axis=1))
    critic = policy._critic
    thought = np.array([0.0, 3.0, 1.0, 0.0, 1.0, 5.0])
    refined, plain = critic.refined(np.stack([thought, 0 * thought]))
    np.testing.assert_allclose(plain, critic.weights[:-1])
    # As if the critic had learned, from what is missing, what the rest of the rewards is.
    prior = np.linalg.inv([[1, 0.9, 0.81], [0.9, 1, 0.9], [0.81, 0.9, 1]])
    precision = 2.0 * np.block([[prior, np.zeros((3, 3))], [np.zeros((3, 3)), np.eye(3)]])
    learned = np.linalg.inv(critic._covariance.full())[:-1, :-1]
    squares, products = learned - precision, learned @ critic.weights[:-1]
    factor = (thought @ products) / (thought @ squares @ thought)
    assert factor > 0
    rest = np.linalg.solve(learned, products - squares @ (factor * thought))
    np.testing.assert_allclose(refined, factor * thought + rest, atol=1e-8)


def test_what_was_thought_is_of_no_weight_if_rewards_say_the_opposite() -> None:
    rng = np.random.default_rng(0)
    policy = Policy({"x": (0, 1, 2)})
    for _ in range(20):
        options = rng.integers(0, 3, (8, 1))
        policy.update(options, options[:, 0] + 0.1 * rng.uniform(-1, 1, 8))
    (refined,) = policy.worth([{"x": np.array([2.0, 1.0, 0.0])}])
    np.testing.assert_allclose(refined["x"], policy._critic.weights[:-1])


def test_without_rewards_what_was_thought_stays_unweighted() -> None:
    policy = Policy({"x": (0, 1, 2)})
    (refined,) = policy.worth([{"x": np.array([2.0, 1.0, 0.0])}])
    assert not refined["x"].any()


def test_of_many_options_no_covariance_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def learned() -> Critic:
        rng = np.random.default_rng(0)
        policy = Policy({f"p{i}": (0, 1, 2, 4) for i in range(30)})
        for size in [1] * 40 + [8] * 10:
            options = rng.integers(0, 4, (size, 30))
            policy.update(options, options.sum(axis=1) + rng.uniform(-1, 1, size))
        return policy._critic

    dense = learned()
    monkeypatch.setattr("optuna_nis.controller.critic._MOST_DENSE", 119)
    sparse = learned()
    assert sparse.num_copied < dense.num_copied / 5
    np.testing.assert_allclose(sparse.weights, dense.weights, atol=1e-8)
    np.testing.assert_allclose(sparse.standard_errors(), dense.standard_errors(), atol=1e-8)
    priors = np.random.default_rng(1).normal(size=(2, 120))
    priors[0] += dense.weights[:-1]
    np.testing.assert_allclose(sparse.refined(priors), dense.refined(priors), atol=1e-6)


class Plain:
    """The critic of options that have weights of their own, as plainly as can be.

    It does the same operations in the same order.
    """

    def __init__(self, priors: list[np.ndarray]) -> None:
        self.starts = np.cumsum([0, *map(len, priors)])[:-1]
        size = sum(map(len, priors)) + 1
        self.covariance = np.zeros((size, size))
        for start, prior in zip(self.starts, priors):
            self.covariance[start : start + len(prior), start : start + len(prior)] = prior / 2.0
        self.covariance[-1, -1] = 100.0
        self.variances = self.covariance.diagonal().copy()
        self.weights = np.zeros(size)
        self.gains: list[np.ndarray] = []
        self.early: list[tuple[np.ndarray, float]] = []

    def times(self, vector: np.ndarray) -> np.ndarray:
        used = vector.nonzero()[0]
        product = np.zeros(len(vector))
        product += np.einsum("i,ij->j", vector[used], self.covariance[used])
        gains = np.array(self.gains).reshape(-1, len(vector))
        product -= np.einsum("k,ki->i", np.einsum("ki,i->k", gains, vector), gains)
        return product

    def learn(self, options: np.ndarray, seen: Observed) -> None:
        rows = np.zeros((len(options), len(self.weights)))
        for row, own in zip(rows, self.starts + options):
            row[own] = 1.0
        targets = np.minimum(
            np.maximum(seen.rewards, seen.center - seen.radius), seen.center + seen.radius
        )
        is_early = len(self.early) < 32
        if len(options) > 1:
            rows -= rows.mean(axis=0)
            targets -= targets.mean()
        else:
            rows[:, -1] = 1.0
            self.origin = seen.center if is_early else self.origin
            targets -= self.origin
        for row, target in zip(rows, targets):
            gain = self.times(row)
            root = math.sqrt(1.0 + float((row * gain).sum()))
            error = target - float((row * self.weights).sum())
            gain /= root
            self.weights += gain * (error / root)
            self.variances -= gain**2
            self.gains.append(gain)
            if len(self.gains) == 16:
                gains = np.array(self.gains)
                self.covariance -= np.einsum("ki,kj->ij", gains, gains)
                self.gains = []
        if is_early:
            self.early += zip(rows, seen.rewards.tolist())
            moment = np.zeros(len(self.weights))
            for row, reward in self.early:
                reward -= self.origin if row[-1] else 0.0
                moment += row * min(max(reward, -seen.radius), seen.radius)
            self.weights = self.times(moment)


@pytest.mark.parametrize("size", [1, 8])
def test_options_with_weights_of_their_own_are_learned_alike_to_the_bit(size: int) -> None:
    choices = [tuple(range(9)), ("a", "b"), ("8x4bit", "auto"), (0.5, 1.5)]
    critic = Critic(choices, 2.0)
    alike = [0.9 ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))) for n in (9, 2)]
    plain = Plain([alike[0], np.eye(2), np.eye(2), alike[1]])
    scale, rng = RewardScale(), np.random.default_rng(0)
    for _ in range(60):
        options = rng.integers(0, [len(own) for own in choices], (size, 4))
        observed = scale.observe(options.sum(axis=1) + rng.standard_cauchy(size))
        assert observed is not None
        critic.learn(options, observed)
        plain.learn(options, observed)
        np.testing.assert_array_equal(critic.weights, plain.weights)
        np.testing.assert_array_equal(critic._variances, plain.variances)


WIDTHS, BITS = (1, 2, 4, 6, 8), (2, 4, 8)
SIZES = ("0", *(f"{width}x{bits}bit" for width in WIDTHS for bits in BITS))
CHOICES = {"x": SIZES, "y": (0, 1, 2), "z": ("sum", "mean"), "w": SIZES}
STARTS = np.cumsum([0, *map(len, CHOICES.values())])[:-1]


def kernel() -> np.ndarray:
    """How alike the values of options are beforehand, and at last the intercept."""
    places = [(0, 0), *((i + 1, j + 1) for i in range(5) for j in range(3))]
    widths, bits = (np.subtract.outer(own, own) for own in np.array(places).T)
    sizes = 0.5 * 0.9 ** np.abs(widths) + 0.5 * 0.9 ** np.abs(bits)
    numbers = np.array([[1, 0.9, 0.81], [0.9, 1, 0.9], [0.81, 0.9, 1]])
    whole = np.zeros((STARTS[-1] + 17,) * 2)
    for start, block in zip(STARTS, [sizes, numbers, np.eye(2), sizes]):
        whole[start : start + len(block), start : start + len(block)] = block / 2.0
    whole[-1, -1] = 100.0
    return whole


def taught(groups: int, size: int) -> tuple[Policy, np.ndarray, np.ndarray]:
    """A policy, which options its trials took, and their rewards, less the mean of each group."""
    rng = np.random.default_rng(0)
    policy = Policy(CHOICES)
    rows = np.zeros((groups, size, STARTS[-1] + 17))
    rewards = np.zeros((groups, size))
    for own, reward in zip(rows, rewards):
        options = rng.integers(0, policy._num_options, (size, 4))
        # Additive in widths and bits, but for the last part.
        x, y, _, w = options.T
        reward += 0.1 * rng.uniform(-1, 1, size) + np.sqrt(x) + y - 0.3 * ((w + 2) % 3)
        reward += 0.1 * (x % 4 == 0)
        policy.update(options, reward)
        own[np.arange(size)[:, None], STARTS + options] = 1.0
    if size == 1:
        rows[:, :, -1] = 1.0
        rewards -= policy._critic._origin
    else:
        rows -= rows.mean(axis=1, keepdims=True)
        rewards -= rewards.mean(axis=1, keepdims=True)
    return policy, rows.reshape(groups * size, -1), rewards.ravel()


# Fewer trials than weights, and many more.
some_or_many = pytest.mark.parametrize(("groups", "size"), [(3, 8), (20, 8), (150, 1)])


@some_or_many
def test_sizes_are_a_regression_on_widths_and_bits(groups: int, size: int) -> None:
    policy, rows, targets = taught(groups, size)
    across = kernel() @ rows.T
    within = rows @ across + np.eye(len(rows))
    critic = policy._critic
    solved = across @ np.linalg.solve(within, targets)
    np.testing.assert_allclose(critic.weights, solved, atol=1e-8)
    variances = (kernel() - across @ np.linalg.solve(within, across.T)).diagonal()[:-1]
    noise = math.sqrt(critic._squares / critic._count)
    np.testing.assert_allclose(critic.standard_errors(), noise * np.sqrt(variances), atol=1e-8)


@some_or_many
@pytest.mark.parametrize("additive", [True, False])
def test_what_was_thought_of_sizes_is_refined_by_rewards(
    groups: int, size: int, additive: bool
) -> None:
    policy, rows, targets = taught(groups, size)
    width, bits = np.divmod(np.maximum(np.arange(16) - 1, 0), 3)
    sizes = width + 0.5 * bits if additive else width * bits + np.sin(np.arange(16.0))
    thought = {"x": sizes, "w": sizes, "y": np.array([0.0, 1.0, 3.0])}
    flat = np.concatenate([sizes, [0.0, 1.0, 3.0], [0.0, 0.0], sizes, [0.0]])
    told = rows @ flat
    factor = told @ targets / (told @ told)
    assert factor > 0
    # Beside the thought, a sum of weights is learned from what it leaves of the rewards.
    across = kernel() @ rows.T
    rest = np.linalg.solve(rows @ across + np.eye(len(rows)), targets - factor * told)
    refined, plain = policy.worth([thought, {}])
    expected = factor * flat + across @ rest
    np.testing.assert_allclose(np.concatenate(list(refined.values())), expected[:-1], atol=1e-8)
    np.testing.assert_allclose(np.concatenate(list(plain.values())), policy._critic.weights[:-1])


def test_what_was_thought_of_sizes_is_of_no_weight_if_rewards_say_the_opposite() -> None:
    policy, _, _ = taught(10, 8)
    (refined,) = policy.worth([{"x": -np.arange(16.0)}])
    np.testing.assert_allclose(np.concatenate(list(refined.values())), policy._critic.weights[:-1])


def test_pairs_of_width_and_bits_never_seen_are_known_from_others() -> None:
    policy = Policy({"x": SIZES})
    worth = np.array([0.0, *(width / 2 - 3 / bits for width in WIDTHS for bits in BITS)])
    seen = [i for i, size in enumerate(SIZES) if size.startswith("4x") or size.endswith("x4bit")]
    rng = np.random.default_rng(0)
    for _ in range(200):
        options = rng.choice(seen, 8)
        policy.update(options[:, None], worth[options] + 0.05 * rng.uniform(-1, 1, 8))
    found, expected = policy._critic.weights[1:-1], worth[1:]
    np.testing.assert_allclose(found - found.mean(), expected - expected.mean(), atol=0.15)


@given(
    groups=st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=30, deadline=None)
def test_what_is_seen_is_never_less_certain(groups: list[list[float]], seed: int) -> None:
    critic, scale = Critic(list(CHOICES.values()), 2.0), RewardScale()
    rng = np.random.default_rng(seed)
    before = critic._variances
    for rewards in groups:
        observed = scale.observe(np.array(rewards))
        assert observed is not None
        options = rng.integers(0, [len(own) for own in CHOICES.values()], (len(rewards), 4))
        critic.learn(options, observed)
        assert np.isfinite(critic.standard_errors()).all()
        assert (critic._variances <= before).all()
        assert (critic._variances > 0).all()
        before = critic._variances.copy()
