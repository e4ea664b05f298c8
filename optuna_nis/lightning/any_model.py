"""The whole search of any model in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
import hashlib
import inspect
import json
from pathlib import Path
import re
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Callback, LightningModule, Trainer
import numpy as np
from optuna import Study, create_study
from torchmetrics import Metric

from optuna_nis._checks import check_folder
from optuna_nis._logging import get_logger
from optuna_nis.controller.sampler import NISSampler
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning._memory import looked_at
from optuna_nis.lightning._training_key import options_key, shown_model, shown_options
from optuna_nis.lightning.building import BuildModel, takes_sizes
from optuna_nis.lightning.callback import NISCallback
from optuna_nis.lightning.comparison import compare
from optuna_nis.lightning.processes import group_of
from optuna_nis.lightning.rewards import Monitored, MonitorMode, check_goal
from optuna_nis.lightning.searching import Subject, run_search
from optuna_nis.lightning.swapping import swapped_subject
from optuna_nis.lightning.training import (
    Data,
    check_trainer_options,
    data_of_test,
    fit_data,
    listed,
)
from optuna_nis.lightning.trainings import Comparison
from optuna_nis.models import EmbeddingModule
from optuna_nis.models.reference import ReferenceModel
from optuna_nis.nn._sharded_layers import whole_build
from optuna_nis.nn.swap import Counts
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.precision import check_precisions
from optuna_nis.space.space import Mode, SearchSpace
from optuna_nis.space.spec import Oov, check_oov
from optuna_nis.strategy.journal import plan_in
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.shortlist import Candidate
from optuna_nis.study.attributes import read_text
from optuna_nis.study.keys import ROWS, SPACE_ATTR
from optuna_nis.study.results import (
    Results,
    best_allocation,
    finalist_allocations,
    results_of,
    save_space,
    score_line,
)
from optuna_nis.study.trials import finished_trials, is_trained

if TYPE_CHECKING:
    from optuna_nis.show.dashboard import DashboardCallback

_logger = get_logger(__name__)

# As a word of its own, in what becomes the name of a value in a test.
_VALIDATION = re.compile("(?<![A-Za-z])(validation|valid|val)(?![a-z])")

# Counts of ids that differ by less, as a share, may be of the same data.
_SAME_COUNTS = 0.1

#: Makes a model; or, given them, a model of given sizes and a supernet of a space.
BuildAnyModel = Callable[..., LightningModule]


@dataclass(frozen=True)
class FoundSizes:
    """What a search has found, and what speaks for it.

    Attributes:
        candidates: What was trained for real, best first; nothing where that was done before.
        study: All trials; ``best_trial`` is that of the best sizes by the search.
        space: The search space.
    """

    candidates: list[Candidate]
    study: Study
    space: SearchSpace
    _build: BuildModel
    _data: Data
    _monitored: Monitored
    _trainer_options: Mapping[str, Any]

    @property
    def allocation(self) -> Allocation:
        """The best sizes; after :meth:`retrain` the best of the finalists."""
        return best_allocation(self.study)

    def __repr__(self) -> str:
        return f"FoundSizes(allocation={self.allocation!r}, space={self.space!r})"

    def __str__(self) -> str:
        score = score_line(self.study)
        return f"{self.allocation}\n{score}"

    def build(self, sizes: Allocation | None = None) -> LightningModule:
        """Make a new model.

        Args:
            sizes: Its sizes, by default those that were found.
        """
        return self._build(self.allocation if sizes is None else sizes)

    def retrain(
        self,
        *,
        data: Data | None = None,
        seeds: Sequence[int] = (0, 1, 2),
        test_monitor: str | None = None,
        max_epochs: int | None = None,
        patience: int = 2,
        output: str | Path | None = None,
        checkpoint_dir: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
        progress: Callable[[str], None] = _logger.info,
        **trainer_options: Any,
    ) -> Results:
        """Train the sizes from scratch beside those that anyone would try, and test them.

        Beside them are uniform sizes and mixed dimensions by popularity at the same budget, and
        the full tables. Validation decides which to take; only then are they tested, and only
        this touches the test data: ``test_step`` of the model, on the ``test_dataloader`` of the
        data module or the third dataloader. By validation, the best of the search's finalists
        goes on, and with the first seed the better of uniform sizes as they are and projected.

        Args:
            data: The data of the search with their test part, where the search had none: the same
                training and validation rows.
            seeds: Seeds of the trainings.
            test_monitor: Name under which ``test_step`` logs its metric; by default that of the
                validation with "test" in place of "val", "valid" or "validation".
            max_epochs: As in :func:`train`.
            patience: As in :func:`train`.
            output: Where the model of the sizes that the verdict takes is written, of the seed
                with the best validation: a file for :func:`~optuna_nis.serve.load`; of a reference
                model and a data module of optuna_nis.data, a folder for :class:`Predictor`.
            checkpoint_dir: Folder where trained weights wait until all is decided and tested, so
                that what was interrupted goes on: called again with the same model, data and
                arguments, on a study in a database, only trainings that had not ended are run.
                By default all are, and so they are once the results are there.
            callbacks: Further callbacks of the trainers, such as a progress bar. Every training
                has copies of its own. With those that cannot be pickled nothing is kept, but for
                those that only show something.
            progress: Called with a line of text before and after each training; by default these
                lines are logged as those of Optuna are.
            **trainer_options: Further arguments of the trainers, in place of those of the search.

        Returns:
            The results, found sizes first, a list that prints as a line each; its ``verdict``
            says which sizes to take and why, its ``best`` is their result. The study has them too.

        Raises:
            ValueError: If an argument is out of range, there are no test data or they have other
                ids, or the model logs no such value.
        """
        if data is not None:
            _check_same_ids(data, self._data)
        data = self._data if data is None else data
        data_of_test(data)
        if checkpoint_dir is not None:
            check_folder("checkpoint_dir", checkpoint_dir)
        name = self._monitored.name
        if self._monitored.metric is not None:
            test_monitor = test_monitor or f"{name}_test"
        elif test_monitor is None:
            reference = isinstance(looked_at(self._build, self.allocation), EmbeddingModule)
            test_monitor = "test_metric" if reference else _VALIDATION.sub("test", name)
        options = {**self._trainer_options, **trainer_options}
        comparison = Comparison(
            self._build,
            data,
            self._monitored,
            test_monitor,
            max_epochs=max_epochs,
            patience=patience,
            output=None if output is None else str(output),
            callbacks=callbacks,
            progress=progress,
            checkpoint_dir=checkpoint_dir,
            key=None
            if checkpoint_dir is None
            else self._key(data, test_monitor, options, callbacks),
            trainer_options=options,
        )
        return compare(self.study, comparison, self.space, finalist_allocations(self.study), seeds)

    def _key(
        self,
        data: Data,
        test_monitor: str,
        trainer_options: Mapping[str, Any],
        callbacks: Sequence[Callback],
    ) -> list[Any] | None:
        """What a training is known again by, as far as it shows in the model; see Comparison."""
        options = options_key(trainer_options, callbacks)
        if options is None:
            return None
        # Which sizes are best may change before it is interrupted.
        model = looked_at(self._build, self.space.full())
        shown = [shown_model(model), self.space.to_json(), test_monitor]
        shown += [self._monitored.name, self._monitored.mode]
        if isinstance(data, EmbeddingDataModule):
            shown += [data.fingerprint(), str(data.batch_size)]
        else:
            shown.append("the data of the search" if data is self._data else "given")
        # Nothing is known of trainings that have led to results.
        study = group_of(trainer_options).study(self.study)
        known = [result.to_dict() for result in results_of(study)]
        return [hashlib.sha256(json.dumps([shown, known]).encode()).hexdigest(), *options]


def search_sizes(
    build_model: BuildAnyModel,
    data: Data,
    budget: int | float | str | None = None,
    *,
    mode: Mode = "multi",
    precisions: Sequence[int] = (32,),
    oov: Oov = "zero",
    space: SearchSpace | None = None,
    counts: Counts | None = None,
    count_options: Mapping[str, Any] | None = None,
    metric: Metric | None = None,
    monitor: str | None = None,
    monitor_mode: MonitorMode | None = None,
    study: Study | None = None,
    plan: SearchPlan | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    dashboard: DashboardCallback | None = None,
    progress: Callable[[str], None] = lambda text: None,
    checkpoint_dir: str | Path | None = None,
    trainer_options: Mapping[str, Any] | None = None,
    swap_options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    **plan_fields: Any,
) -> FoundSizes:
    """Search the embedding sizes of a model: everything that a search does, in one call.

    The ids of the training data are counted, the embedding layers of a model become a supernet,
    which is trained beside a controller (:class:`NISCallback`), and the best choices for the
    budget and for smaller ones are trained for real (:func:`train_shortlist`).

    Several such searches may be at work on one study, on several machines, and learn from each
    other's trials; the best sizes are those of all. One that was interrupted goes on from its
    checkpoint when the same is called again with the same ``study`` and ``checkpoint_dir``; with
    another model, other rows or other options a new one begins, and it is said. Without a
    checkpoint, nothing is done if another search has brought the study to its end.

    Args:
        build_model: A function without arguments that makes the model, a Lightning module with
            ``nn.Embedding`` or ``nn.EmbeddingBag`` layers; it is called for every training. Or
            one that takes sizes, such as :func:`reference_model` gives: it makes a supernet of a
            :class:`~optuna_nis.SearchSpace` and a model of an :class:`~optuna_nis.Allocation`.
        data: A data module, or a tuple of the dataloaders of training and validation, and of the
            test if there is one. The test is not touched.
        budget: As in :class:`~optuna_nis.SearchSpace`.
        mode: As in :class:`~optuna_nis.SearchSpace`; that of the monitor is ``monitor_mode``.
        precisions: As in :class:`~optuna_nis.EmbeddingSpec`, of every table: ``(32, 8, 4, 2)``.
        oov: What ids without a row give, as in :class:`~optuna_nis.EmbeddingSpec`, of every table.
        space: The search space, in place of ``budget``, ``mode``, ``precisions`` and ``oov``, for
            a ``build_model`` that takes sizes; by default that of the reference model.
        counts: As in :func:`~optuna_nis.nn.make_searchable`; by default they are counted, in
            all training data. In such as have no length, perhaps no end, they are in four times
            the ``limit_train_batches`` of ``trainer_options``, if that is a number of batches.
        count_options: Arguments of :func:`~optuna_nis.nn.count_ids`, such as ``step``, ``ids`` or
            ``max_batches``.
        metric: As in :class:`NISCallback`.
        monitor: As in :class:`NISCallback`.
        monitor_mode: As ``mode`` in :class:`NISCallback`.
        study: A study that maximises. Its sampler is replaced by a
            :class:`~optuna_nis.NISSampler` with the budget. By default one in memory.
        plan: The numbers that shape the search; by default those that the study was searched
            with, if it was.
        seed: Seed of the supernet and the controller.
        callbacks: Further callbacks of the supernet's trainer, such as a progress bar.
        dashboard: Keeps figures up to date in Optuna Dashboard.
        progress: Called with a line of text whenever something begins.
        checkpoint_dir: Where the search keeps what it has trained, every second (at most 2 % of
            the time) and after each training of the shortlist, in a folder that goes when it
            ends. By default there are only its trials to go on from.
        trainer_options: Further arguments of all trainers, such as ``{"accelerator": "gpu"}``.
            With ``{"strategy": "ddp", "devices": 2}`` two processes that torchrun has started
            search together; the study of the first one has the trials.
        swap_options: Arguments of :func:`~optuna_nis.nn.make_searchable`, such as ``exclude``
            and ``fields``.
        settings: What else tells a search whose checkpoint it may go on from, values for JSON.
        **plan_fields: Fields of the :class:`~optuna_nis.SearchPlan` in place of
            those of ``plan``, such as ``epochs=8``.

    Returns:
        The best sizes with their evidence; :meth:`FoundSizes.retrain` trains them from scratch
        and tests them.

    Raises:
        TypeError: If a setting is no field of a plan.
        ValueError: If an argument is out of range or not for such a ``build_model``, the data
            cannot be used, or the study was searched with another space or plan.
        lightning.pytorch.utilities.exceptions.MisconfigurationException: If the validation does
            not log or return what choices are scored by.

    Example:
        >>> from optuna_nis.lightning import reference_model
        >>> build = reference_model(data.features)
        >>> found = search_sizes(build, data, budget="25%", epochs=1, num_updates=2)
        >>> found.allocation.nbytes() <= found.space.budget_nbytes
        True
        >>> [result.name for result in found.retrain(seeds=[0], max_epochs=1)][:3]
        ['nis', 'uniform', 'full']
    """
    _check_fields(plan_fields)
    plan = SearchPlan.of(plan or plan_in(study), plan_fields)
    if checkpoint_dir is not None:
        check_folder("checkpoint_dir", checkpoint_dir)
    of_trainers = dict(trainer_options or {})
    check_trainer_options(of_trainers)
    group = group_of(of_trainers)
    if checkpoint_dir is not None and study is None and group.is_first:
        _logger.warning(
            "`checkpoint_dir` is given without a `study`: if the search is interrupted, "
            "nothing goes on from there, since its trials are in memory alone."
        )
    check_goal(metric, monitor, monitor_mode, "monitor_mode")
    if mode in ("max", "min"):
        raise ValueError(
            f'`mode` must be "multi" or "single", got {mode!r}; whether the largest or the '
            "smallest value of the monitor is best is `monitor_mode`."
        )
    precisions = check_precisions(precisions)
    check_oov(oov)
    fit_data(data)
    no_length = isinstance(data, Sequence) and sized_len(data[0]) is None
    whole = plan.shortlist_batches in (None, 1)
    if no_length and not whole and "limit_train_batches" not in of_trainers:
        raise ValueError(
            "`shortlist_batches` must be 1 for training data of unknown length, got "
            f"{plan.shortlist_batches}; or give `trainer_options` a number of "
            "`limit_train_batches`."
        )
    if takes_sizes(build_model):
        for name, value in (
            ("counts", counts),
            ("count_options", count_options),
            ("swap_options", swap_options),
        ):
            if value is not None:
                raise ValueError(
                    f"`{name}` is for a `build_model` without arguments, whose layers are counted "
                    f"and swapped; one that takes sizes makes its own, got {value!r}."
                )
        if space is None:
            space = _space_of(build_model, budget, mode, precisions, oov)
        elif (
            budget is not None
            or mode not in ("multi", space.mode)
            or precisions not in ((32,), space.precisions)
            or oov != "zero"
        ):
            raise ValueError(
                "`space` has a budget, a mode, precisions and what ids without a row give: give "
                f"it alone, got budget {budget!r}, mode {mode!r}, precisions {precisions!r} and "
                f"oov {oov!r} too."
            )
        subject = Subject(space, lambda: build_model(space), build_model)
        # A bad option must be told before anything is written into the study.
        subject = replace(subject, key=shown_model(looked_at(build_model, space)))
    else:
        if space is not None:
            raise ValueError(
                "`space` is for a `build_model` that takes sizes. Give `budget`, `mode`, "
                "`precisions` and `oov`, from which that of the model's layers is made, got "
                f"{space!r}."
            )
        subject = swapped_subject(
            build_model,
            data,
            counts,
            count_options,
            swap_options,
            budget=budget,
            mode=mode,
            precisions=precisions,
            oov=oov,
            trainer_options=of_trainers,
        )
        space = subject.space
    study = group.study(study or create_study(direction="maximize"))
    progress = group.only_first(progress)
    _warn_of_other_counts(study, space, data)
    save_space(study, space)
    changing = shown_options(of_trainers)
    exact = not no_length and "max_batches" not in (count_options or {})
    study.sampler = NISSampler(budget=space, seed=seed, settings=plan.policy)
    found, monitored = run_search(
        study,
        subject,
        data,
        plan,
        # It goes by the same whenever it is started again.
        lambda search_id: NISCallback(
            subject.space,
            study,
            plan=plan,
            metric=metric,
            monitor=monitor,
            mode=monitor_mode,
            seed=seed,
            dashboard=dashboard,
            search_id=search_id,
        ),
        settings={
            "seed": seed,
            "epochs": plan.epochs,
            "num_updates": plan.num_updates,
            **({"processes": group.size} if group.size > 1 else {}),
            **_goal(metric, monitor, monitor_mode),
            **({"trainer_options": changing} if changing else {}),
            # Where the rows are told, all else that is known of the data and the model is too.
            **({} if ROWS in (settings or {}) else _told(subject, data, exact)),
            **(settings or {}),
        },
        callbacks=listed(callbacks),
        progress=progress,
        checkpoint_dir=checkpoint_dir,
        trainer_options=of_trainers,
        group=group,
    )
    if found and dashboard is not None and group.is_first:
        dashboard.finish(study)
    # What the first process has found is found by all.
    study = group.study(study)
    return FoundSizes(found, study, space, subject.sized, data, monitored, of_trainers)


def _told(subject: Subject, data: Data, is_exact: bool) -> dict[str, Any]:
    """What tells the model and the data of a search from others, as far as it shows."""
    told: dict[str, Any] = {"model_digest": subject.key}
    if isinstance(data, EmbeddingDataModule):
        told |= {"batch_size": data.batch_size, ROWS: data.fingerprint("train", "validation")}
    elif is_exact:
        # Of other rows, the ids are others or others are frequent.
        told[ROWS] = hashlib.sha256(subject.space.to_json().encode()).hexdigest()[:32]
    return told


def _check_same_ids(data: Data, searched: Data) -> None:
    """Refuse data with other ids than those of the search, as far as it can be told."""
    if not (isinstance(data, EmbeddingDataModule) and isinstance(searched, EmbeddingDataModule)):
        return
    now, before = data.vocabularies, searched.vocabularies
    others = [name for name in {**before, **now} if now.get(name) != before.get(name)]
    if others:
        raise ValueError(
            "`data` must be those of the search with their test part, got other ids of "
            f"{', '.join(map(repr, others))}. Sizes of other data are searched anew."
        )


def _warn_of_other_counts(study: Study, space: SearchSpace, data: Data) -> None:
    """Say that a study that has ended was searched on other data, as far as counts of ids tell."""
    text = read_text(study, SPACE_ATTR)
    # Of tables, which rows are others has been told when they were read.
    if not text or isinstance(data, EmbeddingDataModule):
        return
    if not any(is_trained(trial) for trial in finished_trials(study)):
        return
    before = {spec.name: spec.mean_counts for spec in SearchSpace.from_json(text).specs}
    now = {spec.name: spec.mean_counts for spec in space.specs}
    others = [
        name
        for name, own in now.items()
        if own is not None and (was := before.get(name)) is not None
        # Counts of a sample of batches are never quite the same. Other blocks are another space.
        if len(own) == len(was) and not np.allclose(own, was, rtol=_SAME_COUNTS)
    ]
    if others:
        _logger.warning(
            f"`study` {study.study_name!r} was searched on other data: the ids of {others} come "
            "more or less often now. Its sizes are those of before; give another study name for a "
            "new search."
        )


def _goal(metric: Metric | None, monitor: str | None, mode: MonitorMode | None) -> dict[str, str]:
    """What choices are scored by, as far as it is said."""
    named = {
        "metric": None if metric is None else type(metric).__name__,
        "monitor": monitor,
        "monitor_mode": mode,
    }
    return {name: value for name, value in named.items() if value is not None}


def _check_fields(plan_fields: Mapping[str, Any]) -> None:
    """Say what is meant by names that are those of trainers, or like arguments of the search."""
    # Fields of a plan by other names are known there.
    options = set(inspect.signature(Trainer).parameters) - {"max_epochs"}
    own = list(inspect.signature(search_sizes).parameters)
    for name in plan_fields.keys() - {each.name for each in fields(SearchPlan)}:
        instead = []
        if name in options:
            instead.append(f'It is one of the trainers: `trainer_options={{"{name}": ...}}`.')
        if near := get_close_matches(name, own, n=1, cutoff=0.8):
            instead.append(f"Do you mean `{near[0]}`?")
        if instead:
            raise TypeError(f"`{name}` is no argument of `search_sizes`. {' '.join(instead)}")


def _space_of(
    build_model: BuildAnyModel,
    budget: int | float | str | None,
    mode: Mode,
    precisions: Sequence[int],
    oov: Oov,
) -> SearchSpace:
    reference = whole_build(build_model)
    if not isinstance(reference, ReferenceModel):
        raise ValueError(
            "`build_model` must be a function without arguments, such as `lambda: Model(...)`; "
            "with one that takes sizes, unless `reference_model` made it, give `space`."
        )
    specs = reference.specs(precisions=precisions, oov=oov)
    return SearchSpace(specs, budget=budget, mode=mode)
