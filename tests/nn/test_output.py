"""Output layers are linear layers whose rows are those of an embedding under a choice."""

from __future__ import annotations

import copy
import pickle

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis import EmbeddingSpec, SearchSpace, TableAllocation, Tier
from optuna_nis.nn import (
    MultiSizeLinear,
    SupernetEmbedding,
    SupernetLinear,
    set_choices,
    sized_layers,
    supernet_layers,
)

SPACE = SearchSpace([EmbeddingSpec("items", 40, 8)])
SPEC = SPACE.specs[0]
TABLE = TableAllocation("items", 40, 8, (Tier(4, 8), Tier(16, 2)))
REMOVED = TableAllocation("items", 40, 8, ())


def _choices(*costs: float) -> list[object]:
    rng = np.random.default_rng(0)
    return [SPACE.sample(rng, cost) for cost in costs]


def _layers(ranks: Tensor | None, seed: int = 0) -> tuple[SupernetLinear, MultiSizeLinear]:
    torch.manual_seed(seed)
    allocation = SPACE.sample(np.random.default_rng(seed), SPACE.full_parameters)
    supernet = SupernetLinear(SPEC, ranks=ranks)
    nn.init.normal_(supernet.field_layers()[0].projection)
    set_choices(supernet, SPACE, [allocation])
    sized = MultiSizeLinear(allocation["items"], ranks=ranks)
    supernet.copy_to(sized)
    return supernet, sized


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), permute=st.booleans())
def test_supernet_equals_multi_size(seed: int, permute: bool) -> None:
    ranks = torch.randperm(40, generator=torch.Generator().manual_seed(seed)) if permute else None
    supernet, sized = _layers(ranks, seed)
    vectors = torch.randn(3, 5, 8, requires_grad=True)
    target = torch.randn(3, 5, 40)
    gradients = []
    for layer in (supernet, sized):
        vectors.grad = None
        logits = layer(vectors)
        torch.testing.assert_close(logits, functional.linear(vectors, layer.weight, layer.bias))
        (logits * target).sum().backward()
        assert vectors.grad is not None
        gradients.append(vectors.grad.clone())
    torch.testing.assert_close(supernet(vectors), sized(vectors), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(supernet.weight, sized.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert supernet.bias is not None
    assert sized.bias is not None
    torch.testing.assert_close(supernet.bias.grad, sized.bias.grad)


@pytest.mark.parametrize("permute", [False, True])
def test_each_run_of_the_batch_sees_its_choice(permute: bool) -> None:
    ranks = torch.randperm(40) if permute else None
    layer = SupernetLinear(SPEC, ranks=ranks)
    choices, vectors = _choices(320, 150, 40), torch.randn(4, 2, 8)
    alone, weights = [], []
    for choice in choices:
        set_choices(layer, SPACE, [choice])
        alone.append(layer(vectors))
        weights.append(layer.weight)
    set_choices(layer, SPACE, choices)
    torch.testing.assert_close(layer(torch.cat([vectors] * 3)), torch.cat(alone))
    assert not torch.allclose(alone[0], alone[2])
    found = list(layer.parts(12))
    assert [rows for rows, _, _ in found] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    for (_, weight, bias), expected in zip(found, weights, strict=True):
        torch.testing.assert_close(weight, expected)
        assert bias is layer.bias
    with pytest.raises(RuntimeError, match="`weight` of 'items' is not one table"):
        _ = layer.weight
    for call in (lambda: layer(vectors), lambda: list(layer.parts(4))):
        with pytest.raises(ValueError, match="of the 3 choices, got 4 examples of 'items'"):
            call()


def test_a_loss_on_parts_trains_as_one_on_logits() -> None:
    layer = SupernetLinear(SPEC, ranks=torch.randperm(40))
    set_choices(layer, SPACE, _choices(320, 60))
    vectors, labels = torch.randn(6, 8), torch.randint(0, 40, (6,))
    functional.cross_entropy(layer(vectors), labels).backward()
    expected = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    for rows, weight, bias in layer.parts(6):
        logits = functional.linear(vectors[rows], weight, bias)
        (functional.cross_entropy(logits, labels[rows]) / 2).backward()
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_rows_that_are_removed_have_their_bias_for_a_logit() -> None:
    ranks = torch.arange(39, -1, -1)
    sized = MultiSizeLinear(TABLE, ranks=ranks)
    logits = sized(torch.randn(3, 8))
    assert sized.bias is not None
    torch.testing.assert_close(logits[:, :20], sized.bias[:20].expand(3, 20))
    assert not torch.isclose(logits[:, 20:], sized.bias[20:]).any()
    removed = MultiSizeLinear(REMOVED, bias=False)
    vectors = torch.randn(3, 8, requires_grad=True)
    assert torch.equal(removed(vectors), torch.zeros(3, 40))
    removed(vectors).sum().backward()
    assert torch.equal(removed.weight, torch.zeros(40, 8))


def test_full_rows_are_a_linear_layer() -> None:
    layer = MultiSizeLinear(SPACE.full()["items"])
    plain = nn.Linear(8, 40)
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        plain.bias.copy_(layer.bias)
    vectors = torch.randn(2, 3, 8)
    torch.testing.assert_close(layer(vectors), plain(vectors))
    torch.testing.assert_close(layer(vectors[0, 0]), layer(vectors)[0, 0])
    assert layer(torch.empty(0, 8)).shape == SupernetLinear(SPEC)(torch.empty(0, 8)).shape


def test_it_starts_as_a_linear_layer_does() -> None:
    torch.manual_seed(0)
    wide = EmbeddingSpec("items", 4000, 64)
    expected = nn.Linear(64, 4000)
    for layer in (SupernetLinear(wide), MultiSizeLinear(SearchSpace([wide]).full()["items"])):
        for mine, theirs in ((layer.weight, expected.weight), (layer.bias, expected.bias)):
            assert mine is not None
            assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.05)
    assert SupernetLinear(wide, init_std=0.5).weight.std().item() == pytest.approx(0.5, rel=0.05)


def test_holds_exactly_the_parameters_of_the_allocation() -> None:
    for bias in (0, 1):
        layer = MultiSizeLinear(TABLE, bias=bool(bias))
        held = sum(parameter.numel() for parameter in layer.parameters())
        assert held == TABLE.num_parameters + 40 * bias
    assert [each.name for each in sized_layers(nn.Sequential(layer))] == ["items"]


def test_supernet_layers_finds_the_table() -> None:
    model = nn.ModuleDict({"user": SupernetEmbedding(EmbeddingSpec("user", 20, 8))})
    model["head"] = SupernetLinear(SPEC)
    assert list(supernet_layers(model)) == ["user", "items"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("table", [TABLE, REMOVED])
def test_one_type_of_number(dtype: torch.dtype, table: TableAllocation) -> None:
    for layer in (SupernetLinear(SPEC).to(dtype), MultiSizeLinear(table).to(dtype)):
        logits = layer(torch.randn(2, 8, dtype=dtype))
        assert logits.dtype == layer.weight.dtype == dtype


@pytest.mark.parametrize("table", [TABLE, REMOVED])
def test_under_autocast_as_a_linear_layer(table: TableAllocation) -> None:
    vectors = torch.randn(2, 8)
    for layer in (SupernetLinear(SPEC), MultiSizeLinear(table), nn.Linear(8, 40)):
        with torch.autocast("cpu"):
            logits = layer(vectors)
            assert layer.weight.dtype == torch.float32
        assert logits.dtype == torch.bfloat16
        logits.sum().backward()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_and_states(again: object) -> None:
    vectors = torch.randn(3, 8)
    for layer in _layers(torch.randperm(40)):
        other = again(layer)  # type: ignore[operator]
        assert torch.equal(other(vectors), layer(vectors))
        layer.reset_parameters()
        assert not torch.allclose(other(vectors), layer(vectors))
        layer.load_state_dict(other.state_dict())
        assert torch.equal(other(vectors), layer(vectors))


def test_bad_arguments() -> None:
    for layer in (SupernetLinear(SPEC), MultiSizeLinear(TABLE)):
        with pytest.raises(ValueError, match=r"of 'items' must be 8 wide, got shape \(3, 7"):
            layer(torch.randn(3, 7))
        with pytest.raises(RuntimeError, match="`weight` of the layer 'items' is computed"):
            nn.init.zeros_(layer.weight)
        assert "in_features=8, out_features=40, bias=True" in repr(layer)
    with pytest.raises(ValueError, match="`ranks` of 'items' must be a permutation of 0 to 39"):
        MultiSizeLinear(TABLE, ranks=torch.zeros(40, dtype=torch.int64))
    with pytest.raises(ValueError, match="`layer` must have a bias as this layer has"):
        SupernetLinear(SPEC).copy_to(MultiSizeLinear(TABLE, bias=False))
