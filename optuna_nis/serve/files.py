"""A trained model in one file: the sizes of its tables and its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import json
import os
from pathlib import Path
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from optuna_nis._checks import check_file
from optuna_nis._files import replacing
from optuna_nis._json import read_json
from optuna_nis._tensor_files import write
from optuna_nis.nn import freeze
from optuna_nis.nn._layers import Model, check_not_searchable
from optuna_nis.nn._stored import stored_tables
from optuna_nis.nn.packed import is_frozen
from optuna_nis.space.allocation import Allocation, TableAllocation

_VERSION = 1
_SAFETENSORS = ".safetensors"
_NOT_OURS = "`path` {!r} is not a file written by `save`."


def allocation_of(model: nn.Module) -> Allocation:
    """The sizes of the tables of a model.

    Raises:
        ValueError: If it has no multi-size layer, two of them are of tables of the same name, or
            one is still a layer of a supernet.

    Example:
        >>> from optuna_nis import EmbeddingSpec, SearchSpace
        >>> from optuna_nis.nn import MultiSizeEmbedding
        >>> allocation = SearchSpace([EmbeddingSpec("user", 100, 8)]).full()
        >>> model = nn.ModuleList([MultiSizeEmbedding(allocation["user"])])
        >>> allocation_of(model) == allocation
        True
    """
    check_not_searchable(model)
    tables = [getattr(layer, "table", None) for layer in model.modules()]
    found = [table for table in tables if isinstance(table, TableAllocation)]
    if not found:
        raise ValueError(
            f"`model` must have a multi-size layer, got a {type(model).__name__} without."
        )
    return Allocation(found)


def check_savable(model: nn.Module, path: str | os.PathLike[str], name: str) -> None:
    """Refuse what :func:`save` could not write, before hours of work are lost.

    Args:
        model: The model, of any sizes.
        path: As in :func:`save`.
        name: What the path is called in errors.

    Raises:
        ModuleNotFoundError: As in :func:`save`.
        ValueError: As in :func:`save`.
    """
    state = model.state_dict()
    for key, value in state.items():
        if type(value) not in (Tensor, nn.Parameter):
            raise ValueError(
                f"The state of `model` must be tensors only, got {key!r} of type "
                f"{type(value).__name__}."
            )
    check_file(name, path)
    if Path(path).suffix == _SAFETENSORS:
        package = _safetensors().torch
        for key, value in state.items():
            _check_format(package, key, value, name, path)


def _check_format(package: Any, key: str, value: Tensor, name: str, path: object) -> None:
    """Refuse a tensor that safetensors cannot write, or could not read into a model."""
    if value.layout is not torch.strided:
        problem = f"is of the layout {value.layout}"
    elif value.untyped_storage().nbytes() != value.numel() * value.element_size():
        problem = "is a part of a larger tensor, or repeats a smaller one: clone it"
    else:
        try:
            package.save({key: torch.empty(0, dtype=value.dtype)})
            return
        except Exception:  # Whatever it raises for types that it does not know.
            problem = f"is of the type {value.dtype}"
    raise ValueError(
        f"`{name}` must be a file of another format than {_SAFETENSORS}, such as .pt, for this "
        f"model, got {str(path)!r}: {key!r} {problem}."
    )


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's sizes and weights into one file.

    It holds a dictionary with ``"version"``, 1; ``"allocation"``, the JSON text of
    :meth:`Allocation.to_json <optuna_nis.Allocation.to_json>`; and ``"state_dict"``, that of the
    model. In the latter, a multi-size layer has for each tier ``tiers.N.weight``, of shape
    ``(ids, width)``, and, unless all are as wide as the output, a ``projection``,
    ``(largest width, embedding_dim)``. ``_ranks``, if ids are not ranks already, is the rank of
    every id and of the id unknown. There are tensors, numbers and text in it, and nothing is
    executed when it is read. A frozen model has ``"tables"``, too, which is ``"packed"``, and a
    state as :func:`~optuna_nis.nn.freeze` tells; one that is quantised or frozen in part has
    ``"stored"``, the JSON text of a dictionary that names these tables and what was done to them.

    A path that ends in ``.safetensors`` gets the tensors in the format of that package, the rest
    as text in its metadata. Behind the header there are the bytes of the tensors and nothing else:
    for a frozen model :meth:`Allocation.nbytes <optuna_nis.Allocation.nbytes>`, what the model has
    outside its tables, and 4 bytes an id where ids are not sorted by frequency.

    Args:
        model: A model with multi-size layers, quantised, frozen or neither.
        path: The file; one that is there is replaced once the new one is complete.

    Raises:
        ModuleNotFoundError: If a path ends in ``.safetensors`` and the package is not installed.
        ValueError: As :func:`allocation_of`, or if the state of the model is more than tensors,
            or the file cannot be written.
    """
    path = Path(path)
    allocation, state = allocation_of(model), model.state_dict()
    check_savable(model, path, "path")
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"version": _VERSION, "allocation": allocation.to_json()}
    if is_frozen(model):
        found["tables"] = "packed"
    elif stored := stored_tables(model):
        found["stored"] = json.dumps(stored)
    with replacing(path) as part:
        if path.suffix == _SAFETENSORS:
            texts = {key: str(value) for key, value in found.items()}
            package = _safetensors().torch
            # It writes files that only their owner may read.
            part.touch()
            mode = part.stat().st_mode
            package.save_model(model, str(part), metadata=texts)
            part.chmod(mode)
        else:
            write(found | {"state_dict": state}, part)


