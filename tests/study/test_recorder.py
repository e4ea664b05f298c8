from __future__ import annotations

import numpy as np
import optuna

from optuna_nis import EmbeddingSpec, NISSampler, SearchSpace, penalised_reward
from optuna_nis.study.moments import moments_of
from optuna_nis.study.recorder import TrialRecorder


def test_recording_notes_how_the_policy_is_doing() -> None:
    space = SearchSpace([EmbeddingSpec("user", 100, 8)], budget=0.5)
    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=space, seed=0))
    recorder = TrialRecorder(study, space, "s")
    policy = study.sampler.policy(study)
    rng = np.random.default_rng(0)
    for _ in range(9):
        options, log_probs = policy.sample(4, rng)
        params = policy.params(options)
        costs = [space.allocation(choice).num_parameters for choice in params]
        rewards = [penalised_reward(cost / 1e3, cost, space.budget) for cost in costs]
        policy.update(options, [reward.value for reward in rewards], log_probs)
        recorder.record(params, rewards, fidelity="supernet", step=0, log_probs=log_probs.tolist())
        recorder.note(policy)
    assert [moment.num_trials for moment in moments_of(study)] == [16, 32]
    assert [moment.replay_lag for moment in moments_of(study)] == [4, 4]
    np.testing.assert_array_equal(study.sampler.policy(study).logits, policy.logits)
