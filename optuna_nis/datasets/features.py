"""How the columns of a table become the tensors of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
import json
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
import pandas as pd
import torch
from torch import Tensor

from optuna_nis.datasets.vocabulary import Vocabulary
from optuna_nis.space import EmbeddingSpec

Task = Literal["ranking", "retrieval"]

LABEL: Final = "label"
"""Key of the labels in a batch."""

UNSEEN_TARGET: Final = -100
"""Label of a retrieval target that training has never seen.

It equals no class, so that every prediction for it is a miss, and it is the ``ignore_index`` of
:func:`torch.nn.functional.cross_entropy`.
"""

_JSON_VERSION = 1
_NUMBERS = frozenset({"integer", "floating", "mixed-integer-float", "boolean", "decimal"})


@dataclass(frozen=True)
class Features:
    """The features of a data set with their vocabularies: all it takes to encode new rows.

    Attributes:
        task: ``"ranking"``, a yes-or-no label, or ``"retrieval"``, one target out of many.
        vocabularies: For every feature, its known values.
        separators: For every feature that is a bag, the text between its values, or :obj:`None`
            if its cells are lists.
        max_bag_length: Values kept of a bag, the first ones.
        targets: The targets seen in training, for retrieval.

    Raises:
        ValueError: If there is no feature, one is named "label", a bag is not a feature, a
            separator is empty, ``max_bag_length`` is not positive, or the targets do not go with
            the task.

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

    def __post_init__(self) -> None:
        check_task(self.task)
        check_features(tuple(self.vocabularies), self.separators, self.max_bag_length)
        if (self.targets is not None) != (self.task == "retrieval"):
            raise ValueError(
                '`targets` must be a vocabulary for the task "retrieval" and None for "ranking", '
                f"got {self.targets!r} for {self.task!r}."
            )

    @classmethod
    def fit(
        cls,
        frame: pd.DataFrame,
        *,
        task: Task,
        separators: Mapping[str, str | None] | None = None,
        max_bag_length: int = 50,
        max_vocabulary: int | None = None,
        targets: pd.Series[Any] | None = None,
    ) -> Features:
        """Build the vocabularies from the training rows.

        Args:
            frame: The training rows, one column for each feature.
            task: ``"ranking"`` or ``"retrieval"``.
            separators: As the attribute.
            max_bag_length: As the attribute.
            max_vocabulary: Keep only so many of the most frequent values of every feature.
            targets: The targets of the training rows, for retrieval.

        Raises:
            ValueError: If a column is empty or constant, or an argument is out of range.
        """
        separators = dict(separators or {})
        check_features(tuple(map(str, frame.columns)), separators, max_bag_length)
        vocabularies = {}
        for name in frame.columns:
            column, missing = frame[name], frame[name].isna().any()
            if name in separators:
                items, lengths = _flatten(column, separators[name], max_bag_length, name)
                column = pd.Series(items, dtype=object)
                missing = (lengths == 0).any() or column.isna().any()
                if not items:
                    raise ValueError(
                        f"The column {name!r} is empty: all {len(lengths)} bags are empty. "
                        "Leave it out."
                    )
            vocabulary = Vocabulary.from_values(column, name=name)
            if len(vocabulary) == 1 and not missing:
                raise ValueError(
                    f"The column {name!r} is constant: all its values in the training part are "
                    f"{vocabulary.values[0]!r}. Leave it out."
                )
            kept = slice(max_vocabulary)
            vocabularies[name] = Vocabulary(vocabulary.values[kept], vocabulary.counts[kept])
        return cls(
            task,
            vocabularies,
            separators,
            max_bag_length,
            None if targets is None else Vocabulary.from_values(targets, name="targets"),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(self.vocabularies)

    @property
    def bags(self) -> frozenset[str]:
        """Names of the features of which a row has several values."""
        return frozenset(self.separators)

    @property
    def text(self) -> frozenset[str]:
        """Names of the features that are text even where all cells look like numbers.

        What :func:`read_table` wants to know to read new rows as the training rows were read.
        """
        joined = {name for name, separator in self.separators.items() if separator is not None}
        return frozenset(
            name for name, each in self.vocabularies.items() if each.types == {str}
        ).union(joined)

    @property
    def num_classes(self) -> int:
        """Number of targets to choose from.

        Raises:
            ValueError: If the task is not retrieval.
        """
        if self.targets is None:
            raise ValueError('`num_classes` is for the task "retrieval", this is "ranking".')
        return len(self.targets)

    def embedding_specs(self, embedding_dim: int) -> list[EmbeddingSpec]:
        """The largest table of every feature, cut where the frequency of its ids changes.

        Args:
            embedding_dim: Largest width considered.
        """
        return [
            EmbeddingSpec.from_counts(name, vocabulary.counts, embedding_dim)
            for name, vocabulary in self.vocabularies.items()
        ]

    def encode(self, frame: pd.DataFrame) -> dict[str, Tensor]:
        """Turn rows into a batch without labels.

        Args:
            frame: Rows with a column for each feature; other columns are ignored. Missing and
                unknown values are fine.

        Returns:
            For every feature ids of shape ``(rows,)``, or ``(rows, longest bag)`` for bags.

        Raises:
            TypeError: If this is no frame or a cell cannot be an id.
            ValueError: If a column is missing, or holds numbers where training had text or the
                other way round.
        """
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(f"`frame` must be a pandas DataFrame, got {type(frame).__name__}.")
        if absent := [name for name in self.names if name not in frame.columns]:
            raise ValueError(
                f"`frame` has no column {', '.join(map(repr, absent))}; it has "
                f"{', '.join(map(repr, frame.columns))}."
            )
        batch: dict[str, Tensor] = {}
        for name, vocabulary in self.vocabularies.items():
            if name in self.separators:
                ids = self._encode_bags(frame[name], name)
            else:
                _check_kind(frame[name], vocabulary, name)
                ids = vocabulary.encode(frame[name])
            batch[name] = torch.from_numpy(ids)
        return batch

    def _encode_bags(self, cells: pd.Series[Any], name: str) -> NDArray[np.int64]:
        vocabulary = self.vocabularies[name]
        items, lengths = _flatten(cells, self.separators[name], self.max_bag_length, name)
        column = pd.Series(items, dtype=object)
        _check_kind(column, vocabulary, name)
        width = max(1, int(lengths.max(initial=0)))
        padded = np.full((len(cells), width), vocabulary.num_embeddings, dtype=np.int64)
        padded[np.arange(width) < lengths[:, None]] = vocabulary.encode(column)
        return padded

    def encode_targets(self, targets: pd.Series[Any]) -> Tensor:
        """Turn retrieval targets into labels.

        Returns:
            The class of each, ``UNSEEN_TARGET`` for a target that training has never seen.

        Raises:
            ValueError: If the task is not retrieval.
        """
        unseen = self.num_classes
        assert self.targets is not None
        classes = self.targets.encode(targets)
        return torch.from_numpy(np.where(classes == unseen, UNSEEN_TARGET, classes))

    def to_dict(self) -> dict[str, Any]:
        """The features in types that JSON knows, to be read back by :meth:`from_dict`."""
        return {
            "version": _JSON_VERSION,
            "task": self.task,
            "separators": dict(self.separators),
            "max_bag_length": self.max_bag_length,
            "vocabularies": {name: each.to_dict() for name, each in self.vocabularies.items()},
            "targets": None if self.targets is None else self.targets.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Features:
        """Read what :meth:`to_dict` returned.

        Raises:
            ValueError: If it is not such features.
        """
        try:
            if data["version"] != _JSON_VERSION:
                raise ValueError(
                    f"Features must be of version {_JSON_VERSION}, got {data['version']!r}."
                )
            vocabularies, targets = data["vocabularies"], data["targets"]
            return cls(
                data["task"],
                {name: Vocabulary.from_dict(each) for name, each in vocabularies.items()},
                dict(data["separators"]),
                data["max_bag_length"],
                None if targets is None else Vocabulary.from_dict(targets),
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
        return cls.from_dict(json.loads(text))

    def num_unknown(self, frame: pd.DataFrame, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """For every feature how many rows hold a value that its vocabulary does not.

        Args:
            frame: Rows.
            batch: The same, encoded. Missing values are not unknown.

        Example:
            >>> features = Features.fit(pd.DataFrame({"user": [7, 8, 8]}), task="ranking")
            >>> rows = pd.DataFrame({"user": [8, 9, None, 9]})
            >>> features.num_unknown(rows, features.encode(rows))
            {'user': 2}
        """
        found = {}
        for name, vocabulary in self.vocabularies.items():
            known = (batch[name] < vocabulary.num_embeddings).numpy()
            if name in self.separators:
                items, lengths = _flatten(
                    frame[name], self.separators[name], self.max_bag_length, name
                )
                rows = np.repeat(np.arange(len(lengths)), lengths)
                present = np.bincount(
                    rows[pd.Series(items, dtype=object).notna().to_numpy()], minlength=len(lengths)
                )
                unknown = known.sum(1) < present
            else:
                unknown = ~known & frame[name].notna().to_numpy()
            found[name] = int(unknown.sum())
        return found


def check_task(task: str) -> None:
    """Check the name of a task.

    Raises:
        ValueError: If it is unknown.
    """
    if task not in ("ranking", "retrieval"):
        raise ValueError(f'`task` must be "ranking" or "retrieval", got {task!r}.')


def check_features(
    names: Sequence[str], separators: Mapping[str, str | None], max_bag_length: int
) -> None:
    """Check names of features, their separators and the length of bags.

    Raises:
        ValueError: If one of them is out of range.
    """
    if not names:
        raise ValueError("`features` must name at least one column, got none.")
    for name in names:
        if name == LABEL:
            raise ValueError(
                f"`features` must not name a feature {LABEL!r}, the key of the labels in a batch; "
                "rename the column."
            )
        if names.count(name) > 1:
            raise ValueError(f"`features` names {name!r} twice.")
    for name, separator in separators.items():
        if name not in names:
            raise ValueError(
                f"`bags` names {name!r}, which is not a feature; there are "
                f"{', '.join(map(repr, names))}."
            )
        if separator is not None and (not isinstance(separator, str) or not separator):
            raise ValueError(
                f"`bags[{name!r}]` must be the text between two values, or None for cells that "
                f"are lists, got {separator!r}."
            )
    if isinstance(max_bag_length, bool) or not isinstance(max_bag_length, int):
        raise TypeError(f"`max_bag_length` must be an int, got {max_bag_length!r}.")
    if max_bag_length < 1:
        raise ValueError(f"`max_bag_length` must be at least 1, got {max_bag_length!r}.")


def _flatten(
    cells: pd.Series[Any], separator: str | None, limit: int, name: str
) -> tuple[list[Any], NDArray[np.int64]]:
    """The values of all bags one after the other, and how many each bag has."""
    bags = [_items(cell, separator, name) for cell in cells.tolist()]
    lengths = np.fromiter(map(len, bags), dtype=np.int64, count=len(bags)).clip(max=limit)
    return list(chain.from_iterable(islice(bag, limit) for bag in bags)), lengths


def _items(cell: Any, separator: str | None, name: str) -> Sequence[Any]:
    if isinstance(cell, str) and separator is not None:
        return [item for text in cell.split(separator) if (item := text.strip())]
    if isinstance(cell, (list, tuple)):
        return cell
    if isinstance(cell, np.ndarray):
        return list(cell)
    if pd.isna(cell):
        return []
    if separator is None:
        raise ValueError(
            f"`bags[{name!r}]` must be the text between two values, since not all cells are "
            f"lists; got None for {cell!r}."
        )
    # A column of which every bag holds one number has been read as numbers.
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return [str(cell)]


def _check_kind(column: pd.Series[Any], vocabulary: Vocabulary, name: str) -> None:
    """Refuse numbers where training had text, or the reverse: all of them would be unknown."""
    kind = pd.api.types.infer_dtype(column, skipna=True)
    text = vocabulary.types == {str}
    if (
        (text and kind in _NUMBERS) or (kind == "string" and str not in vocabulary.types)
    ) and column.notna().any():
        seen, got = ("text", "numbers") if text else ("no text", "text")
        raise ValueError(
            f"The column {name!r} must be of the type seen in training, {seen} such as "
            f"{vocabulary.values[0]!r}, got {got} such as {column.dropna().iloc[0]!r}."
        )
