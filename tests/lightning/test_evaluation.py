"""Every choice is evaluated from the same state, and leaves none."""

from __future__ import annotations

import random
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
import numpy as np
from probing import IDS, LABEL, Probe, Small, loader, scored, true_losses
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from optuna_nis.lightning import NISCallback
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import make_searchable, set_choices


class Keeps(Small):
    """Keeps its numbers while it is evaluated, until it is trained again."""

    kept: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:
        if self.training:
            self.kept = None
            return super().forward(ids)
        if self.kept is None:
            self.kept = super().forward(torch.arange(60))
        return self.kept[ids]


class KeepsInDictionary(Keeps):
    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def forward(self, ids: Tensor) -> Tensor:
        if self.training:
            self.cache.clear()
            return Small.forward(self, ids)
        if "all" not in self.cache:
            self.cache["all"] = Small.forward(self, torch.arange(60))
        return self.cache["all"][ids]


@pytest.mark.parametrize("kind", [Keeps, KeepsInDictionary])
def test_what_a_model_keeps_is_of_each_choice(kind: type[Keeps]) -> None:
    model = kind()
    probe = scored(model)
    assert model.kept is None
    model.train()
    model(IDS[:1])  # It forgets.
    for choice, quality in zip(probe.choices, probe.quality):
        set_choices(model, probe.rewards.space, [choice])
        model.train()
        with torch.no_grad():
            assert quality == pytest.approx(-float(model.loss((IDS, LABEL))), abs=1e-5)
    assert len(set(probe.quality)) == 3


@pytest.mark.parametrize("warmup", [0.7, 1.0])
@pytest.mark.parametrize("kind", [Keeps, KeepsInDictionary])
def test_what_a_validation_has_left_does_not_decide_the_end(
    kind: type[Keeps], warmup: float
) -> None:
    model = kind()
    space = make_searchable(model, budget="50%")
    search = NISCallback(space, num_updates=2, group_size=3, warmup=warmup)
    trainer = quiet_trainer(max_epochs=2, callbacks=[search])
    trainer.fit(model, loader(), loader())
    kept = model.kept if kind is Keeps else model.cache["all"]  # type: ignore[attr-defined]
    assert kept is not None  # As the last validation has left it.
    model.train()
    ended = [t for t in search.study.trials if t.user_attrs["fidelity"] == "validated"]
    assert len({trial.value for trial in ended}) > 1
    for trial in ended:
        set_choices(model, space, [space.allocation(trial.params)])
        with torch.no_grad():
            loss = float(model.loss((IDS, LABEL)))
        assert trial.user_attrs["quality"] == pytest.approx(-loss, abs=1e-5)


def test_one_table_that_is_kept_is_that_of_each_choice() -> None:
    class KeepsItems(Small):
        kept: Tensor | None = None

        def __init__(self) -> None:
            super().__init__()
            self.item = nn.Embedding(60, 8)

        def forward(self, ids: Tensor) -> Tensor:
            items = self.item(ids) if self.training else self.all_items()[ids]
            return (self.user(ids) * items).sum(1)

        def all_items(self) -> Tensor:
            if self.kept is None:
                self.kept = self.item(torch.arange(60))
            return self.kept

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.kept = None

    torch.manual_seed(0)
    model = KeepsItems()
    space = make_searchable(model, budget="50%")
    search = NISCallback(space, num_updates=3, group_size=4)
    quiet_trainer(max_epochs=2, callbacks=[search]).fit(model, loader(), loader())
    model.train()
    told = [trial for trial in search.study.trials if "quality" in trial.user_attrs]
    ended = [trial for trial in told if trial.user_attrs["fidelity"] == "validated"]
    assert ended
    for trial in ended:
        set_choices(model, space, [space.allocation(trial.params)])
        with torch.no_grad():
            loss = float(model.loss((IDS, LABEL)))
        assert trial.user_attrs["quality"] == pytest.approx(-loss, abs=1e-5)


def test_a_model_that_never_forgets_is_refused() -> None:
    kept: list[Tensor] = []

    class NeverForgets(Small):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if not kept:
                kept.append(self(torch.arange(60)))
            logits = kept[0][batch[0]]
            self.log("val_loss", functional.binary_cross_entropy_with_logits(logits, batch[1]))

    model = NeverForgets()
    kept.append(model(torch.arange(60)).detach())
    with pytest.raises(MisconfigurationException, match="without looking up any of its embedd"):
        scored(model)
    assert model.training


def test_a_model_that_keeps_the_vectors_of_the_first_choice_elsewhere_is_refused() -> None:
    kept: list[Tensor] = []

    class KeepsItems(Small):
        def __init__(self) -> None:
            super().__init__()
            self.item = nn.Embedding(60, 8)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if not kept:
                kept.append(self.item(torch.arange(60)))
            logits = (self.user(batch[0]) * kept[0][batch[0]]).sum(1)
            self.log("val_loss", functional.binary_cross_entropy_with_logits(logits, batch[1]))

    with pytest.raises(MisconfigurationException, match=r"looked up \['item'\] under one of them"):
        scored(KeepsItems())


class SideBySide(Keeps):
    def choice_quality(self, batch: Any, num_choices: int) -> Tensor:
        if self.kept is None:
            self.kept = Small.forward(self, batch[0])
        losses = functional.binary_cross_entropy_with_logits(self.kept, batch[1], reduction="none")
        return -losses.view(num_choices, -1).mean(1)


