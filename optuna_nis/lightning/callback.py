"""The one-shot search: a supernet and a controller that learn inside one ``Trainer.fit``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
import math
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
import numpy as np
from optuna import Study, create_study
from optuna.logging import get_logger
import torch
from torch import Tensor
from torchmetrics import Metric

from optuna_nis._checks import check_integer
from optuna_nis.allocation import Allocation
from optuna_nis.budget import IntArray
from optuna_nis.lightning._batch import batch_length, take
from optuna_nis.lightning.recorder import TrialRecorder
from optuna_nis.lightning.rewards import MonitorMode, Rewards
from optuna_nis.nn import set_choices, supernet_layers
from optuna_nis.policy import Policy
from optuna_nis.results import SUPERNET, VALIDATED, save_space
from optuna_nis.reward import Reward, penalised_reward
from optuna_nis.sampler import NISSampler
from optuna_nis.searches import Search, check_search_id, join, new_search_id, num_scored
from optuna_nis.space import FloatArray, SearchSpace

if TYPE_CHECKING:
    from optuna_nis.dashboard import DashboardCallback

_T = TypeVar("_T")

_logger = get_logger(__name__)

# A batch on which no quality can be measured (one class only) is passed over; so many in a row
# mean that there is nothing to learn from.
_MAX_USELESS_BATCHES = 20
_USELESS = (
    "No quality could be measured on {} validation batches: do they hold examples of one class "
    "only? Use larger or shuffled validation batches."
)

_CHOICES_PER_STEP = 4
# Share of the random choices that come from the controller, where each step has room for one.
_DRAWN_SHARE = 1 / 3

# Share of the random choices that cost about the budget. Where the weights are trained, they rank
# best.
_NEAR_BUDGET = 0.8

# Shares of the budget for each of which the policy proposes choices, and how many of them are
# scored on a few batches; the best on the whole validation set.
_BUDGET_SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)
_PROPOSALS_PER_SHARE = 8
_PROPOSAL_BATCHES = 2
# What the policy proposes for a budget should use it: of many draws, those are taken that leave
# less than a tenth.
_FINALIST_DRAWS = 64
_MIN_USE = 0.9


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
    trained for real (:func:`~optuna_nis.lightning.train_shortlist`).

    Sources: training a supernet and a controller in alternation after a warm-up is from Joglekar
    et al. (2020, section 4); the full choice in every batch is the sandwich rule of Yu and Huang
    (2019).

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
            validation dataloader.
        warmup: Share of the training steps that come before the first update.
        metric: See above.
        monitor: See above.
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
            such as :func:`~optuna_nis.baselines.mixed_dimensions` with ``on_grid=True``. It is
            called at once, for the budget and for each smaller one.
        rivals: Gives choices within the budget of a space that a supernet does not do justice to,
            such as :func:`~optuna_nis.baselines.frequent_ids`: the best of them is a candidate
            beside all others.
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
        self._proposed = [_proposed("propose", propose, each) for each in _budgets(space)]
        self._rivals = _proposed("rivals", rivals, space)
        self.dashboard = dashboard
        self.candidates: list[Allocation] = []
        self._rewards = Rewards(space, metric=metric, monitor=monitor, mode=mode)
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._search_id = search_id
        self._is_new = True
        self._updates_done = 0
        self._batches_scored = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search needs beyond the study's trials."""
        return {
            "search_id": self._search_id,
            "rng": self._rng.bit_generator.state,
            "batches_scored": self._batches_scored,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._search_id = state_dict["search_id"]
        self._is_new = False
        self._rng.bit_generator.state = state_dict["rng"]
        self._batches_scored = state_dict["batches_scored"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that model, study and trainer fit together."""
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
        if trainer.max_steps == -1 and trainer.max_epochs in (None, -1):
            raise MisconfigurationException(
                "The trainer needs `max_epochs` or `max_steps`: the search plans its warm-up."
            )
        if trainer.is_global_zero:
            save_space(self.study, self.space)
        if self.choices_per_step is None:
            side_by_side = self._rewards.side_by_side(pl_module)
            self._choices_per_step = _CHOICES_PER_STEP if side_by_side else 1
        else:
            self._choices_per_step = self.choices_per_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the policy up to date with the study and plan the updates."""
        if trainer.val_dataloaders is None and trainer.enable_validation:
            # Unless the first epoch is validated, Lightning gets them later.
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
            trainer.training = True
        if _Limited(trainer).loader is None:
            raise MisconfigurationException(
                "NISCallback scores choices on validation data: the trainer needs a validation "
                "dataloader."
            )
        self._total = self._total_batches(trainer)
        search = self._of_the_first(trainer, self._joined)
        if self._is_new:
            self._rng = np.random.default_rng(search.seed)
        self._search_id, self._is_new = search.id, False
        if trainer.is_global_zero:
            self._recorder = TrialRecorder(self.study, self.space, search.id)
        self._updates_done = self._of_the_first(trainer, self._updates_before)
        self._policy = self._of_the_first(trainer, self._replayed_policy)
        if self._updates_done:
            _logger.info(f"The search is resumed after {self._updates_done} updates.")
        self._first_batch = math.floor(self.warmup * self._total)
        self._plan = np.linspace(0, self.num_updates, max(self._total - self._first_batch, 0) + 1)
        past = self._planned_batches(trainer)
        if self._updates_done < round(self._plan[past]):
            # The trials of a checkpoint are not in this study: what is left for what is left.
            self._plan[past:] = np.linspace(
                self._updates_done, self.num_updates, len(self._plan) - past
            )
        self._validation = self._examples(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Share the batch among the full tables and some choices."""
        learning = self._batches_done(trainer) - 1 >= self._first_batch
        set_choices(pl_module, self.space, self._training_choices(batch, batch_idx, learning))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the controller as often as the plan says."""
        past = self._planned_batches(trainer)
        while past > 0 and self._updates_done < round(self._plan[past]):
            self._update(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the full tables."""
        set_choices(pl_module, self.space, [self.space.full()])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score what the policy proposes for several budgets on the whole validation set."""
        if self._updates_done < self.num_updates:
            _logger.warning(
                f"The training ended after {self._updates_done} of {self.num_updates} updates of "
                "the controller."
            )
        finalists = [[choice] for choice in self._finalists(trainer, pl_module)]
        # It is for the whole budget that a supernet is most unfair to what it has trained least.
        groups = [finalists[0], self._proposed[0], self._rivals]
        groups += [own + others for own, others in zip(finalists[1:], self._proposed[1:])]
        distinct = list(dict.fromkeys(choice for group in groups for choice in group))
        quality = self._rewards.score(trainer, pl_module, distinct, _Limited(trainer))
        if quality.isnan().all():
            raise ValueError(_USELESS.format("all"))
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
        self.candidates = sorted(best, key=value.__getitem__, reverse=True)
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

    def _total_batches(self, trainer: Trainer) -> int:
        """Number of training batches until the end."""
        totals = []
        if trainer.max_epochs not in (None, -1):
            totals.append(trainer.num_training_batches * trainer.max_epochs)
        if trainer.max_steps != -1:
            totals.append(trainer.max_steps * trainer.accumulate_grad_batches)
        if not math.isfinite(total := min(totals)):
            raise MisconfigurationException(
                "The trainer needs `max_steps` where the length of the training data is not "
                "known: the search plans its warm-up."
            )
        return int(total)

    def _batches_done(self, trainer: Trainer) -> int:
        """Number of training batches so far, this one included."""
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if trainer.max_steps != -1:
            # Manual optimisation may take several steps for a batch.
            done = max(done, self._total * trainer.global_step // trainer.max_steps)
        return done

    def _planned_batches(self, trainer: Trainer) -> int:
        """Number of batches since the warm-up, this one included."""
        return min(max(self._batches_done(trainer) - self._first_batch, 0), len(self._plan) - 1)

    def _training_choices(self, batch: Any, batch_idx: int, learning: bool) -> list[Allocation]:
        """The full tables and some choices; if there is room for one only, in turns."""
        count = self._choices_per_step
        length = 0
        if count > 1:
            try:
                length = batch_length(batch)
            except ValueError:
                count = 1
        if count == 1:
            if batch_idx % 2 == 0:
                return [self.space.full()]
            if learning and self._rng.random() < _DRAWN_SHARE:
                return self._draw(1)[0]
            return [self._random_choice()]
        choices = [self.space.full()]
        if learning:
            choices += self._draw((count - 1) // 2)[0]
        choices += [self._random_choice() for _ in range(count - len(choices))]
        while length % len(choices):
            choices.pop()
        return choices

    def _random_choice(self) -> Allocation:
        """Most choices cost about the budget, the others anything below it."""
        if self._rng.random() < _NEAR_BUDGET:
            return self.space.sample(self._rng, self._rng.uniform(0.8, 1.05) * self.space.budget)
        low = min(self.space.min_parameters * 4, self.space.budget)
        cost = math.exp(self._rng.uniform(math.log(low), math.log(self.space.budget)))
        return self.space.sample(self._rng, cost, removal=0.15)

    def _examples(self, trainer: Trainer) -> Iterator[Any]:
        """Validation batches without end, after those that were scored before."""
        limited = _Limited(trainer)
        skipped = self._batches_scored % max(len(limited), 1)
        while True:
            before = self._batches_scored
            for batch in islice(limited, skipped, None):
                self._batches_scored += 1
                yield batch
            if self._batches_scored == before:
                raise MisconfigurationException(
                    "NISCallback scores choices on validation data: the validation dataloader "
                    "gave no batch."
                )
            skipped = 0

    def _draw(self, count: int) -> tuple[list[Allocation], IntArray, FloatArray]:
        options, log_probs = self._policy.sample(count, self._rng)
        choices = [self.space.allocation(params) for params in self._policy.params(options)]
        return choices, options, log_probs

    def _update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        choices, options, log_probs = self._draw(self.group_size)
        quality = self._score(trainer, pl_module, choices)
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
        memory = np.mean([reward.num_parameters for reward in rewards]) / self.space.budget
        pl_module.log_dict(
            {
                "nis/reward": float(np.mean([reward.value for reward in rewards])),
                "nis/memory": float(memory),
                "nis/entropy": self._policy.entropy(),
            },
            prog_bar=True,
            on_step=True,
            on_epoch=False,
        )

    def _reward(self, quality: float, choice: Allocation) -> Reward:
        return penalised_reward(
            quality,
            choice.num_parameters,
            self.space.budget,
            penalty_weight=self.penalty_weight,
        )

    def _score(
        self, trainer: Trainer, pl_module: LightningModule, choices: list[Allocation]
    ) -> Tensor:
        """Quality of some choices on the next examples that can tell."""
        for _ in range(_MAX_USELESS_BATCHES):
            batch = next(self._validation)
            try:
                batch_length(batch)
                batch = take(batch, self.score_examples)
            except ValueError:
                pass  # Not made of examples that can be told apart; it is used as it is.
            quality = self._rewards.score(trainer, pl_module, choices, [batch])
            if not quality.isnan().all():
                return quality
        raise ValueError(_USELESS.format(f"{_MAX_USELESS_BATCHES} consecutive"))

    def _finalists(self, trainer: Trainer, pl_module: LightningModule) -> list[Allocation]:
        """For each share of the budget, the best of the policy's proposals on some batches."""
        groups = self._of_the_first(trainer, self._proposals)
        distinct = list(dict.fromkeys(choice for group in groups for choice in group))
        scores = [self._score(trainer, pl_module, distinct) for _ in range(_PROPOSAL_BATCHES)]
        value = dict(zip(distinct, torch.stack(scores).nan_to_num(-math.inf).sum(0).tolist()))
        return [max(group, key=value.__getitem__) for group in groups]

    def _proposals(self) -> list[list[Allocation]]:
        """For each share of the budget, the likeliest choices of the policy that use it."""
        groups = []
        policy = self._policy
        for space in _budgets(self.space):
            if space is not self.space:
                policy = policy.under(space)
            draws, _ = policy.sample(_FINALIST_DRAWS, self._rng)
            options = np.unique(np.concatenate([policy.mode(), draws]), axis=0)
            options = options[np.argsort(-policy.log_prob(options), kind="stable")]
            choices = [self.space.allocation(params) for params in policy.params(options)]
            using = [c for c in choices if c.num_parameters >= _MIN_USE * space.budget]
            groups.append((using or choices)[:_PROPOSALS_PER_SHARE])
        return groups


def _budgets(space: SearchSpace) -> list[SearchSpace]:
    """The space for its budget and for the shares of it that leave any room."""
    budgets = [int(share * space.budget) for share in _BUDGET_SHARES[1:]]
    return [space, *(space.with_budget(b) for b in budgets if b >= space.min_parameters)]


def _proposed(
    name: str, propose: Callable[[SearchSpace], Sequence[Allocation]] | None, space: SearchSpace
) -> list[Allocation]:
    """What a function gives for a budget, if it is of the space and within it."""
    proposed = [] if propose is None else list(propose(space))
    for allocation in proposed:
        space.params(allocation)
        if allocation.num_parameters > space.budget:
            raise ValueError(
                f"`{name}` must keep to the budget of {space.budget} parameters, it gave "
                f"a choice of {allocation.num_parameters}."
            )
    return proposed


class _Limited:
    """The first validation dataloader, cut as the trainer cuts it."""

    def __init__(self, trainer: Trainer) -> None:
        loaders: Any = trainer.val_dataloaders
        limits: Any = trainer.num_val_batches
        if isinstance(loaders, Mapping):
            loaders = list(loaders.values())
        several = isinstance(loaders, (list, tuple))
        self.loader: Any = next(iter(loaders), None) if several else loaders
        self._limit = next(iter(limits), 0) if isinstance(limits, list) else limits

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, None if math.isinf(self._limit) else int(self._limit))

    def __len__(self) -> int:
        return 0 if math.isinf(self._limit) else int(self._limit)
