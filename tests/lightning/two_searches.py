"""Two searches of one study, each in a process of its own: run by ``test_two_searches.py``.

For each storage the two go on by turns, so that neither ends before the other begins. Written is
every policy that the search took from the study, and the trials that it is made of.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
import sys
import time
from typing import Any

from lightning.pytorch import Callback, Trainer
import optuna
from optuna import Study
import torch
from torch import multiprocessing

from optuna_nis.controller.policy import Policy
from optuna_nis.lightning import DataConfig, NISCallback, SearchPlan, search
from optuna_nis.strategy.journal import Journal
from optuna_nis.study.results import SUPERNET
from optuna_nis.study.searches import num_scored, searches_of
from optuna_nis.study.storages import open_storage

NUM_UPDATES, GROUP_SIZE = 6, 8
_SECONDS = 60.0


def digest(policy: Policy) -> str:
    """A fingerprint of a policy, to the bit."""
    return hashlib.sha256(policy.logits.tobytes() + policy._critic.weights.tobytes()).hexdigest()


class ByTurns(Callback):
    """Waits for the other search until it has scored about as much."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.waited_for = -1

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        (callback,) = (c for c in trainer.callbacks if isinstance(c, NISCallback))
        if callback.search.updates_done == self.waited_for:
            return
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            others = set(searches_of(self.study)) - {callback.search.id}
            done = [num_scored(self.study, other, SUPERNET) // GROUP_SIZE for other in others]
            if done and done[0] + 1 >= callback.search.updates_done:
                self.waited_for = callback.search.updates_done
                return
            time.sleep(0.05)
        raise TimeoutError("The other search does not go on.")


def search_half(shard: int, table: str, output: Path, addresses: list[str]) -> None:
    """One of the two searches, of each study in turn."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    taken: list[dict[str, Any]] = []
    replayed = Journal.policy

    def noted(self: Journal) -> Policy:
        policy = replayed(self)
        replay = self._sampler._follow(self._study).replay
        taken.append({"trials": replay.trial_numbers, "policy": digest(policy)})
        return policy

    Journal.policy = noted  # type: ignore[method-assign]
    data = DataConfig(
        table=table, label="clicked", features=("user", "city"), bags={"genres": "|"}
    )
    report = []
    for address in addresses:
        study = optuna.create_study(
            storage=open_storage(address),
            study_name="two",
            direction="maximize",
            load_if_exists=True,
        )
        taken.clear()
        best = search(
            study,
            data,
            budget=0.5,
            embedding_dim=8,
            epochs=2,
            # They take turns while their supernets are trained.
            plan=SearchPlan(warmup=0.7, shortlist_epochs=(1, 2)),
            num_updates=NUM_UPDATES,
            callbacks=[ByTurns(study)],
            checkpoint_dir=output / f"checkpoints-{len(report)}",
            shard=(shard, 2),
        )
        report.append({"best": best.to_json(), "taken": list(taken)})
    (output / f"{shard}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    # What takes longest, the imports, once for both.
    multiprocessing.start_processes(
        search_half,
        (sys.argv[1], Path(sys.argv[2]), sys.argv[3:]),
        nprocs=2,
        start_method="fork",
    )