def test_what_a_model_keeps_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optuna_nis.lightning.rewards._MAX_EXAMPLES", 120)
    model = SideBySide()
    probe = scored(model, [[IDS, LABEL]])
    model.train()
    assert len(set(probe.quality)) == 3
    for choice, quality in zip(probe.choices, probe.quality):
        set_choices(model, probe.rewards.space, [choice])
        with torch.no_grad():
            assert quality == pytest.approx(-float(model.loss((IDS, LABEL))), abs=1e-5)


class WithLists(SideBySide):
    def choice_quality(self, batch: Any, num_choices: int) -> Tensor:
        self.kept = None
        assert len(batch["tags"]) == len(batch["ids"])
        assert num_choices == 1 or "rows" not in batch
        return super().choice_quality([batch["ids"], batch["label"]], num_choices)


@pytest.mark.parametrize("more", [{}, {"rows": 120}])
def test_batches_with_more_than_tensors_side_by_side(more: Any) -> None:
    batch = {"ids": IDS, "label": LABEL, "tags": ["a"] * 120, **more}
    model = WithLists()
    probe = scored(model, [batch])
    model.train()
    for choice, quality in zip(probe.choices, probe.quality):
        set_choices(model, probe.rewards.space, [choice])
        with torch.no_grad():
            assert quality == pytest.approx(-float(model.loss((IDS, LABEL))), abs=1e-5)


class Draws(Small):
    """Draws random numbers in its validation."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = torch.Generator().manual_seed(0)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        numbers = [torch.rand(()).item(), random.random(), np.random.rand()]  # noqa: NPY002
        self.log("drawn", sum(numbers) + torch.rand((), generator=self.stream).item())


def _streams(model: Draws) -> list[Any]:
    states = torch.get_rng_state(), model.stream.get_state()
    of_numpy = str(np.random.get_state())  # noqa: NPY002
    return [*(state.tolist() for state in states), random.getstate(), of_numpy]


class _Listens(Probe):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        before = _streams(pl_module)
        super().on_train_batch_end(trainer, pl_module, *args)
        assert _streams(pl_module) == before


def test_random_numbers_are_the_same_for_all_and_none_are_used_up() -> None:
    probe = scored(Draws(), monitor="drawn", mode="max", probe=_Listens)
    assert len(set(probe.quality)) == 1


class Gathers(Small):
    """Gathers what it validates until the end of the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.outs: dict[str, list[Tensor]] = {"preds": [], "target": []}
        self.rows, self.inner = 0, nn.Module()
        self.inner.outs = []
        self.sums = torch.zeros(())
        self.register_buffer("seen", torch.zeros(()))
        self.validated: list[tuple[int, int, float, float, int]] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.outs["preds"].append(self(batch[0]))
        self.outs["target"].append(batch[1])
        self.inner.outs.append(batch[1])
        self.rows += len(batch[0])
        self.sums += batch[1].sum()
        self.seen += len(batch[0])

    def on_validation_epoch_end(self) -> None:
        gathered = sum(map(len, self.outs["preds"])), sum(map(len, self.inner.outs))
        self.validated.append((*gathered, float(self.sums), float(self.seen), self.rows))
        for values in (*self.outs.values(), self.inner.outs):
            values.clear()
        self.rows, self.sums = 0, torch.zeros(())
        self.seen.zero_()


def test_validations_cover_their_own_rows_only() -> None:
    model = Gathers()
    search = NISCallback(
        make_searchable(model, budget="40%"), num_updates=4, group_size=3, warmup=0.7
    )
    trainer = quiet_trainer(max_epochs=3, callbacks=[search])
    trainer.fit(model, DataLoader(loader().dataset, 20), loader())
    assert model.validated == [(120, 120, float(LABEL.sum()), 120.0, 120)] * 3
    assert model.rows == float(model.seen) == len(model.outs["preds"]) == 0


class KeepsDropout(Small):
    """Draws its dropout in validation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(8)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.out(self.dropout(self.norm(self.user(ids)))).squeeze(1)
        return logits

    def on_validation_model_eval(self) -> None:
        self.eval()
        self.dropout.train()
        self.norm.train()
        self.out.eval()


@pytest.mark.filterwarnings("ignore:Found 1 module.* in eval mode")
def test_models_with_a_mode_of_their_own() -> None:
    model = KeepsDropout()
    model.out.eval()
    probe = scored(model)
    assert model.dropout.training
    assert model.norm.training
    assert not model.out.training
    assert int(model.norm.num_batches_tracked) == 1  # Of the training step alone.
    assert len(set(probe.quality)) == 3


class Stays(Small):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "16-true"])
def test_any_precision(precision: str) -> None:
    model = Stays()
    probe = scored(model, trainer={"precision": precision})
    losses = [-loss for loss in true_losses(model.float(), probe)]
    assert probe.quality == pytest.approx(losses, abs=0.02)


class Collated(Small):
    """Its batches hold lists."""

    def loss(self, batch: Any) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            self(batch["ids"]), torch.tensor(batch["label"])
        )


def _collate(rows: Any) -> dict[str, Any]:
    return {"ids": torch.stack([ids for ids, _ in rows]), "label": [float(y) for _, y in rows]}


def test_a_search_with_lists_in_its_batches() -> None:
    model = Collated()
    space = make_searchable(model, budget="50%")
    search = NISCallback(space, num_updates=2, group_size=3, score_examples=30, warmup=0.7)
    data = DataLoader(loader().dataset, 50, collate_fn=_collate)
    quiet_trainer(max_epochs=2, callbacks=[search]).fit(model, data, data)
    assert search.candidates
    assert len({trial.value for trial in search.study.trials}) > 3
