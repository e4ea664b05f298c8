"""The mean of sparse gradients of several processes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import LightningModule
import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from optuna_nis.lightning.sparse_gradients import SparseGradients, reduce_sparse
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn.data_parallel import sparse_allreduce_hook


@pytest.fixture
def group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Spread(DistributedDataParallel):
    """Notes the hooks that are registered."""

    def __init__(self) -> None:
        super().__init__(nn.Embedding(9, 4, sparse=True))
        self.hooks: list[object] = []

    def register_comm_hook(self, state: object, hook: Any) -> None:
        self.hooks.append(hook)
        super().register_comm_hook(state, hook)


def trainer_of(model: object, device: str = "cpu") -> Any:
    strategy = SimpleNamespace(model=model, root_device=torch.device(device))
    return SimpleNamespace(strategy=strategy)


@pytest.mark.usefixtures("group")
def test_models_on_cpus_get_the_hook_once() -> None:
    model = Spread()
    for _ in range(2):
        reduce_sparse(trainer_of(model))
    assert model.hooks == [sparse_allreduce_hook]
    model(torch.tensor([1, 5])).sum().backward()
    gradient = model.module.weight.grad
    assert gradient.is_sparse
    assert gradient.coalesce().indices().tolist() == [[1, 5]]


@pytest.mark.usefixtures("group")
def test_other_models_do_not() -> None:
    on_gpus = Spread()
    reduce_sparse(trainer_of(on_gpus, "cuda"))
    assert not on_gpus.hooks
    reduce_sparse(trainer_of(LightningModule()))


@pytest.mark.parametrize("devices", [1, 2])
def test_trainers_of_several_processes_do_so(devices: int) -> None:
    trainer = quiet_trainer(accelerator="cpu", devices=devices)
    found = [each for each in trainer.callbacks if isinstance(each, SparseGradients)]
    assert len(found) == (devices == 2)
