"""A model as ONNX, checked against the runtime."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
import importlib
import logging
import os
from pathlib import Path
import shutil
from tempfile import TemporaryDirectory
from typing import Any
import warnings

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn

from optuna_nis._checks import check_file, check_folder
from optuna_nis.serve._gathers import Gathers
from optuna_nis.serve.fused import fused
from optuna_nis.serve.torch_export import Batch, Inputs, free_axes, to_torch_export

_MOST_BYTES = 2**31 - 2**20
_RTOL, _ATOL = 1e-3, 1e-5
# Of numbers of few digits as many units of the last one as sums in another order may differ by.
_UNITS = 4


def to_onnx(
    model: nn.Module,
    batch: Batch,
    path: str | os.PathLike[str],
    *,
    bags: Collection[str] = (),
    output_names: Sequence[str] | None = None,
) -> None:
    """Write a model as ONNX, for batches of any size, and check it.

    The file is run with ONNX Runtime on examples of the batch, in another number than that it was
    traced with, and must give what the model gives. Of reference models :func:`fused` makes
    one lookup of all features.

    Args:
        model: As in :func:`to_torch_export`.
        batch: As in :func:`to_torch_export`; the inputs have the names of the mapping, else
            ``"input_0"``, ``"input_1"`` and so on.
        path: The file. Weights beyond two gigabytes, which is the most a file may have, are
            written beside it.
        bags: As in :func:`to_torch_export`.
        output_names: Names of the outputs; by default ``"output"``, or of several ``"output_0"``,
            ``"output_1"`` and so on, ``"output_"`` beside an input ``"output"``. None may be
            that of an input.

    Raises:
        ModuleNotFoundError: If onnx, onnxscript or onnxruntime is not installed.
        ValueError: As :func:`to_torch_export`, or if the file cannot be written or outputs have
            too few names, too many, those of inputs or an empty one.
        RuntimeError: If ONNX Runtime gives something else than the model.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from optuna_nis import TableAllocation, Tier
        >>> from optuna_nis.nn import MultiSizeEmbedding
        >>> layer = MultiSizeEmbedding(TableAllocation("user", 100, 8, (Tier(6, 8), Tier(9, 2))))
        >>> with TemporaryDirectory() as folder:
        ...     to_onnx(layer, torch.tensor([0, 9, 100]), f"{folder}/user.onnx")
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"`to_onnx` needs the package `{package}`, which is not installed: "
                'pip install "optuna-nis[export]"',
                name=package,
            ) from error
    # Not the link, but what it is to.
    path = Path(path).resolve()
    check_file("path", path)
    check_folder("path", path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    model = fused(model)
    with Gathers():
        program = to_torch_export(model, batch, bags=bags)
    inputs = Inputs.of(model, batch)
    args, kwargs = inputs.as_called(free_axes(inputs.tensors, bags))
    num_outputs = len(program.graph_signature.user_outputs)
    if output_names is None:
        several = [f"output_{index}" for index in range(num_outputs)]
        own = ["output"] if num_outputs == 1 else several
        output_names = [free_name(name, inputs.tensors) for name in own]
    if isinstance(output_names, str) or len(output_names) != num_outputs:
        raise ValueError(
            f"`output_names` must name the {num_outputs} outputs of `model`, got {output_names!r}."
        )
    if taken := [name for name in output_names if name in inputs.tensors]:
        raise ValueError(
            "`output_names` must be others than those of the inputs, "
            f"{[*inputs.tensors]}, got {taken[0]!r}."
        )
    names = [*inputs.tensors, *output_names]
    if "" in names:
        raise ValueError(f"ONNX has no inputs or outputs without a name, got {names}.")
    # The order of ids is a constant.
    held = [*program.state_dict.values(), *program.constants.values()]
    large = sum(value.nbytes for value in held if isinstance(value, Tensor)) > _MOST_BYTES
    with warnings.catch_warnings(), _quiet(), torch.no_grad():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(inputs.tensors),
            output_names=list(output_names),
            # The names of the dimensions, which are free already.
            dynamic_shapes=kwargs or args,
            verbose=False,
        )
        assert converted is not None
    _rename_others(converted.model.graph, names)
    # What is there already stays until the new file is known to work. It has its own name from the
    # start, by which it finds the weights beside it.
    with TemporaryDirectory(dir=path.parent) as folder:
        new = Path(folder, path.name)
        converted.save(new, external_data=large)
        _check(program.module(), inputs, new)
        if path.exists():
            shutil.copymode(path, new)
        # Weights beside the model first: a model without its own is not left.
        for written in sorted(Path(folder).iterdir(), key=lambda file: file == new):
            written.replace(path.with_name(written.name))


def free_name(name: str, taken: Collection[str]) -> str:
    """A name that is not taken.

    Example:
        >>> free_name("output", ["user", "output"])
        'output_'
    """
    while name in taken:
        name += "_"
    return name


def _rename_others(graph: Any, names: Sequence[str]) -> None:
    """Give what is neither input nor output other names than these have."""
    outside = {id(value) for value in (*graph.inputs, *graph.outputs)}
    inside = [*graph.initializers.values()]
    inside += [value for node in graph.all_nodes() for value in node.outputs]
    taken = {*names, *(value.name for value in inside)}
    for value in inside:
        if value.name in names and id(value) not in outside:
            value.name = free_name(value.name, taken)
            taken.add(value.name)


def _check(program: nn.Module, inputs: Inputs, path: Path) -> None:
    """Compare program and file on more examples than the model was traced with."""
    import onnxruntime

    examples = len(next(iter(inputs.tensors.values())))
    chosen = [index % examples for index in range(2 * examples + 1)]
    more = {name: tensor[chosen] for name, tensor in inputs.tensors.items()}
    args, kwargs = inputs.as_called(more)
    with torch.no_grad():
        expected = program(*args, **kwargs)
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = session.run(None, {name: tensor.cpu().numpy() for name, tensor in more.items()})
    except Exception as error:  # Its errors have no class in common.
        raise RuntimeError(f"ONNX Runtime cannot run the model: {error}") from error
    for name, a, b in zip(session.get_outputs(), found, _tensors(expected), strict=True):
        found, wanted = np.asarray(a).astype(np.float64), b.astype(np.float64)
        if not _is_close(found, wanted, b.dtype):
            raise RuntimeError(
                f"ONNX Runtime gives another output {name.name!r} than the model: they differ by "
                f"{np.nanmax(np.abs(found - wanted), initial=0.0):g}."
            )


def _is_close(found: NDArray[Any], wanted: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Whether two outputs are as close as numbers of a type can be."""
    rtol, atol = _RTOL, _ATOL
    if dtype.kind == "f" and dtype.itemsize < 4:
        share = _UNITS * float(np.finfo(dtype).eps)
        largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)
        rtol, atol = max(rtol, share), max(atol, share * float(largest))
    return np.allclose(found, wanted, rtol, atol, equal_nan=True)


def _tensors(output: Any) -> list[NDArray[Any]]:
    """The outputs of a model in the order that ONNX has them."""
    if isinstance(output, Tensor):
        return [output.cpu().numpy()]
    values = output.values() if isinstance(output, Mapping) else output
    return [array for value in values for array in _tensors(value)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of the exporter about packages that it can do without."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
