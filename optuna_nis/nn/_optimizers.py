"""Optimisers that were made before a swap, or that miss what a swapped layer holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
import gc
import re
import sys
from typing import Any
import warnings
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from optuna_nis.nn.swapped import swapped_layers

# Why an optimiser can make no further step; those that were looked at since the last swap; the
# models whose layers were swapped.
_outdated: WeakKeyDictionary[Optimizer, str] = WeakKeyDictionary()
_checked: WeakSet[Optimizer] = WeakSet()
_models: WeakSet[nn.Module] = WeakSet()

# What comes after the name of a layer in those of its parameters, plain or swapped.
_OF_LAYER = re.compile(r"(weight|fields\.\d+\..+)$")


def holders(parameters: Sequence[Tensor], known: Sequence[int]) -> list[Optimizer]:
    """The optimisers that there are, if any may hold one of some parameters.

    Args:
        parameters: What an optimiser may hold.
        known: How often each of them is referred to by others, this sequence among them.
    """
    alone = _references([nn.Parameter(torch.empty(0))])
    # Looking for optimisers takes a while; most often nobody else knows the parameters.
    counted = [_references([parameters[index]]) - alone for index in range(len(parameters))]
    return _live_optimizers() if any(a > b for a, b in zip(counted, known)) else []


def hand_over(
    optimizers: Sequence[Optimizer], name: str, old: Sequence[Tensor], new: nn.Module
) -> None:
    """Let optimisers that hold the parameters of a table hold what these became.

    One that has gathered state for them, which does not fit any more, says so at its next step.

    Args:
        optimizers: Optimisers, which may hold other parameters.
        name: Name of the layer.
        old: What was trained.
        new: The fields of the layer, whose parameters take the place.
    """
    # First all of them: one may wrap another, and show its groups as its own.
    for optimizer in optimizers:
        if any(optimizer.state.get(parameter) for parameter in old):
            _outdated[optimizer] = (
                f"The optimiser {type(optimizer).__name__} has gathered state for the table of "
                f"{name!r} before the layer was swapped, which does not fit any more. Make it "
                "anew after `make_searchable` or `apply_allocation`; with Lightning, in "
                "`configure_optimizers`."
            )
    gone = {id(parameter) for parameter in old}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            places = [index for index, each in enumerate(group["params"]) if id(each) in gone]
            if places:
                _replace(group, places, dict(new.named_parameters()))


def watch(model: nn.Module) -> None:
    """Look at every optimiser when it makes its next step, for what it misses of a model."""
    _install()
    _models.add(model)
    _checked.clear()


@cache
def _install() -> None:
    register_optimizer_step_pre_hook(_before_step)


def _references(parameter: list[Tensor]) -> int:
    return sys.getrefcount(parameter[0])


def _live_optimizers() -> list[Optimizer]:
    found = [each for each in gc.get_objects() if issubclass(type(each), Optimizer)]
    # One that refused what it was given may live on in a traceback, half made.
    return [each for each in found if hasattr(each, "param_groups") and hasattr(each, "state")]


def _replace(group: dict[str, Any], places: Sequence[int], new: Mapping[str, Tensor]) -> None:
    """Put other parameters in the place of some of a group."""
    lists: dict[str, list[Any]] = {"params": list(new.values())}
    if "param_names" in group:
        layer = _OF_LAYER.sub("", group["param_names"][places[0]])
        lists["param_names"] = [f"{layer}fields.{name}" for name in new]
    for key, found in lists.items():
        for index in reversed(places):
            del group[key][index]
        group[key][places[0] : places[0]] = found


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling() or optimizer in _checked:
        return
    if reason := _outdated.get(optimizer):
        raise RuntimeError(reason)
    _check_once(optimizer)
    _checked.add(optimizer)
    held = _held([optimizer])
    missing: dict[str, int] = {}
    for model in _models:
        if any(id(parameter) in held for parameter in model.parameters()):
            missing |= _trained(model)
    missing = {name: key for name, key in missing.items() if key not in held}
    if missing:
        held = _held(_live_optimizers())
        missing = {name: key for name, key in missing.items() if key not in held}
    if missing:
        warnings.warn(
            f"No optimiser has {', '.join(missing)}, which stay as they are while "
            f"{type(optimizer).__name__} trains other parameters of the model. Make optimisers "
            "after the swap; parameter groups that are made by the type or the name of layers "
            "must take all `parameters()` of a swapped layer.",
            stacklevel=2,
        )


def _check_once(optimizer: Optimizer) -> None:
    """Raise a RuntimeError if an optimiser would move what a swapped layer trains twice a step."""
    for group in optimizer.param_groups:
        places = Counter(map(id, group["params"]))
        if len(places) == len(group["params"]):
            continue
        for model in _models:
            twice = [name for name, key in _trained(model).items() if places[key] > 1]
            if twice:
                raise RuntimeError(
                    f"A group of the optimiser {type(optimizer).__name__} holds {twice[0]!r} "
                    "more than once, and would move it as often in a step. Swapped layers and "
                    "the layers in them are all nn.Embedding: groups that are made by the type "
                    "of layers must take each parameter once, such as "
                    "`list(dict.fromkeys(parameters))`."
                )


def _held(optimizers: Sequence[Optimizer]) -> set[int]:
    return {
        id(parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _trained(model: nn.Module) -> dict[str, int]:
    """Names and identities of what the swapped layers of a model train."""
    within = {id(p) for layer in swapped_layers(model) for p in layer.fields.parameters()}
    return {
        name: id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) in within
    }
