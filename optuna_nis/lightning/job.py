"""The search on a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from inspect import signature
import json
from pathlib import Path
import tempfile
import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from optuna import Study
import torch

from optuna_nis._checks import check_folder
from optuna_nis._format import duration
from optuna_nis._logging import get_logger
from optuna_nis.controller.sampler import NISSampler
from optuna_nis.data import EmbeddingDataModule, Task
from optuna_nis.data.config import (
    DataConfig,
    check_data,
    differences,
    read_data,
    save_data,
)
from optuna_nis.lightning.callback import NISCallback
from optuna_nis.lightning.checkpoints import PeriodicCheckpoint, SearchFolder
from optuna_nis.lightning.parts import parts_of_data
from optuna_nis.lightning.shortlist import train_shortlist
from optuna_nis.lightning.training import quiet_lightning, quiet_trainer
from optuna_nis.models import (
    RankingModule,
    RetrievalModule,
    reference_model,
)
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import Mode, SearchSpace
from optuna_nis.strategy import baselines
from optuna_nis.strategy.reward import penalised_reward
from optuna_nis.study.recorder import TrialRecorder
from optuna_nis.study.results import (
    DATA_ATTR,
    METRIC_ATTR,
    MODEL_OPTIONS_ATTR,
    SEARCH_SECONDS_ATTR,
    TRAINED,
    best_allocation,
    cautions_of,
    finished_trials,
    is_trained,
    save_parts,
    save_space,
)
from optuna_nis.study.searches import finish, join, num_scored, searches_of

if TYPE_CHECKING:
    from optuna_nis.show.dashboard import DashboardCallback

_logger = get_logger(__name__)

_EMBEDDING_DIM = {"ranking": 32, "retrieval": 64}
_EPOCHS = {"ranking": 4, "retrieval": 6}
_MODULES: dict[str, type[RankingModule] | type[RetrievalModule]] = {
    "ranking": RankingModule,
    "retrieval": RetrievalModule,
}
_MAX_SLOWER = 4.0
# A supernet sees rare ids seldom and takes them to be worth less than they are after a long
# training. So the sizes that a closed formula gives them by their popularity compete, too.
_ALPHAS = (0.3, 0.5)


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
        >>> from optuna_nis.study.results import space_of
        >>> study = optuna.create_study(direction="maximize")
        >>> config = DataConfig(dataset="flights", max_rows=2_000)
        >>> best = search(study, config, budget="25%", epochs=1, num_updates=2)
        >>> best.num_parameters <= space_of(study).budget
        True
    """
    check_data(study, data)
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
        save_data(study, data, datamodule)
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


def _save_model_options(study: Study, options: dict[str, Any]) -> None:
    before = study.user_attrs.get(MODEL_OPTIONS_ATTR, options)
    if before != options:
        raise ValueError(
            f"`study` {study.study_name!r} was searched with other model options, with "
            f"{differences(before, options)}. Use another study name."
        )
    study.set_user_attr(MODEL_OPTIONS_ATTR, options)


def _warn_ignored(study: Study, settings: Mapping[str, Any]) -> None:
    """Say which options a study that has ended does not go by."""
    ended = [s.settings for s in searches_of(study).values() if s.seconds is not None]
    ignored = [differences(before, settings) for before in ended]
    if ignored and (least := min(ignored, key=len)):
        _logger.warning(
            f"Options are ignored, since `study` {study.study_name!r} has been searched, with "
            f"{least}. Give another study name for a new search."
        )
