"""Rows that ids without one share, in the supernet and in the model of chosen sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace
from optuna_nis.nn import (
    MultiSizeEmbedding,
    MultiSizeLinear,
    RowwiseAdagrad,
    SupernetEmbedding,
    SupernetLinear,
    apply_allocation,
    make_searchable,
    set_choices,
    sized_layers,
)

SPEC = EmbeddingSpec("t", 60, 4, row_blocks=[5, 15, 40], precisions=(32, 8, 4), oov="hash")
SPACE = SearchSpace([SPEC])


def _choices(bits: int = 32) -> list[Allocation]:
    tables = [
        SPEC.table([4, 2], [bits, bits], num_shared=16),
        SPEC.table([3], bits, num_shared=1),
        SPEC.table([4, 4, 1], bits, num_shared=16),
        SPEC.table([4, 2], bits),
        SPEC.table([]),
    ]
    return [Allocation([table]) for table in tables]


def _supernet(kind: type[nn.Module] = SupernetEmbedding, **options: object) -> nn.Module:
    torch.manual_seed(0)
    options = {"ranks": torch.randperm(60), "init_std": 1.0, **options}
    layer = kind(SPEC, **options)
    for name, parameter in layer.named_parameters():
        if name.endswith("projection"):
            nn.init.normal_(parameter)
    return layer.eval()


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("times", [1, 40])
def test_rows_and_look_ups_are_the_same_under_each_choice(bits: int, times: int) -> None:
    layer = _supernet()
    assert isinstance(layer, SupernetEmbedding)
    choices = _choices(bits)
    set_choices(layer, SPACE, choices)
    ids = torch.arange(60).repeat(times)
    found = layer(ids.repeat(len(choices))).view(len(choices), times, 60, 4)
    for index in range(len(choices)):
        rows = layer.rows(index).expand(times, -1, -1)
        torch.testing.assert_close(found[index], rows, rtol=1e-5, atol=1e-6)
    # Those that share a row are the same; without shared rows they are zeros.
    left = layer.ranks.argsort()[20:]  # type: ignore[union-attr]
    # In few bits two rows may be rounded to the same.
    assert 13 < len(found[0, 0, left].unique(dim=0)) <= 16
    assert len(found[1, 0, left].unique(dim=0)) == 1
    assert bool((found[1, 0, left] != 0).any())
    assert bool((found[3, 0, left] == 0).all())
    assert bool((found[4] == 0).all())
    unknown = layer(torch.full((5,), 60))
    assert torch.equal(unknown, torch.zeros(5, 4))


@pytest.mark.parametrize("number", range(5))
def test_an_output_layer_of_the_choice(number: int) -> None:
    choice = _choices()[number]
    layer = _supernet(SupernetLinear)
    assert isinstance(layer, SupernetLinear)
    (table,) = (each for each in layer.modules() if isinstance(each, SupernetEmbedding))
    set_choices(layer, SPACE, [choice])
    sized = MultiSizeLinear(choice["t"], ranks=table.ranks)
    layer.copy_to(sized)
    vectors = torch.randn(3, 4)
    torch.testing.assert_close(sized(vectors), layer(vectors), rtol=1e-4, atol=1e-5)


def test_shared_rows_are_trained_sparsely() -> None:
    layer = _supernet(sparse=True).train()
    set_choices(layer, SPACE, _choices()[:2])
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    optimizer = RowwiseAdagrad(layer.parameters(), lr=0.1)
    layer(torch.arange(60).repeat(2)).square().sum().backward()
    assert layer._shared.weight.grad.is_sparse
    optimizer.step()
    changed = {name for name, p in layer.named_parameters() if not p.equal(before[name])}
    assert changed == {"weight", "_shared.weight", "_dense.projection"}


def test_state_and_who_has_no_shared_rows() -> None:
    layer, other = _supernet(), _supernet(ranks=torch.arange(60), init_std=2.0)
    other.load_state_dict(layer.state_dict())
    for each in (layer, other):
        set_choices(each, SPACE, _choices())
    ids = torch.arange(60).repeat(5)
    assert torch.equal(layer(ids), other(ids))
    plain = SupernetEmbedding(EmbeddingSpec("t", 60, 4, row_blocks=[5, 15, 40]))
    assert not [name for name in plain.state_dict() if "shared" in name]
    # Shared rows start from the mean of those that they stand for.
    sized = MultiSizeEmbedding(SPEC.table([4], num_shared=1))
    plain.copy_to(sized)
    torch.testing.assert_close(sized(torch.tensor([30])), plain.weight[5:60].mean(0, keepdim=True))


def _place(rank: int) -> int:
    return rank * 2_654_435_761 % (2**31 - 1) % 16


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Embedding(60, 4, padding_idx=0)
        self.bag = nn.EmbeddingBag(60, 4, mode="mean", padding_idx=59)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.cat([self.row(ids).sum(1), self.bag(ids)], 1)


def test_layers_of_others() -> None:
    torch.manual_seed(0)
    model = _Model().eval()
    rows = model.row.weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters())
    space = make_searchable(model, oov="hash")
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    # Rows to share start from those that are there.
    one_row = Allocation(spec.table([4], num_shared=16) for spec in space.specs)
    set_choices(model, space, [one_row])
    shared, kept = model.row(torch.tensor([59])), one_row["row"].kept
    like = [r for r in range(kept, 60) if _place(r) == _place(59)]
    torch.testing.assert_close(shared, rows[like].mean(0, keepdim=True))
    assert [spec.oov for spec in space.specs] == ["hash", "hash"]
    choice = Allocation(spec.table([4], num_shared=16) for spec in space.specs)
    set_choices(model, space, [choice])
    ids = torch.randint(0, 60, (30, 3))
    expected = model(ids).detach()
    apply_allocation(model, choice)
    torch.testing.assert_close(model(ids), expected)
    # Padding has no row to share.
    assert torch.equal(model.row(torch.tensor([0])), torch.zeros(1, 4))
    assert torch.equal(model.bag(torch.tensor([[59, 59]])), torch.zeros(1, 4))
    fresh = _Model()
    with torch.no_grad():
        fresh.row.weight.copy_(rows)
    fresh.requires_grad_(False)
    one = Allocation(spec.table([4], num_shared=1) for spec in space.specs)
    apply_allocation(fresh, one)
    (sized, _) = sized_layers(fresh)
    kept = sized.table.kept
    torch.testing.assert_close(sized.rows()[-1], rows[kept:].mean(0))
