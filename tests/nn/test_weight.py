"""The weight of a swapped layer is read as before, and what writes to it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import io
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.nn import SwappedEmbedding, apply_allocation, make_searchable
from optuna_nis.serve import to_dense

SIZES = Allocation([TableAllocation("e", 100, 8, (Tier(10, 8), Tier(40, 2)))])


def _searchable(**options: Any) -> Any:
    model = nn.ModuleDict({"e": nn.Embedding(100, 8, **options)})
    make_searchable(model)
    return model["e"]


def _sized(**options: Any) -> Any:
    model = nn.ModuleDict({"e": nn.Embedding(100, 8, **options)})
    return apply_allocation(model, SIZES)["e"]


def _set(target: Any, name: str, value: Any) -> None:
    setattr(target, name, value)


def _add(weight: Any) -> None:
    weight += 1.0


def _resize_as_transformers(layer: Any) -> None:
    layer.weight.data = torch.zeros(120, 8)
    layer.num_embeddings = 120


WRITES: dict[str, Callable[[Any], Any]] = {
    "normal": lambda layer: nn.init.normal_(layer.weight),
    "xavier": lambda layer: nn.init.xavier_uniform_(layer.weight),
    "kaiming": lambda layer: nn.init.kaiming_uniform_(tensor=layer.weight),
    "zeros": lambda layer: nn.init.zeros_(layer.weight),
    "eye": lambda layer: nn.init.eye_(layer.weight),
    "data": lambda layer: layer.weight.data.uniform_(-1, 1),
    "copy": lambda layer: layer.weight.data.copy_(torch.zeros(100, 8)),
    "row": lambda layer: layer.weight.data.__setitem__(0, 0.0),
    "slice": lambda layer: layer.weight.data[:5].zero_(),
    "padding": lambda layer: nn.init.constant_(layer.weight[3], 0.0),
    "add": lambda layer: _add(layer.weight.data),
    "resize": _resize_as_transformers,
    "freeze": lambda layer: _set(layer.weight, "requires_grad", False),
    "unfreeze": lambda layer: layer.weight.requires_grad_(True),
}


@pytest.mark.parametrize("make", [_searchable, _sized])
@pytest.mark.parametrize("write", WRITES)
def test_what_would_be_lost_is_refused(make: Callable[[], Any], write: str) -> None:
    layer = make()
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    with pytest.raises(RuntimeError, match=r"of the layer 'e' is computed at each access"):
        WRITES[write](layer)
    for name, parameter in layer.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("make", [_searchable, _sized])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", nn.Parameter(torch.zeros(100, 8))),
        ("weight", torch.zeros(100, 8)),
        ("num_embeddings", 120),
        ("embedding_dim", 4),
        ("padding_idx", 3),
    ],
)
def test_what_cannot_be_set_is_refused(make: Callable[[], Any], name: str, value: Any) -> None:
    with pytest.raises(AttributeError, match=f"`{name}` of the swapped layer 'e' cannot be set"):
        setattr(make(), name, value)


@pytest.mark.parametrize("make", [_searchable, _sized])
def test_parameter_groups_with_the_weight_are_refused(make: Callable[[], Any]) -> None:
    layer = make()
    for given in ([layer.weight], [{"params": [layer.weight], "lr": 0.1}]):
        with pytest.raises(ValueError, match=r"layer 'e' is computed.*the `parameters\(\)` of"):
            torch.optim.Adam(given)
    torch.optim.Adam([{"params": layer.parameters(), "lr": 0.1}])


@pytest.mark.parametrize("make", [_searchable, _sized])
def test_hooks_and_norms_that_would_do_nothing_are_refused(make: Callable[[], Any]) -> None:
    layer, ids = make(), torch.tensor([1, 2])
    with pytest.raises(RuntimeError, match=r"of the layer 'e' .* a hook of it would never be"):
        layer.weight.register_hook(lambda grad: grad)
    with pytest.raises(AttributeError, match=r"of the layer 'e' .* has no gradient of its own"):
        layer.weight.grad  # noqa: B018
    assert not hasattr(layer.weight, "grad")
    with pytest.raises(RuntimeError, match=r"of the layer 'e' .* has no gradient of its own"):
        layer.weight.retain_grad()
    for look_up in (functional.embedding, functional.embedding_bag):
        rows = look_up(ids.unsqueeze(0), layer.weight)
        assert type(rows) is Tensor
        with pytest.raises(RuntimeError, match=r"'e' .* `max_norm` must be None"):
            look_up(ids.unsqueeze(0), layer.weight, max_norm=1.0)


@pytest.mark.parametrize("make", [_searchable, _sized])
def test_what_reads_the_weight_gets_plain_tensors(make: Callable[[], Any]) -> None:
    layer = make()
    weight = layer.weight
    assert weight.shape == (100, 8)
    assert not weight.is_leaf
    assert weight.requires_grad
    parts = [
        weight.T,
        weight[3] + 1,
        weight.detach(),
        weight.contiguous(),
        weight.norm(),
        weight * 2,
    ]
    parts += [torch.cat([weight, weight]), functional.linear(torch.ones(1, 8), weight)]
    assert {type(part) for part in parts} == {Tensor}
    assert torch.equal(weight.data.clone(), weight.detach())
    kept = io.BytesIO()
    torch.save(weight.detach(), kept)
    kept.seek(0)
    assert torch.equal(torch.load(kept, weights_only=True), weight)
    sum(part.sum() for part in parts).backward()
    assert all(p.grad is not None for p in layer.parameters())
    # Writing to what was computed from it is nobody's business.
    (weight * 2).detach().zero_()
    with torch.no_grad():
        layer.weight[torch.tensor([1, 2])].zero_()


def test_functional_calls_and_compiled_models_read_it() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Embedding(100, 8)

        def forward(self, rows: Tensor) -> Tensor:
            return rows @ self.e.weight.T

    model = Scores()
    make_searchable(model)
    rows = torch.randn(2, 8)
    expected = model(rows)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        found: Tensor = torch.func.functional_call(model, parameters, (rows,))
        return found.sum()

    assert torch.func.grad(loss)(parameters)["e.fields.0.weight"].abs().sum() > 0
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(rows), expected)


@pytest.mark.parametrize("make", [_searchable, _sized])
def test_reset_parameters_starts_anew(make: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    layer = make(padding_idx=4)
    layer(torch.arange(100)).sum().backward()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(3.0)
    layer.reset_parameters()
    rows = layer(torch.arange(10))
    assert torch.equal(rows[4], torch.zeros(8))
    assert rows[torch.arange(10) != 4].std().item() == pytest.approx(1, rel=0.3)
    assert torch.equal(layer.fields[0].projection, torch.eye(8))
    assert isinstance(layer, SwappedEmbedding)


def test_a_sized_layer_of_narrow_rows_starts_anew_as_torch_does() -> None:
    model = nn.ModuleDict({"e": nn.Embedding(100, 8)})
    nn.init.normal_(model["e"].weight, std=0.02)
    apply_allocation(model, Allocation([TableAllocation("e", 100, 8, (Tier(100, 8),))]))
    model["e"].reset_parameters()
    assert model["e"](torch.arange(100)).std().item() == pytest.approx(1, rel=0.2)


def test_a_constant_row_of_padding_is_zero_after_a_reset() -> None:
    model = nn.ModuleDict({"e": nn.Embedding(100, 8, padding_idx=4)})
    nn.init.ones_(model["e"].weight)
    make_searchable(model)
    assert model["e"](torch.tensor([4])).sum() == 8
    model["e"].reset_parameters()
    assert model["e"](torch.tensor([4])).sum() == 0


def test_what_a_dense_layer_is_given_can_be_written_to() -> None:
    model = nn.ModuleDict({"e": nn.Embedding(100, 8)})
    layer = to_dense(apply_allocation(model, SIZES))["e"]
    nn.init.zeros_(layer.weight)
    assert layer(torch.tensor([1])).sum() == 0
    layer.num_embeddings = 100


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.o = nn.Embedding(100, 8), nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.o(self.e(ids))
        return rows[:, 0]


@contextmanager
def _one_process() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def test_a_sharded_table_says_when_it_can_be_read() -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("older than torch 2.6")
    with _one_process():
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        model = apply_allocation(Model(), SIZES)
        expected = model.e.weight.detach()
        fsdp.fully_shard(model, mesh=mesh)
        with pytest.raises(RuntimeError, match="The table of 'e' is sharded: it can be read"):
            model.e.weight  # noqa: B018
        model.unshard()
        torch.testing.assert_close(model.e.weight.detach(), expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_loss_of_before_the_swap_may_still_be_held(frozen: bool) -> None:
    model = Model()
    model.e.weight.requires_grad_(not frozen)
    model.e.weight.note = "kept"
    weight, ids = model.e.weight, torch.arange(100)
    loss = model(ids).sum()
    loss.backward()
    make_searchable(model)
    assert model.e.fields[0].weight is weight
    assert weight.note == "kept"
    model(ids).sum().backward()
    assert (weight.grad is None) == frozen
    assert loss.grad_fn is not None


def test_a_computation_that_needs_the_table_itself_is_named() -> None:
    model = Model()
    scores = torch.ones(2, 8) @ model.e.weight.T
    rows = torch.ones(2, 8, requires_grad=True) @ model.e.weight.T
    with pytest.raises(ValueError, match=r"The table of 'e' is part of a computation.*`del loss`"):
        make_searchable(model)
    assert type(model.e) is nn.Embedding
    del scores, rows
    make_searchable(model)
    model(torch.arange(100)).sum().backward()


def test_views_that_need_no_gradients_do_no_harm() -> None:
    model = Model()
    with torch.no_grad():
        view = model.e.weight[:5]
    make_searchable(model)
    model(torch.arange(100)).sum().backward()
    assert view.shape == (5, 8)
