from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis import EmbeddingSpec, SearchSpace, TableAllocation, Tier
from optuna_nis.models import softmax
from optuna_nis.models.softmax import (
    estimated_ranks,
    sampled_softmax_loss,
    softmax_loss,
    target_ranks,
    top_items,
    without,
)
from optuna_nis.nn import MultiSizeLinear, SupernetLinear, set_choices


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "_CHUNK_LOGITS", 1)
    monkeypatch.setattr(softmax, "_MIN_CHUNK_ROWS", 4)


def made(rows: int, num_items: int, seed: int = 0) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(seed)
    return (
        torch.randn(rows, 3, dtype=torch.float64, requires_grad=True),
        nn.Linear(3, num_items, dtype=torch.float64),
        torch.randint(num_items, (rows,)),
    )


@settings(deadline=None)
@given(st.integers(1, 11), st.integers(2, 9))
def test_softmax_loss_is_cross_entropy(rows: int, num_items: int) -> None:
    vectors, items, labels = made(rows, num_items)
    parameters = [vectors, *items.parameters()]

    loss = softmax_loss(vectors, items, labels)
    plain = functional.cross_entropy(items(vectors), labels)

    torch.testing.assert_close(loss, plain)
    for found, expected in zip(
        torch.autograd.grad(3 * loss, parameters), torch.autograd.grad(3 * plain, parameters)
    ):
        torch.testing.assert_close(found, expected)


def test_losses_of_no_example_are_zero() -> None:
    vectors, items, labels = made(0, 5)

    assert softmax_loss(vectors, items, labels) == 0
    assert sampled_softmax_loss(vectors, items, labels, 3) == 0


def test_softmax_loss_under_autocast() -> None:
    vectors, items, labels = made(9, 5)
    vectors, items = vectors.float().detach().requires_grad_(), items.float()

    with torch.autocast("cpu", torch.bfloat16):
        loss = softmax_loss(vectors.bfloat16(), items, labels)
        loss.backward()

    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, functional.cross_entropy(items(vectors), labels), rtol=1e-2, atol=0
    )
    assert vectors.grad is not None


def test_sampled_softmax_estimates_the_sum_without_bias() -> None:
    vectors, items, labels = made(2, 40)

    with torch.no_grad():
        target = items(vectors).gather(1, labels.unsqueeze(1)).squeeze(1)
        exact = items(vectors).logsumexp(1).exp()
        for row in range(2):
            example = vectors[row : row + 1], items, labels[row : row + 1]
            losses = torch.stack([sampled_softmax_loss(*example, 8) for _ in range(1000)])
            sums = (losses + target[row]).exp()
            assert (sums.mean() - exact[row]).abs() < 4 * sums.std() / 1000**0.5


def test_items_that_are_certain_leave_the_sum_without_bias() -> None:
    vectors, items, labels = made(5, 40)
    certain = torch.tensor([7, -100, 0, 39, int(labels[4])])

    with torch.no_grad():
        target = items(vectors).gather(1, labels.unsqueeze(1)).squeeze(1)
        exact = items(vectors).logsumexp(1).exp()
        for row in range(5):
            one = slice(row, row + 1)
            example = vectors[one], items, labels[one], 8, certain[one]
            losses = torch.stack([sampled_softmax_loss(*example) for _ in range(1000)])
            sums = (losses + target[row]).exp()
            assert (sums.mean() - exact[row]).abs() < 4 * sums.std() / 1000**0.5
    # Nothing but the target and one other is left of a table of two.
    vectors, items, labels = made(3, 2)
    loss = sampled_softmax_loss(vectors, items, labels, 4, 1 - labels)
    torch.testing.assert_close(loss, functional.cross_entropy(items(vectors), labels))


