"""The search on a data set, and its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from inspect import signature
import json
from pathlib import Path
import tempfile
import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from optuna import Study
from optuna.logging import get_logger
import torch

from optuna_nis import baselines
from optuna_nis._checks import check_folder, check_integer
from optuna_nis._format import duration
from optuna_nis._keeping import VOCABULARY, keep_text, kept_text
from optuna_nis.allocation import Allocation
from optuna_nis.cautions import Part
from optuna_nis.datasets import EmbeddingDataModule, Features, TableDataModule, Task, load_dataset
from optuna_nis.datasets.base import Split
from optuna_nis.datasets.features import LABEL, BagKeep
from optuna_nis.lightning.callback import NISCallback
from optuna_nis.lightning.checkpoints import PeriodicCheckpoint, SearchFolder
from optuna_nis.lightning.measured import ranking_part, retrieval_part
from optuna_nis.lightning.modules import (
    EmbeddingModule,
    RankingModule,
    RetrievalModule,
    reference_model,
)
from optuna_nis.lightning.recorder import TrialRecorder
from optuna_nis.lightning.shortlist import train_shortlist
from optuna_nis.lightning.training import quiet_lightning, quiet_trainer
from optuna_nis.results import (
    DATA_ATTR,
    DATASET_ATTR,
    METRIC_ATTR,
    MODEL_OPTIONS_ATTR,
    NUM_ROWS_ATTR,
    SEARCH_SECONDS_ATTR,
    SPACE_ATTR,
    TASK_ATTR,
    TRAINED,
    best_allocation,
    cautions_of,
    finished_trials,
    is_trained,
    save_parts,
    save_space,
    space_of,
)
from optuna_nis.reward import penalised_reward
from optuna_nis.sampler import NISSampler
from optuna_nis.searches import finish, join, num_scored, searches_of
from optuna_nis.space import Mode, SearchSpace

if TYPE_CHECKING:
    from optuna_nis.dashboard import DashboardCallback

_logger = get_logger(__name__)

_EMBEDDING_DIM = {"ranking": 32, "retrieval": 64}
_EPOCHS = {"ranking": 4, "retrieval": 6}
_MODULES: dict[str, type[RankingModule] | type[RetrievalModule]] = {
    "ranking": RankingModule,
    "retrieval": RetrievalModule,
}
_MAX_SLOWER = 4.0
# Small data sets need smaller batches, or an epoch is over after a handful of steps.
_MIN_STEPS_PER_EPOCH = 50
# A supernet sees rare ids seldom and takes them to be worth less than they are after a long
# training. So the sizes that a closed formula gives them by their popularity compete, too.
_ALPHAS = (0.3, 0.5)
# Characters shown of a value that differs.
_LONGEST_VALUE = 120


@dataclass(frozen=True)
class DataConfig:
    """Which data a study is about: a data set by name, or a table of one's own.

    Args:
        dataset: Name of a data set, or None for a table.
        table: Path of a CSV or Parquet file, or None for a data set.
        task: ``"ranking"`` or ``"retrieval"``.
        label: Column of the label of a table.
        features: Columns of the features of a table; of a data set by default all.
        bags: Columns of a table with several values in a cell, and what stands between them.
        time: Column of a table to split chronologically.
        split: ``"random"``, ``"chronological"`` or ``"leave-one-out"``; None is what suits the
            data set, and for a table random, or chronological with a time.
        seed: Seed of the split.
        max_rows: Use only about so many rows.
        data_dir: Folder of the files of a data set that does not come with a package.
        batch_size: Rows in a training batch; by default 4,096, and fewer where an epoch would be
            over after less than fifty of them.
        time_format: How the dates of a table's time column are written, if not as ISO 8601 says.
        na_values: Texts in a table that stand for a missing value, besides the empty cell.
        max_bag_length: Values kept of a bag; by default 50.
        bag_keep: Which values of a longer bag are kept, ``"last"`` or ``"first"``; None is what
            suits the data set, and for a table the last.

    Raises:
        ValueError: Unless there is either a data set or a table, and with a table a label and no
            ``data_dir``, or if the batch size is not at least 1.

    Example:
        >>> DataConfig(dataset="flights", task="retrieval").name
        'flights'
    """

    dataset: str | None = None
    table: str | None = None
    task: Task = "ranking"
    label: str | None = None
    features: tuple[str, ...] = ()
    bags: dict[str, str | None] = field(default_factory=dict)
    time: str | None = None
    split: Split | None = None
    seed: int = 0
    max_rows: int | None = None
    data_dir: str | None = None
    batch_size: int | None = None
    time_format: str | None = None
    na_values: tuple[str, ...] = ()
    max_bag_length: int | None = None
    bag_keep: BagKeep | None = None

    def __post_init__(self) -> None:
        if (self.dataset is None) == (self.table is None):
            raise ValueError(
                f"Either `dataset` or `table` must be given, got dataset={self.dataset!r} and "
                f"table={self.table!r}."
            )
        if self.table is not None and self.label is None:
            raise ValueError("`label` must name the label's column of the table, got None.")
        if self.table is not None and self.data_dir is not None:
            raise ValueError(f"`data_dir` is for a data set by name, got {self.data_dir!r}.")
        if self.table is None and self.na_values:
            raise ValueError(f"`na_values` is for a table, got {list(self.na_values)!r}.")
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, 1)

    @property
    def name(self) -> str:
        """The data set or table, for people."""
        return self.dataset or str(self.table)

    def datamodule(
        self, *, withhold_test: bool, shuffle_seed: int = 0, fitted: Features | None = None
    ) -> EmbeddingDataModule:
        """The data, ready to train on.

        Args:
            withhold_test: Whether the test part is dropped, as a search wants it.
            shuffle_seed: Seed of the order of the training rows.
            fitted: Features to encode with in place of those of the training part, such as
                :func:`searched_features` gives.

        Raises:
            ValueError: If the data cannot be used.
        """
        options: dict[str, Any] = {
            "seed": self.seed,
            "shuffle_seed": shuffle_seed,
            "withhold_test": withhold_test,
            "max_rows": self.max_rows,
            "split": self.split,
            "fitted": fitted,
        }
        for name in ("batch_size", "max_bag_length", "bag_keep"):
            if (value := getattr(self, name)) is not None:
                options[name] = value
        data: EmbeddingDataModule
        if self.dataset is not None:
            data = load_dataset(
                self.dataset,
                self.task,
                features=self.features or None,
                data_dir=self.data_dir,
                **options,
            )
        else:
            assert self.table is not None
            assert self.label is not None
            data = TableDataModule(
                self.table,
                label=self.label,
                features=self.features,
                bags=self.bags,
                time=self.time,
                time_format=self.time_format,
                na_values=self.na_values,
                task=self.task,
                **options,
            )
        data.setup("fit")
        if self.batch_size is not None:
            return data
        rows = data.sizes["train"]
        while data.batch_size > 64 and rows < data.batch_size * _MIN_STEPS_PER_EPOCH:
            data.batch_size //= 2
        return data

    def to_json(self) -> str:
        """Write as JSON, to be read back by :meth:`from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DataConfig:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: If the text is not such a configuration.
        """
        try:
            data = json.loads(text)
            if "bag_keep" not in data and data["table"] is not None and data["bags"]:
                # Written when the first values were kept.
                data["bag_keep"] = "first"
            lists = {name: tuple(data.get(name, ())) for name in ("features", "na_values")}
            return cls(**(data | lists))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"This data configuration is malformed: {error!r}.") from error


def search(
    study: Study,
    data: DataConfig,
    *,
    budget: int | float | str,
    mode: Mode = "multi",
    embedding_dim: int | None = None,
    epochs: int | None = None,
    num_updates: int = 50,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    dashboard: DashboardCallback | None = None,
    progress: Callable[[str], None] = lambda text: None,
    checkpoint_dir: str | Path | None = None,
    shard: tuple[int, int] = (0, 1),
    **model_options: Any,
) -> Allocation:
    """Search the embedding sizes of the reference model on a data set, into a study.

    A supernet and a controller learn together (:class:`NISCallback`), then the best
    choices for the budget and for smaller ones are trained for real (:func:`train_shortlist`).

    Several such searches may be at work on one study, on several machines, and learn from each
    other's trials; the best allocation is that of all. One that was interrupted goes on from its
    checkpoint when the same is called again with the same ``checkpoint_dir``. Where there is none
    to go on with, nothing is done if another has brought the study to its end.

    Args:
        study: A study that maximises. Its sampler is replaced by a
            :class:`~optuna_nis.NISSampler` with the budget.
        data: The data; its test part is never touched.
        budget: As in :class:`~optuna_nis.SearchSpace`.
        mode: As in :class:`~optuna_nis.SearchSpace`.
        embedding_dim: Largest width considered; by default 32 for ranking, 64 for retrieval.
        epochs: Epochs of the supernet; by default 4 for ranking and 6 for retrieval, which takes
            longer to learn, and in proportion more, up to four times as many, if
            ``learning_rate`` is lower than the model's default.
        num_updates: Updates of the controller.
        seed: Seed of the supernet and the controller.
        callbacks: Further callbacks of the trainer, such as a progress bar.
        dashboard: Keeps figures up to date in Optuna Dashboard.
        progress: Called with a line of text whenever something begins.
        checkpoint_dir: Where the search keeps what it has trained, every second (less often where
            that would take more than 2 % of the time) and after each training of the shortlist,
            in a folder of its own that goes when it ends. By default a search that is
            interrupted has only its trials to go on from.
        shard: Train on a part of the training rows only, ``(index, count)`` with the index from 0;
            ids and validation are those of all rows.
        **model_options: Arguments of the reference model; the study keeps them.

    Returns:
        The best allocation.

    Raises:
        ValueError: If an argument is out of range, the data cannot be used, or the study was
            searched with another space, other data or other options of the model.

    Example:
        >>> import optuna
        >>> study = optuna.create_study(direction="maximize")
        >>> config = DataConfig(dataset="flights", max_rows=2_000)
        >>> best = search(study, config, budget="25%", epochs=1, num_updates=2)
        >>> best.num_parameters <= space_of(study).budget
        True
    """
    _check_data(study, data)
    if checkpoint_dir is not None:
        check_folder("checkpoint_dir", checkpoint_dir)
    datamodule = read_data(study, data, withhold_test=True, progress=progress)
    datamodule.shard = shard
    build = reference_model(datamodule.features, **model_options)
    dim = embedding_dim or _EMBEDDING_DIM[data.task]
    space = SearchSpace(datamodule.embedding_specs(dim), budget=budget, mode=mode)
    # A bad option must be told before anything is written into the study.
    build(space)
    epochs = epochs or _default_epochs(data.task, model_options)
    options = json.loads(json.dumps(model_options, default=float))
    _save_model_options(study, options)
    if DATA_ATTR not in study.user_attrs:
        _save_data(study, data, datamodule)
    save_space(study, space)
    study.sampler = NISSampler(budget=space, seed=seed)
    settings = {
        "seed": seed,
        "epochs": epochs,
        "num_updates": num_updates,
        "shard": list(shard),
        **options,
    }
    with ExitStack() as stack:
        keep = checkpoint_dir is not None
        parent = Path(checkpoint_dir or stack.enter_context(tempfile.TemporaryDirectory()))
        folder = SearchFolder.of_interrupted(study, parent, settings)
        if folder is not None:
            progress(f"Going on with the search {folder.search_id} that was interrupted.")
        elif any(is_trained(trial) for trial in finished_trials(study)):
            progress("The study has been searched to the end; nothing is left to do.")
            _warn_ignored(study, settings)
            return best_allocation(study)
        else:
            folder = SearchFolder.new(parent)
        stack.callback(folder.release)
        me = join(study, folder.search_id, seed=seed, settings=settings)

        torch.manual_seed(me.seed)
        datamodule.shuffle_seed = me.seed
        supernet = build(space)
        study.set_user_attr(METRIC_ATTR, supernet.monitor_name)
        save_parts(study, parts_of_data(datamodule, supernet, ["validation"]))
        searched = folder.load_searched()
        if searched is None:
            callback = NISCallback(
                space,
                study,
                num_updates=num_updates,
                seed=seed,
                propose=_by_popularity(datamodule),
                rivals=_frequent_ids,
                dashboard=dashboard,
                search_id=me.id,
            )
            every_callback: list[Callback] = [callback, _EpochLines(progress), *callbacks]
            if keep:
                every_callback.append(PeriodicCheckpoint(folder.supernet, folder))
            progress(f"Searching {space!r}; epochs of the supernet: {epochs}.")
            resume = folder.supernet if folder.supernet.exists() else None
            with quiet_lightning():
                trainer = quiet_trainer(
                    max_epochs=epochs,
                    # Nothing depends on how good the full tables are on the way.
                    check_val_every_n_epoch=epochs,
                    callbacks=every_callback,
                    enable_progress_bar=bool(callbacks),
                )
                trainer.fit(supernet, datamodule=datamodule, ckpt_path=resume)
            shortlist, step = callback.candidates, trainer.global_step
            if keep:
                folder.save_searched(supernet.state_dict(), shortlist, step)
        else:
            weights, shortlist, step = searched
            supernet.load_state_dict(weights)
        progress(f"Training the best {len(shortlist)} choices for real.")
        found = train_shortlist(
            shortlist,
            supernet,
            build,
            datamodule,
            keep=_frequent_ids(space),
            monitor=supernet.monitor,
            metric=supernet.metric_name,
            progress=progress,
            folder=folder.trainings if keep else None,
        )
        # A search that was interrupted after it had recorded them does not do so again.
        if num_scored(study, me.id, TRAINED) < len(found):
            TrialRecorder(study, space, me.id).record(
                [space.params(candidate.allocation) for candidate in found],
                [
                    penalised_reward(
                        candidate.val_metric, candidate.allocation.num_parameters, space.budget
                    )
                    for candidate in found
                ],
                fidelity=TRAINED,
                step=step,
            )
        finish(study, me, folder.seconds)
        seconds = [search.seconds for search in searches_of(study).values() if search.seconds]
        study.set_user_attr(SEARCH_SECONDS_ATTR, sum(seconds))
        folder.remove()
    if dashboard is not None:
        dashboard.finish(study)
    for line in cautions_of(study):
        _logger.warning(line)
    return best_allocation(study)


class _EpochLines(Callback):
    """A line after each epoch of the supernet, with the time left.

    Later epochs take longer, when choices are scored besides, and the finalists at the end: what
    is left is at least so many epochs like the last one.
    """

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._start = self._epoch_start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # An epoch that goes on after an interruption may have had its start before.
        self._start = self._epoch_start = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        now = time.perf_counter()
        left = (now - self._epoch_start) * (epochs - done)
        more = f"; at least {duration(left)} of it left" if done < epochs else ""
        self._progress(f"Supernet: epoch {done} of {epochs}, {duration(now - self._start)}{more}.")


def _default_epochs(task: Task, model_options: Mapping[str, Any]) -> int:
    """A supernet that learns more slowly than the default model gets more epochs to learn."""
    default: float = signature(_MODULES[task]).parameters["learning_rate"].default
    rate: float = model_options.get("learning_rate", default)
    return round(_EPOCHS[task] * default / min(max(rate, default / _MAX_SLOWER), default))


def _by_popularity(datamodule: EmbeddingDataModule) -> Callable[[SearchSpace], list[Allocation]]:
    """Gives mixed dimensions for the whole budget of a space."""
    counts = {name: known.counts for name, known in datamodule.vocabularies.items()}

    def propose(space: SearchSpace) -> list[Allocation]:
        narrowest = baselines.uniform(space, width=1, projected=True)
        if space.mode == "single" or narrowest.num_parameters > space.budget:
            return []
        return [
            baselines.mixed_dimensions(space, counts, alpha, on_grid=True) for alpha in _ALPHAS
        ]

    return propose


def _frequent_ids(space: SearchSpace) -> list[Allocation]:
    """The most frequent ids only: at full width for the budget and half of it, and narrower."""
    if space.mode == "single":
        return []
    found = []
    for share, full_width in ((1.0, True), (0.5, True), (1.0, False)):
        # Where the budget is too small there is none.
        with suppress(ValueError):
            smaller = space.with_budget(int(share * space.budget))
            found.append(baselines.frequent_ids(smaller, full_width=full_width))
    return found


def searched_features(study: Study) -> Features | None:
    """The features with the vocabularies that a study was searched with.

    None if it was not searched, or by a version that did not keep them.

    Args:
        study: A study of a search.

    Raises:
        ValueError: If the study holds something else in their place.

    Example:
        >>> searched_features(study) is None
        True
    """
    text = kept_text(study, VOCABULARY)
    return None if text is None else Features.from_json(text)


def read_data(
    study: Study, data: DataConfig, *, withhold_test: bool, progress: Callable[[str], None]
) -> EmbeddingDataModule:
    """Read the data of a study, with the vocabularies that it was searched with.

    Args:
        study: The study.
        data: Its data.
        withhold_test: As in :meth:`DataConfig.datamodule`.
        progress: Called with a line of text for what is read.

    Raises:
        ValueError: If the data cannot be used, or have other ids than those that were searched and
            the study keeps no vocabulary.
    """
    progress(f"Reading {data.name}.")
    fitted = searched_features(study) if DATA_ATTR in study.user_attrs else None
    datamodule = data.datamodule(withhold_test=withhold_test, fitted=fitted)
    progress(datamodule.summary())
    if SPACE_ATTR in study.user_attrs:
        _check_ids(study, data, datamodule)
        _warn_changed(study, data, datamodule, progress)
    return datamodule


def parts_of_data(
    datamodule: EmbeddingDataModule, model: EmbeddingModule, names: Sequence[str]
) -> dict[str, Part]:
    """How much the parts of the data can tell about a reference model.

    Args:
        datamodule: The data.
        model: The model; on the test part counts what it reports, on validation its monitor.
        names: Which of ``"validation"`` and ``"test"``, beside training.
    """
    parts = {"train": Part(datamodule.sizes["train"])}
    for name in names:
        test = name == "test"
        loader = datamodule.test_dataloader() if test else datamodule.val_dataloader()
        metric = model.metric_name if test else model.monitor_name
        if isinstance(model, RetrievalModule):
            parts[name] = retrieval_part(loader, metric, model.top_k[0] if test else None)
        else:
            parts[name] = ranking_part(loader, metric)
    return parts


def _check_ids(study: Study, data: DataConfig, datamodule: EmbeddingDataModule) -> None:
    """Refuse what the sizes that were found cannot be of."""
    before = {spec.name: spec.num_embeddings for spec in space_of(study).specs}
    now = {name: len(vocabulary) for name, vocabulary in datamodule.vocabularies.items()}
    if before != now:
        raise ValueError(
            f"{data.name} has changed since `study` {study.study_name!r} was searched: distinct "
            f"ids of {_differences(before, now)}. The study does not keep the ids that were "
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
    if new := ", ".join(f"{name!r} in {number:,}" for name, number in unknown.items() if number):
        _logger.warning(
            f"{data.name} has ids that were not there at the search. They count as unknown: {new} "
            f"of {rows:,} training rows. Search again under another study name to give them rows "
            "of their own."
        )
    if left_out:
        _logger.warning(
            f"{data.name} has targets that were not there at the search: {left_out:,} training "
            "rows are left out."
        )
    before, now = study.user_attrs.get(NUM_ROWS_ATTR), sum(datamodule.sizes.values()) + left_out
    if not isinstance(before, int) or before == now:
        return
    text = f"{data.name} has {now:,} rows, at the search it had {before:,}: parts are drawn anew"
    if datamodule.withhold_test or datamodule.split != "random":
        progress(f"{text}.")
    else:
        _logger.warning(
            f"{text}, at random, and rows of the test may be among those that the search has "
            "trained or validated on. Search again under another study name for a test of rows "
            "that it has not seen."
        )


def _check_data(study: Study, data: DataConfig) -> None:
    text = study.user_attrs.get(DATA_ATTR)
    if text is not None and (before := DataConfig.from_json(text)) != data:
        raise ValueError(
            f"`study` {study.study_name!r} was searched on other data, with "
            f"{_differences(asdict(before), asdict(data))}. Use another study name."
        )


def _save_data(study: Study, data: DataConfig, datamodule: EmbeddingDataModule) -> None:
    """Keep what a retraining needs, before there is anything to retrain; the data's name last."""
    keep_text(study, VOCABULARY, datamodule.features.to_json())
    study.set_user_attr(NUM_ROWS_ATTR, sum(datamodule.sizes.values()))
    study.set_user_attr(DATASET_ATTR, data.name)
    study.set_user_attr(TASK_ATTR, data.task)
    study.set_user_attr(DATA_ATTR, data.to_json())


def _save_model_options(study: Study, options: dict[str, Any]) -> None:
    before = study.user_attrs.get(MODEL_OPTIONS_ATTR, options)
    if before != options:
        raise ValueError(
            f"`study` {study.study_name!r} was searched with other model options, with "
            f"{_differences(before, options)}. Use another study name."
        )
    study.set_user_attr(MODEL_OPTIONS_ATTR, options)


def _warn_ignored(study: Study, settings: Mapping[str, Any]) -> None:
    """Say which options a study that has ended does not go by."""
    ended = [s.settings for s in searches_of(study).values() if s.seconds is not None]
    differences = [_differences(before, settings) for before in ended]
    if differences and (least := min(differences, key=len)):
        _logger.warning(
            f"Options are ignored, since `study` {study.study_name!r} has been searched, with "
            f"{least}. Give another study name for a new search."
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is not the same, such as ``epochs 4 (now 8)``."""
    return ", ".join(
        f"{name} {_short(name, before)} (now {_short(name, now)})"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    )


def _short(name: str, values: Mapping[str, Any]) -> str:
    text = repr(values[name]) if name in values else "unset"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


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
