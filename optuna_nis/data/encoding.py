"""From coded columns to the tensors of a model."""

from __future__ import annotations

from copy import copy
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch

from optuna_nis.data.batches import Batch
from optuna_nis.data.coded import CodedColumn
from optuna_nis.data.features import Features
from optuna_nis.data.keys import GROUP, LABEL, NUMERIC, UNSEEN_TARGET, WEIGHT
from optuna_nis.data.scaling import scaled
from optuna_nis.data.source import CodedSource

_MANY = 100_000


class Encoder:
    """Turns rows of coded columns into batches.

    Args:
        features: The features with their vocabularies.
        source: The data set whose distinct values the columns have.
    """

    def __init__(self, features: Features, source: CodedSource) -> None:
        self.features: Features | None = features
        self._numeric = features.numeric
        self._ids = {}
        for name, vocabulary in features.vocabularies.items():
            self._ids[name] = source.columns[name].ids_of_values(vocabulary).astype(np.int32)
            if len(vocabulary) > _MANY:
                # Values are looked up again for new rows only.
                vocabulary.forget_lookup()
        self._classes = None
        if features.targets is not None and isinstance(source.target, CodedColumn):
            self._classes = source.target.classes_of_values(features.targets)

    def without_vocabularies(self) -> Encoder:
        """One that makes batches and nothing else, small enough for another process."""
        other = copy(self)
        other.features = None
        return other

    @property
    def digest(self) -> str:
        """A text that is another one as soon as the ids that rows get are."""
        digest = blake2b(digest_size=16)
        for ids in (*self._ids.values(), self._classes):
            if ids is not None:
                digest.update(np.ascontiguousarray(ids).data)
        return digest.hexdigest()

    def check_targets(self, **parts: CodedSource) -> None:
        """Check that there is something to learn from the labels of the parts.

        Raises:
            ValueError: If there is only one label, or no target comes again.
        """
        assert self.features is not None
        targets = self.features.targets
        if targets is None:
            for name, part in parts.items():
                labels, rows = self.labels(part), "rows"
                if part.weight is not None:
                    labels, rows = labels[part.weight > 0], "rows with a weight"
                found = np.unique(labels)
                if len(found) < 2:
                    only = f"only {found[0]:g} in the {len(labels)}" if len(found) else "no"
                    raise ValueError(
                        f"The label must be 0 and 1 in every part, got {only} {rows} of the "
                        f"{name} part."
                    )
            return
        if len(targets) < 2:
            raise ValueError(
                f"The label must have at least two values, got only {targets.values[0]!r} in the "
                "training part."
            )
        if (self.labels(parts["validation"]) == UNSEEN_TARGET).all():
            raise ValueError(
                "The label must have values that come again, got a validation part in which all "
                "are unseen in training."
            )

    def batch(self, rows: CodedSource) -> Batch:
        """The tensors of rows, as models take them."""
        batch = {
            name: torch.from_numpy(rows.columns[name].encode(ids))
            for name, ids in self._ids.items()
        }
        if self._numeric:
            batch[NUMERIC] = torch.from_numpy(scaled(self._numeric, rows.numbers))
        if rows.weight is not None:
            batch[WEIGHT] = torch.from_numpy(rows.weight)
        if rows.groups is not None:
            batch[GROUP] = torch.from_numpy(rows.groups)
        batch[LABEL] = torch.from_numpy(self.labels(rows))
        return batch

    def labels(self, rows: CodedSource) -> NDArray[Any]:
        """The labels of rows: 0 and 1, or classes, ``UNSEEN_TARGET`` for those never seen."""
        if isinstance(rows.target, CodedColumn):
            assert self._classes is not None
            return self._classes[rows.target.cells]
        return rows.target

    def unseen_shares(self, rows: CodedSource) -> dict[str, float]:
        """For every feature the share of the values of rows that training has never seen.

        Missing values do not count. For retrieval, the label has a share too.
        """
        shares = {}
        for name in self._ids:
            column = rows.columns[name]
            values, known = int(column.present().sum()), int(column.known(self._known(name)).sum())
            shares[name] = 1 - known / values if values else 0.0
        if self._classes is not None:
            shares[LABEL] = float((self.labels(rows) == UNSEEN_TARGET).mean())
        return shares

    def num_unknown(self, rows: CodedSource, min_count: int = 1) -> dict[str, int]:
        """For every feature how many rows hold a value that its vocabulary does not.

        Args:
            rows: The rows.
            min_count: Values with fewer occurrences in these do not count.

        Raises:
            ValueError: If a feature has no value that its vocabulary knows.
        """
        assert self.features is not None
        numbers = {}
        for name in self._ids:
            column, is_known = rows.columns[name], self._known(name)
            present, known = column.present(), column.known(is_known)
            codes = column.cells
            rare = np.bincount(codes[codes >= 0], minlength=len(is_known) - 1) < min_count
            known_or_rare = column.known(is_known | np.append(rare, False))
            numbers[name] = int((known_or_rare < present).sum())
            if column.offsets is None and present.sum() > 0 and not known.any():
                raise ValueError(
                    f"The column {name!r} must have values known from before (`fitted`), such as "
                    f"{self.features.vocabularies[name].values[0]!r}, got only others in the "
                    f"training part, such as {column.first()!r}. This is another table, or its "
                    "ids were renamed: search it under another study name."
                )
        return numbers

    def _known(self, name: str) -> NDArray[np.bool_]:
        """Whether each distinct value of a feature is known, and last False for a missing one."""
        assert self.features is not None
        return self.features.vocabularies[name].knows(self._ids[name])
