from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
import pytest
from tiny import IDS, MIXED, TRAIN, Net, batches_of
import torch
from torch import Tensor, nn

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.lightning import NISCallback, train, train_shortlist
from optuna_nis.lightning.building import sized_like, takes_sizes
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import SupernetEmbedding, apply_allocation, make_searchable, warm_start


class _Several(LightningModule):
    """Tables of one field and of two, sorted and not, with padding and tied."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Embedding(12, 4)
        self.sorted = nn.Embedding(9, 4)
        self.padded = nn.Embedding(10, 4, padding_idx=0)
        self.fused = nn.EmbeddingBag(11, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.padded.weight


def test_a_function_without_arguments_sorts_ids_as_the_supernet_does() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(number: int) -> Tensor:
        return torch.randint(0, 5, (number,), generator=generator)

    supernet = _Several()
    counts = {"plain": drawn(12), "padded": drawn(10), "fused": drawn(11)}
    counts["sorted"] = torch.arange(9, 0, -1)
    space = make_searchable(supernet, counts=counts, fields={"fused": [4, 7]})
    model = sized_like(_Several, supernet)(space.full())
    # It refuses what sorts ids otherwise.
    warm_start(model, supernet)
    assert isinstance(model, _Several)
    ids = torch.arange(10)
    for name in ("plain", "padded"):
        assert torch.equal(getattr(model, name)(ids), getattr(supernet, name)(ids))
    bag = torch.arange(11).view(-1, 1)
    assert torch.equal(model.fused(bag), supernet.fused(bag))


def test_candidates_are_built_by_either_function() -> None:
    best = []
    counts = {"ids": 1 + torch.arange(IDS)}
    for build in (Net, lambda sizes: apply_allocation(Net(), sizes, counts=counts)):
        torch.manual_seed(0)
        model = Net()
        search = NISCallback(
            make_searchable(model, budget=0.5, counts=counts), num_updates=2, group_size=2
        )
        data = batches_of(TRAIN, 8), batches_of(MIXED)
        quiet_trainer(max_epochs=2, callbacks=[search]).fit(model, *data)
        best.append((search.train_candidates(build, data), search.study.best_value))
    assert best[0] == best[1]


class _OfItsOwn(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.ids = SupernetEmbedding(EmbeddingSpec("ids", IDS, 4))


def test_what_cannot_be_sized_is_told_by_name() -> None:
    with pytest.raises(ValueError, match=r"function of the sizes, since .* of _OfItsOwn are not"):
        sized_like(_OfItsOwn, _OfItsOwn())
    model = Net()
    for build, error, message in (
        (Net(), TypeError, "`build_model` must be a function that .* got Net"),
        (lambda a, b: Net(), ValueError, r"or of the sizes, got one of \['a', 'b'\]"),
    ):
        with pytest.raises(error, match=message):
            takes_sizes(build)
    space = make_searchable(model, budget=0.5)
    data: Any = batches_of(TRAIN), batches_of(MIXED)
    with pytest.raises(ValueError, match=r"a function of the sizes alone.*too many positional"):
        train(lambda: Net(), space.full(), data, seed=0)  # type: ignore[arg-type,misc]
    with pytest.raises(ValueError, match=r"a function of the sizes alone.*too many positional"):
        train_shortlist([space.full()], model, Net, data)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`build_model` must be a function"):
        train(model, SearchSpace(space.specs).full(), data, seed=0)  # type: ignore[arg-type]
