"""What a study keeps of its data, and how they are read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

from optuna import Study

from optuna_nis._json import read_json
from optuna_nis._logging import get_logger
from optuna_nis.data import EmbeddingDataModule, Features
from optuna_nis.data.config import DataConfig
from optuna_nis.data.keeping import fingerprint, pack_features, unpack_features
from optuna_nis.data.keys import LABEL
from optuna_nis.data.splits import Split
from optuna_nis.space.spec import Oov
from optuna_nis.study.attributes import read_text, save_text
from optuna_nis.study.keys import (
    DATA_ATTR,
    DATASET_ATTR,
    FEATURES_ATTR,
    NUM_ROWS_ATTR,
    SEEN_ROWS_ATTR,
    SPACE_ATTR,
    TABLE_ROWS_ATTR,
    TASK_ATTR,
    VOCABULARY_ATTR,
)
from optuna_nis.study.settings import differences, space_of

_logger = get_logger(__name__)

# How parts are drawn where there are other rows than at the search, and what then may leak.
_ANEW: dict[Split, str] = {
    "random": ", at random, and rows",
    "group": ", groups at random, and groups",
    "chronological": ", by time. Unless what is new is later than all that was there, rows",
    "leave-one-out": ". Unless what is new of a group is later than what was there of it, rows",
}


def data_of(study: Study) -> DataConfig:
    """The data that a study was searched on.

    Raises:
        ValueError: If it was not searched by :func:`search`.
    """
    text = study.user_attrs.get(DATA_ATTR)
    if text is None:
        raise ValueError(
            f"`study` {study.study_name!r} does not say which data it is about; search first."
        )
    return DataConfig.from_json(text)


def searched_features(study: Study, folder: str | Path | None = None) -> Features | None:
    """The features with the vocabularies that a study was searched with.

    None if it was not searched, or by a version that did not keep them.

    Args:
        study: A study of a search.
        folder: Where vocabularies of more than 100,000 values are, the ``cache_dir`` of the
            search.

    Raises:
        FileNotFoundError: If they are not there.
        ValueError: If the study holds something else in their place.

    Example:
        >>> searched_features(study) is None
        True
    """
    text = read_text(study, VOCABULARY_ATTR)
    return unpack_features(text, folder or ".") if text else None


def read_data(
    study: Study,
    data: DataConfig,
    *,
    withhold_test: bool,
    progress: Callable[[str], None],
    cache_dir: str | Path | None = None,
) -> EmbeddingDataModule:
    """Read the data of a study, with the vocabularies that it was searched with.

    Args:
        study: The study.
        data: Its data.
        withhold_test: As in :meth:`DataConfig.datamodule`.
        progress: Called with a line of text for what is read, and every few seconds meanwhile.
        cache_dir: As in :meth:`DataConfig.datamodule`.

    Raises:
        FileNotFoundError: If the data are not there.
        ValueError: If the data cannot be used, or have other ids than those that were searched and
            the study keeps no vocabulary.
    """
    progress(f"Reading {data.name}.")
    fitted = lost = None
    if DATA_ATTR in study.user_attrs:
        try:
            fitted = searched_features(study, cache_dir)
        except FileNotFoundError as error:
            lost = error
    try:
        datamodule = data.datamodule(
            withhold_test=withhold_test, fitted=fitted, cache_dir=cache_dir, progress=progress
        )
    except FileNotFoundError as error:
        if DATA_ATTR not in study.user_attrs:
            raise
        raise FileNotFoundError(
            f"The table that `study` {study.study_name!r} was searched on is not where it was: "
            f"{error}"
        ) from error
    if lost is not None and study.user_attrs[FEATURES_ATTR] != _digest(datamodule.features):
        raise ValueError(
            f"The ids that `study` {study.study_name!r} was searched with are gone, and those of "
            f"the data have changed since: {lost} Search again under another study name."
        )
    progress(datamodule.summary())
    if SPACE_ATTR in study.user_attrs:
        _check_ids(study, data, datamodule)
        _warn_changed(study, data, datamodule, progress)
    return datamodule


def oov_of_data(study: Study, oov: Oov) -> Oov:
    """What a study's data give ids to, if its search lets ids share rows by ``oov``.

    Studies from before values that are new or rare had ids go on without.
    """
    text = study.user_attrs.get(DATA_ATTR)
    return oov if text is None or "oov" in read_json(text) else "zero"


def check_data(study: Study, data: DataConfig) -> None:
    """Check that a study was searched on the same data, if on any.

    Raises:
        ValueError: If it was searched on others.
    """
    text = study.user_attrs.get(DATA_ATTR)
    if text is not None and (before := DataConfig.from_json(text)) != data:
        raise ValueError(
            f"`study` {study.study_name!r} was searched on other data, with "
            f"{differences(asdict(before), asdict(data))}. Use another study name."
        )


def save_data(
    study: Study,
    data: DataConfig,
    datamodule: EmbeddingDataModule,
    cache_dir: str | Path | None = None,
) -> None:
    """Keep what a retraining needs, before there is anything to retrain; the data's name last.

    Args:
        study: The study.
        data: The data.
        datamodule: The same, as they were read.
        cache_dir: Folder for vocabularies of more than 100,000 values, too many for a database;
            without, they go there nevertheless.
    """
    features = datamodule.features
    text = features.to_json() if cache_dir is None else pack_features(features, cache_dir)
    save_text(study, VOCABULARY_ATTR, text)
    study.set_user_attr(FEATURES_ATTR, _digest(features))
    study.set_user_attr(NUM_ROWS_ATTR, sum(datamodule.sizes.values()))
    study.set_user_attr(SEEN_ROWS_ATTR, seen_rows(datamodule))
    study.set_user_attr(TABLE_ROWS_ATTR, datamodule.source_digest)
    study.set_user_attr(DATASET_ATTR, data.name)
    study.set_user_attr(TASK_ATTR, data.task)
    study.set_user_attr(DATA_ATTR, data.to_json())


def _check_ids(study: Study, data: DataConfig, datamodule: EmbeddingDataModule) -> None:
    """Refuse what the sizes that were found cannot be of."""
    before = {spec.name: spec.num_embeddings for spec in space_of(study).specs}
    # A feature may have no table of its own: the items of a sequence have that of the targets.
    features = datamodule.features
    now = {n: each.num_embeddings for n, each in features.vocabularies.items() if n in before}
    if features.targets is not None:
        # The table of the items, if it was searched, is of no input.
        now |= dict.fromkeys(before.keys() - now.keys(), len(features.targets))
    if DATA_ATTR not in study.user_attrs and before.keys() != now.keys():
        raise ValueError(
            f"`study` {study.study_name!r} holds the search space of other features than "
            f"{data.name} has, {sorted(before)}. Use another study name."
        )
    if before != now:
        raise ValueError(
            f"{data.name} has changed since `study` {study.study_name!r} was searched: distinct "
            f"ids of {differences(before, now)}. The study does not keep the ids that were "
            "searched, as later versions do: take the data as they were, or search again under "
            "another study name."
        )


def _warn_changed(
    study: Study,
    data: DataConfig,
    datamodule: EmbeddingDataModule,
    progress: Callable[[str], None],
) -> None:
    unknown = datamodule.num_unknown
    left_out = unknown.pop(LABEL, 0)
    rows = datamodule.sizes["train"]
    new = ", ".join(f"{name!r} in {number:,}" for name, number in unknown.items() if number)
    searched = DataConfig.from_json(study.user_attrs.get(DATA_ATTR, data.to_json()))
    is_sample = searched.max_rows is not None and searched.max_rows != data.max_rows
    again = "Search again under another study name to give them rows of their own."
    if is_sample:
        again = (
            "Search with `search_rows` in place of `max_rows`, on the command line "
            "`--search-rows`, under another study name: ids are counted in all rows then."
        )
    if new:
        _logger.warning(
            f"{data.name} has ids that were not there at the search. They count as unknown: {new} "
            f"of {rows:,} training rows. {again}"
        )
    if left_out:
        _logger.warning(
            f"{data.name} has targets that were not there at the search: {left_out:,} training "
            "rows are left out." + (f" {again}" if is_sample else "")
        )
    if (found := _changed(study, data, searched, datamodule, left_out)) is None:
        return
    text = f"{data.name} has {found}"
    if datamodule.split == "given":
        progress(f"{text}.")
    elif datamodule.withhold_test:
        progress(f"{text}: parts are drawn anew.")
    else:
        _logger.warning(
            f"{text}: parts are drawn anew{_ANEW[datamodule.split]} of the test may be among "
            "those that the search has trained or validated on. Search again under another study "
            "name for a test that it has not seen."
        )


def _changed(
    study: Study,
    data: DataConfig,
    searched: DataConfig,
    datamodule: EmbeddingDataModule,
    left_out: int,
) -> str | None:
    """What rows there are in place of those at the search, None if they are the same.

    Args:
        study: The study.
        data: The data.
        searched: The same at the search.
        datamodule: The data as they were read.
        left_out: Training rows that are left out for their targets.
    """
    attrs, others = study.user_attrs, "other rows than at the search, or in another order"
    if (data.max_rows, datamodule.sample_rows) != (searched.max_rows, searched.search_rows):
        # A sample was searched on, or this is one: only all rows together can be compared.
        digest = datamodule.source_digest
        return others if attrs.get(TABLE_ROWS_ATTR, digest) != digest else None
    before, now = attrs.get(NUM_ROWS_ATTR), sum(datamodule.sizes.values()) + left_out
    if isinstance(before, int) and before != now:
        return f"{now:,} rows, at the search it had {before:,}"
    seen = seen_rows(datamodule)
    return others if attrs.get(SEEN_ROWS_ATTR, seen) != seen else None


def _digest(features: Features) -> str:
    return blake2b(fingerprint(features), digest_size=16).hexdigest()


def seen_rows(datamodule: EmbeddingDataModule) -> str:
    """Which rows a search sees."""
    return datamodule.fingerprint("train", "validation")
