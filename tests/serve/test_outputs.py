"""Output layers over items in every form that a model is served in."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optuna_nis import Allocation, EmbeddingSpec, TableAllocation, Tier
from optuna_nis.nn import MultiSizeLinear, SupernetLinear, apply_allocation, output_features
from optuna_nis.serve import (
    allocation_of,
    load,
    quantization_report,
    quantize,
    save,
    to_dense,
    to_onnx,
    to_torch_export,
)

ITEMS, WIDTH = 50, 8
SIZES = Allocation(
    [
        TableAllocation("user", 40, WIDTH, (Tier(9, 8), Tier(9, 5))),
        TableAllocation("head", ITEMS, WIDTH, (Tier(5, 8), Tier(20, 5), Tier(10, 2))),
        TableAllocation("item", ITEMS, WIDTH, (Tier(30, 5), Tier(10, 1))),
        TableAllocation("own", ITEMS, WIDTH, (Tier(10, 7), Tier(5, 6))),
    ]
)


class Model(nn.Module):
    """A head of its own, one of the weight of an embedding, and a layer of this package."""

    def __init__(self, own: nn.Module | None = None) -> None:
        super().__init__()
        self.user = nn.Embedding(40, WIDTH)
        self.item = nn.Embedding(ITEMS, WIDTH, padding_idx=3)
        nn.init.ones_(self.item.weight[3])
        self.head = nn.Linear(WIDTH, ITEMS)
        self.tied = nn.Linear(WIDTH, ITEMS, bias=False)
        self.tied.weight = self.item.weight
        self.own = nn.Linear(WIDTH, ITEMS) if own is None else own

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        vectors = torch.tanh(self.user(user) + self.item(item))
        return torch.cat([self.head(vectors), self.tied(vectors), self.own(vectors)], -1)


def _build(sizes: Allocation) -> Model:
    torch.manual_seed(0)
    counts = {name: torch.randint(0, 99, (ITEMS,)) for name in ("head", "item")}
    counts["user"] = torch.randint(0, 99, (40,))
    model = Model(MultiSizeLinear(sizes["own"], ranks=torch.randperm(ITEMS)))
    swapped = Allocation([sizes[name] for name in ("user", "head", "item")])
    return apply_allocation(model, swapped, counts=counts)


def _inputs(length: int) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 40, (length,)), torch.randint(0, ITEMS, (length,))


def test_dense() -> None:
    model, inputs = _build(SIZES), _inputs(20)
    expected = model(*inputs)
    kept = model.head.bias
    dense = to_dense(model)
    torch.testing.assert_close(dense(*inputs), expected)
    assert type(dense.head) is type(dense.tied) is type(dense.own) is nn.Linear
    assert dense.head.bias is kept
    assert dense.tied.weight is dense.item.weight
    plain = Model()
    plain.load_state_dict(dense.state_dict())
    torch.testing.assert_close(plain(*inputs), expected)
    layer = MultiSizeLinear(SIZES["own"], bias=False)
    alone = to_dense(layer)
    vectors = torch.randn(3, WIDTH)
    torch.testing.assert_close(alone(vectors), layer(vectors))
    assert isinstance(alone, nn.Linear)


def test_files_and_sizes(tmp_path: Path) -> None:
    model, inputs = _build(SIZES), _inputs(20)
    assert dict(allocation_of(model)) == dict(SIZES)
    assert output_features(model) == {"head", "own"}
    save(model, tmp_path / "model.pt")
    torch.testing.assert_close(load(tmp_path / "model.pt", _build)(*inputs), model(*inputs))


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_quantised(dtype: Any) -> None:
    model, inputs = _build(SIZES), _inputs(20)
    with torch.no_grad():
        expected = model(*inputs)
    names = {table.name for table in quantization_report(model, dtype).tables}
    assert names == {"user", "head", "item", "own"}
    small = quantize(copy.deepcopy(model), dtype)
    torch.testing.assert_close(small(*inputs), expected, rtol=0.02, atol=0.05)
    assert small.tied.fields is small.item.fields
    assert {name for name, _ in small.named_parameters()} == {"head.bias", "own.bias"}
    torch.testing.assert_close(to_dense(small)(*inputs), small(*inputs))


def test_torch_export() -> None:
    for model in (_build(SIZES), quantize(_build(SIZES)), to_dense(_build(SIZES))):
        program = to_torch_export(model, _inputs(3)).module()
        for length in (1, 7):
            inputs = _inputs(length)
            torch.testing.assert_close(program(*inputs), model(*inputs))


@pytest.mark.slow
def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = _build(SIZES)
    to_onnx(model, _inputs(3), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    inputs = _inputs(7)
    given = {f"input_{index}": tensor.numpy() for index, tensor in enumerate(inputs)}
    (found,) = session.run(None, given)
    torch.testing.assert_close(torch.from_numpy(found), model(*inputs).detach())


def test_torchrec() -> None:
    pytest.importorskip("torchrec")
    from optuna_nis.serve.torchrec import to_torchrec

    model = _build(SIZES)
    model.item._padding_row = None
    with pytest.raises(ValueError, match="'item' cannot go to TorchRec: it is the weight of an"):
        to_torchrec(model)
    model.item, model.tied = nn.Embedding(ITEMS, WIDTH), nn.Linear(WIDTH, ITEMS)
    assert list(to_torchrec(model).allocation) == ["user"]
    with pytest.raises(ValueError, match=r"must look ids up, got a MultiSizeLinear whose .*'own'"):
        to_torchrec(model.own)


def test_a_layer_that_is_still_searched_is_refused() -> None:
    layer = SupernetLinear(EmbeddingSpec("own", ITEMS, WIDTH))
    with pytest.raises(ValueError, match="still searchable: 'own' is a layer of a supernet"):
        to_dense(layer)
