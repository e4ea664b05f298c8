"""Finding the tables of a model, and refusing those that cannot be swapped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from optuna_nis.nn.swapped import SwappedLayer
from optuna_nis.nn.table import OfFields, TableLayer

Plain = nn.Embedding | nn.EmbeddingBag

# A bare parameter is taken for a table if it has so many rows, and so many for each column.
_MIN_ROWS = 100
_MIN_RATIO = 4
_HOOKED = "hooks of its weight change gradients, and would be lost with it"
# Hooks in which Lightning lets a module make its layers.
_LATE = ("configure_model", "setup")


@dataclass
class Table:
    """A weight, the layers that look ids up in it, and the output layers that multiply by it."""

    name: str
    weight: nn.Parameter
    layers: list[Plain] = field(default_factory=list)
    outputs: list[nn.Linear] = field(default_factory=list)
    #: Names of all of these layers, the first of which names the table.
    names: list[str] = field(default_factory=list)

    @property
    def num_embeddings(self) -> int:
        """Number of rows."""
        return int(self.weight.shape[0])

    @property
    def embedding_dim(self) -> int:
        """Width of the rows."""
        return int(self.weight.shape[1])

    @property
    def padding_idx(self) -> int | None:
        """The id of padding."""
        return self.layers[0].padding_idx if self.layers else None


def plain_layers(model: nn.Module) -> dict[str, Plain]:
    """The embedding layers of a model that were not swapped, by name."""
    ours = {id(each) for layer in _own_layers(model).values() for each in layer.modules()}
    return {
        name or "embedding": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and id(module) not in ours
    }


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a model that were not swapped, by name."""
    return {
        name or "linear": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not isinstance(module, OfFields)
    }


def swapped_names(model: nn.Module) -> list[str]:
    """Names of the layers of a model that were swapped."""
    return [name for name, layer in _own_layers(model).items() if isinstance(layer, SwappedLayer)]


def find_tables(
    model: nn.Module, selected: Callable[[str], bool], outputs: Callable[[str], bool]
) -> list[Table]:
    """The tables to swap, each once.

    Args:
        model: The model.
        selected: Whether an embedding of some name is to be swapped.
        outputs: Whether a linear layer of some name is.

    Raises:
        ValueError: If one of them cannot be swapped.
    """
    owners = _owners(model)
    tables: dict[int, Table] = {}
    for own in _by_weight(plain_layers(model)):
        # Those that have one weight are swapped together, whichever of them is asked for.
        if not any(selected(name) for name, _ in own):
            continue
        for name, layer in own:
            _check_layer(name, layer)
        names, layers = [name for name, _ in own], [layer for _, layer in own]
        weight = layers[0]._parameters["weight"]
        assert weight is not None
        tables[id(weight)] = Table(names[0], weight, layers, names=names)
    linear = linear_layers(model)
    for name, head in linear.items():
        weight = head._parameters.get("weight")
        if id(weight) not in tables and outputs(name):
            _check_linear(name, head, weight)
            assert weight is not None
            tables[id(weight)] = Table(name, weight)
    for name, head in linear.items():
        # Asked for or not, it has the weight.
        if type(head) is nn.Linear and id(head._parameters.get("weight")) in tables:
            tables[id(head.weight)].outputs.append(head)
            tables[id(head.weight)].names.append(name)
    for table in tables.values():
        _check_owners(table, owners[id(table.weight)])
    return list(tables.values())


def _by_weight(layers: Mapping[str, Plain]) -> list[list[tuple[str, Plain]]]:
    """Layers and their names, those that have one weight together."""
    groups: dict[int, list[tuple[str, Plain]]] = {}
    for name, layer in layers.items():
        groups.setdefault(id(layer.weight), []).append((name, layer))
    return list(groups.values())


def bare_tables(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of a model that look like tables but are of no embedding layer, by name."""
    ours = {id(each) for layer in _own_layers(model).values() for each in layer.modules()}
    found: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        several = isinstance(module, nn.ParameterList | nn.ParameterDict)
        if id(module) in ours or isinstance(module, nn.Linear):
            continue
        if _is_of_torch(module) and not several:
            continue
        parameters = {
            key: parameter
            for key, parameter in module.named_parameters(recurse=False)
            if parameter.dim() == 2 and parameter.is_floating_point()
        }
        tables = [each for each in parameters.values() if _may_be_table(each)]
        # A small one in a list of tables is a table too, of a feature with few values.
        widths = {each.shape[1] for each in tables} if several else set()
        for key, parameter in parameters.items():
            if any(parameter is each for each in tables) or parameter.shape[1] in widths:
                found[f"{name}.{key}" if name else key] = parameter
    return found


def _may_be_table(parameter: nn.Parameter) -> bool:
    rows, columns = parameter.shape
    return rows >= max(_MIN_ROWS, _MIN_RATIO * columns + 1)


def no_layer_to(what: str, model: nn.Module) -> str:
    """Why a model may have no embedding layer to do something with."""
    kind = type(model).__name__
    if swapped := swapped_names(model):
        return (
            f"`model` has no embedding layer to {what}: those of {kind}, {swapped}, were "
            "swapped before. Build the model anew."
        )
    large = [n for n, head in linear_layers(model).items() if head.out_features >= _MIN_ROWS]
    hint = f" Output layers are searched on request: `outputs={large}`." if large else ""
    return f"`model` has no embedding layer to {what}: {kind}.{late_layers(model)}{hint}"


def check_not_lazy(model: nn.Module) -> None:
    """Refuse layers whose shapes are known only when a batch has been through them.

    Raises:
        ValueError: If the model has any.
    """
    for name, layer in model.named_modules():
        # Models may have a `parameters()` of their own.
        if any(map(is_lazy, chain(layer._parameters.values(), layer._buffers.values()))):
            raise ValueError(
                f"`model` must know the shapes of all its layers, got {type(layer).__name__} "
                f"{name!r}, which has none before its first batch. Give its size, or run a batch "
                "through the model where it is built: `model(batch)`."
            )


def late_layers(model: nn.Module) -> str:
    """What to do if the layers of a model are made in a hook that was not called."""
    hooks = [name for name in _LATE if _overrides(model, name)]
    if not hooks:
        return ""
    calls = " or ".join(
        "`model.setup('fit')`" if name == "setup" else f"`model.{name}()`" for name in hooks
    )
    return (
        f" If its layers are made in {' or '.join(f'`{name}`' for name in hooks)}, call {calls} "
        "first; called again by the trainer, it must leave them as they are."
    )


def fits(name: str, patterns: Collection[str]) -> bool:
    """Whether a name is of one of some patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(
    argument: str,
    patterns: Collection[str],
    names: Collection[str],
    kind: str = "embedding layers",
) -> None:
    """Raise a ValueError if a pattern fits no name."""
    if isinstance(patterns, str):
        raise ValueError(f"`{argument}` must be a list of patterns, got {patterns!r}.")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"`{argument}` has {pattern!r}, which fits none of the {kind} {list(names)}."
            )


