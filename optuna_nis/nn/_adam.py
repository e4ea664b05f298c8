"""Adam with the fastest of torch's kernels that fits the parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Adam:
    """Adam whose step is one kernel where all parameters are on the CPU: 2 to 4 times as fast.

    It computes the same but for last bits. A state that is loaded says how it goes on: a training
    that was begun without the kernel ends as it would have.

    On other devices torch chooses. Its kernel there takes a scaler's gradients as they are, so
    that Lightning could not clip them.
    """
    parameters = list(parameters)
    return torch.optim.Adam(parameters, lr=lr, fused=all(map(_fits, parameters)) or None)


def _fits(parameter: Tensor) -> bool:
    # The kernel goes through memory without a look at strides. Subclasses may be sharded.
    return (
        type(parameter) in (Tensor, nn.Parameter)
        and parameter.device.type == "cpu"
        and parameter.is_floating_point()
        and parameter.is_contiguous()
    )
