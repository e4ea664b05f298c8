"""What is looked up in the tiers of several layers at once is what each gives alone."""

from __future__ import annotations

from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.models.embeddings import FeatureEmbeddings
from optuna_nis.nn import MultiSizeEmbedding, _native, _projected

_ROWS = 60
needs_kernels = pytest.mark.skipif(not _native._IS_USED, reason="needs a C compiler")


@st.composite
def _tables(draw: st.DrawFn, width: int) -> Allocation:
    tables = []
    for index in range(draw(st.integers(1, 4))):
        widths = draw(st.lists(st.integers(1, width), min_size=1, max_size=3, unique=True))
        rows = draw(st.lists(st.integers(1, 20), min_size=len(widths), max_size=len(widths)))
        tiers = tuple(Tier(n, own) for n, own in zip(rows, sorted(widths, reverse=True)))
        shared = draw(st.integers(0, _ROWS - sum(rows)))
        tables.append(TableAllocation(f"f{index}", _ROWS, width, tiers, shared))
    return Allocation(tables)


def _rows_and_gradients(model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor | None]:
    model.zero_grad()
    rows = model(batch)
    rows.backward(torch.linspace(-1, 1, rows.numel()).view_as(rows))
    found: list[Tensor | None] = [rows]
    for parameter in model.parameters():
        grad = parameter.grad
        found.append(grad.to_dense() if grad is not None and grad.is_sparse else grad)
    return found


@needs_kernels
@settings(deadline=None, max_examples=80)
@given(data=st.data(), width=st.sampled_from([1, 5, 16, 20]), seed=st.integers(0, 99))
@pytest.mark.parametrize("many", [1, 1 << 21])
def test_rows_and_gradients_are_those_of_each_layer_alone(
    many: int, data: st.DataObject, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    tables = data.draw(_tables(width))
    model = FeatureEmbeddings(tables, init_std=1.0)
    for layer in model.layers:
        assert isinstance(layer, MultiSizeEmbedding)
        layer.sparse = bool(torch.rand(()) < 0.5)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
        parameter.requires_grad_(bool(torch.rand(()) < 0.8))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        next(model.parameters()).requires_grad_()
    batch = {name: torch.randint(_ROWS + 1, (11,)) for name in tables}
    with mock.patch.object(_projected, "_MANY", many):
        found = _rows_and_gradients(model, batch)
    with mock.patch.object(_native, "_IS_USED", False):
        expected = _rows_and_gradients(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def _model(**options: int) -> FeatureEmbeddings:
    table = TableAllocation("big", 9000, 8, (Tier(50, 8), Tier(8900, 3)), **options)
    small = TableAllocation("small", 5, 8, (Tier(5, 8),))
    model = FeatureEmbeddings(Allocation([table, small]), init_std=1.0)
    nn.init.normal_(model.layers[0].projection)  # type: ignore[arg-type]
    return model


def _batch(size: int = 300) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "big": torch.randint(9001, (size,), generator=generator),
        "small": torch.randint(6, (size,), generator=generator),
    }


@needs_kernels
def test_layers_of_many_rows_are_looked_up_together() -> None:
    model, batch = _model(), _batch()
    with mock.patch.object(MultiSizeEmbedding, "forward", side_effect=AssertionError):
        model(batch)
    # Somebody looks at what the layer gives.
    model.layers[0].register_forward_hook(lambda *args: None)
    with (
        mock.patch.object(MultiSizeEmbedding, "forward", side_effect=AssertionError),
        pytest.raises(AssertionError),
    ):
        model(batch)


@needs_kernels
@pytest.mark.parametrize("kind", ["rounded", "double", "frozen", "no gradients"])
def test_what_the_loops_are_not_for_is_looked_up_alone(kind: str) -> None:
    model, batch = _model(), _batch()
    if kind == "rounded":
        tiers = (Tier(50, 8, 4), Tier(8900, 3, 2))
        model = FeatureEmbeddings(
            Allocation([TableAllocation("big", 9000, 8, tiers)]), init_std=1.0
        )
    if kind == "double":
        model.double()
    if kind == "frozen":
        model.requires_grad_(False)
    with (
        mock.patch.object(_native, "take_rows", side_effect=AssertionError),
        torch.set_grad_enabled(kind != "no gradients"),
    ):
        rows = model(batch)
    with mock.patch.object(_native, "_IS_USED", False):
        torch.testing.assert_close(rows, model(batch))


@needs_kernels
def test_products_are_precise_under_autocast() -> None:
    model, batch = _model(), _batch()
    expected = _rows_and_gradients(model, batch)
    with torch.autocast("cpu", torch.bfloat16), mock.patch.object(_projected, "_MANY", 1):
        found = _rows_and_gradients(model, batch)
    torch.testing.assert_close(found, expected)


@needs_kernels
def test_ids_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="`ids` of 'big' must be between 0 and 9000"):
        _model()(_batch() | {"big": torch.full((300,), 9001)})


@needs_kernels
def test_a_batch_of_nothing_has_rows_and_gradients() -> None:
    model = _model()
    rows, *gradients = _rows_and_gradients(model, _batch(0))
    assert rows is not None
    assert rows.shape == (0, 2, 8)
    assert not any(grad is not None and grad.any() for grad in gradients)


@needs_kernels
def test_what_is_saved_may_be_made_anew() -> None:
    model, batch = _model(), _batch()
    expected = _rows_and_gradients(model, batch)
    model.zero_grad()
    rows = checkpoint(model, batch, use_reentrant=False)
    rows.backward(torch.linspace(-1, 1, rows.numel()).view_as(rows))
    grads = [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close(grads, expected[1:])


@needs_kernels
def test_one_layer_is_looked_up_alone() -> None:
    table = TableAllocation("big", 9000, 8, (Tier(50, 8), Tier(8900, 3)))
    model = FeatureEmbeddings(Allocation([table]), init_std=1.0)
    with mock.patch.object(_native, "take_rows", side_effect=AssertionError):
        model({"big": torch.randint(9001, (300,))})
