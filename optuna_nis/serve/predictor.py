"""A trained model in a folder, with all that it takes to predict for new rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
import copy
from dataclasses import replace
import json
from pathlib import Path
import pickle
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
import pandas as pd
import pyarrow
import torch

from optuna_nis._checks import check_folder
from optuna_nis._json import read_json
from optuna_nis._tensor_files import write
from optuna_nis.data import Features
from optuna_nis.data.keeping import FEATURES_FILE, drop_unused, pack_features, unpack_features
from optuna_nis.data.tally import Tally
from optuna_nis.models import EmbeddingModule, reference_model
from optuna_nis.models.items import ItemsModule
from optuna_nis.nn import freeze, sized_layers
from optuna_nis.nn._stored import stored_tables
from optuna_nis.serve.dense import to_dense
from optuna_nis.serve.files import allocation_of, load, save
from optuna_nis.serve.quantize import quantize
from optuna_nis.space.allocation import Allocation

_VERSION = 1
_ALLOCATION, _MODEL = "allocation.json", "model.json"
# What other forms are in that a model is exported to, and what reads them.
_EXPORTED = {
    "model.onnx": "ONNX Runtime",
    "model.pt2": "`torch.export.load`",
    "tables.pt": "`optuna_nis.serve.load`",
}
_WEIGHTS, _PACKED_WEIGHTS = "weights.pt", "weights.safetensors"

#: What the tables of a model are kept as.
Tables = Literal["multi-size", "dense", "int8", "float16", "packed"]

# What was done to tables that are kept as this.
_DONE = {
    "multi-size": set[str](),
    "packed": {"frozen"},
    "int8": {"quantised"},
    "float16": {"quantised"},
}
# What reading a file that is damaged may end in.
_DAMAGED = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


class Predictor:
    """A reference model with the vocabularies that it was trained with.

    Args:
        model: A trained model with multi-size embeddings.
        allocation: Its embedding sizes.
        features: Its features. Ids for which the model has no row are forgotten, which changes no
            prediction.
        tables: What its tables are kept as.

    Raises:
        ValueError: If the model has other sizes, or its tables are kept as something else.

    Example:
        >>> from optuna_nis import SearchSpace
        >>> full = SearchSpace(data.embedding_specs(8)).full()
        >>> model = reference_model(data.features)(full)  # to be trained
        >>> new = pd.DataFrame({"user": [3, 4], "item": [7, 123]})
        >>> Predictor(model, full, data.features).predict(new).shape
        (2,)
    """

    def __init__(
        self,
        model: EmbeddingModule,
        allocation: Allocation,
        features: Features,
        tables: Tables = "multi-size",
    ) -> None:
        _check_tables(model, allocation, tables)
        self.model = model.eval()
        self.allocation = allocation
        # Features that share a table keep the same ids, and ids that share rows are told apart by
        # their ranks.
        share = model.embeddings.share
        kept = {
            name: table.kept
            for name, table in allocation.items()
            if name not in share.values() and not table.num_shared
        }
        owners = {name: share.get(name, name) for name in features.names}
        looked_into = {n: allocation[owner] for n, owner in owners.items() if owner in allocation}
        without = frozenset(name for name, table in looked_into.items() if not table.kept)
        self.features = replace(features.cut(kept), optional=without)
        self._looked_into = looked_into
        #: How many ids of a feature, the first ones, have a row, where all others have none.
        self.num_rows = {n: table.kept for n, table in looked_into.items() if not table.num_shared}
        self.tables = tables

    def with_tables(self, tables: Tables) -> Predictor:
        """The same with plain layers of torch, or with quantised or frozen ones.

        Raises:
            ValueError: If there is no such form, or the tables are no longer of several sizes.
        """
        _check_known(tables)
        if self.tables != "multi-size":
            raise ValueError(
                f"`tables` can be chosen of tables as they were trained, got {tables!r}: those of "
                f"this predictor are kept as {self.tables} already."
            )
        # Tables are converted into new ones: those of before are no part of the copy.
        before = {} if tables == self.tables else {id(e): e for e in sized_layers(self.model)}
        model = _converted(copy.deepcopy(self.model, before), tables)
        return Predictor(model, self.allocation, self.features, tables)

    @property
    def columns(self) -> list[str]:
        """Names of what is predicted, where it is written as columns."""
        if not isinstance(self.model, ItemsModule):
            return ["prediction"]
        return [f"top_{place}" for place in range(1, max(self.model.top_k) + 1)]

    @property
    def column_type(self) -> pyarrow.DataType:
        """The type of these columns."""
        targets = self.features.targets
        if targets is None:
            return pyarrow.float32()
        return (
            pyarrow.string() if len(targets.types) > 1 else pyarrow.array(targets.decode([0])).type
        )

    def predict(
        self,
        frame: pd.DataFrame,
        *,
        batch_size: int = 16384,
        check: bool = True,
        tally: Tally | None = None,
    ) -> NDArray[Any]:
        """Predict for new rows.

        Args:
            frame: A column for each feature that has rows in the model, with the same names and
                types as in training; unknown and missing ids are fine, other columns are ignored.
            batch_size: Rows at a time.
            check: As in :meth:`Features.encode_batches`.
            tally: As in :meth:`Features.encode_batches`.

        Returns:
            For ranking the probability of a positive label, shape ``(rows,)``; for retrieval the
            best targets, best first, shape ``(rows, k)``.

        Raises:
            TypeError: If a cell cannot be an id.
            ValueError: If a column is missing or of another type than in training.
        """
        parts = []
        with torch.inference_mode():
            for batch in self.features.encode_batches(frame, batch_size, check=check, tally=tally):
                parts.append(self.model.predict_step(batch).cpu().numpy())
        if not parts:
            width = (max(self.model.top_k),) if isinstance(self.model, ItemsModule) else ()
            kind = np.float32 if self.features.targets is None else object
            return np.empty((0, *width), dtype=kind)
        found = np.concatenate(parts)
        if self.features.targets is None:
            return found
        ids, places = np.unique(found, return_inverse=True)
        values = np.array(self.features.targets.decode(ids), dtype=object)
        return np.asarray(values[places.reshape(found.shape)])

    def check_tally(self, tally: Tally) -> Tally:
        """What was counted of the features that have rows, with a warning if hardly any is known.

        Args:
            tally: What was counted of all.
        """
        tally = tally.without(self.features.optional)
        known = {name: self.features.vocabularies[name] for name in tally.rows}
        tally.warn({name: self._known_share(name) for name in known}, known)
        return tally

    def _known_share(self, name: str) -> float:
        """Of which share of the values of rows as in training a feature knows the row, or more.

        Values that came once in training come again as seldom as new ones come (Good, 1953).
        """
        vocabulary, table = self.features.vocabularies[name], self._looked_into.get(name)
        if table is None:
            return 0.0
        ids, counts = np.arange(vocabulary.num_embeddings), vocabulary.id_counts
        with_row = ids < self.num_rows.get(name, len(ids))
        again = counts[vocabulary.knows(ids) & with_row & (counts > 1)].sum()
        # An id that was forgotten came once at least.
        forgotten = max(0, table.num_embeddings - len(ids))
        return float(again / (counts.sum() + forgotten))

    def save(self, folder: str | Path, *, training: str | None = None) -> None:
        """Write the model, its sizes and its vocabularies into a folder.

        Whoever is killed meanwhile leaves the earlier model, or a folder that :meth:`load`
        refuses; never parts of both.

        Args:
            folder: Made if it is not there. Files of an earlier model are replaced.
            training: What :meth:`training_of` says of the folder.

        Raises:
            ModuleNotFoundError: If tables are packed and safetensors is not installed.
            ValueError: If the folder cannot be written.
        """
        folder = Path(folder)
        check_folder("folder", folder)
        folder.mkdir(parents=True, exist_ok=True)
        meta = {"version": _VERSION, "options": self.model.options, "tables": self.tables}
        texts = {
            _ALLOCATION: self.allocation.to_json(),
            FEATURES_FILE: pack_features(self.features, folder),
            _MODEL: json.dumps(meta | ({} if training is None else {"training": training})),
        }
        weights = _weights(self.tables)
        names = (_ALLOCATION, FEATURES_FILE, weights, _MODEL)
        try:
            for name, text in texts.items():
                _new(folder / name).write_text(text)
            if self.tables == "packed":
                save(self.model, _new(folder / weights))
            else:
                write(self.model.state_dict(), _new(folder / weights))
        except BaseException:
            for name in names:
                _new(folder / name).unlink(missing_ok=True)
            raise
        (folder / _MODEL).unlink(missing_ok=True)
        for name in names:
            _new(folder / name).replace(folder / name)
        for name in {_WEIGHTS, _PACKED_WEIGHTS} - {weights}:
            (folder / name).unlink(missing_ok=True)
        drop_unused(folder)

    @staticmethod
    def training_of(folder: str | Path) -> str | None:
        """Which training the model in a folder comes from, None if there is none or it is unsaid.

        Args:
            folder: What :meth:`save` was given.
        """
        folder = Path(folder)
        if not all((folder / name).is_file() for name in (_ALLOCATION, FEATURES_FILE, _WEIGHTS)):
            return None
        with suppress(FileNotFoundError, json.JSONDecodeError, AttributeError):
            found = json.loads((folder / _MODEL).read_text()).get("training")
            return found if isinstance(found, str) else None
        return None

    @classmethod
    def load(cls, folder: str | Path) -> Predictor:
        """Read what :meth:`save` wrote. Nothing in the folder is executed.

        Raises:
            FileNotFoundError: If a file is missing.
            ModuleNotFoundError: As :meth:`save`.
            ValueError: If the folder holds another version or is malformed.
        """
        folder = Path(folder)
        for name in (_ALLOCATION, FEATURES_FILE, _MODEL):
            _check_there(folder / name)
        with _whole(folder / _MODEL):
            meta = read_json((folder / _MODEL).read_text())
            if not isinstance(meta, dict) or meta.get("version") != _VERSION:
                raise ValueError(f"it is not of version {_VERSION}")
            tables, options = meta.get("tables", "multi-size"), dict(meta["options"])
            _check_known(tables)
        with _whole(folder / _ALLOCATION):
            allocation = Allocation.from_json((folder / _ALLOCATION).read_text())
        with _whole(folder / FEATURES_FILE):
            features = unpack_features((folder / FEATURES_FILE).read_text(), folder)
        with _whole(folder):
            model = _converted(reference_model(features, **options)(allocation), tables)
        weights = folder / _weights(tables)
        _check_there(weights)
        with _whole(weights):
            if tables == "packed":
                model = load(weights, lambda sizes: _of_same(model, sizes, allocation))
            else:
                model.load_state_dict(
                    torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
                )
        return cls(model, allocation, features, tables)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """What goes wrong with a file of a model, or all of a folder together, is said of it."""
    try:
        yield
    except (ModuleNotFoundError, FileNotFoundError, PermissionError):
        raise
    except _DAMAGED as error:
        folder, problem = path.parent, f"{path.name!r} is not of it, or damaged"
        if path.is_dir():
            folder, problem = path, "these do not go together"
        cause = error.__cause__ or error
        raise ValueError(
            f"`folder` {str(folder)!r} must hold the files of one model, whole, but {problem}: "
            f"{repr(cause) if isinstance(cause, KeyError) or not str(cause) else cause}"
        ) from error


def _of_same(
    model: EmbeddingModule, weighed: Allocation, allocation: Allocation
) -> EmbeddingModule:
    """The model, if its weights are of the sizes that it was made of."""
    if weighed != allocation:
        raise ValueError(f"it has other sizes than {_ALLOCATION!r}")
    return model


def _new(path: Path) -> Path:
    return path.with_name(f"new.{path.name}")


def _weights(tables: Tables) -> str:
    return _PACKED_WEIGHTS if tables == "packed" else _WEIGHTS


def _check_there(path: Path) -> None:
    if not path.is_file():
        others = (name for name in _EXPORTED if (path.parent / name).is_file())
        there = next((f": the folder has {n!r}, which {_EXPORTED[n]} reads" for n in others), "")
        raise FileNotFoundError(
            "`folder` must hold a model written by `optuna-nis retrain`, but "
            f"{str(path)!r} is not there{there}."
        )


def _check_known(tables: str) -> None:
    if tables not in get_args(Tables):
        known = ", ".join(map(repr, get_args(Tables)))
        raise ValueError(f"`tables` must be one of {known}, got {tables!r}.")


def check_predictor(predictor: object) -> None:
    """Raise a TypeError if this is no predictor, such as the folder of one."""
    if not isinstance(predictor, Predictor):
        raise TypeError(
            f"`predictor` must be a Predictor, got {predictor!r:.80}. `Predictor.load(folder)` "
            "reads the folder that `retrain` wrote, or `Predictor.save`."
        )


def _check_tables(model: EmbeddingModule, allocation: Allocation, tables: Tables) -> None:
    """Raise a ValueError if a model has other tables than it is said to have."""
    _check_known(tables)
    if tables == "dense":
        if sized_layers(model):
            raise ValueError("`model` must have plain tables if `tables` is 'dense'.")
        return
    found, done = allocation_of(model), set(stored_tables(model).values())
    if found != allocation:
        raise ValueError(
            f"`allocation` must be the sizes of `model`, {found!r}, got {allocation!r}."
        )
    if done != _DONE[tables]:
        raise ValueError(
            f"`tables` must be what the tables of `model` are kept as, got {tables!r} for tables "
            f"that are {' and '.join(sorted(done)) or 'as they were trained'}."
        )


def _converted(model: EmbeddingModule, tables: Tables) -> EmbeddingModule:
    if tables == "multi-size":
        return model
    if tables == "packed":
        return freeze(model)
    return to_dense(model) if tables == "dense" else quantize(model, tables)
