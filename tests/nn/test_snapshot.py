"""What a module gathers is put back as it was."""

from __future__ import annotations

from collections import OrderedDict, UserList, defaultdict, deque
from dataclasses import dataclass, field
from functools import lru_cache
import logging
import random
from types import SimpleNamespace
from typing import Any, ClassVar
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC

from optuna_nis.nn._snapshot import Snapshot, undo


@dataclass
class Record:
    outs: list[int] = field(default_factory=list)
    count: int = 0


class Slots:
    __slots__ = ("last", "outs", "total")

    def __init__(self) -> None:
        self.outs: list[int] = []
        self.total = 0


class Answers:
    """Says something of its own to every name that it does not know."""

    __slots__ = ("outs",)

    def __init__(self) -> None:
        self.outs: list[int] = []

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name}?")


class Meter:
    def __init__(self) -> None:
        self.sum, self.seen = 0.0, {"ids": [1]}


class Gathers(nn.Module):
    shared: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("memory", torch.zeros(3))
        self.register_buffer("large", torch.zeros(2**16 + 1))
        self.total = torch.zeros(2)
        self.grown = torch.zeros(2)
        self.count = 0
        self.outs: dict[str, list[Any]] = {"preds": [], "target": [torch.ones(1)]}
        self.nested: list[Any] = [[1], [[2], {"a": [3]}]]
        self._outs: list[int] = []
        self.queue: deque[int] = deque([1, 2], maxlen=2)
        self.groups: defaultdict[str, set[int]] = defaultdict(set, a={1})
        self.order: OrderedDict[str, int] = OrderedDict(a=1, b=2)
        self.pair = ([1], "name")
        self.user_list = UserList([1])
        self.space = SimpleNamespace(outs=[1])
        self.record, self.slots, self.meter = Record(), Slots(), Meter()
        self.answers = Answers()
        self.hidden = [nn.BatchNorm1d(2)]
        self.array = np.zeros(2)
        self.plain = {"auroc": BinaryAUROC(), "mean": MeanMetric()}
        self.stream = torch.Generator()
        self.rng, self.old_rng = np.random.default_rng(0), np.random.RandomState(0)
        self.random = random.Random(0)


def _append(outs: Any) -> None:
    outs.append(7)


CHANGES: dict[str, Any] = {
    "dictionary of lists": lambda m: _append(m.outs["preds"]),
    "tensor in a list": lambda m: m.outs["target"][0].add_(1),
    "new key": lambda m: m.outs.update(more=1),
    "nested list": lambda m: _append(m.nested[1][1]["a"]),
    "private list": lambda m: _append(m._outs),
    "list of a submodule": lambda m: _append(m.layer.outs),
    "list of a class": lambda m: _append(type(m).shared),
    "deque": lambda m: _append(m.queue),
    "set": lambda m: m.groups["a"].add(2),
    "default of a dictionary": lambda m: m.groups["b"],
    "order": lambda m: m.order.move_to_end("a"),
    "list in a tuple": lambda m: _append(m.pair[0]),
    "user list": lambda m: _append(m.user_list),
    "namespace": lambda m: _append(m.space.outs),
    "dataclass": lambda m: (_append(m.record.outs), setattr(m.record, "count", 3)),
    "slots": lambda m: (_append(m.slots.outs), setattr(m.slots, "total", 3)),
    "new slot": lambda m: setattr(m.slots, "last", 3),
    "object that answers any name": lambda m: _append(m.answers.outs),
    "statistics of a module in a list": lambda m: m.hidden[0](torch.randn(4, 2)),
    "object": lambda m: (_append(m.meter.seen["ids"]), setattr(m.meter, "sum", 3.0)),
    "number": lambda m: setattr(m, "count", m.count + 1),
    "new attribute": lambda m: setattr(m, "kept", torch.ones(1)),
    "lost attribute": lambda m: delattr(m, "count"),
    "tensor": lambda m: m.total.add_(1),
    "tensor that grows": lambda m: setattr(m.grown, "data", torch.ones(5)),
    "other tensor": lambda m: setattr(m, "total", m.total + 1),
    "buffer": lambda m: m.memory.add_(1),
    "buffer behind the back of autograd": lambda m: m.memory.data.add_(1),
    "large buffer": lambda m: m.large.add_(1),
    "other buffer": lambda m: setattr(m, "memory", m.memory + 1),
    "statistics of a batch": lambda m: m.norm(torch.randn(4, 2)),
    "array": lambda m: m.array.__iadd__(1),
    "metric in a dictionary": lambda m: m.plain["auroc"].update(torch.ones(2), torch.ones(2)),
    "mean in a dictionary": lambda m: m.plain["mean"].update(3.0),
    "reset metric": lambda m: m.plain["mean"].reset(),
    "generator": lambda m: torch.rand(1, generator=m.stream),
    "generator of numpy": lambda m: m.rng.random(),
    "old generator of numpy": lambda m: m.old_rng.rand(),
    "generator of Python": lambda m: m.random.random(),
}


