"""A table that features share, looked up column by column, gives what it gives id by id."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optuna_nis.nn import (
    MultiSizeEmbedding,
    SupernetEmbedding,
    apply_allocation,
    make_searchable,
    set_choices,
)

FIELDS = [3000, 40, 5]


def _model(*, sparse: bool) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"table": nn.Embedding(sum(FIELDS), 8, sparse=sparse)})


def _ids(*shape: int) -> Tensor:
    ends = torch.tensor(FIELDS).cumsum(0)
    columns = [torch.randint(end - own, end, shape) for end, own in zip(ends.tolist(), FIELDS)]
    return torch.stack(columns, -1)


def _rows_and_gradients(model: nn.ModuleDict, ids: Tensor) -> list[Tensor | None]:
    model.zero_grad()
    rows = model["table"](ids)
    rows.backward(torch.linspace(-1, 1, rows.numel()).view_as(rows))
    grads = [parameter.grad for parameter in model.parameters()]
    return [rows, *(g.to_dense() if g is not None and g.is_sparse else g for g in grads)]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("sized", [False, True])
def test_rows_of_columns_are_those_of_ids(sized: bool, sparse: bool) -> None:
    model = _model(sparse=sparse)
    space = make_searchable(model, fields={"table": FIELDS})
    narrow = space.sample(np.random.default_rng(0), space.budget // 2)
    if sized:
        model = _model(sparse=sparse)
        apply_allocation(model, narrow)
    else:
        set_choices(model, space, [space.full(), narrow])
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    ids = _ids(300)
    found = _rows_and_gradients(model, ids)
    kind = MultiSizeEmbedding if sized else SupernetEmbedding
    calls = 0

    def forward(self: nn.Module, ids: Tensor, own=kind.forward) -> Tensor:  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        rows: Tensor = own(self, ids)
        return rows

    with mock.patch.object(kind, "forward", forward):
        # With a dimension more each layer is asked alone.
        again = _rows_and_gradients(model, ids.view(2, 150, 3))
    assert calls == len(FIELDS)
    assert found[0] is not None
    again[0] = again[0] if again[0] is None else again[0].view(300, 3, 8)
    torch.testing.assert_close(found, again, rtol=1e-4, atol=1e-5)
    assert found[0].abs().sum() > 0
