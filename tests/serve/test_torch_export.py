from __future__ import annotations

from collections.abc import Callable
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optuna_nis import EmbeddingSpec, SearchSpace, TableAllocation, Tier
from optuna_nis.nn import MultiSizeEmbedding, MultiSizeEmbeddingBag, apply_allocation
from optuna_nis.serve import freeze, quantize, to_dense, to_torch_export

IDS = torch.tensor([1, 2, 3])
TABLE = TableAllocation("f", 60, 8, (Tier(5, 8), Tier(20, 6), Tier(10, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("change", [None, to_dense])
def test_a_swapped_model(
    swapped: nn.Module,
    batch_of: Callable[[int], dict[str, Tensor]],
    change: Callable[[nn.Module], nn.Module] | None,
    tmp_path: Path,
) -> None:
    if change is not None:
        change(swapped)
    swapped.train()
    swapped.head.eval()
    program = to_torch_export(swapped, batch_of(5), bags=["bag"])
    assert swapped.training
    assert not swapped.head.training
    torch.export.save(program, tmp_path / "model.pt2")
    served = torch.export.load(tmp_path / "model.pt2").module()
    for length in (1, 2, 33):
        batch = batch_of(length)
        torch.testing.assert_close(served(batch), swapped(batch))
    batch["bag"] = batch["bag"][:, :3]
    torch.testing.assert_close(served(batch), swapped(batch))


@pytest.mark.slow
def test_packed_tables(narrow: nn.Module, batch_of: Callable[[int], dict[str, Tensor]]) -> None:
    freeze(narrow)
    program = to_torch_export(narrow, batch_of(5), bags=["bag"]).module()
    narrow.eval()
    for length in (1, 33):
        batch = batch_of(length)
        torch.testing.assert_close(program(batch), narrow(batch))


def test_weights_of_the_ids_of_a_bag(swapped: nn.Module) -> None:
    ids, weights = torch.randint(0, 50, (6, 4)), torch.rand(6, 4)
    fused = nn.ModuleDict({"f": nn.EmbeddingBag(50, 8, mode="sum")})
    sizes = SearchSpace([EmbeddingSpec("f.a", 20, 8), EmbeddingSpec("f.b", 30, 8)]).full()
    apply_allocation(fused, sizes)
    for layer in (swapped.bags[0], fused["f"]):
        program = to_torch_export(_Weighted(layer), (ids[:3], weights[:3]))
        expected = layer(ids, per_sample_weights=weights)
        torch.testing.assert_close(program.module()(ids, weights), expected)


class _Weighted(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        return self.layer(ids, per_sample_weights=weights)


@pytest.mark.slow
def test_recurrent_layers_and_attention(sequences: nn.Module) -> None:
    # With other tables they are exported in the tests of ONNX.
    quantize(sequences)
    program = to_torch_export(sequences, torch.randint(0, 60, (4, 3))).module()
    for length in (1, 2, 7):
        ids = torch.randint(0, 60, (length, 3))
        torch.testing.assert_close(program(ids), sequences(ids))


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = MultiSizeEmbedding(TABLE)

    def difference(self, a: Tensor, b: Tensor) -> Tensor:
        return self.layer(a) - 3 * self.layer(b)

    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self.difference(a, b)


class _KeywordOnly(_Named):
    def forward(self, *, b: Tensor, **more: Tensor) -> Tensor:
        return self.difference(more["a"], b)


class _Keywords(_Named):
    def forward(self, **batch: Tensor) -> Tensor:
        return self.difference(batch["a"], batch["b"])


class _First(_Named):
    def forward(self, a: Tensor, **more: Tensor) -> Tensor:
        return self.difference(a, more["b"])


@pytest.mark.parametrize(
    ("kind", "names"),
    [(_Named, "ab"), (_Named, "ba"), (_KeywordOnly, "ab"), (_Keywords, "ba"), (_First, "ba")],
)
def test_models_called_by_keyword(kind: type[nn.Module], names: str) -> None:
    model = kind()
    program = to_torch_export(model, dict.fromkeys(names, IDS)).module()
    for length in (1, 2, 7):
        batch = {name: torch.randint(0, 60, (length,)) for name in names}
        torch.testing.assert_close(program(**batch), model(**batch))


def test_names_that_no_argument_can_have() -> None:
    with pytest.raises(ValueError, match=r"names of Python's arguments .*, got 'a\.b'"):
        to_torch_export(_Keywords(), {"a": IDS, "a.b": IDS})


class _OneArgument(_Named):
    def forward(self, batch: dict[str, Tensor], **more: Tensor) -> Tensor:
        return self.difference(batch["a"], batch["b"])


class _Wrapped(_Named):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        (batch,) = args
        return self.difference(batch["a"], batch["b"])


class _PositionOnly(_Named):
    def forward(self, a: dict[str, Tensor], /) -> Tensor:
        return self.difference(a["a"], a["b"])


@pytest.mark.parametrize("kind", [_OneArgument, _Wrapped, _PositionOnly])
def test_models_called_with_one_mapping(kind: type[nn.Module]) -> None:
    model = kind()
    program = to_torch_export(model, {"a": IDS, "b": IDS}).module()
    batch = {"a": torch.arange(9), "b": torch.arange(9).flip(0)}
    torch.testing.assert_close(program(batch), model(batch))


def test_a_tensor_given_twice_is_two_inputs() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = MultiSizeEmbedding(TABLE)

        def forward(self, *ids: Tensor) -> Tensor:
            return self.layer(ids[0]) - self.layer(ids[1])

    model = Pairs()
    program = to_torch_export(model, (IDS, IDS))
    more = torch.arange(9), torch.arange(9).flip(0)
    torch.testing.assert_close(program.module()(*more), model(*more))


class _Offsets(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(ids, torch.tensor([0, 2]))


def test_bags_by_offsets_are_refused(swapped: nn.Module) -> None:
    for layer in (MultiSizeEmbeddingBag(TABLE), *swapped.bags):
        with pytest.raises(ValueError, match="by `offsets` cannot be exported"):
            to_torch_export(_Offsets(layer), torch.randint(0, 50, (6,)))


def test_what_depends_on_the_size_of_the_batch_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return ids.view(3, -1)

    model = nn.Sequential(MultiSizeEmbedding(TABLE), Fixed())
    with pytest.raises(ValueError, match="a Sequential, cannot be exported for batches of any"):
        to_torch_export(model, torch.tensor([1, 2, 3]))


@pytest.mark.parametrize(
    ("batch", "bags", "message"),
    [
        (IDS[:1], (), "at least two"),
        ((IDS, IDS[:2]), (), "the same number of examples"),
        ((), (), "must be a tensor, a tuple"),
        ({"f": [1, 2]}, (), "must be a tensor, a tuple"),
        (({"f": IDS}, IDS), (), "must be a tensor, a tuple"),
        (3, (), "must be a tensor, a tuple"),
        (torch.tensor(3), (), "at least two"),
        (IDS, ["f"], "`bags` names 'f', which is none of"),
        (IDS, ["input_0"], "bags of length two or more"),
    ],
)
def test_bad_batches(batch: Any, bags: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_torch_export(MultiSizeEmbedding(TABLE), batch, bags=bags)


def test_the_model_is_left_alone() -> None:
    layer = MultiSizeEmbedding(TABLE, ranks=torch.randperm(60))
    before = copy.deepcopy(layer.state_dict())
    to_torch_export(layer, IDS)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
    assert layer.tiers[0].weight.requires_grad


@pytest.mark.parametrize("name", ["it's", 'so "called"'])
def test_a_name_with_a_quote_is_refused(name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = MultiSizeEmbedding(TABLE)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.layer(batch[name])

    with pytest.raises(ValueError, match="`batch` must have names without quotes"):
        to_torch_export(Model(), {name: IDS})
