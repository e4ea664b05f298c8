from __future__ import annotations

from collections.abc import Callable
import copy
from typing import Any

from lightning.pytorch import Trainer
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.models import RankingModule
from optuna_nis.nn import AdamAndRowwiseAdagrad
from optuna_nis.nn._adam import adam


def _trained(optimizer: torch.optim.Optimizer, parameters: list[Tensor], steps: int = 3) -> None:
    for step in range(steps):
        for number, parameter in enumerate(parameters):
            parameter.grad = torch.sin(parameter.detach() * 5 + step + number).contiguous()
        optimizer.step()


@pytest.mark.parametrize(
    ("make", "fused"),
    [
        (lambda: nn.Parameter(torch.arange(6.0).view(2, 3)), True),
        (lambda: nn.Parameter(torch.arange(6.0, dtype=torch.float64)), True),
        # The kernel of torch would take the numbers in between for those of the parameter.
        (lambda: nn.Parameter(torch.arange(12.0).view(3, 4)[:, :2]), None),
        (lambda: nn.Parameter(torch.zeros(2, dtype=torch.complex64)), None),
        (lambda: nn.Parameter(torch.zeros(2, device="meta")), None),
    ],
)
def test_the_kernel_is_used_where_it_is_right(
    make: Callable[[], nn.Parameter], fused: bool | None
) -> None:
    parameters = [nn.Parameter(torch.ones(2)), make()]
    optimizer = adam(parameters, 0.1)
    (group,) = optimizer.param_groups
    assert group["fused"] is fused
    if not parameters[1].is_meta and not parameters[1].is_complex():
        expected = [nn.Parameter(each.detach().clone()) for each in parameters]
        _trained(optimizer, [*parameters])
        _trained(torch.optim.Adam(expected, lr=0.1), [*expected])
        torch.testing.assert_close([*parameters], [*expected])


@pytest.mark.parametrize("with_tables", [False, True])
def test_a_training_goes_on_as_it_was_begun(with_tables: bool) -> None:
    table = nn.Parameter(torch.zeros(2, 2))

    def optimizer_of(parameter: nn.Parameter) -> torch.optim.Optimizer:
        return (
            AdamAndRowwiseAdagrad([parameter], [table], 0.1, 0.1)
            if with_tables
            else adam([parameter], 0.1)
        )

    before = nn.Parameter(torch.linspace(-1, 1, 50))
    old = optimizer_of(before)
    old.param_groups[0]["fused"] = None
    _trained(old, [before])
    resumed = nn.Parameter(before.detach().clone())
    new = optimizer_of(resumed)
    assert new.param_groups[0]["fused"]
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    for optimizer, parameter in ((old, before), (new, resumed)):
        _trained(optimizer, [parameter])
    assert torch.equal(resumed, before)


def test_gradients_are_clipped_under_mixed_precision() -> None:
    model = RankingModule(Allocation([TableAllocation("item", 8, 4, (Tier(8, 4),))]))
    batches: Any = [{"item": torch.arange(8), "label": (torch.arange(8) % 2).float()}]
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        precision="bf16-mixed",
        gradient_clip_val=1e-9,
        barebones=True,
    )
    trainer.fit(model, DataLoader(batches, batch_size=None))
    assert trainer.optimizers[0].param_groups[0]["fused"]
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(1e-9, rel=0.01)
