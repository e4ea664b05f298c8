"""Columns as the distinct values that they hold and, for every cell, which one it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
import pandas as pd
import pyarrow

from optuna_nis.data.bags import BagKeep, flatten, without_missing
from optuna_nis.data.cells import without
from optuna_nis.data.columns import as_seen, check_continuous, converted
from optuna_nis.data.file_array import FileArray
from optuna_nis.data.keys import UNSEEN_TARGET
from optuna_nis.data.unknown import UnknownIds
from optuna_nis.data.values import Value, factorize
from optuna_nis.data.vocabulary import Vocabulary
from optuna_nis.space.spec import Oov

#: Distinct values: of one type in few bytes, or of any.
Values: TypeAlias = Sequence[Value] | pyarrow.Array


@dataclass(frozen=True, eq=False)
class CodedColumn:
    """A column of ids, or of bags of them, of which each distinct value is held once.

    Attributes:
        name: Name of the column.
        values: Its distinct values, in order of first occurrence.
        codes: For every cell the place of its value, -1 where it is missing; shape ``(rows,)``,
            or the cells of all bags one after the other.
        offsets: Of bags, where each row's cells begin and, last, where they end: shape
            ``(rows + 1,)``.
        limit: Of longer bags, how many cells are taken, and which.
    """

    name: str
    values: Values
    codes: NDArray[np.int32] | FileArray
    offsets: NDArray[np.int64] | FileArray | None = None
    limit: tuple[int, BagKeep] | None = None

    def __len__(self) -> int:
        return len(self.codes) if self.offsets is None else len(self.offsets) - 1

    def first(self) -> Any:
        """The first value that is there."""
        codes = self.cells
        places = codes[codes >= 0][:1].tolist()
        return plain_values(self.values)[places[0]] if places else None

    @property
    def cells(self) -> NDArray[np.int32]:
        """The codes, in memory."""
        return np.asarray(self.codes)

    def lengths(self) -> NDArray[np.int64]:
        """How many cells every row has: shape ``(rows,)``."""
        if self.offsets is None:
            return np.ones(len(self.codes), dtype=np.int64)
        lengths = np.diff(np.asarray(self.offsets))
        return lengths if self.limit is None else np.minimum(lengths, self.limit[0])

    def take(self, rows: NDArray[np.int64] | slice) -> CodedColumn:
        """The column of some rows, in memory."""
        if self.offsets is None:
            return replace(self, codes=np.asarray(self.codes[rows]))
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        if self.limit is not None:
            most, keep = self.limit
            kept = np.minimum(lengths, most)
            starts, lengths = starts + (lengths - kept if keep == "last" else 0), kept
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        places = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return replace(self, codes=np.asarray(self.codes[places]), offsets=offsets, limit=None)

    def limited(self, length: int, keep: BagKeep) -> CodedColumn:
        """With bags of so many cells at most, the last or the first ones."""
        if self.offsets is None:
            return self
        later = replace(self, limit=(length, keep))
        return later if isinstance(self.codes, FileArray) else later.take(slice(None))

    def renamed(self, values: Values, places: NDArray[np.integer[Any]]) -> CodedColumn:
        """With other values: of each value its place among them, -1 for a missing one."""
        table = np.append(places, -1).astype(np.int32)
        if isinstance(self.codes, FileArray):
            return replace(self, values=values, codes=self.codes.mapped(table))
        return replace(self, values=values, codes=table[self.codes])

    def vocabulary(self, name: str | None = None) -> Vocabulary:
        """Count the values: the most frequent first, then what comes first.

        Args:
            name: Name of the column in errors, by default its own.

        Raises:
            ValueError: If there is no row, or no value.
        """
        name = name or self.name
        codes = self.cells
        if not len(codes):
            raise ValueError(f"The column {name!r} is empty: it has no row.")
        present = codes[codes >= 0]
        if not present.size:
            raise ValueError(
                f"The column {name!r} is empty: all {codes.size} values are missing. Leave it out."
            )
        found = pd.unique(present)
        counts = np.bincount(present, minlength=1)[found]
        order = np.argsort(-counts, kind="stable")
        ranked, counts = found[order], counts[order]
        if isinstance(self.values, pyarrow.Array):
            return Vocabulary.from_arrow(self.values.take(pyarrow.array(ranked)), counts)
        return Vocabulary((self.values[place] for place in ranked.tolist()), counts)

    def ids_of_values(self, vocabulary: Vocabulary) -> NDArray[np.int64]:
        """The id of every distinct value, and last that of a missing one."""
        if vocabulary.types == {arrow_type(self.values)}:
            ids = vocabulary.encode_arrow(self.values)
        else:
            column = pd.Series(plain_values(self.values), dtype=object)
            if self.offsets is None:
                column = as_seen(column, vocabulary, self.name)
            else:
                column = converted(column, vocabulary)
            ids = vocabulary.encode(column)
        return np.append(ids, vocabulary.num_embeddings)

    def classes_of_values(self, targets: Vocabulary) -> NDArray[np.int64]:
        """The class of every distinct value, and last that of a missing one, for retrieval."""
        return as_classes(self.ids_of_values(targets), len(targets))

    def encode(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """The ids of the rows.

        Args:
            ids: Those of the values, as :meth:`ids_of_values` gives them.

        Returns:
            Shape ``(rows,)``, or ``(rows, longest bag)``, padded with the id of a missing value.
        """
        if self.offsets is None:
            return ids[self.cells].astype(np.int64)
        lengths = self.lengths()
        width = max(1, int(lengths.max(initial=0)))
        padded = np.full((len(lengths), width), ids[-1], dtype=np.int64)
        padded[np.arange(width) < lengths[:, None]] = ids[self.cells]
        return padded

    def present(self) -> NDArray[np.int64]:
        """How many cells of every row hold a value."""
        return self._per_row(self.cells >= 0)

    def known(self, is_known: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many cells of every row hold a known value.

        Args:
            is_known: Whether each distinct value is one, and last a missing one.
        """
        return self._per_row(is_known[self.cells])

    def _per_row(self, cells: NDArray[np.bool_]) -> NDArray[np.int64]:
        if self.offsets is None:
            return cells.astype(np.int64)
        rows = np.repeat(np.arange(len(self)), self.lengths())
        return np.bincount(rows[cells], minlength=len(self))


