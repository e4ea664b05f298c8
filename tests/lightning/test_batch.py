"""Cutting and repeating batches of any kind."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from optuna_nis.lightning._batch import batch_length, copied, examples_length, repeat, runs, take

Pair = namedtuple("Pair", "ids label")


@dataclass
class Batch:
    ids: Tensor
    name: str
    label: Any


class Foreign:
    """A batch of another library, of which nothing is known."""

    def __init__(self) -> None:
        self.ids = torch.arange(3)


IDS, LABEL = torch.arange(3), torch.tensor([1.0, 0.0, 1.0])


def test_lists_arrays_and_strings_beside_tensors() -> None:
    batch = {
        "ids": IDS,
        "label": [1, 0, 1],
        "array": np.arange(6).reshape(3, 2),
        "tags": [["a"], [], ["b", "c"]],
        "name": ("x", "y", "z"),
        "split": "val",
        "weight": 2,
        "missing": None,
        "nested": [IDS, {"more": LABEL}],
    }
    first = take(batch, 2)
    assert first["ids"].tolist() == [0, 1]
    assert first["label"] == [1, 0]
    assert first["array"].tolist() == [[0, 1], [2, 3]]
    assert first["tags"] == [["a"], []]
    assert first["name"] == ("x", "y")
    assert (first["split"], first["weight"], first["missing"]) == ("val", 2, None)
    assert first["nested"][1]["more"].tolist() == [1.0, 0.0]
    twice = repeat(batch, 2)
    assert twice["ids"].tolist() == [0, 1, 2, 0, 1, 2]
    assert twice["label"] == [1, 0, 1, 1, 0, 1]
    assert twice["array"].shape == (6, 2)
    assert twice["tags"] == batch["tags"] * 2
    assert twice["name"] == ("x", "y", "z", "x", "y", "z")
    assert take(batch, 3) is batch


@pytest.mark.parametrize(
    "batch",
    [
        Pair(IDS, LABEL),
        Batch(IDS, "a", LABEL),
        UserDict(ids=IDS, label=LABEL),
        [IDS, LABEL],
        (IDS, [1.0, 0.0, 1.0]),
        IDS,
    ],
)
def test_collections_stay_what_they_are(batch: Any) -> None:
    assert examples_length(batch) == 3
    for changed, length in ((take(batch, 2), 2), (repeat(batch, 2), 6)):
        assert type(changed) is type(batch)
        assert examples_length(changed) == length


def test_tensordict() -> None:
    tensordict = pytest.importorskip("tensordict")
    inner = tensordict.TensorDict({"ids": IDS.view(3, 1)}, batch_size=[3])
    batch = tensordict.TensorDict({"label": LABEL, "inner": inner}, batch_size=[3])
    first, twice = take(batch, 2), repeat([batch, LABEL], 2)[0]
    assert first.batch_size == first["inner"].batch_size == torch.Size([2])
    assert twice.batch_size == torch.Size([6])
    assert twice["inner", "ids"].flatten().tolist() == [0, 1, 2, 0, 1, 2]
    none = tensordict.TensorDict({"label": LABEL}, batch_size=[])
    with pytest.raises(ValueError, match="must share their first dimension"):
        take(none, 2)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([IDS, torch.arange(4)], r"got lengths \[3, 4\]"),
        ([IDS, torch.tensor(3.0)], r"got lengths \[-1, 3\]"),
        ("ids", r"got lengths \[\]"),
        ([IDS, Foreign()], "not known which examples a Foreign holds"),
        ([LABEL, pack_sequence([IDS, IDS[:2]])], "which examples a PackedSequence holds"),
        ([IDS, [1, 2]], "as long as its tensors, 3, got 2"),
        ({"ids": IDS, "array": np.arange(4)}, "as long as its tensors, 3, got 4"),
        ({"ids": IDS, "rows": 3}, "The number 3 of a batch may be that of its examples"),
        ({"ids": IDS, "rows": np.int64(3)}, "may be that of its examples"),
        ([IDS, torch.eye(3).to_sparse()], "neither nested nor sparse"),
        (
            [LABEL, torch.nested.nested_tensor([IDS, IDS[:2], IDS], layout=torch.jagged)],
            "neither nested nor sparse",
        ),
    ],
)
def test_what_is_used_whole(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        examples_length(batch)
    for change in (take, repeat):
        with pytest.raises(ValueError, match=message):
            change(batch, 2)


def test_graphs_are_used_whole() -> None:
    data = pytest.importorskip("torch_geometric.data")
    graph = data.Data(x=torch.ones(3, 2), edge_index=torch.zeros(2, 4, dtype=torch.long))
    for batch in (graph, data.Batch.from_data_list([graph, graph]), [graph, LABEL]):
        with pytest.raises(ValueError, match=r"lengths \[\]|which examples a"):
            batch_length(batch)


def test_collections_that_cannot_be_made_anew() -> None:
    class Strange(UserDict):  # type: ignore[type-arg]
        def __init__(self, ids: Tensor, label: Tensor) -> None:
            super().__init__({"ids": ids, "label": label})

    batch = Strange(IDS, LABEL)
    with pytest.raises(ValueError, match="not of a type that can be made anew"):
        take(batch, 2)
    assert copied(batch) is batch


def test_a_copy_can_be_changed() -> None:
    batch = {"ids": IDS.clone(), "tags": [["a"], [], []], "graph": Foreign(), "rows": 3}
    copy = copied(batch)
    copy["ids"].zero_()
    copy["tags"][0].append("b")
    copy["graph"].ids.zero_()
    copy.pop("rows")
    assert batch["ids"].tolist() == batch["graph"].ids.tolist() == [0, 1, 2]
    assert batch["tags"] == [["a"], [], []]
    assert batch["rows"] == 3
    once = (row for row in [1])
    assert copied([once])[0] is once


def test_runs_hold_every_example_once() -> None:
    batch = {"ids": torch.arange(7), "names": [*"abcdefg"], "split": "train"}
    found = list(runs(batch, 3))
    assert [each["ids"].tolist() for each in found] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [each["names"] for each in found] == [[*"abc"], [*"def"], ["g"]]
    assert {each["split"] for each in found} == {"train"}
