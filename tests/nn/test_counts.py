from __future__ import annotations

from collections.abc import Callable, Iterator
import functools
from itertools import cycle
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import CombinedLoader
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import SumMetric

from optuna_nis.nn import count_ids, make_searchable


class Clicks(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(60, 4)
        self.genres = nn.EmbeddingBag(70, 4)
        self.norm = nn.BatchNorm1d(4)
        self.norm.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        users, items, genres = batch
        rows = self.user(users) + self.user(items + 30) + self.genres(input=genres)
        loss: Tensor = self.norm(rows).square().mean()
        self.log("loss", loss)
        return loss


def _batches() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [
        tuple(
            torch.randint(0, high, shape, generator=generator)
            for high, shape in ((30, (16,)), (30, (16,)), (70, (16, 3)))
        )
        for _ in range(3)
    ]


@pytest.mark.filterwarnings("error")
def test_what_the_layers_are_asked_for_is_counted() -> None:
    model, batches = Clicks(), _batches()
    mean = model.norm.running_mean.clone()
    counts = count_ids(batches, model, progress=False)
    users = torch.cat([torch.cat([u, i + 30]) for u, i, _ in batches])
    assert torch.equal(counts["user"], torch.bincount(users, minlength=60))
    genres = torch.cat([g.flatten() for _, _, g in batches])
    assert torch.equal(counts["genres"], torch.bincount(genres, minlength=70))
    # The model is as it was.
    assert torch.equal(model.norm.running_mean, mean)
    assert model.training
    assert not model.norm.training
    assert not model.user._forward_pre_hooks
    make_searchable(model, counts=counts)


def test_the_ids_of_a_batch_can_be_named() -> None:
    model, batches = Clicks(), _batches()
    counted = count_ids(batches, model, ids=lambda b: {"genres": b[2]}, progress=False)
    assert set(counted) == {"genres"}
    assert torch.equal(counted["genres"], count_ids(batches, model, progress=False)["genres"])
    stepped = count_ids(
        iter(batches), model, step=lambda b: model.user(b[0].int()), progress=False
    )
    assert stepped["user"].sum() == 48


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    count_ids(_batches(), Clicks())
    shown = capsys.readouterr()
    assert "Counting ids" in shown.err
    assert not shown.out


def test_targets_of_an_output_layer_are_counted() -> None:
    model = nn.ModuleDict({"user": nn.Embedding(10, 4), "head": nn.Linear(4, 6)})
    batches = [
        (torch.tensor([1, 2]), torch.tensor([5, 5])),
        (torch.tensor([1]), torch.tensor([0])),
    ]

    def ids(batch: Any) -> dict[str, Tensor]:
        return {"user": batch[0], "head": batch[1]}

    counts = count_ids(batches, model, ids=ids, progress=False)
    assert counts["user"].tolist() == [0, 2, 1, 0, 0, 0, 0, 0, 0, 0]
    assert counts["head"].tolist() == [1, 0, 0, 0, 0, 2]
    space = make_searchable(model, counts=counts, outputs=["head"])
    assert [spec.name for spec in space.specs] == ["user", "head"]


def test_bad_arguments() -> None:
    model, batches = Clicks(), _batches()
    with pytest.raises(ValueError, match="`ids` names 'item', which is none of the embedding"):
        count_ids(batches, model, ids=lambda b: {"item": b[0]}, progress=False)
    ids = torch.tensor([9, 99])
    with pytest.raises(ValueError, match="ids of 'user' must be between 0 and 59, got 9 to 99"):
        count_ids(batches, model, ids=lambda b: {"user": ids}, progress=False)
    with pytest.raises(TypeError, match=r"ids of 'user' must be .* integers, got torch\.f"):
        count_ids([0], model, ids=lambda _: {"user": torch.tensor([1.5])}, progress=False)
    with pytest.raises(TypeError, match=r"`ids` must give a mapping .*, got list"):
        count_ids([0], model, ids=lambda _: [1], progress=False)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="no embedding layer was asked"):
        count_ids([], model, progress=False)
    model.automatic_optimization = False
    with pytest.raises(ValueError, match="`step` or `ids` must be given: the training step of"):
        count_ids(batches, model, progress=False)


# Apart from the models, which are put back as they were.
SEEN: list[Any] = []


