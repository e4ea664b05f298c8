"""How the columns of a table become the tensors of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pandas as pd
import torch
from torch import Tensor

from optuna_nis._checks import check_integer
from optuna_nis._json import read_json
from optuna_nis.data import cells
from optuna_nis.data.bags import BagKeep, check_bags
from optuna_nis.data.coded import (
    CodedColumn,
    as_classes,
    code_columns,
    coded,
    feature_vocabulary,
    joined,
)
from optuna_nis.data.columns import as_seen, converted, warn_of_rounded
from optuna_nis.data.file_array import FileArray
from optuna_nis.data.frame_ids import ids_of_cells, items_of
from optuna_nis.data.keys import NUMERIC, Task, check_names, check_share, check_task
from optuna_nis.data.scaling import Floats, Scaling, numbers_of, scaled
from optuna_nis.data.tally import Tally
from optuna_nis.data.vocabulary import Vocabulary
from optuna_nis.space.spec import EmbeddingSpec, Oov

# The oldest version that reads what is written: version 3 has numeric columns and shared tables.
_JSON_VERSION, _WITH_NUMBERS = 2, 3
_READ_ALIKE = " `read_table(path, like=features)` reads a file as training rows were read."


@dataclass(frozen=True)
class Features:
    """The features of a data set with their vocabularies: all it takes to encode new rows.

    Attributes:
        task: ``"ranking"``, a yes-or-no label, or ``"retrieval"``, one target out of many.
        vocabularies: For every feature, its known values.
        separators: For every feature that is a bag, the text between its values, or :obj:`None`
            if its cells are lists.
        max_bag_length: Values kept of a bag.
        targets: The targets seen in training, for retrieval.
        bag_keep: Which values of a longer bag are kept: the ``"last"`` ones, the latest of a
            history that grows at its end, or the ``"first"``.
        na_values: Texts, and numbers written as text, that stand for a missing value, besides the
            empty cell; what :func:`read_table` reads new rows with.
        numeric: For every numeric column, how its numbers become inputs of a model.
        share: For features without a table of their own, the feature whose vocabulary and table
            they share.
        optional: Features of which a model has no row: new rows need not have their columns, which
            are not looked at.

    Raises:
        ValueError: If there is no feature, one is named "label" or is numeric too, a bag or what
            shares a table is no feature, a separator is empty, ``max_bag_length`` is not
            positive, or the targets do not go with the task.

    Example:
        >>> frame = pd.DataFrame({"user": [7, 7, 8], "genres": ["Drama|War", None, "War"]})
        >>> features = Features.fit(frame, task="ranking", separators={"genres": "|"})
        >>> features.encode(pd.DataFrame({"user": [8, 9], "genres": ["War|Noir", "Drama"]}))
        {'user': tensor([1, 2]), 'genres': tensor([[0, 2],
                [1, 2]])}
        >>> Features.from_json(features.to_json()) == features
        True
    """

    task: Task
    vocabularies: Mapping[str, Vocabulary]
    separators: Mapping[str, str | None] = field(default_factory=dict)
    max_bag_length: int = 50
    targets: Vocabulary | None = None
    bag_keep: BagKeep = "last"
    na_values: tuple[str, ...] = ()
    numeric: Mapping[str, Scaling] = field(default_factory=dict)
    share: Mapping[str, str] = field(default_factory=dict)
    optional: frozenset[str] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        check_task(self.task)
        check_names(self.names, tuple(self.numeric))
        check_share(self.share, self.names)
        check_bags(self.separators, self.max_bag_length, self.bag_keep, self.names)
        cells.check_na_values(self.na_values)
        if (self.targets is not None) != (self.task == "retrieval"):
            raise ValueError(
                '`targets` must be a vocabulary for the task "retrieval" and None for "ranking", '
                f"got {self.targets!r} for {self.task!r}."
            )

    @classmethod
    def fit(
        cls,
        frame: pd.DataFrame | Mapping[str, CodedColumn],
        *,
        task: Task,
        separators: Mapping[str, str | None] | None = None,
        max_bag_length: int = 50,
        max_vocabulary: int | None = None,
        min_count: int = 1,
        oov: Oov = "zero",
        targets: pd.Series[Any] | CodedColumn | None = None,
        bag_keep: BagKeep = "last",
        na_values: Sequence[str] = (),
        numeric: Mapping[str, Floats | FileArray] | Sequence[str] = (),
        share: Mapping[str, str] | None = None,
    ) -> Features:
        """Build the vocabularies from the training rows, and measure the numeric columns.

        Args:
            frame: The training rows, one column for each feature and each numeric column.
            task: ``"ranking"`` or ``"retrieval"``.
            separators: As the attribute.
            max_bag_length: As the attribute.
            max_vocabulary: Keep only so many of the most frequent values of every feature.
            min_count: Keep only values with so many occurrences, at least one of each feature.
            oov: Unless this is ``"zero"``, values that are too rare or new have ids of their own,
                apart from missing ones, so that they may have rows:
                :class:`~optuna_nis.data.unknown.UnknownIds`.
            targets: The targets of the training rows, for retrieval.
            bag_keep: As the attribute.
            na_values: As the attribute. Cells are expected to be missing already, as
                :func:`read_table` gives them; here the values of bags become unknown.
            numeric: Names of the numeric columns, none of them a feature.
            share: As the attribute. The values of all features of a table are counted together.

        Raises:
            ValueError: If a column is empty, constant or continuous, or an argument is out of
                range.
        """
        separators = dict(separators or {})
        na_values = cells.check_na_values(na_values)
        if isinstance(frame, pd.DataFrame):
            names = tuple(name for name in frame.columns if name not in numeric)
            check_names(tuple(map(str, names)), tuple(numeric))
            check_bags(separators, max_bag_length, bag_keep, tuple(map(str, names)))
            columns: Mapping[str, CodedColumn] = code_columns(
                frame[list(names)], separators, max_bag_length, bag_keep, na_values
            )
            numbers: Mapping[str, Floats | FileArray] = {
                n: numbers_of(frame[n], n) for n in numeric
            }
        else:
            assert isinstance(numeric, Mapping)
            columns, numbers = frame, numeric
        if isinstance(targets, pd.Series):
            targets = coded(targets, "targets")
        share = dict(share or {})
        check_share(share, tuple(columns))
        known: dict[str, Vocabulary] = {}
        for name in columns:
            if name not in share:
                column = columns[name]
                others = [columns[other] for other, owner in share.items() if owner == name]
                if others:
                    column = joined([column, *others])
                known[name] = feature_vocabulary(column, name, max_vocabulary, min_count, oov)
        return cls(
            task,
            {name: known[share.get(name, name)] for name in columns},
            separators,
            max_bag_length,
            None if targets is None else targets.vocabulary("targets"),
            bag_keep,
            na_values,
            {name: Scaling.fit(values, name) for name, values in numbers.items()},
            share,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(self.vocabularies)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns of a row: the features and the numeric ones."""
        return (*self.names, *self.numeric)

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the columns that must be there: all but those that are optional."""
        return tuple(name for name in self.columns if name not in self.optional)

    @property
    def num_numeric(self) -> int:
        """Number of numeric inputs of a model: one for a column, and one if it has gaps."""
        return sum(each.width for each in self.numeric.values())

    @property
    def bags(self) -> frozenset[str]:
        """Names of the features of which a row has several values."""
        return frozenset(self.separators)

    @property
    def text(self) -> frozenset[str]:
        """Names of the features that are text even where all cells look like numbers.

        What :func:`read_table` wants to know to read new rows as the training rows were read.
        """
        joined = frozenset(name for name, each in self.separators.items() if each is not None)
        return joined.union(n for n, each in self.vocabularies.items() if each.types == {str})

    @property
    def num_classes(self) -> int:
        """Number of targets to choose from.

        Raises:
            ValueError: If the task is not retrieval.
        """
        if self.targets is None:
            raise ValueError('`num_classes` is for the task "retrieval", this is "ranking".')
        return len(self.targets)

    @property
    def target_counts(self) -> NDArray[np.int64] | None:
        """Occurrences of every target class in the training part, falling; None for ranking.

        An output table is cut by them, as :meth:`embedding_specs` cuts those of the features.

        Example:
            >>> rows = pd.DataFrame({"user": [7, 7, 8]})
            >>> features = Features.fit(rows, task="retrieval", targets=pd.Series(["a", "b", "b"]))
            >>> features.target_counts.tolist()
            [2, 1]
        """
        return None if self.targets is None else self.targets.counts

    def embedding_specs(
        self, embedding_dim: int, precisions: Sequence[int] = (32,)
    ) -> list[EmbeddingSpec]:
        """The largest table of every feature, cut where the frequency of its ids changes.

        Features that share a table have one.

        Args:
            embedding_dim: Largest width considered.
            precisions: Bits that a number may have, as in :class:`~optuna_nis.EmbeddingSpec`.
        """
        return [
            EmbeddingSpec.from_counts(name, known.id_counts, embedding_dim, precisions=precisions)
            for name, known in self.vocabularies.items()
            if name not in self.share
        ]

    def encode(self, frame: pd.DataFrame) -> dict[str, Tensor]:
        """Turn rows into a batch without labels.

        Args:
            frame: Rows with the columns that are :attr:`needed`; those of other features may be
                there too, all else is ignored. Missing and unknown values are fine.

        Returns:
            For every feature ids of shape ``(rows,)``, or ``(rows, longest bag)`` for bags; under
            ``"numeric"``, if there are numeric columns, floats of shape ``(rows, num_numeric)``.

        Raises:
            TypeError: If this is no frame or a cell cannot be an id.
            ValueError: If a column is missing, holds numbers where training had text or the
                other way round, or is numeric and holds something else.
        """
        return self._encode(self._as_seen(frame), self._numbers(frame))

    def encode_batches(
        self,
        frame: pd.DataFrame,
        batch_size: int,
        *,
        check: bool = True,
        tally: Tally | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Turn rows into batches as :meth:`encode` does, having checked all of them before.

        Args:
            frame: As in :meth:`encode`.
            batch_size: Rows at a time.
            check: Whether a column that is all of another kind than in training is refused. If
                not, it is unknown, as in some rows of many.
            tally: Counts what is unknown and what is missing.

        Raises:
            TypeError: As :meth:`encode`.
            ValueError: As :meth:`encode`.
        """
        check_integer("batch_size", batch_size, 1)
        seen, numbers = self._as_seen(frame, check), self._numbers(frame)
        for start in range(0, len(frame), batch_size):
            rows = slice(start, start + batch_size)
            yield self._encode(
                {name: column.iloc[rows] for name, column in seen.items()},
                {name: values[rows] for name, values in numbers.items()},
                tally,
            )

    def as_seen(self, column: pd.Series[Any], name: str, *, advice: str = "") -> pd.Series[Any]:
        """The column of a feature with cells of the types seen in training, as far as they can be.

        Args:
            column: The column.
            name: The feature.
            advice: What else to say where the column is refused.

        Raises:
            TypeError: If a cell cannot be an id.
            ValueError: If all are of another kind than in training.
        """
        if name not in self.separators:
            return as_seen(column, self.vocabularies[name], name, advice=advice)
        if self.separators[name] is None:
            items, _ = items_of(self, column, name)
            warn_of_rounded(items, self.vocabularies[name], name)
            as_seen(items, self.vocabularies[name], name, advice=advice)
        return column

    def _as_seen(self, frame: pd.DataFrame, check: bool = True) -> dict[str, pd.Series[Any]]:
        """The columns with cells of the types seen in training, as far as they can be."""
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(f"`frame` must be a pandas DataFrame, got {type(frame).__name__}.")
        if absent := [name for name in self.needed if name not in frame.columns]:
            raise ValueError(
                f"`frame` has no column {', '.join(map(repr, absent))}; it has "
                f"{', '.join(map(repr, frame.columns))}."
            )
        if twice := [name for name in self.columns if list(frame.columns).count(name) > 1]:
            raise ValueError(f"`frame` must have the column {twice[0]!r} once, it has it again.")
        if self.optional:
            frame = frame.copy(deep=False)
            frame[sorted(self.optional)] = None
        if check:
            for name in self.vocabularies.keys() - self.separators.keys():
                warn_of_rounded(frame[name], self.vocabularies[name], name)
            return {n: self.as_seen(frame[n], n, advice=_READ_ALIKE) for n in self.names}
        return {
            name: frame[name] if name in self.separators else converted(frame[name], known)
            for name, known in self.vocabularies.items()
        }

    def _numbers(self, frame: pd.DataFrame) -> dict[str, Floats]:
        return {name: numbers_of(frame[name], name, self.na_values) for name in self.numeric}

    def _encode(
        self,
        columns: Mapping[str, pd.Series[Any]],
        numbers: Mapping[str, Floats],
        tally: Tally | None = None,
    ) -> dict[str, Tensor]:
        ids = ((name, ids_of_cells(self, columns[name], name, tally)) for name in self.names)
        batch = {name: torch.from_numpy(each) for name, each in ids}
        if self.numeric:
            batch[NUMERIC] = torch.from_numpy(scaled(self.numeric, numbers))
        return batch

    def encode_targets(self, targets: pd.Series[Any]) -> Tensor:
        """Turn retrieval targets into labels.

        Returns:
            The class of each, ``UNSEEN_TARGET`` for a target that training has never seen.

        Raises:
            ValueError: If the task is not retrieval.
        """
        num_classes = self.num_classes
        assert self.targets is not None
        return torch.from_numpy(as_classes(self.targets.encode(targets), num_classes))

    def cut(self, sizes: Mapping[str, int]) -> Features:
        """Without the rarest ids of features, to keep with a model that has no rows for them.

        Predictions stay the same: an id without a row and an unknown one both give zeros. Bags,
        whose mean counts the former but not the latter, are left as they are.

        Args:
            sizes: For features the number of ids to keep, the most frequent ones.

        Example:
            >>> features = Features.fit(pd.DataFrame({"user": [7, 7, 8, 9]}), task="ranking")
            >>> features.cut({"user": 2}).vocabularies["user"].values
            (7, 8)
        """
        # A table that a bag looks into, too.
        whole = {*self.bags, *(self.share.get(name, name) for name in self.bags)}
        cut = {}
        for name, each in self.vocabularies.items():
            owner = self.share.get(name, name)
            kept = owner in sizes and name not in whole and owner not in whole
            cut[name] = each.cut(sizes[owner]) if kept else each
        return replace(self, vocabularies=cut)

    def to_dict(self) -> dict[str, Any]:
        """The features in types that JSON knows, to be read back by :meth:`from_dict`."""
        written: dict[str, Any] = {
            "version": _WITH_NUMBERS if self.numeric or self.share else _JSON_VERSION,
            "task": self.task,
            "separators": dict(self.separators),
            "max_bag_length": self.max_bag_length,
            "vocabularies": {
                # Of a table that is shared, once.
                name: None if name in self.share else each.to_dict()
                for name, each in self.vocabularies.items()
            },
            "targets": None if self.targets is None else self.targets.to_dict(),
            "bag_keep": self.bag_keep,
            "na_values": list(self.na_values),
        }
        if self.numeric:
            written["numeric"] = {name: each.to_dict() for name, each in self.numeric.items()}
        if self.share:
            written["share"] = dict(self.share)
        return written

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Features:
        """Read what :meth:`to_dict` returned.

        Raises:
            ValueError: If it is not such features.
        """
        try:
            version = data["version"]
            if version not in range(1, _WITH_NUMBERS + 1):
                raise ValueError(
                    f"Features must be of a version from 1 to {_WITH_NUMBERS}, got {version!r}."
                )
            # Models of version 1 kept the first values of bags.
            bag_keep: BagKeep = "first" if version == 1 else data["bag_keep"]
            na_values = () if version == 1 else tuple(data["na_values"])
            vocabularies, targets = data["vocabularies"], data["targets"]
            share = dict(data.get("share", {}))
            known = {n: Vocabulary.from_dict(v) for n, v in vocabularies.items() if v is not None}
            return cls(
                data["task"],
                {name: known[share.get(name, name)] for name in vocabularies},
                dict(data["separators"]),
                data["max_bag_length"],
                None if targets is None else Vocabulary.from_dict(targets),
                bag_keep,
                na_values,
                {name: Scaling(**each) for name, each in data.get("numeric", {}).items()},
                share,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"These features are malformed: {error!r}.") from error

    def to_json(self) -> str:
        """Write as JSON, to be read back by :meth:`from_json`."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Features:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: If the text is not such features.
        """
        return cls.from_dict(read_json(text))
