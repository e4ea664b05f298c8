"""A training on a table in two processes: run by ``test_windows.py``, writes what each has seen.

They are forked when everything is imported; Lightning, which would start the second anew, goes by
their ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
import socket
import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
import torch
from torch import multiprocessing

from optuna_nis import SearchSpace
from optuna_nis.data import TableDataModule, table, windows
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.models import embeddings, reference_model


class Seen(Callback):
    """The rows of each batch."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.rows += batch["row"].tolist()


def main(rank: int, log: Path, max_bytes: int, sparse: bool, port: int) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    windows._BLOCK, windows._WINDOW, table._CACHED = 16, 128, 0
    if sparse:
        embeddings.SPARSE_ABOVE = 3  # type: ignore[misc]
    data = TableDataModule(
        log,
        label="clicked",
        features=["row", "city"],
        cache_dir=log.parent / "cache",
        max_bytes=max_bytes,
        num_workers=0,
        batch_size=32,
    )
    build = reference_model(data.features, hidden=(8,))
    torch.manual_seed(0)
    model = build(SearchSpace(build.specs(4)).full())
    seen = Seen()
    trainer = quiet_trainer(
        max_epochs=2, accelerator="cpu", devices=2, strategy="ddp", callbacks=[seen]
    )
    trainer.fit(model, data)
    weights = hashlib.sha256()
    for tensor in model.state_dict().values():
        weights.update(tensor.numpy().tobytes())
    found = {"rows": seen.rows, "steps": trainer.global_step, "weights": weights.hexdigest()}
    found["loss"] = float(trainer.callback_metrics["val_metric"])
    (log.parent / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path, max_bytes, sparse = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "sparse"
    multiprocessing.start_processes(
        main, (path, max_bytes, sparse, port), nprocs=2, start_method="fork"
    )
