from __future__ import annotations

import numpy as np

from optuna_nis.controller.policy import Policy


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
    covariance = (
        critic._covariance
        - critic._gains[: critic._pending].T @ (critic._gains[: critic._pending])
    )
    learned = np.linalg.inv(covariance)[:-1, :-1]
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
