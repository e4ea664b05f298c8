"""Which validation examples choices are scored on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
import math
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from optuna_nis._logging import get_logger
from optuna_nis.lightning._batch import batch_length, runs, take
from optuna_nis.lightning.rewards import NotLoggedError, Rewards
from optuna_nis.space.allocation import Allocation

_logger = get_logger(__name__)

_NEEDED = "NISCallback scores choices on validation data: "
_USELESS = (
    "No quality could be measured on any of the validation data: it was never a finite number. "
    "Has the training diverged, or do they hold examples of one class only, where both must be "
    "among them?"
)


@dataclass(frozen=True)
class _Batch:
    """A batch, the index of its dataloader if there are several, and its place in a pass."""

    data: Any
    dataloader_idx: int | None
    position: int


class ValidationScores:
    """Scores choices on validation data: groups on some examples, finalists on all.

    The dataloaders of the trainer are gone through in Lightning's order, as far as the trainer
    goes (``limit_val_batches``). Choices that are scored at once see the same examples.

    A group is scored on the first examples of the next batch. Where these cannot tell, such as
    examples of one class, more of the batch is taken, then further batches, until a quality can
    be measured; later groups are scored on as many.

    Args:
        rewards: How good choices are on given batches.
        num_examples: Examples of a batch that a group is scored on.
        dataloader_idx: Of several dataloaders only this one; by default all of them, the quality
            on all validation data being the mean over the dataloaders.
    """

    def __init__(
        self, rewards: Rewards, *, num_examples: int, dataloader_idx: int | None = None
    ) -> None:
        self._rewards = rewards
        self._dataloader_idx = dataloader_idx
        self._num_examples = num_examples
        self._num_batches = 1
        self._batches_seen = 0

    def state_dict(self) -> dict[str, int]:
        """How many batches there were so far, and on how many examples groups are scored."""
        return {
            "batches_scored": self._batches_seen,
            "num_examples": self._num_examples,
            "num_batches": self._num_batches,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a checkpoint."""
        self._batches_seen = state["batches_scored"]
        self._num_examples = state.get("num_examples", self._num_examples)
        self._num_batches = state.get("num_batches", self._num_batches)

    def start(self, trainer: Trainer) -> None:
        """Begin with the batch after those that were seen before.

        Raises:
            lightning.pytorch.utilities.exceptions.MisconfigurationException: If the trainer has no
                validation data.
        """
        loop = trainer.fit_loop.epoch_loop.val_loop
        if loop._combined_loader is None and trainer.enable_validation:
            # Unless the first epoch is validated, Lightning gets them later.
            trainer.validating = True
            loop.setup_data()
            trainer.training = True
        if trainer.limit_val_batches == 0:
            raise MisconfigurationException(f"{_NEEDED}`limit_val_batches=0` leaves none.")
        if loop._combined_loader is None or not loop._combined_loader.flattened:
            raise MisconfigurationException(f"{_NEEDED}the trainer needs a validation dataloader.")
        self._loaders = self._used_loaders(loop._combined_loader)
        self._batches = self._without_end(trainer)

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, on a batch of each dataloader, that there is what choices are scored by.

        Dataloaders for which the monitor is not logged, where it is for others, are left out from
        now on. Otherwise it leaves no trace: what is scored later is the same as without.

        Raises:
            lightning.pytorch.utilities.exceptions.MisconfigurationException: If there is not.
        """
        if self._rewards.side_by_side(pl_module):
            return
        used: list[int | None] = []
        names: set[str] = set()
        for index in self._loaders:
            with _untouched(trainer), isolate_rng(include_cuda=False):
                batches = list(islice(_pass(trainer, index), 1))
            try:
                self._rewards.try_out(trainer, pl_module, batches, dataloader_idx=index)
                used.append(index)
            except NotLoggedError as error:
                names.update(error.names)
        if not used:
            raise NotLoggedError(pl_module, sorted(names), self._rewards.logged)
        if len(used) < len(self._loaders) and trainer.is_global_zero:
            left_out = [index for index in self._loaders if index not in used]
            _logger.warning(
                f"{self._rewards.logged!r} is not logged for the first batch of the validation "
                f"dataloaders of index {left_out}: choices are scored by the others, {used}."
            )
        self._loaders = used

    def of_some(
        self, trainer: Trainer, pl_module: LightningModule, choices: Sequence[Allocation]
    ) -> Tensor:
        """Quality of choices on the next examples, as many as it takes.

        Returns:
            Shape ``(choices,)``, larger is better.

        Raises:
            ValueError: If no quality can be measured on any of the validation data.
        """
        before = self._num_examples, self._num_batches
        whole: dict[int, _Batch] = {}
        complete = self._extend(whole)
        while True:
            batches = list(whole.values())
            if len(batches) == 1:
                batches = [self._cut(batches[0])]
            quality = self._quality(trainer, pl_module, choices, batches)
            if not quality.isnan().all():
                self._tell_growth(trainer, before)
                return quality
            cut = batches[0] is not next(iter(whole.values()))
            if _in_any_process(trainer, cut):
                self._num_examples *= 2
            elif _in_any_process(trainer, not complete):
                self._num_batches *= 2
                complete = self._extend(whole)
            else:
                raise ValueError(_USELESS)

    def of_all(
        self, trainer: Trainer, pl_module: LightningModule, choices: Sequence[Allocation]
    ) -> Tensor:
        """Quality of choices on all validation data, the same for all.

        Returns:
            Shape ``(choices,)``, larger is better.

        Raises:
            ValueError: If no quality can be measured on it.
        """
        once = len(choices) == 1 or self._rewards.side_by_side(pl_module)
        found = []
        for index in self._loaders:
            batches = _Batches(partial(_pass, trainer, index))
            if not once and _in_any_process(trainer, not batches.repeat()):
                if trainer.is_global_zero:
                    _logger.info(
                        "The validation data are not the same each time they are gone over: they "
                        "are kept in memory until the finalists have been scored."
                    )
                batches.keep()
            score = partial(self._rewards.score, trainer, pl_module, choices)
            quality = score(batches.joined(self._joined_batches), dataloader_idx=index)
            if quality.isnan().all() and self._rewards.metric is None:
                quality = score(batches.joined(None), dataloader_idx=index)
            found.append(quality)
        quality = _mean(found)
        if quality.isnan().all():
            raise ValueError(_USELESS)
        return quality

    def parts(
        self, trainer: Trainer, num_examples: int | None
    ) -> Iterator[list[tuple[Any, int | None]]]:
        """The next so many examples, over and over, without a change of what is scored next.

        Args:
            trainer: The trainer.
            num_examples: The number; None takes one batch after the other as it is.

        Yields:
            Batches or parts of them, each with the index of its dataloader if there are several:
            so many that they hold the examples, where it is known how many a batch holds.
        """
        part: list[tuple[Any, int | None]] = []
        missing = wanted = num_examples or 1
        while True:
            for index in self._loaders:
                for batch in _pass(trainer, index):
                    for run, length in _runs(batch, num_examples):
                        part.append((run, index))
                        missing -= length
                        if missing <= 0:
                            yield part
                            part, missing = [], wanted

    @property
    def _joined_batches(self) -> int:
        """How many batches make one; a metric takes one batch after the other."""
        return 1 if self._rewards.metric is not None else self._num_batches

    def _used_loaders(self, combined: Any) -> list[int | None]:
        """Indices of the dataloaders; None for one only, or for several side by side."""
        several = combined._mode == "sequential" and len(combined.flattened) > 1
        indices: list[int | None] = [*range(len(combined.flattened))] if several else [None]
        wanted = self._dataloader_idx
        if wanted is None or (wanted == 0 and not several):
            return indices
        if wanted not in indices:
            raise MisconfigurationException(
                f"`monitor` is logged for the dataloader of index {wanted}, of the trainer's "
                f"validation dataloaders there are {len(indices)}."
            )
        return [wanted]

    def _without_end(self, trainer: Trainer) -> Iterator[_Batch]:
        """Batches again and again."""
        loop = trainer.fit_loop.epoch_loop.val_loop
        skipped = self._batches_seen % _num_batches(trainer, self._loaders)
        while True:
            combined, position = loop._combined_loader, -1
            pairs = ((data, index) for index in self._loaders for data in _pass(trainer, index))
            for position, (data, index) in enumerate(pairs):
                if position >= skipped:
                    self._batches_seen += 1
                    yield _Batch(data, index, position)
                if loop._combined_loader is not combined:
                    break  # `reload_dataloaders_every_n_epochs`
            if position < 0:
                raise MisconfigurationException(
                    f"{_NEEDED}the validation dataloader gave no batch."
                )
            skipped = 0 if loop._combined_loader is combined else position + 1

    def _extend(self, batches: dict[int, _Batch]) -> bool:
        """Add next batches until there are enough; whether there are no others."""
        while len(batches) < self._num_batches:
            batch = next(self._batches)
            if batch.position in batches:
                return True
            batches[batch.position] = batch
        return False

    def _tell_growth(self, trainer: Trainer, before: tuple[int, int]) -> None:
        if trainer.is_global_zero and before != (self._num_examples, self._num_batches):
            several = f"{self._num_batches:,} batches"
            one = f"up to {self._num_examples:,} examples of a batch"
            _logger.info(
                "No quality could be measured on fewer validation examples: groups of choices are "
                f"scored on {one if self._num_batches == 1 else several}."
            )

    def _cut(self, batch: _Batch) -> _Batch:
        try:
            if batch_length(batch.data) <= self._num_examples:
                return batch
            return replace(batch, data=take(batch.data, self._num_examples))
        except ValueError:
            return batch  # Not made of examples that can be told apart; it is used as it is.

    def _quality(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        choices: Sequence[Allocation],
        batches: Sequence[_Batch],
    ) -> Tensor:
        found = []
        for index in dict.fromkeys(batch.dataloader_idx for batch in batches):
            data = [batch.data for batch in batches if batch.dataloader_idx == index]
            if self._rewards.metric is None:
                data = _joined(data)
            found.append(
                self._rewards.score(trainer, pl_module, choices, data, dataloader_idx=index)
            )
        return _mean(found)


class _Batches:
    """Batches that are gone over several times.

    Args:
        make: Begins a pass over them.
    """

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return self._make()

    def repeat(self) -> bool:
        """Whether two passes begin with the same examples, as far as can be told."""
        # Random numbers that are drawn later do not depend on whether this was asked.
        with isolate_rng(include_cuda=False):
            first, second = (_tensors(next(self._make(), None)) for _ in range(2))
        return bool(first) and len(first) == len(second) and all(map(_same, first, second))

    def keep(self) -> None:
        """Give the batches of one pass from now on."""
        kept = list(self._make())
        self._make = lambda: iter(kept)

    def joined(self, count: int | None) -> _Batches:
        """These batches, so many of them being one; all of them by default."""
        if count == 1:
            return self

        def make() -> Iterator[Any]:
            batches = self._make()
            while part := list(islice(batches, count)):
                yield from _joined(part)

        return _Batches(make)


def _pass(trainer: Trainer, dataloader_idx: int | None) -> Iterator[Any]:
    """Batches of a dataloader of the trainer, of all side by side without an index."""
    combined: Any = trainer.fit_loop.epoch_loop.val_loop._combined_loader
    limits = trainer.num_val_batches
    if combined._mode == "sequential":
        loader, limit = combined.flattened[dataloader_idx or 0], limits[dataloader_idx or 0]
        yield from islice(loader, None if math.isinf(limit) else int(limit))
    else:
        # Not the trainer's own, which may be at work.
        loader = type(combined)(combined.iterables, combined._mode)
        loader.limits = limits
        batches = iter(loader)
        yield from (data for data, _, _ in islice(batches, sized_len(loader)))


@contextmanager
def _untouched(trainer: Trainer) -> Iterator[None]:
    """Let dataloaders go on afterwards as if nobody had asked them for a batch."""
    combined: Any = trainer.fit_loop.epoch_loop.val_loop._combined_loader
    loaders = [each for each in combined.flattened if isinstance(each, DataLoader)]
    holders: list[Any] = [*loaders, *(loader.sampler for loader in loaders)]
    holders += [getattr(loader.batch_sampler, "sampler", None) for loader in loaders]
    found = [getattr(holder, "generator", None) for holder in holders]
    generators = [each for each in found if isinstance(each, torch.Generator)]
    states = [(generator, generator.get_state()) for generator in generators]
    # Workers that persist.
    iterators = [(loader, loader._iterator) for loader in loaders]
    for loader in loaders:
        loader._iterator = None
    try:
        yield
    finally:
        for loader, iterator in iterators:
            loader._iterator = iterator
        for generator, state in states:
            generator.set_state(state)


def _num_batches(trainer: Trainer, loaders: Sequence[int | None]) -> int:
    """Batches of a pass over dataloaders, 1 if that is not known."""
    total = sum(trainer.num_val_batches[index or 0] for index in loaders)
    return 1 if math.isinf(total) else max(int(total), 1)


def _runs(batch: Any, num_examples: int | None) -> list[tuple[Any, int]]:
    """Runs of a batch with their lengths; one that is not cut counts as long enough."""
    if num_examples is not None:
        with suppress(ValueError):
            return [(run, batch_length(run)) for run in runs(batch, num_examples)]
    return [(batch, num_examples or 1)]


def _in_any_process(trainer: Trainer, decision: bool) -> bool:
    if trainer.world_size == 1:
        return decision
    return trainer.strategy.reduce_boolean_decision(decision, all=False)


def _mean(qualities: Sequence[Tensor]) -> Tensor:
    """Mean over the dataloaders that could tell."""
    known = [quality for quality in qualities if not quality.isnan().all()]
    return torch.stack(known).mean(0) if known else qualities[0]


def _tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch, as far as they can be seen."""
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, NaN where the other has NaN; no if it cannot be told."""
    try:
        parts, others = _dense_parts(one), _dense_parts(other)
        return len(parts) == len(others) and all(map(_equal, parts, others))
    except (NotImplementedError, RuntimeError, TypeError):
        return False


def _dense_parts(tensor: Tensor) -> list[Tensor]:
    """What tells a tensor of any layout from others."""
    if tensor.is_nested:
        # The lengths in the shape of a jagged one equal those of no other one.
        return list(tensor.unbind())
    if tensor.layout == torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    else:
        return [tensor]
    return [torch.tensor(tensor.shape), *parts]


def _equal(one: Tensor, other: Tensor) -> bool:
    if torch.equal(one, other):
        return True
    if one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _joined(batches: list[Any]) -> list[Any]:
    """Several batches as one; as they are if they do not tell what their examples are."""
    if len(batches) < 2:
        return batches
    try:
        for batch in batches:
            batch_length(batch)
        return [tree_map(_cat, *batches)]
    except (RuntimeError, TypeError, ValueError):
        return batches


def _cat(*parts: Any) -> Any:
    if all(part is None for part in parts):
        return None
    return torch.cat(parts)