def test_sampled_softmax_tends_to_the_full_one() -> None:
    vectors, items, labels = made(6, 40)
    parameters = [vectors, *items.parameters()]

    loss = sampled_softmax_loss(vectors, items, labels, 500_000)
    plain = functional.cross_entropy(items(vectors), labels)

    torch.testing.assert_close(loss, plain, rtol=1e-2, atol=0)
    for found, expected in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters)
    ):
        torch.testing.assert_close(found, expected, rtol=0.05, atol=2e-3)


@settings(deadline=None)
@given(st.integers(1, 11), st.integers(2, 9), st.integers(0, 99))
def test_ranks_are_places_among_all_items(rows: int, num_items: int, seed: int) -> None:
    vectors, items, labels = made(rows, num_items, seed)

    ranks = target_ranks(vectors, items, labels)

    order = items(vectors).argsort(1, descending=True)
    assert (order.gather(1, ranks.unsqueeze(1)).squeeze(1) == labels).all()
    assert (top_items(vectors, items, num_items) == order).all()
    assert top_items(vectors, items, 1).shape == (rows, 1)


@settings(deadline=None)
@given(st.integers(1, 11), st.integers(2, 9), st.integers(0, 99))
def test_estimated_ranks_are_exact_if_all_items_are_compared(
    rows: int, num_items: int, seed: int
) -> None:
    vectors, items, labels = made(rows, num_items, seed)
    found = estimated_ranks(vectors, items, labels, 1000)
    assert found.tolist() == target_ranks(vectors, items, labels).tolist()


def test_items_that_are_left_out_are_not_ranked() -> None:
    vectors, items, labels = made(6, 9)
    left_out = torch.tensor([[9, 9], [0, 9], [3, 3], [0, 8], [9, 5], [1, 2]])
    labels = (left_out[:, 1] + 1) % 9
    logits = items(vectors).detach()
    for row, ids in enumerate(left_out.tolist()):
        for each in set(ids) - {9}:
            logits[row, each] = -torch.inf
    torch.testing.assert_close(without(items(vectors), left_out), logits)
    ranks = (logits >= logits.gather(1, labels.unsqueeze(1))).sum(1) - 1
    # The target is left out itself.
    assert labels[3] in left_out[3]
    ranks[3] = 9
    assert target_ranks(vectors, items, labels, left_out).tolist() == ranks.tolist()
    assert estimated_ranks(vectors, items, labels, 99, left_out).tolist() == ranks.tolist()
    assert torch.equal(top_items(vectors, items, 7, left_out), logits.topk(7).indices)


def test_estimated_ranks_are_close_to_those_among_all_items() -> None:
    vectors, items, labels = made(500, 5_000, 0)
    exact = target_ranks(vectors, items, labels).float()
    found = estimated_ranks(vectors, items, labels, 500)
    assert (found - exact).abs().mean() < 0.05 * 5_000
    assert abs((found - exact).mean()) < 0.03 * 5_000
    assert found.min() >= 0


def test_unknown_targets_ties_and_nan_are_misses() -> None:
    items = nn.Linear(2, 7)
    labels = torch.tensor([3, -100])

    with torch.no_grad():
        items.weight.zero_()
        items.bias.zero_()
    assert target_ranks(torch.ones(2, 2), items, labels).tolist() == [6, 7]
    assert target_ranks(torch.full((2, 2), torch.nan), items, labels).tolist() == [6, 7]
    assert target_ranks(torch.ones(0, 2), items, labels[:0]).shape == (0,)
    assert estimated_ranks(torch.ones(2, 2), items, labels, 99).tolist() == [6, 7]
    assert estimated_ranks(torch.full((2, 2), torch.nan), items, labels, 99).tolist() == [6, 7]
    assert estimated_ranks(torch.ones(0, 2), items, labels[:0], 99).shape == (0,)
    assert top_items(torch.ones(0, 2), items, 3).shape == (0, 3)


