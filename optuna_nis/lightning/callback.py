"""The one-shot search: a supernet and a controller that learn inside one ``Trainer.fit``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
import numpy as np
from optuna import Study, create_study
import torch
from torchmetrics import Metric

from optuna_nis._checks import check_integer
from optuna_nis._logging import get_logger
from optuna_nis.controller.policy import Policy
from optuna_nis.controller.sampler import NISSampler
from optuna_nis.lightning._package import is_a
from optuna_nis.lightning.plan import Plan, check_end
from optuna_nis.lightning.rewards import MonitorMode, Rewards
from optuna_nis.lightning.validation_scores import ValidationScores
from optuna_nis.nn import set_choices, supernet_layers
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.budget import IntArray
from optuna_nis.space.space import FloatArray, SearchSpace
from optuna_nis.strategy.proposers import budgets, proposals, proposed
from optuna_nis.strategy.reward import Reward, penalised_reward
from optuna_nis.strategy.training_choices import training_choices
from optuna_nis.study.recording import TrialRecorder
from optuna_nis.study.results import SUPERNET, VALIDATED, save_space
from optuna_nis.study.searches import Search, check_search_id, join, new_search_id, num_scored

if TYPE_CHECKING:
    from optuna_nis.show.dashboard import DashboardCallback

_T = TypeVar("_T")

_logger = get_logger(__name__)

_NOT_YET = "they are there when `Trainer.fit` has trained to its end"

_CHOICES_PER_STEP = 4

# Batches that what the policy proposes is scored on; the best of it on the whole validation set.
_PROPOSAL_BATCHES = 2


class NISCallback(Callback):
    """Search for embedding sizes while a supernet trains, in an ordinary ``Trainer.fit``.

    The model must have a :class:`~optuna_nis.nn.SupernetEmbedding` for every feature of the space,
    as :func:`~optuna_nis.nn.make_searchable` gives to any model. How good a choice is, larger
    being better, comes from the first of these that there is:

    1. ``metric``, fed by what ``validation_step`` returns: ``(preds, target)`` or a dictionary;
    2. ``monitor``, a value or metric that ``validation_step`` or a hook of validation logs;
    3. the model's method ``choice_quality`` (see :class:`Searchable`), which scores several
       choices in one forward pass;
    4. the ``"val_loss"`` that ``validation_step`` logs.

    *Warm-up.* Every training batch is shared among the full tables and a few random choices of
    any cost below the budget, most of them close to it, so that every block is trained before
    anyone is judged. Models without ``choice_quality`` see one choice in each step, the full
    tables in every other, since not every model can be trusted to treat examples apart.

    *Alternating steps.* After that, some of the random choices come from the controller, and
    after a training step the controller draws a group of choices, has them scored side by side
    on the same validation examples, and learns from their rewards. Every scored choice becomes a
    trial of the study.

    *The end.* A supernet ranks choices of about the same cost well, but across costs badly. So the
    policy proposes a few choices for the budget and for smaller ones, down to a sixteenth, by
    being tilted to them (:meth:`~optuna_nis.Policy.under`). For each budget, the best of these on
    a few batches and what ``propose`` gives are scored on the whole validation set, as are the
    ``rivals``. The best one for each smaller budget, for the whole budget the best of the policy
    and of ``propose``, and the best of the ``rivals`` are left in :attr:`candidates`, to be
    trained for real (:func:`~optuna_nis.lightning.train_shortlist`). A training that is stopped
    before all updates are made leaves none.

    Sources: training a supernet and a controller in alternation after a warm-up is from Joglekar
    et al. (2020, section 4); the full choice in every batch is the sandwich rule of Yu and Huang
    (2019).

    *Stopping.* The training must come to a known end: callbacks that may stop it earlier, such as
    ``EarlyStopping`` or ``max_time``, are refused unless the trainer has ``min_epochs`` or
    ``min_steps``, by which the updates are then made.

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
        num_updates: Updates of the controller, not counting what other searches add to it.
        group_size: Choices scored side by side for one update.
        score_examples: Validation examples that each group is scored on, at most a batch of the
            validation dataloader; more where no quality can be measured on so few, such as
            examples of one class.
        warmup: Share of the training steps that come before the first update.
        metric: See above.
        monitor: See above. ``"val_auc/dataloader_idx_1"`` is that of the second of several
            dataloaders; otherwise all of them count.
        mode: Whether the largest (``"max"``) or the smallest (``"min"``) value of the metric or
            monitor is best. By default what the metric says of itself, and ``"min"`` for a
            monitor with "loss" in its name. The quality of trials is negated for ``"min"``.
        choices_per_step: Choices that each training batch is shared among, the full tables being
            one of them. By default 4 for models with ``choice_quality`` and 1 for others. More
            than 1 are right for models whose embedding layers get ids with the examples as the
            first dimension and whose loss does not mix examples; batches whose tensors do not
            share their first dimension are not shared.
        penalty_weight: Weight of the memory penalty of the reward. No choice above the budget is
            ever drawn, so it matters only for trials that others enqueued.
        seed: Seed of the random choices. Where other searches are in the study already, it is
            mixed with the id, so that no two draw the same.
        propose: Gives choices for the budget of a space, which compete with those of the policy,
            such as :func:`~optuna_nis.strategy.baselines.mixed_dimensions` with
            ``on_grid=True``. It is called at once, for the budget and for each smaller one.
        rivals: Gives choices within the budget of a space that a supernet does not do justice to,
            such as :func:`~optuna_nis.strategy.baselines.frequent_ids`: the best of them is a
            candidate beside all others.
        dashboard: Keeps figures up to date in Optuna Dashboard while the search runs.
        search_id: What this search is called among those of the study. Started again under the
            same name, it makes only the updates that are left, even without a checkpoint. By
            default a new name, or the one in the checkpoint.

    Raises:
        ValueError: If an argument is out of range.
        lightning.pytorch.utilities.exceptions.MisconfigurationException: At the start of ``fit``,
            if model, study or trainer cannot serve a search.

    Example:
        >>> from optuna_nis.lightning import reference_model
        >>> space = SearchSpace(data.embedding_specs(8), budget="50%")
        >>> search = NISCallback(space, num_updates=2)
        >>> trainer = Trainer(max_epochs=2, callbacks=[search], logger=False,
        ...     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        >>> trainer.fit(reference_model(data.features)(space), data)
        >>> search.candidates[0].num_parameters <= space.budget
        True
    """

    def __init__(
        self,
        space: SearchSpace,
        study: Study | None = None,
        *,
        num_updates: int = 50,
        group_size: int = 8,
        score_examples: int = 2048,
        warmup: float = 0.7,
        metric: Metric | None = None,
        monitor: str | None = None,
        mode: MonitorMode | None = None,
        choices_per_step: int | None = None,
        penalty_weight: float = 1.0,
        seed: int = 0,
        propose: Callable[[SearchSpace], Sequence[Allocation]] | None = None,
        rivals: Callable[[SearchSpace], Sequence[Allocation]] | None = None,
        dashboard: DashboardCallback | None = None,
        search_id: str | None = None,
    ) -> None:
        check_search_id(search_id)
        for name, value, low in (
            ("num_updates", num_updates, 1),
            ("group_size", group_size, 2),
            ("score_examples", score_examples, 1),
            ("choices_per_step", 1 if choices_per_step is None else choices_per_step, 1),
        ):
            check_integer(name, value, low)
        if not 0.0 <= warmup < 1.0:
            raise ValueError(f"`warmup` must be a share in [0, 1), got {warmup!r}.")
        if study is None:
            sampler = NISSampler(budget=space, seed=seed)
            study = create_study(direction="maximize", sampler=sampler)
        self.space = space
        self.study = study
        self.num_updates = num_updates
        self.group_size = group_size
        self.score_examples = score_examples
        self.warmup = warmup
        self.choices_per_step = choices_per_step
        self.penalty_weight = penalty_weight
        self._proposed = [proposed("propose", propose, each) for each in budgets(space)]
        self._rivals = proposed("rivals", rivals, space)
        self.dashboard = dashboard
        self._candidates: list[Allocation] | None = None
        self._why_none = _NOT_YET
        monitor, dataloader_idx = _of_dataloader(monitor)
        self._rewards = Rewards(space, metric=metric, monitor=monitor, mode=mode)
        self._scores = ValidationScores(
            self._rewards, num_examples=score_examples, dataloader_idx=dataloader_idx
        )
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._search_id = search_id
        self._is_new = True
        self._updates_done = 0

    @property
    def candidates(self) -> list[Allocation]:
        """The choices to be trained for real, best first by the supernet.

        Raises:
            RuntimeError: If the search is not done.
        """
        if self._candidates is None:
            raise RuntimeError(f"The search has no candidates: {self._why_none}.")
        return self._candidates

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search needs beyond the study's trials."""
        return {
            "search_id": self._search_id,
            "rng": self._rng.bit_generator.state,
            **self._scores.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._search_id = state_dict["search_id"]
        self._is_new = False
        self._rng.bit_generator.state = state_dict["rng"]
        self._scores.load_state_dict(state_dict)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that model, study and trainer fit together."""
        self._candidates, self._why_none = None, _NOT_YET
        _check_processes(trainer)
        self._rewards.check(pl_module)
        found, wanted = set(supernet_layers(pl_module)), {s.name for s in self.space.specs}
        if found != wanted:
            raise MisconfigurationException(
                f"The model must have a SupernetEmbedding for each of {sorted(wanted)}, it has "
                f"them for {sorted(found)}."
            )
        if not isinstance(self.study.sampler, NISSampler):
            raise MisconfigurationException(
                "The study must have a NISSampler with `budget=space`, its sampler is "
                f"{type(self.study.sampler).__name__}."
            )
        check_end(trainer)
        if trainer.is_global_zero:
            save_space(self.study, self.space)
        if self.choices_per_step is None:
            side_by_side = self._rewards.side_by_side(pl_module)
            self._choices_per_step = _CHOICES_PER_STEP if side_by_side else 1
        else:
            self._choices_per_step = self.choices_per_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the policy up to date with the study and plan the updates."""
        self._scores.start(trainer)
        self._plan = Plan(trainer, num_updates=self.num_updates, warmup=self.warmup)
        search = self._of_the_first(trainer, self._joined)
        if self._is_new:
            self._rng = np.random.default_rng(search.seed)
        self._search_id, self._is_new = search.id, False
        if trainer.is_global_zero:
            self._recorder = TrialRecorder(self.study, self.space, search.id)
        self._updates_done = self._of_the_first(trainer, self._updates_before)
        self._policy = self._of_the_first(trainer, self._replayed_policy)
        self._plan.resume(trainer, self._updates_done)
        self._learning = self._updates_done > 0
        if self._learning:
            self._tell(trainer, f"The search is resumed after {self._updates_done} updates.")
        else:
            self._tell(trainer, f"The search warms up for {self._plan.warmup_batches:,} batches.")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Share the batch among the full tables and some choices."""
        learning = self._plan.learning(trainer)
        if learning and not self._learning:
            self._learning = True
            self._tell(
                trainer,
                f"The controller begins to learn: {self.num_updates} updates, each from "
                f"{self.group_size} choices.",
            )
        choices = training_choices(
            self.space,
            batch,
            batch_idx,
            self._rng,
            count=self._choices_per_step,
            draw=self._drawn if learning else None,
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
        """Update the controller as often as the plan says."""
        due = self._plan.num_due(trainer)
        if self._updates_done < due:
            self._update_until(due, trainer, pl_module)
            pl_module.log_dict(
                {
                    "nis/reward": self._mean_reward,
                    "nis/memory": self._mean_memory,
                    "nis/entropy": self._policy.entropy(),
                },
                prog_bar=True,
                on_step=True,
                on_epoch=False,
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the full tables."""
        set_choices(pl_module, self.space, [self.space.full()])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score what the policy proposes for several budgets on the whole validation set."""
        if self._updates_done < self.num_updates and trainer.should_stop:
            self._why_none = (
                f"the training was stopped after {self._updates_done} of {self.num_updates} "
                "updates of the controller"
            )
            _logger.warning(
                f"The search has no candidates: {self._why_none}. Go on from a checkpoint, or "
                "leave out what stops the training."
            )
            set_choices(pl_module, self.space, [self.space.full()])
            return
        # There were fewer batches than the dataloader said at the start.
        self._update_until(self.num_updates, trainer, pl_module)
        finalists = [[choice] for choice in self._finalists(trainer, pl_module)]
        # It is for the whole budget that a supernet is most unfair to what it has trained least.
        groups = [finalists[0], self._proposed[0], self._rivals]
        groups += [own + others for own, others in zip(finalists[1:], self._proposed[1:])]
        distinct = list(dict.fromkeys(choice for group in groups for choice in group))
        quality = self._scores.of_all(trainer, pl_module, distinct)
        rewards = [self._reward(float(q), a) for q, a in zip(quality, distinct)]
        if trainer.is_global_zero:
            self._recorder.record(
                [self.space.params(allocation) for allocation in distinct],
                rewards,
                fidelity=VALIDATED,
                step=trainer.global_step,
            )
            if self.dashboard is not None:
                self.dashboard.finish(self.study)
        value = {allocation: reward.value for allocation, reward in zip(distinct, rewards)}
        best = {max(group, key=value.__getitem__) for group in groups if group}
        self._candidates = sorted(best, key=value.__getitem__, reverse=True)
        first = self._candidates[0]
        self._tell(
            trainer,
            f"The search ends; candidates: {len(self._candidates)} of {len(distinct)} choices "
            f"scored on all validation data. The best has {first.num_parameters:,} parameters and "
            f"the reward {value[first]:.4f} with shared weights.",
        )
        set_choices(pl_module, self.space, [self.space.full()])

    def _joined(self) -> Search:
        return join(self.study, self._search_id or new_search_id(), seed=self._seed)

    def _updates_before(self) -> int:
        assert self._search_id is not None
        scored = num_scored(self.study, self._search_id, SUPERNET)
        return min(scored // self.group_size, self.num_updates)

    def _replayed_policy(self) -> Policy:
        sampler = self.study.sampler
        assert isinstance(sampler, NISSampler)
        return sampler.policy(self.study)

    def _of_the_first(self, trainer: Trainer, make: Callable[[], _T]) -> _T:
        """What the first process makes, in all processes."""
        made: Any = make() if trainer.is_global_zero else None
        shared: _T = trainer.strategy.broadcast(made)
        return shared

    def _tell(self, trainer: Trainer, text: str) -> None:
        if trainer.is_global_zero:
            _logger.info(text)

    def _draw(self, count: int) -> tuple[list[Allocation], IntArray, FloatArray]:
        options, log_probs = self._policy.sample(count, self._rng)
        choices = [self.space.allocation(params) for params in self._policy.params(options)]
        return choices, options, log_probs

    def _drawn(self, count: int) -> list[Allocation]:
        return self._draw(count)[0]

    def _update_until(self, due: int, trainer: Trainer, pl_module: LightningModule) -> None:
        while self._updates_done < due:
            self._update(trainer, pl_module)

    def _update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        choices, options, log_probs = self._draw(self.group_size)
        quality = self._scores.of_some(trainer, pl_module, choices)
        rewards = [self._reward(float(q), choice) for q, choice in zip(quality, choices)]
        self._policy.update(options, [reward.value for reward in rewards], log_probs)
        if trainer.is_global_zero:
            others = self._recorder.record(
                self._policy.params(options),
                rewards,
                fidelity=SUPERNET,
                step=trainer.global_step,
                log_probs=log_probs.tolist(),
            )
            if others:
                # In the order of the study, this group included.
                self._policy = self._replayed_policy()
            self._recorder.note(self._policy)
        # Rounding must not drive the processes apart.
        self._policy = trainer.strategy.broadcast(self._policy)
        if trainer.is_global_zero and self.dashboard is not None:
            num_trials = (self._updates_done + 1) * self.group_size
            self.dashboard.update(self.study, num_trials)
        self._updates_done += 1
        self._mean_reward = float(np.mean([reward.value for reward in rewards]))
        memory = np.mean([reward.num_parameters for reward in rewards])
        self._mean_memory = float(memory / self.space.budget)
        quarter, before = (4 * (self._updates_done - k) // self.num_updates for k in (0, 1))
        if quarter > before:
            self._tell(
                trainer,
                f"{self._updates_done} of {self.num_updates} updates: the mean reward of a group "
                f"is {self._mean_reward:.4f}.",
            )

    def _reward(self, quality: float, choice: Allocation) -> Reward:
        return penalised_reward(
            quality,
            choice.num_parameters,
            self.space.budget,
            penalty_weight=self.penalty_weight,
        )

    def _finalists(self, trainer: Trainer, pl_module: LightningModule) -> list[Allocation]:
        """For each share of the budget, the best of the policy's proposals on some batches."""
        groups = self._of_the_first(trainer, self._proposals)
        distinct = list(dict.fromkeys(choice for group in groups for choice in group))
        scores = [
            self._scores.of_some(trainer, pl_module, distinct) for _ in range(_PROPOSAL_BATCHES)
        ]
        value = dict(zip(distinct, torch.stack(scores).nan_to_num(-math.inf).sum(0).tolist()))
        return [max(group, key=value.__getitem__) for group in groups]

    def _proposals(self) -> list[list[Allocation]]:
        return proposals(self._policy, self.space, self._rng)


def _of_dataloader(monitor: str | None) -> tuple[str | None, int | None]:
    """What Lightning logs for one of several dataloaders: its name and the dataloader's index."""
    name, mark, index = (monitor or "").partition("/dataloader_idx_")
    return (name, int(index)) if mark and index.isdecimal() else (monitor, None)


def _check_processes(trainer: Trainer) -> None:
    if is_a(trainer.strategy.launcher, "_MultiProcessingLauncher"):
        raise MisconfigurationException(
            "The strategy trains in processes of its own (`ddp_spawn`, `ddp_fork`, "
            "`ddp_notebook`), with which the candidates of the search would end. Use "
            '`Trainer(strategy="ddp")` in a script, and `Trainer(devices=1)` in a notebook.'
        )
