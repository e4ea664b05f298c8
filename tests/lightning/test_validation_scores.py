"""On which validation examples choices are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
import numpy as np
import pytest
from tiny import IDS, MIXED, TRAIN, Net, SideBySide, batches_of, rows
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics.classification import BinaryAUROC

from optuna_nis import Allocation, SearchSpace
from optuna_nis.lightning import NISCallback
from optuna_nis.lightning.rewards import Rewards
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.lightning.validation_scores import ValidationScores, _Batches
from optuna_nis.nn import make_searchable, set_choices

Asked = Callable[[Trainer, LightningModule, ValidationScores, list[Allocation]], Any]


class _AtTheStart(Callback):
    def __init__(self, space: SearchSpace, ask: Asked, scores: ValidationScores) -> None:
        self.space = space
        self.ask = ask
        self.scores = scores
        self.answer: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.scores.start(trainer)
        rng = np.random.default_rng(0)
        choices = [self.space.sample(rng, share * self.space.budget) for share in (1.0, 0.5)]
        self.answer = self.ask(trainer, pl_module, self.scores, choices)
        set_choices(pl_module, self.space, [self.space.full()])


def _ask(
    loader: Any,
    ask: Asked,
    *,
    model: Net | None = None,
    num_examples: int = 10,
    dataloader_idx: int | None = None,
    trainer: dict[str, Any] | None = None,
    **rewards: Any,
) -> Any:
    """What comes of asking a scorer at the start of a training."""
    torch.manual_seed(0)
    model = Net() if model is None else model
    space = make_searchable(model, budget=0.5)
    scores = ValidationScores(
        Rewards(space, **rewards), num_examples=num_examples, dataloader_idx=dataloader_idx
    )
    callback = _AtTheStart(space, ask, scores)
    options = {"max_epochs": 1, "callbacks": [callback]} | (trainer or {})
    quiet_trainer(**options).fit(model, batches_of(TRAIN, 16), loader)
    return callback.answer


def _some(
    trainer: Trainer, model: LightningModule, scores: ValidationScores, choices: list[Allocation]
) -> list[list[float]]:
    return [scores.of_some(trainer, model, choices).tolist() for _ in range(4)]


def _all(
    trainer: Trainer, model: LightningModule, scores: ValidationScores, choices: list[Allocation]
) -> list[float]:
    return scores.of_all(trainer, model, choices).tolist()


WAYS: list[tuple[type[Net], dict[str, Any]]] = [
    (SideBySide, {}),
    (Net, {"metric": BinaryAUROC()}),
    (Net, {"monitor": "auroc"}),
    (Net, {"monitor": "batch_auroc", "mode": "max"}),
]


@pytest.mark.parametrize(("kind", "rewards"), WAYS)
@pytest.mark.parametrize(
    ("labels", "batch_size"),
    [
        # One positive, after the first examples of a batch, or in another batch.
        ([0] * 37 + [1] + [0] * 2, 40),
        ([0] * 37 + [1] + [0] * 2, 5),
        # No batch of two classes.
        ([0] * 20 + [1] * 20, 10),
    ],
)
def test_as_many_examples_as_it_takes(
    kind: type[Net], rewards: dict[str, Any], labels: list[int], batch_size: int
) -> None:
    loader = batches_of(labels, batch_size)
    groups = _ask(loader, _some, model=kind(), num_examples=4, **rewards)
    assert all(0.0 <= quality <= 1.0 for group in groups for quality in group)
    assert all(0.0 <= q <= 1.0 for q in _ask(loader, _all, model=kind(), **rewards))


@pytest.mark.parametrize(("kind", "rewards"), WAYS)
def test_what_made_examples_measurable_is_kept(kind: type[Net], rewards: dict[str, Any]) -> None:
    def ask(*args: Any) -> Any:
        before = args[2].state_dict()
        _some(*args)
        return before, args[2].state_dict()

    rare = batches_of([0] * 25 + [1] + [0] * 14, 40)
    _, grown = _ask(rare, ask, model=kind(), num_examples=4, **rewards)
    assert grown == {"num_examples": 32, "num_batches": 1, "batches_scored": 4}
    # Where a group can be measured, nothing changes.
    before, after = _ask(batches_of(MIXED), ask, model=kind(), num_examples=4, **rewards)
    assert after == before | {"batches_scored": 4}


@pytest.mark.parametrize(("kind", "rewards"), WAYS)
@pytest.mark.parametrize("ask", [_some, _all])
def test_one_class_in_all_validation_data_is_told(
    kind: type[Net], rewards: dict[str, Any], ask: Asked
) -> None:
    with pytest.raises(ValueError, match=r"on any of the validation data: it was never .* one cl"):
        _ask(batches_of([0] * 40), ask, model=kind(), num_examples=4, **rewards)


def test_a_resumed_search_takes_as_many_examples() -> None:
    scores = ValidationScores(Rewards(_space()), num_examples=4)
    state = {"num_examples": 32, "num_batches": 2, "batches_scored": 7}
    scores.load_state_dict(state)
    assert scores.state_dict() == state
    scores.load_state_dict({"batches_scored": 3})  # Of an earlier version.
    assert scores.state_dict() == state | {"batches_scored": 3}


def _space() -> SearchSpace:
    return make_searchable(Net(), budget=0.5)


class _Shuffled(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ((int(each) % IDS, int(each) % 2) for each in torch.randperm(40))


class _Augmented(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        ids, label = super().__getitem__(index)
        return (ids + torch.randint(IDS, ())) % IDS, label


@pytest.mark.parametrize(
    "loader",
    [
        batches_of(MIXED, shuffle=True),
        batches_of(MIXED, shuffle=True, generator=torch.Generator().manual_seed(0)),
        DataLoader(_Shuffled(), batch_size=10),
        DataLoader(_Augmented(*rows(MIXED).tensors), batch_size=10),
        [batches_of(MIXED), batches_of(MIXED, shuffle=True)],
    ],
)
@pytest.mark.parametrize("rewards", [{"metric": BinaryAUROC()}, {}])
def test_finalists_are_scored_on_the_same_examples(loader: Any, rewards: dict[str, Any]) -> None:
    def ask(trainer: Trainer, model: Any, scores: Any, choices: Any) -> Any:
        return scores.of_all(trainer, model, choices[:1] * 5).tolist()

    once = _ask(loader, ask, trainer={"limit_val_batches": 2}, **rewards)
    assert len(set(once)) == 1


def test_data_that_stay_the_same_are_not_kept_and_cost_no_random_numbers() -> None:
    passes: list[int] = []

    class Rows(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            passes.append(index)
            return super().__getitem__(index)

    def ask(trainer: Trainer, model: Any, scores: Any, choices: Any) -> Any:
        scores.of_all(trainer, model, choices[:1] * 3)
        return list(passes)

    data = DataLoader(Rows(*rows(MIXED).tensors), batch_size=10)
    # The first batch twice to see whether it is the same, then all for each choice.
    assert _ask(data, ask) == [*range(10), *range(10), *range(40), *range(40), *range(40)]
    state = torch.get_rng_state()
    assert _Batches(lambda: iter(data)).repeat()
    assert not _Batches(lambda: iter(batches_of(MIXED, shuffle=True))).repeat()
    assert torch.equal(torch.get_rng_state(), state)


_DENSE = torch.tensor([[1.0, 0.0], [torch.nan, 2.0], [0.0, 3.0], [0.0, 0.0]])
_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda dense: dense,
    "coo": lambda dense: dense.to_sparse(),
    "uncoalesced": lambda dense: torch.sparse_coo_tensor(
        [[0, 0]], dense[:2], check_invariants=False
    ),
    "csr": lambda dense: dense.to_sparse_csr(),
    "csc": lambda dense: dense.to_sparse_csc(),
    "bsr": lambda dense: dense.to_sparse_bsr((2, 2)),
    "bsc": lambda dense: dense.to_sparse_bsc((2, 2)),
    "jagged": lambda dense: torch.nested.nested_tensor(
        [dense[:1], dense[1:]], layout=torch.jagged
    ),
    "nested": lambda dense: torch.nested.nested_tensor([dense[:1], dense[1:]]),
}


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize("layout", list(_LAYOUTS))
def test_batches_of_any_layout_are_compared(layout: str) -> None:
    def repeat(*batches: Any) -> bool:
        given = iter(batches)
        return _Batches(lambda: given).repeat()

    make = _LAYOUTS[layout]
    other = _DENSE.clone()
    other[1, 1] = 4.0
    assert repeat({"x": make(_DENSE)}, {"x": make(_DENSE.clone())})
    assert not repeat({"x": make(_DENSE)}, {"x": make(other)})
    assert not repeat({"x": make(_DENSE)}, {"x": other[:3]})


def test_batches_that_cannot_be_compared_are_not_the_same() -> None:
    def repeat(batch: Any) -> bool:
        return _Batches(lambda: iter([batch])).repeat()

    assert repeat(torch.ones(2))
    assert not repeat(torch.ones(2).to_mkldnn())
    assert not repeat(["no tensors"])
    assert not _Batches(lambda: iter([])).repeat()


def test_all_dataloaders_in_their_order() -> None:
    first, second = DataLoader(rows(MIXED[:20]), 10), DataLoader(rows(MIXED[:30], 7), 10)
    seen: list[Any] = []

    def ask(trainer: Trainer, model: Any, scores: Any, choices: Any) -> Any:
        model.note = seen.append
        for _ in range(6):
            scores.of_some(trainer, model, choices[:1])
        groups = [(index, ids[0]) for index, ids in seen]
        seen.clear()
        both = scores.of_all(trainer, model, choices)
        return groups, [(index, ids[0]) for index, ids in seen], both.tolist()

    def alone(loader: Any, **options: Any) -> Any:
        return _ask(loader, _all, metric=BinaryAUROC(), **options)

    every = [(0, 0), (0, 10), (1, 7), (1, 17), (1, 27)]
    for loaders in ([first, second], {"a": first, "b": second}):
        groups, finalists, both = _ask(loaders, ask, metric=BinaryAUROC())
        seen.clear()
        assert groups == [*every, every[0]]
        # The choices one after the other, for each dataloader.
        assert finalists == every[:2] * 2 + every[2:] * 2
        means = np.mean([alone(first), alone(second)], axis=0)
        assert both == pytest.approx(means.tolist())
        assert alone(loaders, dataloader_idx=1) == alone(second)
    combined = CombinedLoader([first, second], "sequential")
    assert _ask(combined, ask, metric=BinaryAUROC())[0] == groups
    with pytest.raises(MisconfigurationException, match=r"dataloader of index 2, .* there are 2"):
        alone([first, second], dataloader_idx=2)


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size"])
def test_dataloaders_side_by_side(mode: Any) -> None:
    class Pairs(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
            parts = [part for part in (batch["a"], batch["b"]) if part is not None]
            self.note([part[0].tolist()[0] for part in parts])
            return self(torch.cat([part[0] for part in parts])), torch.cat([p[1] for p in parts])

    seen: list[Any] = []

    def ask(trainer: Trainer, model: Any, scores: Any, choices: Any) -> Any:
        model.note = seen.append
        return scores.of_all(trainer, model, choices[:1])

    def of(limit: Any) -> list[Any]:
        loaders = {"a": batches_of(MIXED[:20]), "b": batches_of(MIXED[:30])}
        trainer = {"limit_val_batches": limit}
        combined = CombinedLoader(loaders, mode)
        _ask(combined, ask, model=Pairs(), metric=BinaryAUROC(), trainer=trainer)
        scored, validated = seen[: len(seen) // 2], seen[len(seen) // 2 :]
        # As Lightning does, in its validation after the epoch.
        assert scored == validated
        seen.clear()
        return scored

    assert of(1.0)[:2] == [[0, 0], [10, 10]]
    assert of(1.0)[2:] == {"min_size": [], "max_size": [[20]]}.get(mode, [[0, 20]])
    assert of(1) == [[0, 0]]


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(*rows(MIXED).tensors)


@pytest.mark.parametrize(
    ("loader", "trainer"),
    [
        (DataLoader(_Stream(), batch_size=10), {}),
        (DataLoader(_Stream(), batch_size=10), {"limit_val_batches": 2}),
        (batches_of(MIXED), {"fast_dev_run": True}),
        (batches_of(MIXED), {"overfit_batches": 1}),
        (batches_of(MIXED), {"limit_val_batches": 0.5, "num_sanity_val_steps": 2}),
        (batches_of(MIXED), {"val_check_interval": 2}),
        (batches_of(MIXED), {"check_val_every_n_epoch": 2}),
        ([batches_of(MIXED), batches_of(MIXED, shuffle=True)], {"max_steps": 9, "max_epochs": -1}),
    ],
)
def test_a_search_works_however_validation_is_set_up(loader: Any, trainer: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Net()
    search = NISCallback(
        make_searchable(model, budget=0.5), num_updates=3, group_size=2, warmup=0.4
    )
    options = {"max_epochs": 2, "callbacks": [search]} | trainer
    quiet_trainer(**options).fit(model, batches_of(TRAIN, 16), loader)
    scored = [t for t in search.study.trials if t.user_attrs["fidelity"] == "supernet"]
    assert len(scored) == 6
    assert search.candidates


def test_dataloaders_that_are_made_anew_are_scored_on() -> None:
    class Anew(Net):
        made = 0

        def train_dataloader(self) -> Any:
            return batches_of(TRAIN, 16)

        def val_dataloader(self) -> Any:
            self.made += 1
            return DataLoader(rows(MIXED, self.made), batch_size=10)

    seen: list[int] = []

    class Groups(Callback):
        def __init__(self, scores: ValidationScores, choices: list[Allocation]) -> None:
            self.scores, self.choices = scores, choices

        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.scores.start(trainer)

        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert isinstance(pl_module, Net)
            pl_module.note = lambda step: seen.append(step[1][0])
            self.scores.of_some(trainer, pl_module, self.choices)
            pl_module.note = lambda step: None
            set_choices(pl_module, space, [space.full()])

    model = Anew()
    space = make_searchable(model, budget=0.5)
    scores = ValidationScores(Rewards(space), num_examples=10)
    choice = space.sample(np.random.default_rng(0), space.budget)
    trainer = quiet_trainer(
        max_epochs=3, callbacks=[Groups(scores, [choice])], reload_dataloaders_every_n_epochs=1
    )
    trainer.fit(model)
    starts = [id_ % 10 for id_ in seen]
    assert len(starts) == 3
    assert starts[0] < starts[1] < starts[2]


@pytest.mark.parametrize(
    ("loader", "trainer", "message"),
    [
        ([], {}, "the validation dataloader gave no batch"),
        (None, {}, "the trainer needs a validation dataloader"),
        (batches_of(MIXED), {"limit_val_batches": 0}, "`limit_val_batches=0` leaves none"),
        (batches_of(MIXED[:0]), {}, "the validation dataloader gave no batch"),
    ],
)
def test_no_validation_data(loader: Any, trainer: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        _ask(loader, _some, trainer=trainer)


def test_the_monitor_of_one_of_several_dataloaders() -> None:
    model = Net()
    space = make_searchable(model, budget=0.5)
    seen: set[int] = set()
    search = NISCallback(
        space, num_updates=2, group_size=2, warmup=0.4, monitor="auroc/dataloader_idx_1"
    )

    class Noting(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            pl_module.note = lambda step: seen.add(step[0])

        def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
            pl_module.note = lambda step: None

    trainer = quiet_trainer(max_epochs=2, callbacks=[Noting(), search])
    trainer.fit(model, batches_of(TRAIN, 16), [batches_of([0] * 20), batches_of(MIXED)])
    assert seen == {1}
    assert search.candidates
    data = batches_of(TRAIN, 16), [batches_of([0] * 20), batches_of(MIXED)]
    search.train_candidates(Net, data)
    assert search.study.best_trial.user_attrs["fidelity"] == "trained"
    assert search.study.best_value > 0.4  # On the first one it is 0.
