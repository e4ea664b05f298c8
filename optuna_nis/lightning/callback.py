"""The one-shot search: a supernet and a controller that learn inside one ``Trainer.fit``."""

from __future__ import annotations

from itertools import cycle
import math
from typing import Any, Protocol, runtime_checkable

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
import numpy as np
from optuna import Study
from optuna.logging import get_logger
import torch
from torch import Tensor

from optuna_nis._checks import check_integer
from optuna_nis.allocation import Allocation
from optuna_nis.budget import IntArray
from optuna_nis.lightning._batch import batch_length, repeat, take
from optuna_nis.lightning.recorder import TrialRecorder
from optuna_nis.nn import set_choices, supernet_layers
from optuna_nis.results import FIDELITY_ATTR, SUPERNET, VALIDATED, finished_trials
from optuna_nis.reward import Reward, penalised_reward
from optuna_nis.sampler import NISSampler
from optuna_nis.space import FloatArray, SearchSpace

_logger = get_logger(__name__)

# A batch on which no quality can be measured (one class only) is passed over; so many in a row
# mean that there is nothing to learn from.
_MAX_USELESS_BATCHES = 20
_USELESS = (
    "No quality could be measured on {} validation batches: do they hold examples of one class "
    "only? Use larger or shuffled validation batches."
)

# Shares of the budget for each of which the policy proposes choices, and how many.
_BUDGET_SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)
_FINALISTS_PER_SHARE = 4
# What the policy proposes for a budget should use it: of many draws, those are taken that leave
# less than a tenth.
_FINALIST_DRAWS = 64
_MIN_USE = 0.9


@runtime_checkable
class Searchable(Protocol):
    """What a :class:`~lightning.pytorch.LightningModule` must offer to be searched."""

    def choice_quality(self, batch: Any, num_choices: int) -> Tensor:
        """Quality of several choices on the same examples.

        Args:
            batch: The examples, repeated ``num_choices`` times: one run for each choice.
            num_choices: Number of choices.

        Returns:
            Shape ``(num_choices,)``, larger is better; all NaN where these examples cannot tell.
        """


