"""Layers of chosen sizes under torch.func and torch.jit.trace, as those of torch."""

from __future__ import annotations

from collections.abc import Callable
import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.models import RankingModule
from optuna_nis.nn import MultiSizeEmbedding, MultiSizeEmbeddingBag, apply_allocation, freeze
from optuna_nis.nn._tracing import is_traced

ROWS, DIM = 60, 8
TABLES = {
    "projected": (Tier(10, 8), Tier(20, 2)),
    "full width": (Tier(30, 8),),
    "codes": (Tier(10, 8, 8), Tier(20, 2, 4)),
    "half": (Tier(10, 8), Tier(20, 4, 16)),
    "removed": (),
}
# Such tracers of torch check by a second trace, which warns of what they themselves do.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*to_torchscript.* has been deprecated"),
]


class Model(nn.Module):
    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.linear = nn.Linear(DIM, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.embedding(ids)
        output: Tensor = self.linear(rows).squeeze(-1)
        return output if output.dim() == 1 else output.sum(1)


def table(tiers: str) -> TableAllocation:
    return TableAllocation("id", ROWS, DIM, TABLES[tiers])


def draw(model: nn.Module) -> nn.Module:
    """With numbers that are not small, and no two of them the same."""
    for name, parameter in model.named_parameters():
        if "spread" not in name:
            nn.init.normal_(parameter)
    return model


def embedding(tiers: str, **options: Any) -> nn.Module:
    return MultiSizeEmbedding(table(tiers), ranks=torch.randperm(ROWS), **options)


def bag(tiers: str, mode: Any = "mean", **options: Any) -> nn.Module:
    return MultiSizeEmbeddingBag(table(tiers), mode=mode, ranks=torch.randperm(ROWS), **options)


def swapped(layer: nn.Module) -> nn.Module:
    holder = nn.ModuleDict({"id": layer})
    apply_allocation(holder, Allocation([table("projected")]))
    return holder["id"]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    **{f"embedding, {tiers}": lambda tiers=tiers: embedding(tiers) for tiers in TABLES},
    **{f"bag, {tiers}": lambda tiers=tiers: bag(tiers) for tiers in TABLES},
    "embedding, sparse": lambda: embedding("projected", sparse=True),
    "bag, sparse": lambda: bag("projected", "sum", sparse=True),
    "swapped": lambda: swapped(nn.Embedding(ROWS, DIM, padding_idx=3)),
    "swapped bag, mean": lambda: swapped(nn.EmbeddingBag(ROWS, DIM, mode="mean", padding_idx=3)),
    "swapped bag, max": lambda: swapped(nn.EmbeddingBag(ROWS, DIM, mode="max")),
}


@pytest.fixture(params=list(LAYERS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return draw(Model(LAYERS[request.param]())).eval()


def loss_of(model: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    def loss(parameters: dict[str, Tensor], ids: Tensor) -> Tensor:
        output: Tensor = functional_call(model, parameters, (ids,)).square().sum()
        return output

    return loss


def test_gradients_of_each_example_add_up(model: nn.Module) -> None:
    ids = torch.randint(ROWS, (5, 4))
    parameters = dict(model.named_parameters())
    each = vmap(grad(loss_of(model)), (None, 0))(parameters, ids.unsqueeze(1))
    model(ids).square().sum().backward()
    for name, parameter in model.named_parameters():
        own = parameter.grad
        assert own is not None
        own = own.to_dense() if own.is_sparse else own
        torch.testing.assert_close(each[name].sum(0), own, rtol=1e-4, atol=1e-5)


def test_an_ensemble_in_one_call(model: nn.Module) -> None:
    models = [model, draw(copy.deepcopy(model))]
    parameters, buffers = torch.func.stack_module_state(models)
    ids = torch.randint(ROWS, (5, 4))

    def output(parameters: Any, buffers: Any, ids: Tensor) -> Any:
        return functional_call(model, (parameters, buffers), (ids,))

    found = vmap(output, (0, 0, None))(parameters, buffers, ids)
    torch.testing.assert_close(found, torch.stack([each(ids) for each in models]))


def test_a_trace_holds_for_other_ids(model: nn.Module) -> None:
    # The first rows alone, of which one tier has all; then those of other tiers, and of none.
    traced = torch.jit.trace(model, torch.zeros(2, 4, dtype=torch.long))
    ids = torch.arange(ROWS).view(-1, 4)
    torch.testing.assert_close(traced(ids), model(ids))


def test_recorded_operations_hold_for_other_ids(model: nn.Module) -> None:
    recorded = make_fx(model)(torch.zeros(15, 4, dtype=torch.long))
    ids = torch.arange(ROWS).view(-1, 4)
    torch.testing.assert_close(recorded(ids), model(ids))


def test_tensors_without_numbers(model: nn.Module) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        output = model(torch.zeros(15, 4, dtype=torch.long))
        assert isinstance(output, FakeTensor)
        assert output.shape == (15,)


@pytest.mark.parametrize("tiers", TABLES)
@pytest.mark.parametrize("layer", [embedding, bag])
def test_frozen_layers(layer: Callable[[str], nn.Module], tiers: str) -> None:
    model = freeze(draw(Model(layer(tiers)))).eval()
    ids = torch.arange(ROWS).view(-1, 4)
    traced = torch.jit.trace(model, torch.zeros(2, 4, dtype=torch.long))
    torch.testing.assert_close(traced(ids), model(ids))
    torch.testing.assert_close(vmap(model)(ids.unsqueeze(1)).flatten(), model(ids))


def test_reference_model() -> None:
    sizes = Allocation([table("codes"), TableAllocation("other", 9_000, DIM, (Tier(40, 4),))])
    model = draw(RankingModule(sizes)).eval()
    first = {"id": torch.zeros(4, dtype=torch.long), "other": torch.zeros(4, dtype=torch.long)}
    batch = {"id": torch.tensor([0, 15, 40, ROWS]), "other": torch.tensor([0, 39, 40, 8_999])}
    traced = model.to_torchscript(method="trace", example_inputs=(first,), strict=False)
    torch.testing.assert_close(traced(batch), model(batch))

    def loss(parameters: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        output: Tensor = functional_call(model, parameters, (batch,)).sum()
        return output

    parameters = dict(model.named_parameters())
    each = vmap(grad(loss), (None, 0))(parameters, {k: v.unsqueeze(1) for k, v in batch.items()})
    model(batch).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(each[name].sum(0), parameter.grad, rtol=1e-4, atol=1e-5)


def test_bags_by_offsets_are_refused() -> None:
    layer = bag("projected")
    ids, offsets = torch.arange(6), torch.tensor([0, 2])

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        output: Tensor = functional_call(layer, parameters, (ids, offsets)).sum()
        return output

    with pytest.raises(ValueError, match=r"given by `offsets` cannot be .* transformed"):
        grad(loss)(dict(layer.named_parameters()))


def test_is_traced() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(is_traced())
        return x + 1

    x = torch.ones(2)
    look(x)
    vmap(look)(x)
    torch.jit.trace(look, x, check_trace=False)
    assert seen == [False, True, True]
