"""Ways to round trained rows that are rivals of the product's learned step for each tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from optuna_nis.nn import sized_layers
from optuna_nis.nn._rounding import BEST_STEPS

_Module = TypeVar("_Module", bound=nn.Module)

_HALF = 2


@dataclass(frozen=True)
class Way:
    """How rows are rounded.

    Attributes:
        over: The dimensions of a tier that share a step.
        is_random: Whether numbers go up or down at random in training.
    """

    over: tuple[int, ...] = (0, 1)
    is_random: bool = False


WAYS = {
    "rms": Way(),
    "rms_column": Way(over=(0,)),
    "rms_row": Way(over=(1,)),
    "stochastic": Way(is_random=True),
    "after": Way(),
    "late": Way(),
}


def step_nbytes(way: str, rows: int, width: int) -> int:
    """Bytes of the steps of a tier; the product has one."""
    over = WAYS[way].over if way in WAYS else (0, 1)
    return _HALF * {(0, 1): 1, (0,): width, (1,): rows}[over]


class Rounding(nn.Module):
    """Rows at the levels of steps that follow from their spread, a parametrisation of a weight.

    Gradients are as if nothing were rounded. Steps are as float16 stores them.

    Args:
        way: What shares a step, and whether rounding is random in training.
        bits: Bits of a number.
    """

    def __init__(self, way: Way, bits: int) -> None:
        super().__init__()
        self.way, self.bits = way, bits

    def forward(self, weight: Tensor) -> Tensor:
        """The rows as they are stored."""
        rows, half = weight.detach(), torch.finfo(torch.float16)
        spread = rows.square().mean(self.way.over, keepdim=True).sqrt()
        step = (spread * BEST_STEPS[self.bits]).clamp(half.tiny, half.max).half().to(rows.dtype)
        parts, end = rows / step, 2 ** (self.bits - 1)
        if self.way.is_random and self.training:
            # Between two levels, as likely the upper one as the number is near to it.
            parts = parts - 0.5 + torch.rand_like(parts)
        levels = parts.floor().clamp(-end, end - 1) + 0.5
        return weight + (levels * step - rows)


def rounded_by(model: _Module, way: str, bits: int) -> _Module:
    """Round the rows of a model in a way, from now on."""
    for layer in sized_layers(model):
        for tier in layer.tier_modules():
            rounding = Rounding(WAYS[way], bits)
            parametrize.register_parametrization(tier, "weight", rounding)
    return model


def hold(model: nn.Module) -> None:
    """Leave the rows as they are stored, in a model that is trained no further."""
    model.eval()
    for layer in sized_layers(model):
        for tier in layer.tier_modules():
            parametrize.remove_parametrizations(tier, "weight")
