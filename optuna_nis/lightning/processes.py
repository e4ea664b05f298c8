"""The processes that search and train together, each running the same program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
import math
import os
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from optuna import Study, logging
from optuna.storages import InMemoryStorage
import torch
from torch import distributed

from optuna_nis._checks import check_integer
from optuna_nis._logging import get_logger
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning._package import is_a
from optuna_nis.lightning.training import quiet_lightning, quiet_trainer
from optuna_nis.models import EmbeddingModule, embeddings
from optuna_nis.models.reference import ReferenceModel
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace

_logger = get_logger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Group:
    """The processes that search or train together; each is one of them.

    What a search or a training keeps on disk each process keeps in files of its own: its rows of
    tables that are spread are nobody else's. The first process has the study.

    Attributes:
        rank: Which one this is, from 0.
        size: How many they are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that has the study."""
        return self.rank == 0

    def share(self, value: _T) -> _T:
        """What the first process has, in all of them."""
        if self.size == 1:
            return value
        shared = [value]
        distributed.broadcast_object_list(shared, src=0)
        return shared[0]

    def all_of(self, value: _T) -> list[_T]:
        """What each process has, in all of them."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Until all processes are here."""
        self.all_of(None)

    def own(self, path: Path) -> Path:
        """The path that stands for another one in this process: that itself in the first."""
        return path if self.is_first else path.with_name(f"{path.name}.{self.rank}")

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """A block that the others come to when the first process is through, or has failed."""
        try:
            if not self.is_first:
                self.wait()
            yield
        finally:
            if self.is_first:
                self.wait()

    def only_first(self, progress: Callable[[str], None]) -> Callable[[str], None]:
        """What is called with lines of text in the first process, in the others nothing."""
        return progress if self.is_first else lambda text: None

    def study(self, study: Study) -> Study:
        """The study in the first process; in the others a copy of that, in memory.

        All read the same, and what the others write nobody sees.
        """
        if self.size == 1:
            return study
        kept = None
        if self.is_first:
            system_attrs = study._storage.get_study_system_attrs(study._study_id)
            kept = (
                study.study_name,
                study.directions,
                study.user_attrs,
                system_attrs,
                study.get_trials(),
            )
        shared = self.share(kept)
        if self.is_first:
            return study
        assert shared is not None
        name, directions, user_attrs, system_attrs, trials = shared
        storage, verbosity = InMemoryStorage(), logging.get_verbosity()
        logging.set_verbosity(logging.WARNING)  # It is no new study.
        storage.create_new_study(directions, name)
        logging.set_verbosity(verbosity)
        copy = Study(name, storage)
        for attr, value in user_attrs.items():
            copy.set_user_attr(attr, value)
        for attr, value in system_attrs.items():
            storage.set_study_system_attr(copy._study_id, attr, value)
        copy.add_trials(trials)
        return copy


def group_of(trainer_options: Mapping[str, Any]) -> Group:
    """The processes of trainers with some options.

    Args:
        trainer_options: Arguments of a :class:`lightning.pytorch.Trainer`.

    Raises:
        ValueError: If they are several and were not started together, or keep one model otherwise
            than each with all weights.
    """
    with quiet_lightning():
        trainer = quiet_trainer(**trainer_options)
    return group_of_trainer(trainer)


def group_of_trainer(trainer: Trainer) -> Group:
    """The processes of a trainer; see :func:`group_of`."""
    if trainer.world_size == 1:
        _warn_of_torchrun()
        return Group()
    if not is_a(trainer.strategy, "DDPStrategy"):
        raise ValueError(
            "`trainer_options` of several processes must have the strategy 'ddp', got "
            f"{type(trainer.strategy).__name__}."
        )
    started = distributed.is_available() and distributed.is_initialized()
    if not started or distributed.get_world_size() != trainer.world_size:
        there = distributed.get_world_size() if started else "none"
        raise ValueError(
            f"`trainer_options` are of {trainer.world_size} processes, of which there are "
            f"{there}: start the program with torchrun, and let it begin with "
            "`torch.distributed.init_process_group()`. Or start searches of one study side by "
            "side."
        )
    return Group(distributed.get_rank(), distributed.get_world_size())


@cache
def _warn_of_torchrun() -> None:
    """Say, once, that processes that were started together do not train together."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and distributed.is_torchelastic_launched() and os.environ.get("RANK") == "0":
        _logger.warning(
            f"torchrun has started {size} processes, each of which searches and trains on its "
            "own. For them to do so together let the program begin with "
            "`torch.distributed.init_process_group()`, and give "
            f'`trainer_options={{"strategy": "ddp", "devices": {size}}}`.'
        )


def joined_by_torchrun() -> dict[str, Any] | None:
    """Join the processes that torchrun has started, if it has.

    Returns:
        Options of trainers that train in all of them; None if this process is alone.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not distributed.is_torchelastic_launched():
        return None
    if not distributed.is_initialized():
        # Tables are spread by gloo, on CPUs.
        distributed.init_process_group(None if torch.cuda.is_available() else "gloo")
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return {"strategy": "ddp", "devices": local, "num_nodes": size // local}


def built(
    reference: ReferenceModel, space: SearchSpace, shard_tables_above: int | None, group: Group
) -> Callable[[SearchSpace | Allocation], EmbeddingModule]:
    """What makes the models, their large tables spread over the processes if that is asked for.

    Raises:
        ModuleNotFoundError: If they are to be spread and torchrec is not installed.
        ValueError: If there is one process only, or no table is so large.
    """
    if shard_tables_above is None:
        return reference
    # Below, reference models have dense gradients.
    check_integer("shard_tables_above", shard_tables_above, embeddings.SPARSE_ABOVE)
    largest = max(space.specs, key=lambda spec: spec.num_embeddings)
    if largest.num_embeddings <= shard_tables_above:
        raise ValueError(
            "`shard_tables_above` must be less than the number of ids of the largest table, "
            f"{largest.num_embeddings} of {largest.name!r}, got {shard_tables_above}."
        )
    if group.size == 1:
        raise ValueError(
            "`shard_tables_above` is for several processes, between which rows are shared, got "
            f"{shard_tables_above!r} in one: start the program with torchrun."
        )
    from optuna_nis.nn.sharding import sharded

    return sharded(reference, above=shard_tables_above)


@contextmanager
def shared_batches(data: object, group: Group) -> Iterator[None]:
    """Let the batches of all processes together be as large as those of one are otherwise.

    Args:
        data: What is trained on; only data modules of this package tell how large batches are.
        group: The processes.
    """
    if group.size == 1 or not isinstance(data, EmbeddingDataModule):
        yield
        return
    before = data.batch_size
    data.batch_size = math.ceil(before / group.size)
    try:
        yield
    finally:
        data.batch_size = before
