"""A whole search, from the supernet to the shortlist, that can be interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
import tempfile
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule
from optuna import Study
import torch

from optuna_nis._logging import get_logger
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning._memory import free, looked_at
from optuna_nis.lightning._training_key import has_bar
from optuna_nis.lightning.building import BuildModel
from optuna_nis.lightning.callback import NISCallback
from optuna_nis.lightning.checkpoints import (
    PeriodicCheckpoint,
    SearchFolder,
    checkpoint_of_all,
    without_copies,
)
from optuna_nis.lightning.convergence import (
    Convergence,
    error_on_validation,
)
from optuna_nis.lightning.halving import run_shortlist
from optuna_nis.lightning.parts import parts_of_data
from optuna_nis.lightning.processes import Group, shared_batches
from optuna_nis.lightning.progress import EpochLines, RowLines
from optuna_nis.lightning.rewards import Monitored
from optuna_nis.lightning.training import (
    Data,
    ValidationForSchedules,
    fit_data,
    naming_options,
    quiet_lightning,
    quiet_trainer,
)
from optuna_nis.models import EmbeddingModule
from optuna_nis.nn import output_features
from optuna_nis.nn._sharded_layers import own_rows
from optuna_nis.space.space import SearchSpace
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.shortlist import Candidate
from optuna_nis.study.keys import (
    METRIC_ATTR,
    MONITOR_MODE_ATTR,
    OUTPUTS_ATTR,
    ROWS,
    SEARCH_SECONDS_ATTR,
)
from optuna_nis.study.results import cautions_of, save_parts
from optuna_nis.study.searches import Search, join, new_search_id, other_settings, searches_of
from optuna_nis.study.settings import check_metric, differences, plan_of, save_plan
from optuna_nis.study.trials import finished_trials, is_trained

_logger = get_logger(__name__)

# Standard errors that a supernet must gain to be trained on: it ranks choices, and what it learns
# beyond what validation can tell does not change their order.
_MIN_DELTA = 2.0
# Choices are compared on the same rows: so many tell them apart, and dozens are scored on them.
_MOST_VALIDATED = 1 << 17


@dataclass(frozen=True)
class Subject:
    """The model that is searched.

    Attributes:
        space: Its space.
        supernet: Makes a supernet.
        sized: Makes a model of given sizes.
        key: A text that is another one for a model that shows as another one; empty if it is not
            known.
    """

    space: SearchSpace
    supernet: Callable[[], LightningModule]
    sized: BuildModel
    key: str = ""


def run_search(
    study: Study,
    subject: Subject,
    data: Data,
    plan: SearchPlan,
    callback: Callable[[str | None], NISCallback],
    *,
    settings: Mapping[str, Any],
    callbacks: Sequence[Callback],
    progress: Callable[[str], None],
    checkpoint_dir: str | Path | None,
    trainer_options: Mapping[str, Any],
    group: Group,
) -> tuple[list[Candidate], Monitored]:
    """Search, or go on with a search that was interrupted; see :func:`search_sizes`.

    Args:
        study: The study, with its space, plan and sampler.
        subject: The model.
        data: The data.
        plan: The numbers that shape the search.
        callback: Makes the callback of a search by its id.
        settings: What a search must have been started with to be gone on with.
        callbacks: Further callbacks of the supernet's trainer.
        progress: Called with a line of text whenever something begins.
        checkpoint_dir: Where checkpoints are kept.
        trainer_options: Further arguments of all trainers.
        group: The processes that search together; the study of the others is a copy.

    Returns:
        What was trained for real, best first, and by which value; nothing where the study has
        been searched to its end.
    """
    with ExitStack() as stack:
        goal = None
        if METRIC_ATTR in study.user_attrs:
            goal = _goal(subject, callback)
            check_metric(study, goal.label, settings.get("monitor_mode"))
        keep = checkpoint_dir is not None
        parent = Path(checkpoint_dir or stack.enter_context(tempfile.TemporaryDirectory()))
        folder = None
        if group.is_first:
            folder = SearchFolder.of_interrupted(study, parent, settings)
        # The others do as the first one does.
        interrupted = group.share(None if folder is None else folder.search_id)
        if interrupted is not None:
            folder = folder or SearchFolder(group.own(parent / interrupted), interrupted)
            progress(f"Going on with the search {folder.search_id} that was interrupted.")
        elif group.share(any(is_trained(trial) for trial in finished_trials(study))):
            told = "The study has been searched to the end; nothing is left to do."
            progress(told)
            _logger.info(told)
            _warn_ignored(study, settings)
            monitored = (goal or _goal(subject, callback)).monitored
            mode = study.user_attrs.get(MONITOR_MODE_ATTR, monitored.mode)
            return [], replace(monitored, mode=mode)
        else:
            if group.is_first:
                _tell_of_others(study, parent, settings, progress)
            search_id = group.share(new_search_id())
            folder = SearchFolder(group.own(parent / search_id), search_id)
        stack.callback(folder.release)
        # How long it goes on is each search's own.
        known = plan_of(study) or {}
        own = {name: known[name] for name in ("epochs", "num_updates") if name in known}
        # A plan of before lacks fields; what they are read as is no other plan.
        read = SearchPlan.from_dict(known).to_dict() if known else {}
        values = (plan.to_dict() | own).items()
        save_plan(study, {k: v for k, v in values if k in known or v != read.get(k, ...)})
        me = group.share(join(study, folder.search_id, seed=settings["seed"], settings=settings))
        search = callback(me.id)
        search.says_next = False
        torch.manual_seed(me.seed)
        stack.enter_context(shared_batches(data, group))
        if isinstance(data, EmbeddingDataModule):
            data.shuffle_seed = me.seed
            stack.enter_context(_few_validated(data, progress))
        supernet = subject.supernet()
        label = search.monitored(supernet).label_of(supernet)
        study.set_user_attr(METRIC_ATTR, label)
        if outputs := sorted(output_features(supernet)):
            study.set_user_attr(OUTPUTS_ATTR, outputs)
        if isinstance(supernet, EmbeddingModule) and isinstance(data, EmbeddingDataModule):
            save_parts(study, parts_of_data(data, supernet, ["validation"]))
        if not all(group.all_of(folder.is_searched)):
            long = "until it no longer learns"
            if plan.epochs is not None:
                long = f"{plan.epochs} epoch{'s' * (plan.epochs > 1)}"
            progress(f"Searching {subject.space!r}; the supernet is trained {long}.")
            every_callback: list[Callback] = [
                search,
                EpochLines(progress, plan.epochs),
                RowLines(progress, "Supernet"),
                ValidationForSchedules(),
            ]
            if keep:
                every_callback.append(PeriodicCheckpoint(folder.supernet, folder))
            _train_supernet(
                supernet,
                data,
                plan.epochs,
                lambda: search.monitored(supernet),
                callbacks,
                every_callback,
                folder,
                {"enable_progress_bar": has_bar(callbacks), **trainer_options},
                group,
            )
            # Others may need the trainer when their length is asked for.
            ours = data if isinstance(data, EmbeddingDataModule) else None
            free(ours, subject.space.full().nbytes(), callbacks)
            monitored = search.monitored(supernet)
            if keep:
                with own_rows():
                    weights = supernet.state_dict()
                folder.save_searched(weights, search.search, monitored.mode)
        else:
            searched = folder.load_searched()
            supernet.load_state_dict(searched.pop("weights"))
            search.search.load_state_dict(searched["search"])
            monitored = replace(search.monitored(supernet), mode=searched["mode"])
            error = error_on_validation(supernet, data, monitored.name)
            search.search.rewarding.error = error
        shortlist = search.search.shortlist()
        number = len(shortlist.allocations)
        progress(f"Training the best {f'{number} choices' if number > 1 else 'choice'} for real.")
        found = run_shortlist(
            shortlist,
            supernet,
            subject.sized,
            data,
            monitored=monitored,
            label=label,
            progress=progress,
            folder=folder.trainings if keep else None,
            trainer_options=trainer_options,
        )
        study.set_user_attr(MONITOR_MODE_ATTR, monitored.mode)
        search.search.record(found, seconds=folder.seconds)
        seconds = [each.seconds for each in searches_of(study).values() if each.seconds]
        study.set_user_attr(SEARCH_SECONDS_ATTR, sum(seconds))
        group.wait()
        folder.remove()
    if group.is_first:
        for line in cautions_of(study):
            _logger.warning(line)
    return found, monitored


class _Goal(NamedTuple):
    """By what models are compared, and what that is called."""

    monitored: Monitored
    label: str


def _goal(subject: Subject, callback: Callable[[str | None], NISCallback]) -> _Goal:
    model = looked_at(subject.sized, subject.space.full())
    monitored = callback(None).monitored(model)
    return _Goal(monitored, monitored.label_of(model))


@contextmanager
def _few_validated(data: EmbeddingDataModule, progress: Callable[[str], None]) -> Iterator[None]:
    """Validate on a sample where the validation part is large."""
    before, rows = data.max_validation_rows, data.sizes["validation"]
    most = _MOST_VALIDATED if before is None else min(before, _MOST_VALIDATED)
    data.max_validation_rows = most
    if most < rows:
        progress(f"The search validates on {most:,} of {rows:,} validation rows, drawn at random.")
    try:
        yield
    finally:
        data.max_validation_rows = before


def _train_supernet(
    supernet: LightningModule,
    data: Data,
    epochs: int | None,
    monitored: Callable[[], Monitored],
    callbacks: Sequence[Callback],
    of_search: list[Callback],
    folder: SearchFolder,
    trainer_options: Mapping[str, Any],
    group: Group,
) -> None:
    length: dict[str, Any]
    if epochs is None:
        # Goes back to the best weights before anything is scored with them.
        known = monitored()
        error = error_on_validation(supernet, data, known.name)
        convergence = Convergence(
            monitored, error=error, num_decays=0, min_delta=_MIN_DELTA, folder=folder.best
        )
        of_search = [*known.callbacks(), convergence, *of_search]
        length = {"max_epochs": Convergence.most_epochs(None)}
    else:
        # Nothing depends on how good the full tables are on the way.
        length = {"max_epochs": epochs, "check_val_every_n_epoch": epochs}
    with quiet_lightning(), naming_options():
        trainer = quiet_trainer(
            supernet,
            **length,
            # What averages weights has done so before the best are taken, and scored.
            callbacks=[*callbacks, *of_search],
            **trainer_options,
        )
        without_copies(trainer, folder.supernet.parent)
        ckpt_path = checkpoint_of_all(folder.supernet, group)
        trainer.fit(supernet, **fit_data(data), ckpt_path=ckpt_path)


def _tell_of_others(
    study: Study, parent: Path, settings: Mapping[str, Any], progress: Callable[[str], None]
) -> None:
    """Tell of interrupted searches that this one does not go on with, and why."""
    for search in searches_of(study).values():
        if search.seconds is not None or not SearchFolder.is_left(parent / search.id):
            continue
        others = other_settings(search, settings)
        if others == ["processes"]:
            number = search.settings.get("processes", 1)
            progress(
                f"The search {search.id}, of {number} process{'es' * (number > 1)}, was "
                "interrupted; started with as many it goes on. This is another one."
            )
        elif others == [ROWS]:
            progress(
                f"The search {search.id} was interrupted. The data has other rows now: this is "
                "another one."
            )
        elif others:
            told = _others(search, settings)
            progress(
                f"The search {search.id} was interrupted; started as it was it goes on. This is "
                f"another one: {told}{' and other rows' * (ROWS in others)}."
            )


def _others(search: Search, settings: Mapping[str, Any]) -> str:
    """The settings that are others than those of a search, but for the rows."""
    names = [name for name in other_settings(search, settings) if name != ROWS]
    before, now = (
        {name: each[name] for name in names if name in each}
        for each in (search.settings, settings)
    )
    return differences(before, now)


def _warn_ignored(study: Study, settings: Mapping[str, Any]) -> None:
    """Say which options a study that has ended does not go by."""
    ended = [search for search in searches_of(study).values() if search.seconds is not None]
    # Of other rows it has been told where they were read.
    ignored = [_others(search, settings) for search in ended]
    if ignored and (least := min(ignored, key=len)):
        _logger.warning(
            f"Options are ignored, since `study` {study.study_name!r} has been searched, with "
            f"{least}. Give another study name for a new search."
        )