def load(path: str | os.PathLike[str], build: Callable[[Allocation], Model]) -> Model:
    """Read what :func:`save` wrote.

    Args:
        path: The file.
        build: Makes a model of the sizes that it is given, such as
            ``lambda sizes: apply_allocation(Model(), sizes)``. Ids need no counts: their order is
            part of the state. If the one that was saved was frozen, this is frozen, too; tables
            that were quantised, or frozen in part, it must make so itself, such as
            ``lambda sizes: quantize(build(sizes))``.

    Returns:
        The model.

    Raises:
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: As :func:`save`.
        ValueError: If the file is not one that :func:`save` wrote, or ``build`` does not make the
            tables quantised or frozen that were.
        RuntimeError: If the weights do not fit the model.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from optuna_nis import Tier
        >>> from optuna_nis.nn import apply_allocation
        >>> sizes = Allocation([TableAllocation("user", 100, 8, (Tier(10, 8), Tier(40, 2)))])
        >>> def build(sizes):
        ...     return apply_allocation(nn.ModuleDict({"user": nn.Embedding(100, 8)}), sizes)
        >>> model = build(sizes)
        >>> with TemporaryDirectory() as folder:
        ...     save(model, f"{folder}/model.pt")
        ...     again = load(f"{folder}/model.pt", build)
        >>> torch.equal(again["user"].weight, model["user"].weight)
        True
    """
    path = Path(path)
    found = _metadata(path) if path.suffix == _SAFETENSORS else _dictionary(path)
    if not isinstance(found, dict) or found.get("version") not in (_VERSION, str(_VERSION)):
        version = found.get("version") if isinstance(found, dict) else None
        raise ValueError(
            f"`path` {str(path)!r} must be a file of version {_VERSION} written by `save`, got "
            f"version {version!r}."
        )
    allocation, stored = _sizes_in(found, path)
    model = build(allocation)
    if not isinstance(model, nn.Module):
        raise TypeError(f"`build` must return a model, got {model!r}.")
    if found.get("tables") == "packed" and not is_frozen(model):
        model = freeze(model)
    if stored is not None and stored != stored_tables(model):
        raise ValueError(
            f"`build` must make the tables as those of {str(path)!r} are, {stored}, got "
            f"{stored_tables(model) or 'tables that are neither quantised nor frozen'}."
        )
    if path.suffix == _SAFETENSORS:
        _safetensors().torch.load_model(model, str(path))
    else:
        model.load_state_dict(found["state_dict"])
    return model


def _sizes_in(found: Mapping[str, Any], path: Path) -> tuple[Allocation, dict[str, str] | None]:
    """The sizes that a file has, and what was done to which tables, if it says so.

    Raises:
        ValueError: If they are not such.
    """
    try:
        allocation = Allocation.from_json(found["allocation"])
        stored = read_json(found["stored"]) if "stored" in found else None
        fits = found.get("tables") in (None, "packed") and isinstance(stored, (dict, type(None)))
        if path.suffix != _SAFETENSORS:
            fits = fits and isinstance(found["state_dict"], Mapping)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(_NOT_OURS.format(str(path))) from error
    if not fits:
        raise ValueError(_NOT_OURS.format(str(path)))
    return allocation, stored


def _dictionary(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (FileNotFoundError, PermissionError):
        raise
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError) as error:
        raise ValueError(_NOT_OURS.format(str(path))) from error


def _metadata(path: Path) -> Any:
    package = _safetensors()
    try:
        with package.safe_open(path, "pt") as file:
            return file.metadata()
    except package.SafetensorError as error:
        raise ValueError(_NOT_OURS.format(str(path))) from error


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "A file in the format of `safetensors` needs that package, which is not installed: "
            'pip install "optuna-nis[export]"',
            name="safetensors",
        ) from error
    return safetensors
