from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import pytest
import torch

import optuna_nis.data
from optuna_nis.data import FlightsRanking, FlightsRetrieval
from optuna_nis.data.flights import _read_flights


def test_ranking_rows() -> None:
    data = FlightsRanking(max_rows=2000, batch_size=500)
    data.setup("test")

    batch = next(iter(data.train_dataloader()))

    names = ["carrier", "flight", "tailnum", "origin", "dest"]
    names += ["month", "day", "weekday", "hour", "minute"]
    assert list(batch) == [*names, "label"]
    assert data.sizes == {"train": 1600, "validation": 200, "test": 200}
    assert set(data.vocabularies["origin"].values) == {"EWR", "JFK", "LGA"}
    assert 0.1 < batch["label"].mean() < 0.35
    assert not data.bags


def test_ranking_labels_and_weekdays() -> None:
    source = FlightsRanking().load()
    flights = _read_flights()
    first = flights.iloc[0]

    assert len(source.frame) == flights["dep_delay"].notna().sum() == 328_521
    assert source.target.sum() == (flights["dep_delay"] > 15).sum()
    # The first of January 2013 was a Tuesday.
    assert (first["month"], first["day"], first["weekday"]) == (1, 1, 1)


def test_retrieval_rows() -> None:
    data = FlightsRetrieval(max_rows=2000, batch_size=500)
    data.setup("fit")

    batch = next(iter(data.train_dataloader()))

    names = ["carrier", "origin", "tailnum", "hour", "month", "weekday", "last_dest", "history"]
    assert list(batch) == [*names, "label"]
    assert batch["history"].shape == (500, 10)
    assert batch["label"].dtype == torch.int64
    assert batch["label"].max() < data.num_classes
    assert data.bags == {"history"}


def test_history_holds_earlier_flights_of_the_aircraft() -> None:
    source = FlightsRetrieval().load()
    rows = source.frame.reset_index(drop=True)
    target = source.target.reset_index(drop=True)
    aircraft = rows["tailnum"].value_counts().index[0]

    own = rows[rows["tailnum"] == aircraft]
    flown: list[str] = []
    for row in own.head(30).itertuples():
        assert row.history == flown[::-1][:10]
        assert row.last_dest == (flown[-1] if flown else None)
        flown.append(target[row.Index])


@pytest.mark.parametrize("kind", [FlightsRanking, FlightsRetrieval])
def test_chronological_split(kind: Any) -> None:
    data = kind(max_rows=3000, split="chronological")
    data.setup("test")

    months = data.vocabularies["month"]
    assert 12 not in months
    test = next(iter(data.test_dataloader()))["month"]
    assert (test == months.num_embeddings).float().mean() > 0.5


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _read_flights.cache_clear()
    try:
        with pytest.raises(ModuleNotFoundError, match=r'pip install "optuna-nis\[datasets\]"'):
            FlightsRanking().setup("fit")
    finally:
        _read_flights.cache_clear()


def test_missing_dependency_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(
        ModuleNotFoundError, match=r'`pyarrow`, .* pip install "optuna-nis\[lightning,datasets\]"'
    ):
        importlib.reload(optuna_nis.data)
