"""Tables of so many rows that their gradients are sparse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from users_and_genres import SPACE, batch_of

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace
from optuna_nis.models import (
    CrossRankingModule,
    EmbeddingModule,
    RankingModule,
    RetrievalModule,
    embeddings,
)
from optuna_nis.nn import AdamAndRowwiseAdagrad, set_choices

PRECISE = SearchSpace(
    [EmbeddingSpec(s.name, s.num_embeddings, 8, precisions=(32, 8, 2)) for s in SPACE.specs],
    budget=0.2,
)


def _narrow(space: SearchSpace) -> Allocation:
    """Rows of half the width, in the fewest bits that there may be."""
    blocks = [len(spec.row_blocks) for spec in space.specs]
    return Allocation(
        spec.table([4] * num, [min(spec.precisions)] * num)
        for spec, num in zip(space.specs, blocks)
    )


SIZED = [SPACE.full(), _narrow(SPACE), _narrow(PRECISE)]


@pytest.fixture(autouse=True)
def _users_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "SPARSE_ABOVE", 59)


def _ranking(tables: SearchSpace | Allocation) -> EmbeddingModule:
    return RankingModule(tables, bags={"genres"}, l2=0.1)


def _cross(tables: SearchSpace | Allocation) -> EmbeddingModule:
    return CrossRankingModule(tables, bags={"genres"}, l2=0.1)


def _retrieval(tables: SearchSpace | Allocation) -> EmbeddingModule:
    return RetrievalModule(tables, num_classes=3, bags={"genres"}, l2=0.1)


def _step(model: EmbeddingModule, optimizer: torch.optim.Optimizer) -> None:
    batch = batch_of()
    batch["user"] = torch.arange(16) % 4
    if isinstance(model, RetrievalModule):
        batch["label"] = torch.arange(16) % 3
    optimizer.zero_grad()
    model.training_step(batch, 0).backward()
    optimizer.step()


@pytest.mark.parametrize("tables", [SPACE, PRECISE, *SIZED])
@pytest.mark.parametrize("build", [_ranking, _cross, _retrieval])
def test_a_step_touches_the_rows_of_the_batch_alone(
    build: Callable[[SearchSpace | Allocation], EmbeddingModule], tables: SearchSpace | Allocation
) -> None:
    torch.manual_seed(0)
    model = build(tables)
    if isinstance(tables, SearchSpace):
        # Rounded as well, where the space has precisions.
        set_choices(model, tables, [tables.full(), _narrow(tables)])
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, AdamAndRowwiseAdagrad)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(2):
        _step(model, optimizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    dense, rows = ([names[id(p)] for p in g["params"]] for g in optimizer.param_groups)
    assert sorted([*dense, *rows]) == sorted(before)
    # Of the users, not of the genres, which are few.
    user = model.embeddings.names.index("user")
    of_users = [n for n in before if n.startswith(f"embeddings.layers.{user}.")]
    assert rows == [name for name in of_users if name.endswith("weight")]
    for name, was in before.items():
        changed = (model.get_parameter(name) != was).reshape(len(was), -1).any(1)
        if name not in rows:
            assert changed.any(), name
    (first,) = [model.get_parameter(name) for name in rows][:1]
    assert first.grad is not None
    assert first.grad.is_sparse
    changed = (first != before[rows[0]]).any(1)
    assert changed[:4].all()
    assert not changed[4:].any()
    assert {k: tuple(s["sum"].shape) for k, s in optimizer.state.items() if "sum" in s} == {
        first: first.shape[:1]
    }


def test_tables_that_are_trained_densely_have_adam_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "SPARSE_ABOVE", 60)
    for tables in (SPACE, *SIZED):
        model = _ranking(tables)
        optimizer = model.configure_optimizers()
        assert type(optimizer) is torch.optim.Adam
        (group,) = optimizer.param_groups
        assert [*map(id, group["params"])] == [*map(id, model.parameters())]
        _step(model, optimizer)
        assert not any(p.grad is not None and p.grad.is_sparse for p in model.parameters())


def test_found_sizes_are_trained_as_the_full_table_is() -> None:
    # However few rows are kept: sizes are compared, not optimisers.
    for tables in (SPACE, *SIZED):
        model = _ranking(tables)
        sparse = {
            name: layer.sparse
            for name, layer in zip(model.embeddings.names, model.embeddings.layers)
        }
        assert sparse == {"user": True, "genres": False}


@pytest.mark.parametrize("tables", [SPACE, *SIZED])
def test_the_loss_is_that_of_dense_tables(
    monkeypatch: pytest.MonkeyPatch, tables: SearchSpace | Allocation
) -> None:
    batch, found = batch_of(), []
    for above in (59, 60):
        monkeypatch.setattr(embeddings, "SPARSE_ABOVE", above)
        torch.manual_seed(0)
        model = _ranking(tables)
        loss = model.training_step(batch, 0)
        loss.backward()
        grads = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
        found.append((loss.detach(), model.eval()(batch).detach(), grads))
    torch.testing.assert_close(*found)
