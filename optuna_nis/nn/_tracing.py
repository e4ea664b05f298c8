"""Whether a model just runs, or what it does is recorded or transformed."""

from __future__ import annotations

import torch

# Tensors without numbers, and operations that are recorded (make_fx).
_FAKE, _PROXY = torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY


def is_traced() -> bool:
    """Whether no number may be looked at, and only operations of torch may be called.

    So it is while a model is compiled, exported or traced (:func:`torch.jit.trace`, ``make_fx``),
    with tensors that have no numbers (``FakeTensorMode``), and inside of the transforms of
    :mod:`torch.func`, such as :func:`~torch.func.grad` and :func:`~torch.func.vmap`. What follows
    from the ids of one batch would hold for all of them.
    """
    return (
        torch.compiler.is_compiling()
        or is_scripted()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_dispatch_mode(_FAKE) is not None
        or torch._C._get_dispatch_mode(_PROXY) is not None
    )


def is_scripted() -> bool:
    """Whether a model is being traced by :func:`torch.jit.trace`."""
    return bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call, attr-defined]
