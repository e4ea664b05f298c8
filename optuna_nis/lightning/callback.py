"""The one-shot search: a supernet and a controller that learn inside one ``Trainer.fit``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.seed import isolate_rng
from optuna import Study
from torchmetrics import Metric

from optuna_nis._logging import get_logger
from optuna_nis.lightning._batch import batch_length
from optuna_nis.lightning._package import is_a
from optuna_nis.lightning.batches import TrainingBatches, check_end
from optuna_nis.lightning.building import sized_like
from optuna_nis.lightning.convergence import error_on_validation
from optuna_nis.lightning.halving import run_shortlist
from optuna_nis.lightning.prices import Prices
from optuna_nis.lightning.rewards import Monitored, MonitorMode, Rewards, mode_by_name
from optuna_nis.lightning.sparse_gradients import reduce_sparse
from optuna_nis.lightning.training import Data
from optuna_nis.lightning.validation_scores import ValidationScores
from optuna_nis.nn import set_choices, supernet_layers
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.strategy.journal import plan_in, sampler_of
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.pricing import Pricing
from optuna_nis.strategy.search import SizeSearch
from optuna_nis.study.keys import METRIC_ATTR, MONITOR_MODE_ATTR
from optuna_nis.study.results import best_allocation, save_space
from optuna_nis.study.settings import check_metric

if TYPE_CHECKING:
    from optuna_nis.show.dashboard import DashboardCallback

_T = TypeVar("_T")

_logger = get_logger(__name__)

# Callbacks that put other weights into a model when its training ends.
_AVERAGING = ("WeightAveraging", "StochasticWeightAveraging")


class NISCallback(Callback):
    """Search for embedding sizes while a supernet trains, in an ordinary ``Trainer.fit``.

    How the search goes is told by :class:`~optuna_nis.SizeSearch`: when the supernet is trained,
    updates of the controller, then candidates. Which of these is best, a supernet cannot tell:
    :meth:`train_candidates` does, by training them for real. All of this in one call is
    :func:`~optuna_nis.lightning.search_sizes`.

    The model must have a :class:`~optuna_nis.nn.SupernetEmbedding` for every feature of the space,
    as :func:`~optuna_nis.nn.make_searchable` gives to any model. How good a choice is, larger
    being better, comes from the first of these that there is:

    1. ``metric``, fed by what ``validation_step`` returns: ``(preds, target)`` or a dictionary;
    2. ``monitor``, a value or metric that ``validation_step`` or a hook of validation logs;
    3. the model's method ``choice_quality`` (see :class:`Searchable`), which scores several
       choices in one forward pass;
    4. the ``"val_loss"`` that ``validation_step`` logs.

    Every training batch is shared among the full tables and a few other choices. Models without
    ``choice_quality`` see one choice in each step, the full tables in every other, since not
    every model can be trusted to treat examples apart; ``choices_per_step=4`` shares their batches
    too, which is right if the embedding layers get ids with the examples as the first dimension
    and the loss does not mix examples. Batches whose tensors do not share their first dimension
    are not shared.

    *Stopping.* The training may end when it is time, by ``EarlyStopping`` for example: the updates
    of the controller come after it. With a ``warmup`` below 1 they come on the way, and the end
    must be known: callbacks that may stop the training earlier, such as ``EarlyStopping`` or
    ``max_time``, are refused unless the trainer has ``min_epochs`` or ``min_steps``, by which the
    updates are then made; one that is stopped before all updates are made leaves no candidates.

    Of several processes (``strategy="ddp"``) all use the same choices, rewards are averaged over
    their parts of the validation data, and the first one writes the trials. In mid-search the
    training can be resumed from a checkpoint.

    *Several searches.* A study may be searched by several at once, on several machines, each with
    a supernet and perhaps a share of the data of its own. Each makes all its updates, draws
    apart from the others and learns from their trials too, as soon as it has scored its next
    group. A search that comes later starts with the policy that they have learned.

    Args:
        space: The search space; its budget is obeyed by construction.
        study: Where scored choices go as trials. Its sampler must be a
            :class:`~optuna_nis.NISSampler` with ``budget=space``. If it has trials of this space,
            the policy goes on from there. By default a new one in memory, :attr:`study`.
        plan: The numbers that shape the search; by default those that the study was searched
            with, if it was.
        metric: See above.
        monitor: See above. ``"val_auc/dataloader_idx_1"`` is that of the second of several
            dataloaders; otherwise all count for which it is logged.
        mode: Whether the largest (``"max"``) or the smallest (``"min"``) value of the metric or
            monitor is best. By default what the metric says of itself, and ``"min"`` for a
            monitor with "loss" in its name. The quality of trials is negated for ``"min"``.
        seed: Seed of the random choices. Where other searches are in the study already, it is
            mixed with the id, so that no two draw the same.
        dashboard: Keeps figures up to date in Optuna Dashboard while the search runs.
        search_id: What this search is called among those of the study. Started again under the
            same name, it makes only the updates that are left, even without a checkpoint. By
            default a new name, or the one in the checkpoint.
        **settings: Fields of the :class:`~optuna_nis.SearchPlan` in place of those
            of ``plan``, such as ``num_updates=100``.

    Raises:
        TypeError: If a setting is no field of a plan.
        ValueError: If an argument is out of range.
        lightning.pytorch.utilities.exceptions.MisconfigurationException: At the start of ``fit``,
            if model, study or trainer cannot serve a search.

    Example:
        >>> from optuna_nis import SearchSpace
        >>> from optuna_nis.lightning import reference_model
        >>> space = SearchSpace(data.embedding_specs(8), budget="50%")
        >>> build = reference_model(data.features)
        >>> search = NISCallback(space, num_updates=2)
        >>> trainer = Trainer(max_epochs=2, callbacks=[search], logger=False,
        ...     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        >>> trainer.fit(build(space), data)
        >>> best = search.train_candidates(build, data)
        >>> best.num_parameters <= space.budget
        True
    """

    def __init__(
        self,
        space: SearchSpace,
        study: Study | None = None,
        *,
        plan: SearchPlan | None = None,
        metric: Metric | None = None,
        monitor: str | None = None,
        mode: MonitorMode | None = None,
        seed: int = 0,
        dashboard: DashboardCallback | None = None,
        search_id: str | None = None,
        **settings: Any,
    ) -> None:
        plan = SearchPlan.of(plan or plan_in(study), settings)
        dataloader_idx = _dataloader_of(monitor)
        self._rewards = Rewards(space, metric=metric, monitor=monitor, mode=mode)
        self._search = SizeSearch(
            space, study, plan=plan, seed=seed, search_id=search_id, prices=True
        )
        self._scores = ValidationScores(
            self._rewards, num_examples=plan.score_examples, dataloader_idx=dataloader_idx
        )
        self._prices = Prices(space, self._scores)
        self.dashboard = dashboard
        #: Whether it says at the end how the candidates are trained.
        self.says_next = True

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self._search.space

    @property
    def study(self) -> Study:
        """Where the trials are."""
        return self._search.study

    @property
    def plan(self) -> SearchPlan:
        """The numbers that shape the search."""
        return self._search.plan

    @property
    def search(self) -> SizeSearch:
        """The search itself."""
        return self._search

    @property
    def candidates(self) -> list[Allocation]:
        """The choices to be trained for real, the largest first: one for each of several budgets.

        None of them is the result before :meth:`train_candidates` has compared them.

        Raises:
            RuntimeError: If the search is not done.
        """
        return sorted(self._search.candidates, key=lambda c: c.nbytes(), reverse=True)

    def monitored(self, pl_module: LightningModule) -> Monitored:
        """What models of chosen sizes are compared by: what the choices are scored by.

        Args:
            pl_module: A model. If it scores choices itself (:class:`Searchable`), its attribute
                ``monitor`` names the value that it logs; without one it is ``"val_loss"``.
        """
        return self._rewards.monitored(pl_module)

    def train_candidates(
        self,
        build_model: Callable[..., LightningModule],
        data: Data,
        *,
        monitor: str | None = None,
        mode: MonitorMode | None = None,
        progress: Callable[[str], None] | None = None,
        folder: Path | None = None,
        trainer_options: Mapping[str, Any] | None = None,
    ) -> Allocation:
        """Train the candidates for real, from the supernet's weights, and write them as trials.

        Args:
            build_model: Makes a model of given sizes; its weights outside the embeddings must have
                the names that they have in the supernet. For a model that was made searchable, a
                function without arguments that makes it anew will do.
            data: As in :func:`train_shortlist`.
            monitor: Name under which the models log their validation metric; by default what the
                search went by.
            mode: Whether the largest (``"max"``) or the smallest (``"min"``) value of it is best;
                by default as in the search; for another monitor as in :func:`train_shortlist`.
            progress: Called with a line of text after each training.
            folder: As in :func:`train_shortlist`.
            trainer_options: As in :func:`train_shortlist`.

        Returns:
            The best of them. It is ``study.best_trial`` from now on, unless another search of the
            study has found a better one.

        Raises:
            RuntimeError: If the search is not done.
            TypeError: If ``build_model`` is no function.
            ValueError: If it takes more than sizes, the models log no such value, or no mode is
                given for an error.
        """
        self._search.check_done()
        build_model = sized_like(build_model, self._supernet)
        monitored, rewarding = self.monitored(self._supernet), self._search.rewarding
        error = rewarding.error
        if monitor is not None and monitor != monitored.name:
            monitored = Monitored(monitor, mode_by_name(monitor, mode))
            # What memory costs in another value is not known.
            rewarding.error = None
        elif mode is not None:
            monitored = replace(monitored, mode=mode)
        try:
            found = run_shortlist(
                self._search.shortlist(),
                self._supernet,
                build_model,
                data,
                monitored=monitored,
                progress=progress,
                folder=folder,
                trainer_options=trainer_options,
            )
            self._search.record(found)
        finally:
            rewarding.error = error
        return found[0].allocation if found else best_allocation(self.study)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search needs beyond the study's trials."""
        return {**self._search.state_dict(), **self._scores.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._search.load_state_dict(state_dict)
        self._scores.load_state_dict(state_dict)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that model, study and trainer fit together."""
        _check_processes(trainer)
        self._check_order(trainer)
        self._rewards.check(pl_module)
        found, wanted = set(supernet_layers(pl_module)), {s.name for s in self.space.specs}
        if found != wanted:
            raise MisconfigurationException(
                f"The model must have a SupernetEmbedding for each of {sorted(wanted)}, it has "
                f"them for {sorted(found)}."
            )
        try:
            sampler_of(self.study, self.space)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        if self.plan.warmup < 1:
            check_end(trainer)
        if trainer.is_global_zero:
            save_space(self.study, self.space)
        self._supernet = pl_module

    def _check_order(self, trainer: Trainer) -> None:
        """Warn of callbacks that would change the weights when the choices have been scored."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        later = callbacks[callbacks.index(self) + 1 :]
        for name in _AVERAGING:
            if trainer.is_global_zero and any(is_a(callback, name) for callback in later):
                _logger.warning(
                    f"{name} comes after NISCallback among the callbacks of the trainer: choices "
                    "are scored by the weights before they are averaged, candidates begin with "
                    "those after. Put it before NISCallback."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the policy up to date with the study and plan the updates."""
        reduce_sparse(trainer)
        self._scores.start(trainer)
        self._is_checked = False
        self._batches = TrainingBatches(trainer)
        monitored = self.monitored(pl_module)
        check_metric(self._search.study, monitored.label_of(pl_module), self._rewards.mode)
        if self._search.rewarding.error is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            self._search.rewarding.error = error_on_validation(pl_module, data, monitored.name)
        side_by_side = self._rewards.side_by_side(pl_module)
        self._search.start(
            self._batches.number if self.plan.warmup < 1 else 0,
            choices_per_step=self.plan.num_choices(side_by_side=side_by_side),
            batches_done=self._batches.done(trainer),
            processes=_Processes(trainer),
        )

    def _claim_metric(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the study say by what it is searched, now that it is known what is best."""
        monitored, study = self.monitored(pl_module), self._search.study
        label = monitored.label_of(pl_module)
        check_metric(study, label, monitored.mode)
        if trainer.is_global_zero and MONITOR_MODE_ATTR not in study.user_attrs:
            study.set_user_attr(METRIC_ATTR, label)
            study.set_user_attr(MONITOR_MODE_ATTR, monitored.mode)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Share the batch among the full tables and some choices."""
        try:
            num_examples: int | None = batch_length(batch)
        except ValueError:
            num_examples = None
        choices = self._search.training_choices(
            num_examples, batches_done=self._batches.done(trainer) - 1
        )
        set_choices(pl_module, self.space, choices)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the controller as often as it is due."""
        if not self._is_checked:
            # Rather than after the warm-up. What a model needs, its first batch has given it.
            self._scores.check(trainer, pl_module)
            self._is_checked = True
            self._claim_metric(trainer, pl_module)
        self._search.batches_done = self._batches.done(trainer)
        if self._answer(trainer, pl_module):
            pl_module.log_dict(
                {
                    "nis/reward": self._search.mean_reward,
                    "nis/memory": self._search.mean_memory,
                    "nis/entropy": self._search.policy.entropy(),
                },
                prog_bar=True,
                on_step=True,
                on_epoch=False,
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the full tables."""
        # What is validated after the training may be of chosen sizes by then.
        if trainer.state.fn != "fit":
            return
        set_choices(pl_module, self.space, [self.space.full()])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the candidates."""
        self._search.end_training(stopped=trainer.should_stop)
        self._answer(trainer, pl_module)
        set_choices(pl_module, self.space, [self.space.full()])
        if trainer.is_global_zero and self._search.is_done:
            if self.says_next:
                command = "search.train_candidates(build_model, data)"
                _logger.info(f"To know which candidate is best: `{command}`.")
            if self.dashboard is not None:
                self.dashboard.finish(self.study)

    def _answer(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Answer what the search asks for; whether the controller has learned from it."""
        before = self._search.updates_done
        while (scoring := self._search.ask()) is not None:
            # Lightning looks for it between the batches of a training alone.
            if trainer.strategy.reduce_boolean_decision(trainer.received_sigterm, all=False):
                raise SIGTERMException
            if isinstance(scoring, Pricing):
                self._search.tell(self._prices.gradients(trainer, pl_module, scoring))
                continue
            done = self._search.updates_done
            if scoring.num_examples is None:
                # In mid-training, random numbers drawn later do not depend on it.
                with nullcontext() if self._search.ended else isolate_rng(include_cuda=False):
                    qualities = self._scores.of_all(trainer, pl_module, scoring.choices)
            else:
                qualities = self._scores.of_some(trainer, pl_module, scoring.choices)
            self._search.tell(qualities.tolist(), step=trainer.global_step)
            learned = self._search.updates_done > done
            if learned and self.dashboard is not None and trainer.is_global_zero:
                num_trials = self._search.updates_done * self.plan.group_size
                self.dashboard.update(self.study, num_trials)
        return self._search.updates_done > before


class _Processes:
    """The processes of a trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    @property
    def is_first(self) -> bool:
        return self._trainer.is_global_zero

    def share(self, value: _T) -> _T:
        shared: _T = self._trainer.strategy.broadcast(value)
        return shared


def _dataloader_of(monitor: str | None) -> int | None:
    """The index of the dataloader in the name of what Lightning logs for one of several."""
    _, mark, index = str(monitor).partition("/dataloader_idx_")
    return int(index) if mark and index.isdecimal() else None


def _check_processes(trainer: Trainer) -> None:
    if is_a(trainer.strategy.launcher, "_MultiProcessingLauncher"):
        raise MisconfigurationException(
            "The strategy trains in processes of its own (`ddp_spawn`, `ddp_fork`, "
            "`ddp_notebook`), with which the candidates of the search would end. Use "
            '`Trainer(strategy="ddp")` in a script, and `Trainer(devices=1)` in a notebook.'
        )
