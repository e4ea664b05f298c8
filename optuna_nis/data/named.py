"""What the data sets that come by name share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from optuna_nis.data.base import EmbeddingDataModule
from optuna_nis.data.keys import Task
from optuna_nis.data.reading import read_table
from optuna_nis.data.splits import Split


class NamedDataModule(EmbeddingDataModule):
    """Base of the data sets that come by name.

    A subclass says what it is in the class attributes below and implements ``load``.

    Args:
        features: Names of the features to use, by default all of ``all_features``.
        split: One of ``splits``, by default the first.
        data_dir: Folder of the files of a data set that is read from files and does not come with
            a package. They are looked for when they are needed.
        **options: Further arguments of :class:`EmbeddingDataModule`, such as ``seed``,
            ``max_rows`` and ``withhold_test``.

    Raises:
        ValueError: If an argument is out of range.
    """

    #: The task.
    only_task: ClassVar[Task]
    #: Names of all features.
    all_features: ClassVar[tuple[str, ...]]
    #: The text between the values of each feature that is a bag, None if its cells are lists.
    all_bags: ClassVar[Mapping[str, str | None]] = {}
    #: Ways to split it, the default first.
    splits: ClassVar[tuple[Split, ...]] = ("random", "chronological")
    #: The files that it is read from, each with the columns used.
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: Where the files come from.
    origin: ClassVar[str] = ""

    def __init__(
        self,
        *,
        features: Sequence[str] | None = None,
        split: Split | None = None,
        data_dir: str | Path | None = None,
        **options: Any,
    ) -> None:
        kind = type(self).__name__
        features = self.all_features if features is None else tuple(features)
        if unknown := [name for name in features if name not in self.all_features]:
            raise ValueError(
                f"`features` of {kind} must be among {', '.join(map(repr, self.all_features))}, "
                f"got {', '.join(map(repr, unknown))}."
            )
        if split is not None and split not in self.splits:
            known = ", ".join(f'"{each}"' for each in self.splits)
            raise ValueError(f"`split` of {kind} must be one of {known}, got {split!r}.")
        if self.files and data_dir is None:
            raise ValueError(f"`data_dir` of {kind} must be {self._expected()}, got None.")
        if data_dir is not None and not self.files:
            raise ValueError(f"`data_dir` is not for {kind}, which comes with a package.")
        super().__init__(
            self.only_task,
            features=features,
            separators={name: self.all_bags[name] for name in features if name in self.all_bags},
            split=split or self.splits[0],
            # Their histories have the latest value first.
            **{"bag_keep": "first", **options},
        )
        self.data_dir = None if data_dir is None else Path(data_dir)

    def read(self, name: str) -> pd.DataFrame:
        """Read one of the files.

        Raises:
            FileNotFoundError: If it is not in the folder.
            ValueError: If it cannot be read or lacks a column.
        """
        assert self.data_dir is not None
        path = self.data_dir / name
        if not path.is_file():
            raise FileNotFoundError(
                f"`data_dir` must be {self._expected()}; {str(path)!r} is not there."
            )
        return read_table(path, self.files[name])

    def _expected(self) -> str:
        files = (f"{name} ({', '.join(columns)})" for name, columns in self.files.items())
        return f"the folder of the files {', '.join(files)}, which come from {self.origin}"
