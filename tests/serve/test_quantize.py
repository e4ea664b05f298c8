from __future__ import annotations

from collections.abc import Callable
import copy
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import torch
from torch import Tensor, nn

from optuna_nis import TableAllocation, Tier
from optuna_nis.nn import MultiSizeEmbedding, MultiSizeEmbeddingBag, freeze
from optuna_nis.serve import (
    QuantizedEmbedding,
    QuantizedEmbeddingBag,
    allocation_of,
    quantization_report,
    quantize,
    to_dense,
)

MULTI_SIZE = MultiSizeEmbedding | MultiSizeEmbeddingBag
TABLE = TableAllocation("f", 60, 8, (Tier(5, 8), Tier(20, 6), Tier(10, 2)))


def _stored(model: nn.Module) -> int:
    """Bytes of all that a quantised model holds, without the order of ids."""
    state = model.state_dict()
    return sum(value.nbytes for name, value in state.items() if not name.endswith("_ranks"))


@settings(deadline=None)
@given(
    rows=st.lists(
        st.lists(st.floats(-9, 9, width=32), min_size=5, max_size=5), min_size=1, max_size=9
    ),
    shift=st.floats(-100, 100, width=32),
)
def test_the_error_is_half_a_scale(rows: list[list[float]], shift: float) -> None:
    weight = torch.tensor(rows) + shift
    layer = MultiSizeEmbedding(TableAllocation("f", len(rows), 5, (Tier(len(rows), 5),)))
    layer.tiers[0].weight.data = weight
    found = quantize(layer)(torch.arange(len(rows)))
    spread = weight.amax(1) - weight.amin(1)
    # Half a scale; what float16 does to the scale, 127 times, and to the offset.
    most = spread / 508 + spread / 2**12 + weight.abs().amax(1) / 2**11 + 1e-5
    assert bool(((found - weight).abs().amax(1) <= most).all())


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-5])
def test_the_error_is_half_a_scale_of_small_numbers_too(size: float) -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 60, 8, (Tier(60, 8),)), init_std=size)
    found, rows = quantize(layer)(torch.arange(60)), layer(torch.arange(60))
    spread = rows.amax(1) - rows.amin(1)
    # Scales and offsets below those of float16 are 6e-8 apart.
    most = spread / 508 * (1 + 2**-9) + rows.abs().amax(1) / 2**11 + 6.1e-8
    assert bool(((found - rows).abs().amax(1) <= most).all())


def test_bytes_and_errors_are_those_reported(swapped: nn.Module) -> None:
    allocation = allocation_of(swapped)
    before = {table: copy.deepcopy(swapped) for table in ("int8", "float16")}
    for dtype, model in before.items():
        report = quantization_report(model, dtype)  # type: ignore[arg-type]
        assert report.nbytes_before == allocation.nbytes()
        dense = to_dense(copy.deepcopy(model))
        quantize(model, dtype)  # type: ignore[type-var]
        tables = [m for m in model.modules() if isinstance(m, MULTI_SIZE)]
        assert report.nbytes == sum(_stored(tier) for tier in tables)
        if dtype == "float16":
            assert report.nbytes == 2 * allocation.num_parameters
        user = report.tables[0]
        assert (user.name, user.nbytes_ranks) == ("user", 61 * 4)
        if dtype == "int8":
            # Codes, scale and offset; the tier of width 2 and the projection in float16.
            rows = 5 * (8 + 4) + 20 * (6 + 4) + 10 * 2 * 2
            assert user.nbytes == rows + 2 * 8 * 8
        difference = (dense.user.weight - model.user.weight).detach()
        assert user.max_error == pytest.approx(float(difference.abs().max()), rel=1e-3)
        error = float(
            difference.norm() / (dense.user.weight[dense.user.weight[:, 0] != 0.5].norm())
        )
        assert user.relative_error == pytest.approx(error, rel=1e-2)
        assert 0 < user.relative_error < 0.01
        assert report.max_error >= user.max_error
        assert "all tables:" in str(report)


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_a_swapped_model_predicts_nearly_the_same(
    swapped: nn.Module, batch_of: Callable[[int], dict[str, Tensor]], dtype: Any
) -> None:
    batch = batch_of(50)
    expected = swapped(batch)
    assert quantize(swapped, dtype) is swapped
    found = swapped(batch)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)
    # What the layers give is what their tables hold.
    torch.testing.assert_close(to_dense(swapped)(batch), found)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("shared", [0, 4])