def searched(num_items: int, seed: int = 0) -> tuple[SupernetLinear, Tensor]:
    """A layer that shows three choices, and the dense weight of each."""
    torch.manual_seed(seed)
    spec = EmbeddingSpec("items", num_items, 3, row_blocks=[2, num_items - 2])
    items = SupernetLinear(spec).double()
    with torch.no_grad():
        (table,) = items.field_layers()
        table.projection.normal_()
    space = SearchSpace([spec])
    widths = [(3, 3), (2, 1), (3, 0)]
    choices = [space.allocation(dict(zip(space.choices, w))) for w in widths]
    set_choices(items, space, choices)
    return items, torch.stack([weight for _, weight, _ in items.parts(3)])


@pytest.mark.parametrize("known", [[0, 1, 2, 3, 4, 5], [0, 1, 3], [4, 5]])
def test_each_run_of_a_loss_is_that_of_its_choice(known: list[int]) -> None:
    items, weights = searched(7)
    vectors = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.full((6,), -100)
    labels[known] = torch.tensor([0, 6, 1, 2, 3, 5])[known]
    parameters = [vectors, *items.parameters()]

    loss = softmax_loss(vectors, items, labels)
    plain = functional.cross_entropy(
        (weights @ vectors.view(3, 2, 3).mT).mT.reshape(6, 7) + items.bias, labels
    )
    sampled = sampled_softmax_loss(vectors, items, labels, 300_000)

    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(sampled, plain, rtol=1e-2, atol=0)
    expected = torch.autograd.grad(plain, parameters)
    for found, exact in zip(torch.autograd.grad(loss, parameters), expected):
        torch.testing.assert_close(found, exact)
    for found, exact in zip(torch.autograd.grad(sampled, parameters), expected):
        torch.testing.assert_close(found, exact, rtol=0.05, atol=1e-2)


def test_ranks_are_those_under_the_choice_of_each_run() -> None:
    items, weights = searched(9)
    vectors, labels = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 9
    labels[7] = -100
    logits = torch.cat([v @ w.T for v, w in zip(vectors.chunk(3), weights)]) + items.bias
    order = logits.argsort(1, descending=True)
    ranks = (order == labels[:, None]).nonzero()[:, 1]

    found = target_ranks(vectors, items, labels)

    assert found.tolist() == [*ranks[:7], 9, *ranks[7:]]
    assert estimated_ranks(vectors, items, labels, 1000).tolist() == found.tolist()
    assert torch.equal(top_items(vectors, items, 9), order)


def test_a_batch_that_choices_cannot_share_is_refused() -> None:
    items, _ = searched(9)
    vectors, labels = torch.randn(4, 3, dtype=torch.float64), torch.arange(4)
    for refused in (
        lambda: softmax_loss(vectors, items, labels),
        lambda: sampled_softmax_loss(vectors, items, labels, 3),
        lambda: target_ranks(vectors, items, labels),
        lambda: estimated_ranks(vectors, items, labels, 3),
    ):
        with pytest.raises(ValueError, match="must be a multiple of the 3 choices, got 4"):
            refused()


@pytest.mark.parametrize("tiers", [(Tier(2, 3), Tier(3, 1)), (Tier(4, 2),), (Tier(9, 3),), ()])
def test_items_of_several_sizes_are_as_those_of_a_plain_layer(tiers: tuple[Tier, ...]) -> None:
    torch.manual_seed(0)
    items = MultiSizeLinear(TableAllocation("items", 9, 3, tiers)).double()
    plain = nn.Linear(3, 9, dtype=torch.float64)
    plain.load_state_dict({"weight": items.weight.detach(), "bias": items.bias})
    vectors, labels = torch.randn(11, 3, dtype=torch.float64), torch.arange(11) % 9

    for function, more in (
        (softmax_loss, ()),
        (sampled_softmax_loss, (5,)),
        (target_ranks, ()),
        (estimated_ranks, (4,)),
    ):
        values = []
        for layer in (items, plain):
            torch.manual_seed(1)
            values.append(function(vectors, layer, labels, *more))
        torch.testing.assert_close(*values)
    assert torch.equal(top_items(vectors, items, 3), top_items(vectors, plain, 3))