def check_names(argument: str, given: Collection[str], names: Collection[str]) -> None:
    """Raise a ValueError if a name is not of a layer."""
    for name in given:
        if name not in names:
            raise ValueError(
                f"`{argument}` names {name!r}, which is none of the embedding layers "
                f"{list(names)}."
            )


def _own_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name or "embedding": module
        for name, module in model.named_modules()
        if isinstance(module, TableLayer | OfFields)
    }


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.split(".")[0] == "torch"


def _overrides(model: nn.Module, name: str) -> bool:
    """Whether a Lightning module has a hook of its own."""
    found = getattr(type(model), name, None)
    if not hasattr(model, "training_step") or found is None:
        return False
    return found.__module__.split(".")[0] not in ("lightning", "pytorch_lightning")


def _check_layer(name: str, layer: Plain) -> None:
    problem = ""
    if type(layer) not in (nn.Embedding, nn.EmbeddingBag):
        problem = f"it is a {type(layer).__name__}, a subclass that may do more than look up"
    elif not isinstance(layer._parameters.get("weight"), nn.Parameter):
        problem = "its weight is computed from others"
    elif layer.max_norm is not None:
        problem = f"max_norm={layer.max_norm} changes rows while they are looked up"
    elif layer.scale_grad_by_freq:
        problem = "scale_grad_by_freq=True is not supported"
    elif not layer.weight.is_floating_point():
        problem = f"its weight is of type {layer.weight.dtype}"
    elif _has_hooks(layer.weight):
        problem = _HOOKED
    if problem:
        raise ValueError(f"The layer {name!r} cannot be swapped: {problem}. `exclude` it.")


def _check_linear(name: str, layer: nn.Linear, weight: nn.Parameter | None) -> None:
    problem = ""
    if type(layer) is not nn.Linear:
        problem = f"it is a {type(layer).__name__}, a subclass that may do more than multiply"
    elif weight is None:
        problem = "its weight is computed from others"
    elif not weight.is_floating_point():
        problem = f"its weight is of type {weight.dtype}"
    elif _has_hooks(weight):
        problem = _HOOKED
    if problem:
        raise ValueError(
            f"The layer {name!r} cannot be swapped: {problem}. Leave it out of `outputs`."
        )


def _has_hooks(weight: Tensor) -> bool:
    """Whether something is done with the gradient of a weight before the optimiser has it."""
    return bool(weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None))


def _owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Which modules hold each parameter, by its id."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                path = f"{name}.{key}" if name else key
                owners.setdefault(id(parameter), []).append((path, module))
    return owners


def _check_owners(table: Table, owners: Sequence[tuple[str, nn.Module]]) -> None:
    settings = [_settings(layer) for layer in table.layers]
    same = [layer for layer, each in zip(table.layers, settings) if each == settings[0]]
    known: list[nn.Module] = [*same, *table.outputs]
    for path, module in owners:
        if not any(module is layer for layer in known):
            others = [other for other, _ in owners]
            tied = [
                other.rpartition(".")[0] or "embedding"
                for other, layer in owners
                if isinstance(layer, nn.Embedding | nn.EmbeddingBag)
            ]
            alone = f"`exclude={tied}`" if table.layers else "not in `outputs`"
            raise ValueError(
                f"The weight of {table.name!r} is tied: {path!r} is one of {others}. Only "
                "embeddings of the same kind and settings, and linear layers, may share a weight. "
                f"Leave it alone, {alone}, or untie it before the swap, `{_untied(path)}`."
            )


def _untied(path: str) -> str:
    """The line that unties a parameter, in the words of the module that has it."""
    target = "model"
    for part in path.split("."):
        target += f"[{part}]" if part.isdigit() else f".{part}"
    return f"{target} = nn.Parameter({target}.detach().clone())"


def _settings(layer: nn.Module) -> tuple[Any, ...]:
    names = ("padding_idx", "mode", "sparse", "max_norm", "scale_grad_by_freq")
    return (type(layer), *(getattr(layer, name, None) for name in names))
