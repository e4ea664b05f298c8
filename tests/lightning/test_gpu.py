"""Searches and trainings on a GPU, each also tiny on the CPU so that the tests do not rot."""

from __future__ import annotations

import copy
from typing import Any

from lightning.pytorch import LightningModule
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.lightning import NISCallback, RankingModule, RetrievalModule
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import (
    RowwiseAdagrad,
    apply_allocation,
    make_searchable,
    swapped_layers,
    warm_start,
)
from optuna_nis.serve import to_dense

SIZE = 60
ACCELERATORS = [
    "cpu",
    pytest.param(
        "gpu",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no GPU."),
        ],
    ),
]


@pytest.fixture(params=ACCELERATORS)
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where to train, and for how long: on the CPU the same, but next to nothing."""
    small = request.param == "cpu"
    return {
        "accelerator": request.param,
        "max_epochs": 1 if small else 3,
        "limit_train_batches": 4 if small else 40,
    }


def _batches(task: str = "ranking") -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, SIZE, (2560,), generator=generator)
    bags = torch.randint(0, SIZE + 1, (2560, 3), generator=generator)
    label = (ids % 2).float() if task == "ranking" else ids % 30
    rows = [{"a": a, "b": b, "label": c} for a, b, c in zip(ids, bags, label)]
    return DataLoader(rows, 64)  # type: ignore[arg-type]


def _space() -> SearchSpace:
    return SearchSpace([EmbeddingSpec("a", SIZE, 8), EmbeddingSpec("b", SIZE, 8)], budget="50%")


@pytest.mark.parametrize(
    ("task", "precision"),
    [("ranking", "32-true"), ("ranking", "bf16-true"), ("retrieval", "bf16-mixed")],
)
def test_search_and_training_of_reference_models(
    settings: dict[str, Any], task: str, precision: str
) -> None:
    def build(tables: Any) -> LightningModule:
        if task == "ranking":
            return RankingModule(tables, bags={"b"}, hidden=(8,))
        return RetrievalModule(tables, bags={"b"}, hidden=(8,), num_classes=30)

    torch.manual_seed(0)
    space = _space()
    supernet = build(space)
    search = NISCallback(space, num_updates=2, group_size=2, score_examples=64)
    trainer = quiet_trainer(
        callbacks=[search], precision=precision, limit_val_batches=2, **settings
    )
    trainer.fit(supernet, _batches(task), _batches(task))
    assert search.candidates
    assert all(choice.num_parameters <= space.budget for choice in search.candidates)
    trained = build(search.candidates[0])
    warm_start(trained, supernet)
    trainer = quiet_trainer(precision=precision, limit_val_batches=2, **settings)
    trainer.fit(trained, _batches(task), _batches(task))
    assert trainer.callback_metrics["val_metric"].isfinite()
    to_dense(trained)
    trainer.validate(trained, _batches(task), verbose=False)


class Net(LightningModule):
    """A model of the users' own, with sparse gradients."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.a = nn.Embedding(SIZE, 8, sparse=sparse)
        self.b = nn.EmbeddingBag(SIZE + 1, 8, mode="mean", padding_idx=SIZE, sparse=sparse)
        self.out = nn.Linear(8, 1)
        self.sparse = sparse

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.out(self.a(batch["a"]) * self.b(batch["b"])).squeeze(1)
        return logits

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self(batch), batch["label"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return RowwiseAdagrad(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("sparse", "precision"), [(False, "bf16-mixed"), (True, "32-true")])
def test_search_and_training_of_a_swapped_model(
    settings: dict[str, Any], sparse: bool, precision: str
) -> None:
    torch.manual_seed(0)
    model = Net(sparse)
    plain = copy.deepcopy(model)
    counts = {"a": torch.arange(SIZE), "b": torch.arange(SIZE + 1)}
    space = make_searchable(model, budget="50%", counts=counts)
    search = NISCallback(space, num_updates=2, group_size=2, score_examples=64)
    trainer = quiet_trainer(
        callbacks=[search], precision=precision, limit_val_batches=2, **settings
    )
    trainer.fit(model, _batches(), _batches())
    sizes = search.candidates[0]
    for sized in (
        apply_allocation(model, sizes),
        apply_allocation(plain, sizes, counts=counts),
    ):
        trainer = quiet_trainer(precision=precision, limit_val_batches=2, **settings)
        trainer.fit(sized, _batches(), _batches())
        assert trainer.callback_metrics["val_loss"].isfinite()
        assert len(swapped_layers(sized)) == 2


def test_weights_are_averaged_while_choices_change(settings: dict[str, Any]) -> None:
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "WeightAveraging"):
        pytest.skip("This Lightning has no WeightAveraging.")
    space = _space()
    search = NISCallback(space, num_updates=2, group_size=2, score_examples=64)
    average = callbacks.WeightAveraging(
        avg_fn=torch.optim.swa_utils.get_ema_avg_fn(0.9), use_buffers=True
    )
    model = RankingModule(space, bags={"b"}, hidden=(8,))
    trainer = quiet_trainer(callbacks=[search, average], limit_val_batches=2, **settings)
    trainer.fit(model, _batches(), _batches())
    assert search.candidates
    # The weights are the average, the choices those that a search ends with.
    averaged = average._average_model.module
    assert torch.equal(model.head.weight.cpu(), averaged.head.weight.cpu())
    for layer in model.embeddings.layers:
        assert layer.num_choices == 1
        assert bool(layer._mask[:, :-1].all())