def test_bags(mode: Any, shared: int) -> None:
    table = replace(TABLE, num_shared=shared)
    layer = MultiSizeEmbeddingBag(table, mode=mode, ranks=torch.randperm(60))
    small = quantize(layer)
    assert type(small) is QuantizedEmbeddingBag
    assert type(layer) is MultiSizeEmbeddingBag
    dense = to_dense(small)
    ids = torch.randint(0, 61, (7, 4))
    torch.testing.assert_close(small(ids), dense(ids))
    flat, offsets = ids.reshape(-1), torch.tensor([0, 0, 5, 20])
    torch.testing.assert_close(small(flat, offsets), dense(flat, offsets))
    if mode == "sum":
        weights = torch.rand(7, 4)
        torch.testing.assert_close(
            small(ids, per_sample_weights=weights), dense(ids, per_sample_weights=weights)
        )


def test_a_row_of_equal_numbers_and_one_of_zeros() -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 3, 6, (Tier(3, 6),)))
    with torch.no_grad():
        layer.tiers[0].weight.copy_(torch.tensor([[0.5], [0.0], [1e-9]]).expand(3, 6))
    torch.testing.assert_close(
        quantize(layer)(torch.arange(3)), layer(torch.arange(3)), rtol=0, atol=1e-7
    )
    with torch.no_grad():
        layer.tiers[0].weight.zero_()
    assert quantization_report(layer).tables[0].relative_error == 0


def test_shapes_types_and_training() -> None:
    layer = MultiSizeEmbedding(TABLE, ranks=torch.randperm(60)).double()
    small = quantize(layer)
    assert isinstance(small, QuantizedEmbedding)
    assert small(torch.tensor(3)).shape == (8,)
    assert small(torch.empty(0, 2, dtype=torch.int64)).shape == (0, 2, 8)
    assert small(torch.tensor([3])).dtype == torch.float64
    assert not list(small.parameters())
    assert "QuantizedTier(10, 2)" in repr(small)
    removed = quantize(MultiSizeEmbedding(TableAllocation("f", 3, 6, ())))
    assert bool((removed(torch.arange(4)) == 0).all())
    with pytest.raises(ValueError, match="between 0 and 60"):
        small(torch.tensor([61]))


def test_casts_change_no_stored_number() -> None:
    small = quantize(MultiSizeEmbedding(TABLE))
    expected, stored = small(torch.arange(60)), _stored(small)
    again = copy.deepcopy(small).bfloat16().double()
    assert _stored(again) == stored
    torch.testing.assert_close(again(torch.arange(60)).float(), expected, rtol=1e-6, atol=0)


def test_what_is_refused() -> None:
    layer = MultiSizeEmbedding(TABLE)
    narrow = MultiSizeEmbedding(TableAllocation("f", 60, 8, (Tier(5, 8, 16), Tier(9, 8, 4))))
    for function in (quantize, quantization_report):
        for model, dtype, message in (
            (layer, "int4", '`dtype` must be "int8" or "float16", got \'int4\''),
            (nn.Linear(2, 2), "int8", "must have a multi-size layer"),
            (quantize(layer), "int8", "'f' of `model` is quantised already"),
            (freeze(layer), "int8", "'f' of `model` is frozen already"),
            (narrow, "int8", "'f' of `model` was trained for 4 bits a number: `freeze"),
        ):
            with pytest.raises(ValueError, match=message):
                function(model, dtype)  # type: ignore[operator]
    with torch.no_grad():
        layer.tiers[1].weight[3, 1] = 1e9
    model = nn.ModuleList([MultiSizeEmbedding(TABLE), layer])
    with pytest.raises(ValueError, match="'f' has the number 1e"):
        quantize(model, "float16")
    assert all(type(child) is MultiSizeEmbedding for child in model)