def as_classes(ids: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Ids of targets as labels: ``UNSEEN_TARGET`` for those that training has never seen."""
    return np.where(ids == num_classes, UNSEEN_TARGET, ids)


def coded(column: pd.Series[Any], name: str) -> CodedColumn:
    """Code a column of a frame.

    Raises:
        TypeError: If a cell is a list or another thing that cannot be an id.
    """
    codes, values = factorize(column, name)
    return CodedColumn(name, *merged(values, codes))


def coded_bags(
    column: pd.Series[Any],
    name: str,
    separator: str | None,
    max_length: int,
    keep: BagKeep,
    na_values: Sequence[str] = (),
) -> CodedColumn:
    """Code a column of bags, as :func:`~optuna_nis.data.bags.flatten` reads them."""
    found, lengths = flatten(column, separator, max_length, keep, name, na_values)
    items = pd.Series(found, dtype=object)
    if na_values:
        items, lengths = without_missing(without(items, na_values), lengths, max_length, keep)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return replace(coded(items, name), offsets=offsets)


def code_columns(
    frame: pd.DataFrame,
    separators: Mapping[str, str | None],
    max_bag_length: int,
    bag_keep: BagKeep,
    na_values: Sequence[str],
) -> dict[str, CodedColumn]:
    """The categorical columns of a frame, coded."""
    return {
        name: coded_bags(frame[name], name, separators[name], max_bag_length, bag_keep, na_values)
        if name in separators
        else coded(frame[name], name)
        for name in frame.columns
    }


def feature_vocabulary(
    column: CodedColumn, name: str, max_vocabulary: int | None, min_count: int, oov: Oov
) -> Vocabulary:
    """The vocabulary of a feature that is of use, with ids for what it leaves out if need be."""
    if column.offsets is not None and len(column) and not len(column.codes):
        raise ValueError(
            f"The column {name!r} is empty: all {len(column)} bags are empty. Leave it out."
        )
    vocabulary = column.vocabulary(name)
    missing = (column.cells < 0).any() or not column.lengths().all()
    if len(vocabulary) == 1 and not missing:
        raise ValueError(
            f"The column {name!r} is constant: all its values in the training part are "
            f"{vocabulary.values[0]!r}. Leave it out."
        )
    check_continuous(vocabulary, name)
    if vocabulary.counts[0] < min_count:
        raise ValueError(
            f"`min_count` of {min_count:,} leaves nothing of the column {name!r}, whose most "
            f"frequent value occurs {vocabulary.counts[0]:,} times in the training part: lower "
            "it, or leave the column out."
        )
    kept = vocabulary.at_least(min_count) if min_count > 1 else vocabulary
    if max_vocabulary is not None:
        kept = kept.cut(max_vocabulary)
    left_out = vocabulary.counts[len(kept) :]
    return kept.with_unknown(UnknownIds.for_values(kept.counts, left_out, oov))


def joined(columns: Sequence[CodedColumn]) -> CodedColumn:
    """The cells of several columns one after the other, as one column without bags."""
    if all(isinstance(each.values, pyarrow.Array) for each in columns):
        chunks = [
            pyarrow.DictionaryArray.from_arrays(
                pyarrow.array(each.cells, mask=each.cells < 0), each.values
            )
            for each in columns
        ]
        if len({chunk.type for chunk in chunks}) == 1:
            whole = pyarrow.chunked_array(chunks).unify_dictionaries()
            codes = [chunk.indices.fill_null(-1).to_numpy() for chunk in whole.chunks]
            values = whole.chunk(0).dictionary
            return CodedColumn(columns[0].name, values, np.concatenate(codes).astype(np.int32))
    found: list[Value] = []
    places = []
    for each in columns:
        places.append(np.where(each.cells < 0, -1, each.cells + len(found)))
        found += plain_values(each.values)
    return CodedColumn(columns[0].name, *merged(found, np.concatenate(places)))


def merged(values: Sequence[Value], codes: NDArray[Any]) -> tuple[list[Value], NDArray[np.int32]]:
    """Distinct values of which those that compare equal, such as 1 and 1.0, have become one."""
    ids: dict[Value, int] = {}
    places = np.array([*(ids.setdefault(each, len(ids)) for each in values), -1], dtype=np.int32)
    return list(ids), codes.astype(np.int32) if len(ids) == len(values) else places[codes]


def arrow_type(values: Values) -> type | None:
    """``str`` or ``int`` if values are an Arrow array of them."""
    if not isinstance(values, pyarrow.Array):
        return None
    if pyarrow.types.is_integer(values.type):
        return int
    text = pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type)
    return str if text else None


def plain_values(values: Values) -> list[Value]:
    """Values as objects of Python."""
    return values.to_pylist() if isinstance(values, pyarrow.Array) else list(values)
