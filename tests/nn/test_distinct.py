"""What is done once for each row of a batch gives what doing it for each id gives."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import torch
from torch import Tensor, nn

from optuna_nis import TableAllocation, Tier
from optuna_nis.nn import MultiSizeEmbedding, MultiSizeEmbeddingBag, RowwiseAdagrad
from optuna_nis.nn._distinct import distinct
from optuna_nis.nn.multi_size import MultiSize

_TIERS = (Tier(2, 8), Tier(3, 4), Tier(5, 2))


@settings(max_examples=60, deadline=None)
@given(
    # Of one, two and three digits of 16 bits.
    ids=st.lists(st.sampled_from([0, 1, 5, 65_535, 65_536, 2**17, 2**32, 2**33 + 5]), max_size=12),
    tables=st.lists(st.sampled_from([1, 3, 65_536, 2**32]), min_size=1, max_size=3),
)
def test_distinct_rows_are_those_of_torch(ids: list[int], tables: list[int]) -> None:
    ranks = torch.tensor(ids, dtype=torch.int64)
    found = distinct(ranks, tables, 2**34)
    values, inverse, counts = ranks.unique(return_inverse=True, return_counts=True)
    assert torch.equal(found.inverse, inverse)
    assert torch.equal(ranks[found.order], values.repeat_interleave(counts))
    assert torch.equal(found.starts, counts.cumsum(0) - counts)
    assert sum(found.sizes) == len(values)
    ends = list(accumulate(tables))
    for rows, start, end, size in zip(found.rows, [0, *ends], ends, found.sizes):
        assert torch.equal(rows, values[(values >= start) & (values < end)] - start)
        assert len(rows) == size


def _gradients(layer: nn.Module) -> list[Tensor]:
    return [parameter.grad.to_dense().clone() for parameter in layer.parameters()]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [MultiSizeEmbedding, MultiSizeEmbeddingBag])
@pytest.mark.parametrize("tiers", [_TIERS, (Tier(10, 8),)])
def test_a_step_sorts_no_gradient_again(
    kind: type[MultiSize], tiers: tuple[Tier, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = kind(TableAllocation("f", 20, 8, tiers), sparse=True)
    output = layer(torch.tensor([[3, 0], [3, 9], [15, 7]]))
    output.sum().backward(retain_graph=True)
    once = _gradients(layer)
    for parameter in layer.parameters():
        # What was written once stays: it is added to, not over it.
        assert parameter.grad is not None
        parameter.grad = parameter.grad.clone()
    output.sum().backward()
    torch.testing.assert_close(_gradients(layer), [2 * each for each in once])
    layer.zero_grad()
    layer(torch.tensor([[3, 0], [3, 9], [15, 7]])).sum().backward()

    def refused(self: Tensor) -> Tensor:
        raise AssertionError(self)

    before = [parameter.detach().clone() for parameter in layer.parameters()]
    monkeypatch.setattr(Tensor, "coalesce", refused)
    RowwiseAdagrad(layer.parameters()).step()
    for parameter, old, gradient in zip(layer.parameters(), before, once):
        assert torch.equal(parameter != old, gradient != 0)


def test_ids_that_change_before_the_backward_pass_are_noticed() -> None:
    ids = torch.tensor([3, 0, 3])
    one = MultiSizeEmbedding(TableAllocation("f", 20, 8, (Tier(10, 8),)), sparse=True)
    output = one(ids)
    ids.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("sparse", [False, True])
def test_weights_of_examples_have_gradients(sparse: bool) -> None:
    layer = MultiSizeEmbeddingBag(TableAllocation("f", 20, 8, _TIERS), mode="sum", sparse=sparse)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    ids, weights = torch.tensor([[0, 3, 3], [19, 9, 20]]), torch.rand(2, 3, requires_grad=True)
    layer(ids, per_sample_weights=weights).square().sum().backward()
    gradients = [weights.grad, *_gradients(layer)]
    weights.grad = None
    layer.zero_grad()
    rows = torch.cat([layer.rows(), torch.zeros(1, 8)])[ids]
    (rows * weights.unsqueeze(-1)).sum(1).square().sum().backward()
    torch.testing.assert_close(gradients, [weights.grad, *_gradients(layer)])
