"""Modules and trainers of both packages that Lightning comes in."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from probing import IDS, LABEL, Small, loader
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import BinaryAUROC

from optuna_nis.lightning import NISCallback, SearchPlan, search_sizes
from optuna_nis.lightning._package import is_overridden, lightning_of
from optuna_nis.nn import make_searchable, set_choices

pl = pytest.importorskip("pytorch_lightning")


class Foreign(pl.LightningModule):  # type: ignore[misc,name-defined]
    """As `Small`, of the other package; what it validates with is made in a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.out, self.auroc = nn.Embedding(60, 8), nn.Linear(8, 1), BinaryAUROC()

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.out(self.user(ids)).squeeze(1)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    def on_validation_epoch_start(self) -> None:
        self.numbers = self(torch.arange(60))

    def validation_step(self, batch: Any, _: int) -> dict[str, Tensor]:
        logits = self.numbers[batch[0]]
        self.log("val_loss", functional.binary_cross_entropy_with_logits(logits, batch[1]))
        self.auroc.update(logits, batch[1])
        return {"preds": logits, "target": batch[1]}

    def on_validation_epoch_end(self) -> None:
        self.log("val_auroc", self.auroc.compute())
        self.auroc.reset()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def _trainer(**options: Any) -> Any:
    return pl.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"monitor": "val_auroc", "mode": "max"}, {"metric": BinaryAUROC()}],
)
def test_a_search_with_the_other_package(options: dict[str, Any]) -> None:
    model = Foreign()
    space = make_searchable(model, budget="50%")
    search = NISCallback(space, num_updates=3, group_size=3, warmup=0.7, **options)
    _trainer(max_epochs=2, callbacks=[search]).fit(model, loader(), loader())
    scored = [t for t in search.study.trials if t.user_attrs["fidelity"] == "validated"]
    assert len(search.study.trials) == 9 + len(scored)
    assert search.candidates
    model.eval()
    for trial in scored:
        set_choices(model, space, [space.allocation(trial.params)])
        with torch.no_grad():
            if options:
                true = float(BinaryAUROC()(model(IDS), LABEL.int()))
            else:
                true = -float(functional.binary_cross_entropy_with_logits(model(IDS), LABEL))
        assert trial.user_attrs["quality"] == pytest.approx(true, abs=1e-5)


class _ForeignData(pl.LightningDataModule):  # type: ignore[misc,name-defined]
    def train_dataloader(self) -> Any:
        return loader(20)

    def val_dataloader(self) -> Any:
        return loader(30)


def test_a_whole_search_with_module_and_data_of_the_other_package() -> None:
    options: dict[str, Any] = {"monitor": "val_auroc", "monitor_mode": "max"}
    plan = SearchPlan(epochs=2, num_updates=2, group_size=2)
    found = search_sizes(Foreign, _ForeignData(), "50%", plan=plan, **options)
    assert isinstance(found.build(), Foreign)
    assert found.allocation.num_parameters <= found.space.budget
    assert found.study.best_trial.value == pytest.approx(found.candidates[0].val_metric)


def test_a_module_of_the_other_package_that_cannot_be_scored() -> None:
    class Trained(pl.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.user, self.out = nn.Embedding(60, 8), nn.Linear(8, 1)

        forward, training_step = Foreign.forward, Foreign.training_step
        configure_optimizers = Foreign.configure_optimizers

    model = Trained()
    search = NISCallback(make_searchable(model, budget="50%"))
    with pytest.raises(MisconfigurationException, match="must define `choice_quality"):
        _trainer(max_epochs=1, callbacks=[search]).fit(model, loader())


def test_which_package() -> None:
    assert lightning_of(Small()).__name__ == "lightning.pytorch"
    assert lightning_of(Foreign()) is pl
    assert lightning_of(_trainer()) is pl
    assert is_overridden("validation_step", Foreign())
    assert not is_overridden("test_step", Foreign())
    assert not is_overridden("on_validation_start", Small())
    with pytest.raises(TypeError, match="must be a LightningModule, got Linear"):
        lightning_of(nn.Linear(1, 1))