class NISCallback(Callback):
    """Search for embedding sizes while a supernet trains, in an ordinary ``Trainer.fit``.

    The model must have a :class:`~optuna_nis.nn.SupernetEmbedding` for every feature of the space
    and a ``choice_quality`` method (see :class:`Searchable`).

    *Warm-up.* Every training batch is shared among the full tables and a few random choices of
    any cost below the budget, most of them close to it, so that every block is trained before
    anyone is judged.

    *Alternating steps.* After that, some of the random choices come from the controller, and
    after a training step the controller draws a group of choices, has them scored side by side
    on the same validation examples, and learns from their rewards. Every scored choice becomes a
    trial of the study.

    *The end.* A supernet ranks choices of about the same cost well, but across costs badly. So the
    policy proposes a few choices for the budget and for smaller ones, down to a sixteenth, by
    being tilted to them (:meth:`~optuna_nis.Policy.under`). They are scored on the whole
    validation set, and the best for each budget is left in :attr:`candidates`, to be trained for
    real (:func:`~optuna_nis.lightning.train_shortlist`).

    Sources: training a supernet and a controller in alternation after a warm-up is from Joglekar
    et al. (2020, section 4); the full choice in every batch is the sandwich rule of Yu and Huang
    (2019).

    Args:
        space: The search space; its budget is obeyed by construction.
        study: Where scored choices go as trials. Its sampler must be a
            :class:`~optuna_nis.NISSampler` with ``budget=space``. A study that already has
            trials of this space is resumed.
        num_updates: Updates of the controller.
        group_size: Choices scored side by side for one update.
        score_examples: Validation examples that each group is scored on, at most a batch of the
            validation dataloader.
        warmup: Share of the training steps that come before the first update.
        choices_per_step: Choices that each training batch is shared among, the full tables being
            one of them.
        penalty_weight: Weight of the memory penalty of the reward. No choice above the budget is
            ever drawn, so it matters only for trials that others enqueued.
        seed: Seed of the random choices.

    Raises:
        ValueError: If an argument is out of range.
        lightning.pytorch.utilities.exceptions.MisconfigurationException: At the start of ``fit``,
            if model, study or trainer cannot serve a search.
    """

    def __init__(
        self,
        space: SearchSpace,
        study: Study,
        *,
        num_updates: int = 50,
        group_size: int = 8,
        score_examples: int = 4096,
        warmup: float = 0.7,
        choices_per_step: int = 4,
        penalty_weight: float = 1.0,
        seed: int = 0,
    ) -> None:
        for name, value, low in (
            ("num_updates", num_updates, 1),
            ("group_size", group_size, 2),
            ("score_examples", score_examples, 1),
            ("choices_per_step", choices_per_step, 2),
        ):
            check_integer(name, value, low)
        if not 0.0 <= warmup < 1.0:
            raise ValueError(f"`warmup` must be a share in [0, 1), got {warmup!r}.")
        self.space = space
        self.study = study
        self.num_updates = num_updates
        self.group_size = group_size
        self.score_examples = score_examples
        self.warmup = warmup
        self.choices_per_step = choices_per_step
        self.penalty_weight = penalty_weight
        self.candidates: list[Allocation] = []
        self._rng = np.random.default_rng(seed)
        self._updates_done = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that model, study and trainer fit together."""
        if not isinstance(pl_module, Searchable):
            raise MisconfigurationException(
                f"{type(pl_module).__name__} must define `choice_quality(batch, num_choices)` to "
                "be searched by NISCallback."
            )
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
        self._recorder = TrialRecorder(self.study, self.space)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the policy up to date with the study and plan the updates."""
        if not trainer.val_dataloaders:
            raise MisconfigurationException(
                "NISCallback scores choices on validation data: the trainer needs a validation "
                "dataloader."
            )
        sampler = self.study.sampler
        assert isinstance(sampler, NISSampler)
        self._policy = sampler.policy(self.study)
        self._updates_done = min(self._updates_before(), self.num_updates)
        if self._updates_done:
            _logger.info(f"The study is resumed after {self._updates_done} updates.")
        steps = int(trainer.estimated_stepping_batches)
        self._first_step = math.floor(self.warmup * steps)
        self._plan = np.linspace(
            self._updates_done, self.num_updates, steps - self._first_step + 1
        )
        self._validation = cycle(self._batches(trainer))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Share the batch among the full tables and some choices."""
        count = self.choices_per_step - 1
        choices = [self.space.full()]
        if trainer.global_step >= self._first_step:
            choices += self._draw(count // 2)[0]
        choices += [self._random_choice() for _ in range(1 + count - len(choices))]
        length = batch_length(batch)
        while length % len(choices):
            choices.pop()
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
        past = min(trainer.global_step - self._first_step, len(self._plan) - 1)
        while past > 0 and self._updates_done < round(self._plan[past]):
            self._update(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the full tables."""
        set_choices(pl_module, self.space, [self.space.full()])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score what the policy proposes for several budgets on the whole validation set."""
        finalists = self._finalists()
        distinct = list(dict.fromkeys(choice for group in finalists for choice in group))
        total = torch.zeros(len(distinct))
        useful = 0
        for batch in self._batches(trainer):
            quality = self._quality(pl_module, distinct, batch)
            if not quality.isnan().all():
                total += quality * batch_length(batch)
                useful += batch_length(batch)
        if not useful:
            raise ValueError(_USELESS.format("all"))
        rewards = [self._reward(float(q), a) for q, a in zip(total / useful, distinct)]
        self._recorder.record(
            [self.space.params(allocation) for allocation in distinct],
            rewards,
            fidelity=VALIDATED,
            step=trainer.global_step,
        )
        value = {allocation: reward.value for allocation, reward in zip(distinct, rewards)}
        best = {max(group, key=value.__getitem__) for group in finalists}
        self.candidates = sorted(best, key=value.__getitem__, reverse=True)
        set_choices(pl_module, self.space, [self.space.full()])

    def _updates_before(self) -> int:
        trials = finished_trials(self.study)
        scored: int = sum(trial.user_attrs.get(FIDELITY_ATTR) == SUPERNET for trial in trials)
        return scored // self.group_size

    def _random_choice(self) -> Allocation:
        """Most choices cost about the budget, the others anything below it."""
        if self._rng.random() < 0.6:
            return self.space.sample(self._rng, self._rng.uniform(0.8, 1.05) * self.space.budget)
        low = min(self.space.min_parameters * 4, self.space.budget)
        cost = math.exp(self._rng.uniform(math.log(low), math.log(self.space.budget)))
        return self.space.sample(self._rng, cost, removal=0.15)

    def _batches(self, trainer: Trainer) -> Any:
        loaders = trainer.val_dataloaders
        return loaders[0] if isinstance(loaders, (list, tuple)) else loaders

    def _draw(self, count: int) -> tuple[list[Allocation], IntArray, FloatArray]:
        options, log_probs = self._policy.sample(count, self._rng)
        params = self._policy.params(options)
        return [self.space.allocation(choice) for choice in params], options, log_probs

    def _update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        choices, options, log_probs = self._draw(self.group_size)
        quality = self._score(pl_module, choices)
        rewards = [self._reward(float(q), choice) for q, choice in zip(quality, choices)]
        values = np.array([reward.value for reward in rewards])
        self._policy.update(options, values, log_probs)
        self._recorder.record(
            self._policy.params(options),
            rewards,
            fidelity=SUPERNET,
            step=trainer.global_step,
            log_probs=log_probs.tolist(),
        )
        self._updates_done += 1
        memory = np.mean([reward.num_parameters for reward in rewards]) / self.space.budget
        pl_module.log_dict(
            {
                "nis/reward": float(values.mean()),
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

    def _score(self, pl_module: LightningModule, choices: list[Allocation]) -> Tensor:
        """Quality of some choices on the next examples that can tell."""
        for _ in range(_MAX_USELESS_BATCHES):
            batch = take(next(self._validation), self.score_examples)
            quality = self._quality(pl_module, choices, batch)
            if not quality.isnan().all():
                return quality
        raise ValueError(_USELESS.format(f"{_MAX_USELESS_BATCHES} consecutive"))

    def _quality(
        self, pl_module: LightningModule, choices: list[Allocation], batch: Any
    ) -> Tensor:
        assert isinstance(pl_module, Searchable)
        training = pl_module.training
        pl_module.eval()
        parts = []
        with torch.no_grad():
            for start in range(0, len(choices), self.group_size):
                group = choices[start : start + self.group_size]
                set_choices(pl_module, self.space, group)
                batches = pl_module.transfer_batch_to_device(
                    repeat(batch, len(group)), pl_module.device, 0
                )
                parts.append(pl_module.choice_quality(batches, len(group)).cpu())
        pl_module.train(training)
        return torch.cat(parts) if parts else torch.zeros(0)

    def _finalists(self) -> list[list[Allocation]]:
        """For each share of the budget, the likeliest choices of the policy that use it."""
        groups = []
        for share in _BUDGET_SHARES:
            budget = int(share * self.space.budget)
            if budget < self.space.min_parameters:
                break
            policy = self._policy.under(self.space.with_budget(budget))
            draws, _ = policy.sample(_FINALIST_DRAWS, self._rng)
            options = np.unique(np.concatenate([policy.mode(), draws]), axis=0)
            options = options[np.argsort(-policy.log_prob(options), kind="stable")]
            choices = [self.space.allocation(params) for params in policy.params(options)]
            choices.sort(key=lambda choice: choice.num_parameters < _MIN_USE * budget)
            groups.append(choices[:_FINALISTS_PER_SHARE])
        return groups
