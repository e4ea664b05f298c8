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
