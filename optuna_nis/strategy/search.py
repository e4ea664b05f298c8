"""How a search goes, whatever trains the model: choices are asked for, their scores told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math
import time
from typing import Any, TypeVar

import numpy as np
from optuna import Study, create_study

from optuna_nis._checks import check_integer, check_seed
from optuna_nis._logging import get_logger
from optuna_nis.controller.policy import Policy
from optuna_nis.controller.sampler import NISSampler
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.strategy.asking import Answer, Asking, Request, Work
from optuna_nis.strategy.block_values import Gradients
from optuna_nis.strategy.ending import Ending
from optuna_nis.strategy.journal import Journal, plan_in, write_found
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.pricing import Pricer, Pricing
from optuna_nis.strategy.processes import OneProcess, Processes
from optuna_nis.strategy.rewarding import Rewarding
from optuna_nis.strategy.schedule import Schedule
from optuna_nis.strategy.scoring import Scoring
from optuna_nis.strategy.shortlist import Candidate, Shortlist
from optuna_nis.strategy.training_choices import training_choices
from optuna_nis.study.keys import SUPERNET, VALIDATED
from optuna_nis.study.searches import check_search_id, finish, join
from optuna_nis.study.settings import check_direction

_T = TypeVar("_T")

_logger = get_logger(__name__)

_NOT_YET = "they are there when the supernet has been trained to its end"
_INTERRUPTED = (
    "the supernet is trained, but what is to be scored then has not been: answer what `ask` "
    "gives, or with a NISCallback call `fit` again"
)


class SizeSearch:
    """Searches the embedding sizes of a model while it is trained as a supernet, by any loop.

    The loop asks for the choices of each training batch, and after each batch for choices to be
    scored on validation data until there are none; it tells their qualities.

    *Warm-up.* Training batches, shared among several choices or by one of them in turns, see the
    full tables and random choices, most of them close to the budget.

    *The controller.* Then the controller draws groups of choices, has each scored on the same
    examples, and learns from their rewards. (With a ``warmup`` below 1 it begins earlier, and some
    of the choices that the supernet is trained under are its own.) Every scored choice becomes a
    trial. Groups compare, since the full tables are scored with each.

    *The end.* A supernet ranks choices of about the same cost well, but across costs badly. So for
    the budget and for smaller ones, choices are proposed by the policy, by gradients of the loss
    (:class:`~optuna_nis.strategy.pricing.Pricer`), by formulas and of one width; the best of each
    kind are the :attr:`candidates`. Which is best, only :meth:`shortlist` tells, by training them.

    Sources: supernet, warm-up and controller from Joglekar et al. (2020, section 4), learning from
    trained weights from Guo et al. (2020), full tables in every batch from Yu and Huang (2019).

    Args:
        space: The search space; its budget is obeyed by construction. Sizes by popularity compete
            if it knows how frequent ids are.
        study: Where scored choices go as trials, with a :class:`~optuna_nis.NISSampler` of
            ``budget=space``. If it has trials of this space, the policy goes on from there. By
            default a new one in memory, :attr:`study`.
        plan: The numbers that shape the search; by default those that the study was searched
            with, if it was. They are written into a study that has none.
        seed: Seed of the random choices. Where other searches are in the study already, it is
            mixed with the id, so that no two draw the same.
        search_id: What this search is called among those of the study. Started again under the
            same name, it makes only the updates that are left. By default a new name.
        prices: Whether gradients of the loss are asked for, too, when the supernet is trained.

    Example:
        >>> from optuna_nis import EmbeddingSpec, SearchSpace
        >>> space = SearchSpace([EmbeddingSpec("user", 1000, 8)], budget="50%")
        >>> search = SizeSearch(space, plan=SearchPlan(num_updates=2))
        >>> search.start(num_batches=10)
        >>> def score(scoring):
        ...     return [1 / choice.num_parameters for choice in scoring.choices]
        >>> for _ in range(10):
        ...     choices = search.training_choices()  # train on a batch under them
        ...     search.answer(score)
        >>> search.end_training()
        >>> search.answer(score)
        >>> all(choice.num_parameters <= space.budget for choice in search.candidates)
        True
    """

    def __init__(
        self,
        space: SearchSpace,
        study: Study | None = None,
        *,
        plan: SearchPlan | None = None,
        seed: int = 0,
        search_id: str | None = None,
        prices: bool = False,
    ) -> None:
        check_seed("seed", seed)
        check_search_id(search_id)
        if study is None:
            settings = SearchPlan.of(plan, {}).policy
            sampler = NISSampler(budget=space, seed=seed, settings=settings)
            study = create_study(direction="maximize", sampler=sampler)
        self.space = space
        self.study = study
        self.plan = SearchPlan.of(plan or plan_in(study), {})
        check_direction(study)
        self.updates_done = 0  #: Updates of the controller so far.
        #: Of the group that was scored last: mean reward, and mean share of the budget.
        self.mean_reward = self.mean_memory = math.nan
        self.rewarding = Rewarding(space, self.plan)  #: What choices are worth.
        self._ending = Ending(space, self.plan)
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._search_id = search_id
        self._is_new = True
        self._candidates: list[Allocation] | None = None
        # Why there will be no candidates.
        self._failed: str | None = None
        self.batches_done = 0  #: Training batches so far, one that has begun included.
        self._step = 0
        self.ended = False  #: Whether the supernet has been trained to its end.
        self._learning = False
        self._schedule: Schedule | None = None
        self._asking = Asking(self._next_work)
        self._prices = prices
        self._num_examples: int | None = None
        # Of a checkpoint: its updates, None if it does not say so, and seconds.
        self._updates_before: int | None = 0
        # Updates in the study whose draws and examples are still to be gone over.
        self._updates_again = 0
        self._seconds_before = 0.0
        self._began: float | None = None
        self._origins: dict[Allocation, str] = {}

    @property
    def id(self) -> str | None:
        """What the search is called in the study; None before its start, unless it was given."""
        return self._search_id

    @property
    def policy(self) -> Policy:
        """The policy as it is now.

        Raises:
            RuntimeError: If the search has not started.
        """
        self._started()
        return self._policy

    @property
    def is_done(self) -> bool:
        """Whether there are candidates."""
        return self._candidates is not None

    @property
    def candidates(self) -> list[Allocation]:
        """The choices to be trained for real, best first by shared weights, which says little.

        Raises:
            RuntimeError: If the search is not done.
        """
        self.check_done()
        return self._candidates or []

    def check_done(self) -> None:
        """Raise a RuntimeError if the search is not done."""
        if self._candidates is None:
            why = self._failed or (_INTERRUPTED if self.ended else _NOT_YET)
            raise RuntimeError(f"The search has no candidates: {why}.")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search needs beyond the study's trials."""
        return {
            "search_id": self._search_id,
            "rng": self._rng.bit_generator.state,
            "reference": self.rewarding.reference,
            "step": self._step,
            "batches": self.batches_done,
            "updates": self.updates_done,
            "batch_examples": self._num_examples,
            "seconds": self._seconds(),
            "candidates": self._candidates and [c.to_json() for c in self._candidates],
            "origins": [self._origins.get(c) for c in self._candidates or ()],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._search_id = state_dict["search_id"]
        self._is_new = False
        self._rng.bit_generator.state = state_dict["rng"]
        self.rewarding.reference = state_dict.get("reference")
        self._step = state_dict.get("step", 0)
        self.batches_done = state_dict.get("batches", 0)
        self._updates_before = state_dict.get("updates")
        self._num_examples = state_dict.get("batch_examples")
        self._seconds_before, self._began = state_dict.get("seconds", 0.0), None
        if (candidates := state_dict.get("candidates")) is not None:
            self._candidates = [Allocation.from_json(text) for text in candidates]
            origins = zip(self._candidates, state_dict.get("origins", ()))
            self._origins = {choice: origin for choice, origin in origins if origin is not None}
            self.ended = True

    def start(
        self,
        num_batches: int,
        *,
        choices_per_step: int | None = None,
        batches_done: int = 0,
        processes: Processes | None = None,
    ) -> None:
        """Enter the study, bring the policy up to date with it, and plan the updates.

        Args:
            num_batches: Training batches until the end; any number with a ``warmup`` of 1.
            choices_per_step: Choices that a batch is shared among; by default as the plan says,
                and 1 if it does not, since not every model can be trusted to treat examples apart.
            batches_done: Batches before, of a training that is resumed.
            processes: The processes that train together; by default this one alone.

        Raises:
            ValueError: If a number is out of range, the study's sampler is no NISSampler, or it
                is of another space.
        """
        check_integer("num_batches", num_batches, 0)
        if choices_per_step is None:
            choices_per_step = self.plan.num_choices(side_by_side=False)
        check_integer("choices_per_step", choices_per_step, 1)
        self._choices_per_step = choices_per_step
        self._candidates = self._failed = None
        self._asking.forget()
        plan = self.plan
        self._schedule = schedule = Schedule(
            num_batches, num_updates=plan.num_updates, warmup=plan.warmup
        )
        self._journal = journal = Journal(
            self.study,
            self.space,
            processes or OneProcess(),
            plan,
            search_id=self._search_id,
            seed=self._seed,
        )
        if self._is_new:
            self._rng = np.random.default_rng(journal.search.seed)
        self._search_id, self._is_new = journal.search.id, False
        self.updates_done = journal.num_updates(plan.num_updates)
        if self._updates_before not in (None, self.updates_done):
            # The study is ahead of the checkpoint. Where all updates come after the training, what
            # was drawn is drawn again in the end; else what follows must not be.
            if plan.warmup == 1:
                self._updates_again = self.updates_done - (self._updates_before or 0)
            else:
                mixed = [int(self._rng.integers(2**63)), self.updates_done]
                self._rng = np.random.default_rng(mixed)
        self._updates_before, self._began = None, time.perf_counter()
        self._policy = journal.of_the_first(journal.policy)
        self.batches_done = batches_done
        schedule.resume(batches_done, self.updates_done)
        self._learning = self.updates_done > 0
        self.ended = False
        resumed = f"The search is resumed after {self.updates_done} updates."
        journal.tell(resumed if self._learning else schedule.begin())

    def training_choices(
        self, num_examples: int | None = None, *, batches_done: int | None = None
    ) -> list[Allocation]:
        """The choices that the next training batch is shared among: equal runs of its examples.

        Args:
            num_examples: Examples of the batch; None if they cannot be told apart, for which
                there is one choice only.
            batches_done: Batches before this one; by default they are counted here.

        Raises:
            RuntimeError: If the search has not started.
        """
        schedule = self._started()
        done = self.batches_done if batches_done is None else batches_done
        learning = schedule.learning(done)
        if learning and not self._learning:
            self._learning = True
            self._journal.tell(
                f"The controller begins to learn: {self.plan.num_updates} updates, each from "
                f"{self.plan.group_size} choices."
            )
        self.batches_done = done + 1
        if num_examples is not None:
            self._num_examples = max(num_examples, self._num_examples or 0)
        return training_choices(
            self.space,
            self.plan,
            self._rng,
            count=self._choices_per_step,
            num_examples=num_examples,
            full=done % 2 == 0,
            draw=(lambda count: self._draw(count)[0]) if learning else None,
        )

    def ask(self) -> Request | None:
        """What is to be scored or priced next, the same until it is told; None if nothing is."""
        return self._asking.ask()

    def tell(self, answer: Answer, *, step: int | None = None) -> None:
        """The qualities of the choices that were asked for, or the gradients.

        Args:
            answer: One quality for each choice, larger is better; of a ``Pricing`` what
                :func:`~optuna_nis.nn.mask_gradients` gives for each batch, or None for none.
            step: Training step at which they were measured, for the trials; by default the number
                of batches.

        Raises:
            RuntimeError: If nothing was asked for.
            ValueError: If there is not one for each, or in an update one is not finite; then
                others are to be asked for. Of proposals those that are not come last.
        """
        self._step = self.batches_done if step is None else step
        self._asking.tell(answer)

    def answer(
        self,
        score: Callable[[Scoring], Sequence[float]],
        price: Callable[[Pricing], Sequence[Sequence[Gradients]] | None] | None = None,
        *,
        step: int | None = None,
    ) -> None:
        """Ask for what is to be scored, and tell the qualities, until nothing is for now.

        Args:
            score: Gives the qualities of the choices, as :meth:`tell` takes them.
            price: The same of gradients; without it there are none.
            step: As in :meth:`tell`.
        """
        while (asked := self.ask()) is not None:
            if isinstance(asked, Scoring):
                self.tell(score(asked), step=step)
            else:
                self.tell(price and price(asked), step=step)

    def end_training(self, *, stopped: bool = False) -> None:
        """Say that the supernet has been trained; what is asked for then leads to the candidates.

        Args:
            stopped: Whether the training was stopped before its time: if updates are missing,
                there are no candidates.
        """
        self.ended = True
        if stopped and self.plan.warmup < 1 and self.updates_done < self.plan.num_updates:
            self._failed = (
                f"the training was stopped after {self.updates_done} of "
                f"{self.plan.num_updates} updates of the controller"
            )
            _logger.warning(
                f"The search has no candidates: {self._failed}. Go on from a checkpoint, or "
                "leave out what stops the training."
            )

    def shortlist(self) -> Shortlist:
        """The candidates, to be trained for real; what comes out of it is to be recorded.

        Raises:
            RuntimeError: If the search is not done.
        """
        return Shortlist(
            self.candidates,
            self.plan,
            keep=self._ending.safe(self.candidates, self._origins),
            supernet_batches=self.batches_done,
            error=self.rewarding.error,
            reward=self.rewarding.reward,
        )

    def record(self, found: Sequence[Candidate], *, seconds: float | None = None) -> None:
        """Write choices that were trained for real into the study, best first, once.

        Args:
            found: The candidates of the :meth:`shortlist`.
            seconds: The time that the search took; by default since its start.
        """
        self.check_done()
        assert self._search_id is not None
        reward = self.rewarding.reward
        write_found(
            self.study, self.space, self._search_id, found, reward, self._step, self._origins
        )
        search = join(self.study, self._search_id, seed=self._seed)
        finish(self.study, search, self._seconds() if seconds is None else seconds)

    def _seconds(self) -> float:
        """The time it has taken so far."""
        began = self._began
        return self._seconds_before + (0.0 if began is None else time.perf_counter() - began)

    def _next_work(self) -> Work | None:
        if self._schedule is None:
            return None
        if not self.ended:
            due = self._schedule.num_due(self.batches_done)
            return self._update() if self.updates_done < due else None
        is_open = self._candidates is None and self._failed is None
        return self._end() if is_open else None

    def _update(self) -> Work:
        """Draw a group, have it scored, and learn from it."""
        full = self.space.full()
        yield from self.rewarding.refer()
        choices, options, log_probs = self._draw(self.plan.group_size)
        *qualities, of_full = yield Scoring((*choices, full), self.plan.score_examples)
        for quality, choice in zip([*qualities, of_full], [*choices, full]):
            self.rewarding.reward(quality, choice)  # Told as it is if it is not a finite number.
        assert self.rewarding.reference is not None
        offset = self.rewarding.reference - of_full
        rewards = [
            self.rewarding.reward(q + offset, choice) for q, choice in zip(qualities, choices)
        ]
        self._policy.update(options, [reward.value for reward in rewards], log_probs)
        others = self._journal.write(
            self._policy.params(options),
            rewards,
            fidelity=SUPERNET,
            step=self._step,
            log_probs=log_probs.tolist(),
            reference=offset,
        )
        if others:
            # In the order of the study, this group included.
            self._policy = self._journal.policy()
        self._journal.note(self._policy)
        # Rounding must not drive the processes apart.
        self._policy = self._journal.of_the_first(lambda: self._policy)
        self.updates_done += 1
        self.mean_reward = float(np.mean([reward.value for reward in rewards]))
        used = [(reward.nbytes or 0) / self.space.budget_nbytes for reward in rewards]
        self.mean_memory = float(np.mean(used))
        self._journal.tell_progress(self.updates_done, self.plan.num_updates, self.mean_reward)

    def _end(self) -> Work:
        """Find the candidates."""
        yield from self._again()
        while self.updates_done < self.plan.num_updates:
            yield from self._update()  # Those that no batch has made.
        yield from self.rewarding.refer()
        pricer = None
        if self._prices:
            pricer = Pricer(
                # Draws of its own: what the policy proposes does not depend on it.
                np.random.default_rng([self._journal.search.seed, 1]),
                num_examples=self._num_examples,
                side_by_side=self._choices_per_step > 1,
            )
        found = yield from self._ending.find(
            self._policy,
            self._rng,
            self._journal,
            self.rewarding.reward,
            pricer,
            num_batches=self.batches_done,
            tolerance=self.rewarding.memory_price,
        )
        self._origins = found.origins
        self._journal.write(
            [self.space.params(allocation) for allocation in found.rewards],
            list(found.rewards.values()),
            fidelity=VALIDATED,
            step=self._step,
            origins=list(found.origins.values()),
        )
        self._candidates = found.candidates
        self._journal.tell(
            f"The supernet is trained; candidates: {len(found.candidates)} of "
            f"{len(found.rewards)} choices scored on all validation data. Which is best, only "
            "training them for real tells."
        )

    def _again(self) -> Work:
        """Draw and score as in updates that were made before an interruption, and learn nothing.

        What follows are then the draws and the examples that would have followed.
        """
        if self._updates_again:
            yield from self.rewarding.refer()
        for _ in range(self._updates_again):
            choices, *_ = self._draw(self.plan.group_size)
            yield Scoring((*choices, self.space.full()), self.plan.score_examples)
        self._updates_again = 0

    def _started(self) -> Schedule:
        if self._schedule is None:
            raise RuntimeError("`start` the search first.")
        return self._schedule

    def _draw(self, count: int) -> tuple[list[Allocation], Any, Any]:
        options, log_probs = self._policy.sample(count, self._rng)
        choices = [self.space.allocation(params) for params in self._policy.params(options)]
        return choices, options, log_probs