def _state(value: Any) -> Any:
    """Everything in a module by value, told by other means than those under test."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.flatten()[:5].tolist()
    if isinstance(value, set):
        return sorted(map(str, value))
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, (np.random.Generator, np.random.RandomState)):
        return str(getattr(value, "bit_generator", None) or value.get_state(legacy=False))
    if isinstance(value, np.random.BitGenerator):
        return str(value.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, Slots):
        return (list(value.outs), value.total, hasattr(value, "last"))
    if isinstance(value, Answers):
        return list(value.outs)
    if isinstance(value, dict):
        return [(str(key), _state(held)) for key, held in value.items()]
    if isinstance(value, (list, tuple, deque, UserList)):
        return [_state(held) for held in value]
    if isinstance(value, (nn.Module, Record, Meter, SimpleNamespace)):
        return _state(vars(value))
    return value if isinstance(value, (int, float, str, type(None))) else repr(value)


@pytest.mark.parametrize("change", CHANGES)
def test_no_trace(change: str) -> None:
    model = Gathers()
    model.layer.outs = []  # type: ignore[assignment]
    model.plain["mean"].update(1.0)
    if change == "generator of numpy":
        told = lambda: model.rng.bit_generator.state["state"]["state"]  # noqa: E731
    elif change == "list of a class":
        told = lambda: list(Gathers.shared)  # noqa: E731
    else:
        told = lambda: _state(model)  # noqa: E731
    before, outs, queue = told(), model.outs["preds"], model.queue
    snapshot = Snapshot(model)
    for _ in range(2):
        CHANGES[change](model)
        assert told() != before
        snapshot.put_back()
        assert told() == before
    assert model.outs["preds"] is outs
    assert model.queue is queue


def test_weights_and_what_is_left_alone_stay() -> None:
    model = Gathers()
    model.view = model.layer.weight.data
    snapshot = Snapshot(model, without=[model.norm])
    with torch.no_grad():
        model.layer.weight.fill_(3.0)
    model.norm.running_mean.fill_(2.0)
    snapshot.put_back()
    assert (model.layer.weight == 3).all()
    assert (model.view == 3).all()
    assert (model.norm.running_mean == 2).all()


def test_objects_of_libraries_stay() -> None:
    model = Gathers()
    model.optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    model.logger_ = logging.getLogger("optuna_nis.tests.snapshot")
    snapshot = Snapshot(model)
    model.optimiser.param_groups[0]["lr"] = 0.2
    model.logger_.disabled = True
    snapshot.put_back()
    assert model.optimiser.param_groups[0]["lr"] == 0.2
    assert model.logger_.disabled


def test_later_snapshots_put_back_what_was_there_then() -> None:
    model = Gathers()
    snapshot = Snapshot(model)
    for value in (1.0, 2.0):
        model.large.fill_(value)
        model.array.fill(value)
        model.total.fill_(value)
        snapshot = Snapshot(model, earlier=snapshot)
        again = Snapshot(model, earlier=snapshot)
        model.large.zero_()
        model.array.fill(0.0)
        model.total.zero_()
        again.put_back()
        assert (model.large == value).all()
        assert (model.array == value).all()
        assert (model.total == value).all()


def test_what_had_changed_can_be_undone() -> None:
    model = Gathers()
    snapshot = Snapshot(model)
    model.kept, model.count, model.outs["more"] = torch.ones(1), 3, 4
    changes = snapshot.put_back()
    model.kept, model.count = torch.zeros(1), 9
    undo(changes)
    assert not hasattr(model, "kept")
    assert model.count == 0


def test_what_cannot_be_copied_is_left_alone() -> None:
    model = Gathers()
    model.array.flags.writeable = False
    model.wide = torch.zeros(1).expand(3)
    model.sparse = torch.eye(2).to_sparse()
    with torch.inference_mode():
        model.inference = torch.zeros(1)
    model.cycle = [model]
    model.outs["gone"] = [weakref.proxy(Meter())]
    Snapshot(model).put_back()
    assert model.cycle[0] is model


def test_what_methods_remember_is_forgotten() -> None:
    class Remembers(nn.Module):
        @lru_cache  # noqa: B019
        def vectors(self) -> Tensor:
            return torch.rand(3)

    model = Remembers()
    before = model.vectors()
    snapshot = Snapshot(model)
    for _ in range(2):
        snapshot.put_back()
        after = model.vectors()
        assert after is not before
        assert model.vectors() is after
        before = after


@pytest.mark.parametrize("changes", [False, True])
def test_large_containers_are_looked_through_as_long_as_they_change(changes: bool) -> None:
    module = nn.Module()
    module.histories = {user: [user] for user in range(5000)}  # type: ignore[assignment]
    module.pairs = {(user, user) for user in range(5000)}  # type: ignore[assignment]
    histories: Any = module.histories
    first = Snapshot(module)
    if changes:
        histories[7].append(1)
        module.pairs.add((1, 2))  # type: ignore[operator]
    first.put_back()
    assert histories[7] == [7]
    later = Snapshot(module, earlier=first)
    histories[8].append(1)
    module.pairs.clear()  # type: ignore[operator]
    histories[-1] = [0]
    later.put_back()
    assert -1 not in histories
    assert histories[8] == ([8] if changes else [8, 1])
    assert len(module.pairs) == 5000  # type: ignore[arg-type]
    # One that changed once is looked through for good.
    later = Snapshot(module, earlier=later)
    later.put_back()
    last = Snapshot(module, earlier=later)
    histories[9].append(1)
    last.put_back()
    assert histories[9] == [9]


def test_large_containers_of_more_than_plain_values_are_looked_through() -> None:
    module = nn.Module()
    module.rows = [torch.zeros(1) for _ in range(5000)]  # type: ignore[assignment]
    first = Snapshot(module)
    first.put_back()
    later = Snapshot(module, earlier=first)
    module.rows[3].add_(1)  # type: ignore[index]
    later.put_back()
    assert module.rows[3] == 0  # type: ignore[index]
