from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.data.keys import UNSEEN_TARGET
from optuna_nis.models import SequenceModule
from optuna_nis.nn import (
    MultiSizeLinear,
    SupernetLinear,
    output_features,
    set_choices,
    supernet_layers,
    warm_start,
)
from optuna_nis.strategy import baselines

N = 30
SPACE = SearchSpace([EmbeddingSpec("items", N, 8, row_blocks=[5, 25])], budget=0.5)
OPTIONS: dict[str, Any] = {"sequence": "history", "num_classes": N, "init_std": 0.5}
WITH_SEX = SearchSpace([EmbeddingSpec("sex", 2, 4), *SPACE.specs], budget=0.5)


def batch_of(size: int = 12, length: int = 6) -> dict[str, torch.Tensor]:
    """Sequences of one item and more, the latest last."""
    ids = torch.randint(0, N, (size, length))
    lengths = 1 + torch.arange(size) % length
    ids[torch.arange(length) >= lengths[:, None]] = N
    label = torch.randint(0, N, (size,))
    return {"history": ids, "label": label, "sex": torch.arange(size) % 2}


def made(tables: Any = SPACE, **options: Any) -> SequenceModule:
    torch.manual_seed(0)
    return SequenceModule(tables, **(OPTIONS | options)).eval()


def vectors(model: SequenceModule, *sequences: list[int]) -> torch.Tensor:
    return model.vectors({"history": torch.tensor(sequences)}).detach()


def test_the_table_of_the_items_is_one_and_looked_up() -> None:
    for tables, kind in ((SPACE, SupernetLinear), (SPACE.full(), MultiSizeLinear)):
        model = made(tables)
        assert isinstance(model.items, kind)
        assert output_features(model) == set()
        assert model.output_features == ()
        total = sum(p.numel() for p in model.parameters())
        if tables is not SPACE:
            assert model.num_dense_parameters() == total - SPACE.full_parameters
    assert list(supernet_layers(made())) == ["items"]
    weight = made().items.weight
    rows = made()._look_up(torch.tensor([3, N]))
    torch.testing.assert_close(rows, torch.stack([weight[3], 0 * weight[3]]))


def test_a_sequence_is_what_it_is_whatever_fills_it_up() -> None:
    model, other = made(), made(latest_first=True)
    short = vectors(model, [4, 9, 2])
    torch.testing.assert_close(vectors(model, [4, 9, 2, N, N]), short)
    torch.testing.assert_close(vectors(model, [N, 4, N, 9, 2]), short)
    torch.testing.assert_close(vectors(other, [2, 9, 4, N]), short)
    assert not torch.allclose(vectors(model, [9, 4, 2]), short, atol=1e-3)
    assert vectors(model, [N, N], [N, 3]).isfinite().all()


def test_ids_are_those_of_the_sequence_and_classes_those_of_the_items() -> None:
    classes = [7, N, 2, 11]
    model = made(classes=classes)
    torch.testing.assert_close(vectors(model, [0, 1, 2, 4, 3]), vectors(made(), [7, 2, 11]))


def test_of_a_long_sequence_the_latest_items_count() -> None:
    model = made(max_length=3)
    torch.testing.assert_close(vectors(model, [5, 6, 1, 2, 3]), vectors(model, [1, 2, 3]))
    assert not torch.allclose(vectors(model, [1, 2, 3]), vectors(model, [2, 3]), atol=1e-3)


def test_an_item_does_not_see_those_after_it() -> None:
    model = made()
    before, after = ([[1, 2, 3, 4, 5]], [[1, 2, 3, 29, 28]])
    encoded = []
    for history in (before, after):
        items = model._items_of({"history": torch.tensor(history)})
        encoded.append(model._encoded(items)[0])
    # The latest comes first.
    torch.testing.assert_close(encoded[0][:, 2:], encoded[1][:, 2:])
    assert not torch.isclose(encoded[0][:, :2], encoded[1][:, :2]).all(-1).any()


def test_training_is_on_what_comes_after_each_item() -> None:
    batch = {
        "history": torch.tensor([[1, 2, 3], [4, N, N], [N, N, N], [6, N, 5]]),
        "label": torch.tensor([10, 11, 12, UNSEEN_TARGET]),
    }
    model = made(every_position=True)
    found = model.training_examples(batch)
    assert found.certain is not None
    pairs = sorted(zip(found.certain.tolist(), found.labels.tolist()))
    # Each item with the one after it; of a sequence of none, only what comes next is known.
    assert pairs == [(UNSEEN_TARGET, 12), (1, 2), (2, 3), (3, 10), (4, 11), (6, 5)]
    encoded = model._encoded(model._items_of(batch))[0]
    for row, place, label in ((0, 2, 2), (0, 1, 3), (0, 0, 10), (1, 0, 11), (2, 0, 12), (3, 1, 5)):
        (where,) = (found.labels == label).nonzero().tolist()
        torch.testing.assert_close(found.vectors[where].squeeze(0), encoded[row, place])
    found = made().training_examples(batch)
    torch.testing.assert_close(found.vectors, made().vectors(batch))
    assert found.labels.tolist() == batch["label"].tolist()
    assert found.certain is not None
    assert found.certain.tolist() == [3, 4, UNSEEN_TARGET, 5]


