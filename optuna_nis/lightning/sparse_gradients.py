"""Gradients of processes that train together on CPUs."""

from __future__ import annotations

from weakref import WeakSet

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.parallel import DistributedDataParallel

_with_hook: WeakSet[DistributedDataParallel] = WeakSet()


class SparseGradients(Callback):
    """Takes the mean of sparse gradients by a communication hook; see :func:`reduce_sparse`."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the hook."""
        reduce_sparse(trainer)


def reduce_sparse(trainer: Trainer) -> None:
    """Let a trainer take the mean of sparse gradients by a communication hook, on CPUs.

    Why :func:`~optuna_nis.nn.data_parallel.sparse_allreduce_hook` says. Nothing is done where one
    process trains, on other devices than CPUs, where Lightning registers hooks, and a second time.

    Args:
        trainer: At the start of a training, when its model is spread.
    """
    model = trainer.strategy.model
    if not isinstance(model, DistributedDataParallel) or model in _with_hook:
        return
    if trainer.strategy.root_device.type != "cpu":
        return
    from optuna_nis.nn.data_parallel import sparse_allreduce_hook

    model.register_comm_hook(None, sparse_allreduce_hook)
    _with_hook.add(model)