class Plain(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(10, 4)
        self.steps: list[int] = []
        self.total = SumMetric()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        SEEN.append(batch_idx)
        self.steps.append(batch_idx)
        self.total.update(len(batch))
        return self.user(batch).sum()  # type: ignore[no-any-return]


class BatchOnly(Plain):
    def training_step(self, batch: Tensor) -> Tensor:  # type: ignore[override]
        return super().training_step(batch, 0)


class ByPosition(Plain):
    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return super().training_step(batch, _)


class AnyNumber(Plain):
    def training_step(self, *args: Any) -> Tensor:
        return super().training_step(*args)


def _logged(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return step(self, *args, **kwargs)

    return call


class Wrapped(Plain):
    @_logged
    def training_step(self, batch: Tensor, number: int) -> Tensor:
        return super().training_step(batch, number)


BATCHES = [torch.tensor([1, 1, 2]), torch.tensor([3])]
COUNTED = torch.tensor([0, 2, 1, 1, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("kind", [Plain, BatchOnly, ByPosition, AnyNumber, Wrapped])
def test_the_training_step_is_called_as_lightning_does(kind: type[Plain]) -> None:
    model = kind()
    SEEN.clear()
    assert torch.equal(count_ids(BATCHES, model, progress=False)["user"], COUNTED)
    assert ([0, 0] if kind is BatchOnly else [0, 1]) == SEEN
    # What it gathers is not to be found in the training.
    assert model.steps == []
    assert not model.total._update_called
    assert float(model.total.sum_value) == 0.0


class Transferring(Plain):
    """Its batches are what its hooks make of them."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch["ids"]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch - 100


def test_the_hooks_of_a_batch_are_called() -> None:
    batches = [{"ids": batch + 100} for batch in BATCHES]
    assert torch.equal(count_ids(batches, Transferring(), progress=False)["user"], COUNTED)


class Hooked(LightningDataModule):
    """Its batches are what its hook makes of them, after the first one of the model."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch - 200


def test_the_hooks_of_a_data_module_take_the_place_of_those_of_the_model() -> None:
    for datamodule, offset in ((Hooked(), 200), (LightningDataModule(), 100)):
        batches = [{"ids": batch + offset} for batch in BATCHES]
        counts = count_ids(batches, Transferring(), datamodule=datamodule, progress=False)
        assert torch.equal(counts["user"], COUNTED)


def test_a_hook_that_needs_a_trainer_is_told() -> None:
    class Asking(LightningDataModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch if self.trainer.training else None  # type: ignore[union-attr]

    with pytest.raises(ValueError, match="of Plain or a hook of its batches needs a trainer"):
        count_ids(BATCHES, Plain(), datamodule=Asking(), progress=False)


def test_a_step_that_computes_gradients_is_told() -> None:
    class Adversarial(Plain):
        def training_step(self, batch: Any, batch_idx: int = 0) -> Any:
            rows = self.user(batch)
            return torch.autograd.grad(rows.sum(), rows)

    with pytest.raises(ValueError, match=r"needs gradients, .* here \(.*`ids=lambda batch"):
        count_ids(BATCHES, Adversarial(), progress=False)


@pytest.mark.parametrize("progress", [False, True])
def test_of_data_without_an_end_some_batches_are_counted(progress: bool) -> None:
    endless = cycle([*BATCHES, torch.tensor([9])])
    counts = count_ids(endless, Plain(), max_batches=2, progress=progress)
    assert torch.equal(counts["user"], COUNTED)
    assert next(endless).tolist() == [9]  # None was taken in vain.
    counts = count_ids(BATCHES, Plain(), max_batches=3, progress=progress)
    assert torch.equal(counts["user"], COUNTED)
    with pytest.raises(ValueError, match="`max_batches` must be an integer of at least 1, got 0"):
        count_ids(BATCHES, Plain(), max_batches=0)


def test_ids_behind_the_last_bag_are_not_counted() -> None:
    model = nn.ModuleDict({"bag": nn.EmbeddingBag(10, 4, mode="sum", include_last_offset=True)})
    bags = (torch.tensor([1, 1, 2, 3, 99]), torch.tensor([0, 3, 4]))
    for step in (lambda b: model["bag"](*b), lambda b: model["bag"](input=b[0], offsets=b[1])):
        counts = count_ids([bags], model, step=step, progress=False)
        assert torch.equal(counts["bag"], COUNTED)


class Rate(Plain):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return super().training_step(batch, batch_idx)


class Scheduled(Plain):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.lr_schedulers()
        return super().training_step(batch, batch_idx)


class Optimised(Plain):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.optimizers()
        return super().training_step(batch, batch_idx)


class Drawn(Plain):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.logger.experiment.add_scalar("n", 1)  # type: ignore[union-attr]
        return super().training_step(batch, batch_idx)


class FromIterator(Plain):
    def training_step(self, dataloader_iter: Iterator[Any]) -> Tensor:  # type: ignore[override]
        return self.user(next(dataloader_iter)).sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Rate, Scheduled, Optimised, Drawn, FromIterator])
def test_a_step_that_needs_a_trainer_is_named_with_what_helps(kind: type[Plain]) -> None:
    model = kind()
    with pytest.raises(ValueError, match=f"`step` or `ids` must be given.* {kind.__name__} "):
        count_ids(BATCHES, model, progress=False)
    assert not model.user._forward_hooks
    assert type(model.user._parameters) is dict
    for options in ({"step": model.user}, {"ids": lambda batch: {"user": batch}}):
        counted = count_ids(BATCHES, model, progress=False, **options)  # type: ignore[arg-type]
        assert torch.equal(counted["user"], COUNTED)


def test_other_errors_of_a_step_are_its_own() -> None:
    class Wrong(Plain):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        count_ids(BATCHES, Wrong(), progress=False)


class Clicked(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(BATCHES)


class Unsized:
    def __iter__(self) -> Iterator[Tensor]:
        return iter(BATCHES)

    def __len__(self) -> int:
        raise NotImplementedError


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize(
    "data", [DataLoader(Clicked(), batch_size=None), Unsized(), iter(BATCHES)]
)
def test_data_without_a_length(data: Any, progress: bool) -> None:
    if isinstance(data, Iterator):
        data = iter(BATCHES)
    assert torch.equal(count_ids(data, Plain(), progress=progress)["user"], COUNTED)


def _loader(*ids: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.tensor(ids)), batch_size=2)


class Two(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        a, b = batch.values() if isinstance(batch, dict) else batch
        return self.user(a[0]).sum() + self.user(b[0]).sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "loaders",
    [
        [_loader(1, 1), _loader(2, 3)],
        {"a": _loader(1, 1), "b": _loader(2, 3)},
        CombinedLoader([_loader(1, 1), _loader(2, 3)], "min_size"),
        CombinedLoader({"a": _loader(1, 1), "b": _loader(2, 3)}, "max_size"),
    ],
)
def test_several_dataloaders_give_batches_as_lightning_puts_them_together(loaders: Any) -> None:
    for progress in (False, True):
        assert torch.equal(count_ids(loaders, Two(), progress=progress)["user"], COUNTED)


def test_of_dataloaders_in_turn_each_batch_is_one() -> None:
    class One(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch[0], batch_idx)

    loaders = CombinedLoader([_loader(1, 1), _loader(2, 3)], "sequential")
    assert torch.equal(count_ids(loaders, One(), progress=False)["user"], COUNTED)


def test_a_data_module_is_no_dataloader() -> None:
    with pytest.raises(ValueError, match=r"`dataloader` must give batches, got a Lightning"):
        count_ids(LightningDataModule(), Plain(), progress=False)  # type: ignore[arg-type]


class Reads(nn.Module):
    """Looks items up in ways that no layer sees."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.user = nn.Embedding(10, 4)
        self.item = nn.Embedding(20, 4)

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.user(ids)
        if self.how == "product":
            return rows @ self.item.weight.T
        if self.how == "functional":
            return rows * functional.embedding(ids, self.item.weight)
        if self.how == "index":
            return rows * self.item.weight[ids]
        # Read and asked for rows: what is asked for is counted.
        return (rows + self.item(ids)) @ self.item.weight.T


@pytest.mark.parametrize("how", ["product", "functional", "index"])
def test_a_table_that_is_only_read_is_refused_by_name(how: str) -> None:
    model = Reads(how)
    with pytest.raises(ValueError, match=r"The ids of \['item'\] cannot be counted.*`ids=lambda"):
        count_ids(BATCHES, model, progress=False)
    assert list(count_ids(BATCHES, model, exclude=["item"], progress=False)) == ["user"]
    named = count_ids(
        BATCHES, model, ids=lambda batch: {"user": batch, "item": batch}, progress=False
    )
    make_searchable(model, counts=named)


def test_a_table_that_is_read_and_asked_is_counted() -> None:
    counts = count_ids(BATCHES, Reads("both"), progress=False)
    assert torch.equal(counts["item"][:10], COUNTED)


def test_what_is_excluded_must_be_there() -> None:
    with pytest.raises(ValueError, match="`exclude` has 'city', which fits none of"):
        count_ids(BATCHES, Reads("both"), exclude=["city"], progress=False)


def test_jagged_ids_are_counted() -> None:
    parts = [torch.tensor([1, 2, 1]), torch.tensor([3])]
    jagged = torch.nested.nested_tensor(parts, layout=torch.jagged)
    model = nn.Sequential(nn.Embedding(5, 8))
    assert count_ids([jagged], model, progress=False)["0"].tolist() == [0, 2, 1, 1, 0]