@pytest.mark.parametrize("every_position", [True, False])
@pytest.mark.parametrize("num_sampled", [N, 7])
def test_choices_are_each_trained_alone(every_position: bool, num_sampled: int) -> None:
    model = made(every_position=every_position, num_sampled=num_sampled).double()
    rng = np.random.default_rng(0)
    choices = [SPACE.sample(rng, cost) for cost in (200, 100, 40)]
    batch, parameters = batch_of(), list(model.parameters())

    def gradients(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        loss = model.training_step(batch, 0)
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return [loss.detach(), *found]

    set_choices(model, SPACE, choices)
    together = gradients({k: torch.cat([v] * 3) for k, v in batch.items()})
    apart = []
    for choice in choices:
        set_choices(model, SPACE, [choice])
        apart.append(gradients(batch))
    for found, *each in zip(together, *apart):
        torch.testing.assert_close(found, torch.stack(each).mean(0))


@pytest.mark.parametrize("space", [SPACE, WITH_SEX])
def test_a_model_of_sizes_gives_what_its_supernet_does(space: SearchSpace) -> None:
    supernet, batch = made(space), batch_of()
    rng = np.random.default_rng(0)
    choices = [space.sample(rng, cost) for cost in (200, 100, 40)]
    set_choices(supernet, space, choices)
    together = supernet.choice_quality({k: torch.cat([v] * 3) for k, v in batch.items()}, 3)
    for choice, quality in zip(choices, together):
        model = made(choice)
        warm_start(model, supernet)
        torch.testing.assert_close(model.choice_quality(batch, 1), quality.unsqueeze(0))
        set_choices(supernet, space, [choice])
        torch.testing.assert_close(model(batch), supernet(batch))


def test_other_features_are_added() -> None:
    model, batch = made(WITH_SEX), batch_of()
    other = batch | {"sex": 1 - batch["sex"]}
    assert not torch.isclose(model(batch), model(other)).all(1).any()
    assert torch.isfinite(model.training_step(batch, 0))


@pytest.mark.parametrize("projected", [True, False])
def test_uniform_tables_narrow_the_model_too(projected: bool) -> None:
    sizes = baselines.uniform(SPACE, width=3, projected=projected)
    model = made(sizes)
    assert model.items.in_features == (8 if projected else 3)
    assert model(batch_of()).shape == (12, N)


@pytest.mark.parametrize("repeats", [True, False])
def test_items_of_the_sequence_are_ranked_if_they_may_come_again(repeats: bool) -> None:
    model = made(repeats=repeats, top_k=(1, 25))
    batch = {"history": torch.tensor([[7, 2, N], [N, N, N]]), "label": torch.tensor([2, 5])}
    logits = model(batch)
    seen = torch.tensor([2, 7])
    assert torch.isfinite(logits[1]).all()
    assert torch.isfinite(logits[0]).sum() == (N if repeats else N - 2)
    found = model.predict_step(batch)
    assert torch.isin(seen, logits[0].topk(N).indices[:28]).any() == repeats
    assert repeats or not torch.isin(seen, found[0]).any()
    torch.testing.assert_close(found, logits.topk(25).indices)
    places = (logits >= logits.gather(1, batch["label"][:, None])).sum(1)
    if not repeats:
        places[0] = N + 1
    expected = 1 / places
    torch.testing.assert_close(model.choice_quality(batch, 1), expected.mean().unsqueeze(0))


def test_order_is_learned() -> None:
    # No bag tells which of two items is the latest.
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(0, N, (2_000, 2), generator=generator)
    batch = {"history": pairs, "label": (pairs[:, 1] + 1) % N}
    model = made(SPACE.full(), repeats=True, dropout=0.0, init_std=0.1).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()
    assert model.eval().choice_quality(batch, 1) > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": "goods"}, r"must have a table of the items, 'goods', .* 30, got none"),
        ({"num_classes": 31}, "rows, 31, got one of 30"),
        ({"num_blocks": 0}, "`num_blocks` must be an integer of at least 1"),
        ({"max_length": 0}, "`max_length` must be an integer of at least 1"),
        ({"classes": [0, 31]}, "`classes` must be integers between 0 and 30"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_bad_ids_are_told() -> None:
    with pytest.raises(ValueError, match=r"'history' must have the shape \(batch, length\)"):
        made()({"history": torch.tensor([3, 4])})
    with pytest.raises(ValueError, match="`ids` of 'history' must be between 0 and 30"):
        made()({"history": torch.tensor([[3, 31]])})


def test_all_of_a_long_sequence_is_left_out() -> None:
    model = made(repeats=False, max_length=3)
    batch = {"history": torch.tensor([[N, 4, 1, 7, 2, 9], [N, N, N, N, 3, 5]])}
    left_out = model.left_out(batch)
    assert left_out is not None
    assert [sorted(row) for row in left_out.tolist()] == [
        [1, 2, 4, 7, 9, N],
        [3, 5, N, N, N, N],
    ]
    # Of which it sees the latest.
    short = {"history": batch["history"][:, -3:]}
    torch.testing.assert_close(model.vectors(batch), model.vectors(short))
