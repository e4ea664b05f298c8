"""A retrained model in a form that is served: what ``optuna-nis export`` writes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from optuna_nis._checks import check_folder
from optuna_nis.data.keeping import save_features
from optuna_nis.data.keys import NUMERIC
from optuna_nis.models import EmbeddingModule, RankingModule
from optuna_nis.models.embeddings import Batch
from optuna_nis.nn import sized_layers
from optuna_nis.serve import quantization_report, save, to_onnx, to_torch_export
from optuna_nis.serve.onnx import free_name
from optuna_nis.serve.predictor import Predictor
from optuna_nis.serve.quantize import Dtype

_EXAMPLES = 64
_BAG_LENGTH = 4


def export_model(folder: str | Path, form: str, output: str | Path) -> str:
    """Write a model for serving.

    Beside it goes ``features.json``, in which the place of a value in the vocabulary of its
    feature is its id; of more than 100,000 values it names a Parquet file that holds them. Where
    unknown values have ids, ``"unknown": [first, number, ...]`` of the vocabulary, that of values
    from the place ``first`` on is ``number`` more; :meth:`Features.encode` knows all of this.

    Args:
        folder: The model, written by ``optuna-nis retrain --output``.
        form: What to write:

            - ``"packed"``: a folder as the model's, with tables as
              :func:`~optuna_nis.nn.freeze` packs them, to the byte what the allocation says;
              :class:`Predictor` reads it.
            - ``"dense"``, ``"int8"``, ``"fp16"``: the same with plain layers of torch or
              quantised ones; quantised are only tables that were trained in 32 bits.
            - ``"onnx"``: ``model.onnx``, checked with ONNX Runtime on random ids. Tables of fewer
              than 32 bits are packed in it. An input for
              each feature, of shape ``(batch,)``, or ``(batch, length)`` for bags, and
              ``numeric``, ``(batch, num_numeric)``, if the model takes numbers; the output
              ``probability``, ``(batch,)``, or for retrieval ``scores``, ``(batch, targets)``;
              beside a feature of that name it ends in ``_``.
            - ``"torch-export"``: ``model.pt2``, the same for :func:`torch.export.load`, called
              with a dictionary.
            - ``"torchrec"``: ``tables.pt``, a
              :class:`~optuna_nis.serve.torchrec.TieredEmbeddingBagCollection` written by
              :func:`optuna_nis.serve.save`.
        output: The folder to write into, made if it is not there.

    Returns:
        What was written, for people.

    Raises:
        FileNotFoundError: If the folder lacks a file of a model.
        ModuleNotFoundError: If a package that the form needs is not installed.
        ValueError: If there is no such form, the folders are the same, or the model is not as it
            was retrained, or the output cannot be written.
    """
    if form not in _WRITERS:
        known = ", ".join(map(repr, _WRITERS))
        raise ValueError(f"`format` must be one of {known}, got {form!r}.")
    if Path(folder).resolve() == Path(output).resolve():
        raise ValueError(f"`output` must be another folder than `model`, got {str(output)!r}.")
    check_folder("output", output)
    predictor = Predictor.load(folder)
    if predictor.tables != "multi-size":
        raise ValueError(
            f"`model` must be a folder written by `optuna-nis retrain`, got one that was exported "
            f"as {predictor.tables}: {str(folder)!r}."
        )
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    try:
        written = _WRITERS[form](predictor, output)
    except BaseException:
        # Not if there is something in it.
        with suppress(OSError):
            output.rmdir()
        raise
    save_features(predictor.features, output)
    return written


class _Serving(nn.Module):
    """A model that gives what is asked of it in production."""

    def __init__(self, model: EmbeddingModule) -> None:
        super().__init__()
        self.model = model
        self.name = "probability" if isinstance(model, RankingModule) else "scores"

    def forward(self, batch: Batch, /) -> Tensor:
        logits: Tensor = self.model(batch)
        return logits.sigmoid() if self.name == "probability" else logits


def _serving(predictor: Predictor) -> _Serving:
    """With tables as small as they were trained for."""
    bits = {tier.bits for table in predictor.allocation.values() for tier in table.tiers}
    return _Serving((predictor if bits <= {32} else predictor.with_tables("packed")).model)


def _random_batch(predictor: Predictor) -> Batch:
    """Ids of the whole vocabularies, unknown ones, and numbers."""
    generator = torch.Generator().manual_seed(0)
    batch, features = {}, predictor.features
    for name, vocabulary in features.vocabularies.items():
        shape = (_EXAMPLES, _BAG_LENGTH) if name in features.bags else (_EXAMPLES,)
        batch[name] = torch.randint(0, vocabulary.num_embeddings + 1, shape, generator=generator)
    if width := predictor.model.num_numeric:
        batch[NUMERIC] = torch.randn(_EXAMPLES, width, generator=generator)
    return batch


def _to_packed(predictor: Predictor, output: Path) -> str:
    packed = predictor.with_tables("packed")
    packed.save(output)
    order = sum(
        layer.ranks.untyped_storage().nbytes()
        for layer in sized_layers(packed.model)
        if layer.ranks is not None
    )
    ids = f" and {order:,} bytes for the order of the ids" if order else ""
    return f"packed tables, {predictor.allocation.nbytes():,} bytes{ids}: {output}"


def _to_dense(predictor: Predictor, output: Path) -> str:
    predictor.with_tables("dense").save(output)
    return f"dense tables: {output}"


def _to_fewer_bits(dtype: Dtype, predictor: Predictor, output: Path) -> str:
    predictor.with_tables(dtype).save(output)
    return f"{quantization_report(predictor.model, dtype)}\n{dtype} tables: {output}"


def _to_onnx(predictor: Predictor, output: Path) -> str:
    bags, model = predictor.features.bags, _serving(predictor)
    path, batch = output / "model.onnx", _random_batch(predictor)
    name = free_name(model.name, batch)
    to_onnx(model, batch, path, bags=bags, output_names=[name])
    return f"ONNX: {path}"


def _to_torch_export(predictor: Predictor, output: Path) -> str:
    bags, path = predictor.features.bags, output / "model.pt2"
    program = to_torch_export(_serving(predictor), _random_batch(predictor), bags=bags)
    torch.export.save(program, path)
    return f"torch.export: {path}"


def _to_torchrec(predictor: Predictor, output: Path) -> str:
    from optuna_nis.serve.torchrec import to_torchrec

    path = output / "tables.pt"
    save(to_torchrec(predictor.model), path)
    return f"TorchRec tables: {path}"


_WRITERS: dict[str, Callable[[Predictor, Path], str]] = {
    "packed": _to_packed,
    "dense": _to_dense,
    "int8": partial(_to_fewer_bits, "int8"),
    "fp16": partial(_to_fewer_bits, "float16"),
    "onnx": _to_onnx,
    "torch-export": _to_torch_export,
    "torchrec": _to_torchrec,
}
