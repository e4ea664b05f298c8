"""What a search keeps on disk while it is at work, so that it goes on when it was killed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
import os
from pathlib import Path
import shutil
import time
from typing import Any

from filelock import FileLock, Timeout
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from optuna import Study
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from optuna_nis._tensor_files import read, write
from optuna_nis.data.batches import Epochs
from optuna_nis.lightning.convergence import Convergence
from optuna_nis.lightning.processes import Group
from optuna_nis.nn._sharded_layers import own_rows
from optuna_nis.strategy.search import SizeSearch
from optuna_nis.study.searches import other_settings, searches_of

# Seconds between two checkpoints, at least, and the largest share of the time that they may take.
_INTERVAL = 1.0
_MAX_SHARE = 0.02


class SearchFolder:
    """The folder of one search, of one process at a time.

    It holds a checkpoint of the supernet and its best weights while that is trained, its weights
    and the shortlist when it has been, and the trainings of the shortlist.

    Args:
        path: The folder.
        search_id: The id of the search; by default the name of the folder.
    """

    def __init__(self, path: Path, search_id: str | None = None) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.search_id = search_id or path.name
        self.supernet = path / "supernet.ckpt"
        self.best = path / "best"
        self.trainings = path / "shortlist"
        self._path = path
        self._searched = path / "searched.pt"
        self._time = path / "seconds"
        self._start = time.perf_counter()
        self._before = 0.0
        # A process that dies lets go of it.
        self._lock = FileLock(path / "lock")
        self._lock.acquire(timeout=0)
        with suppress(FileNotFoundError):
            self._before = float(self._time.read_text())

    @classmethod
    def of_interrupted(
        cls, study: Study, parent: Path, settings: Mapping[str, Any]
    ) -> SearchFolder | None:
        """The folder of a search that was interrupted and that no process has taken up.

        Args:
            study: The study.
            parent: Where the folders are.
            settings: What the search must have been started with.
        """
        for search in searches_of(study).values():
            path = parent / search.id
            is_open = search.seconds is None and path.is_dir()
            if is_open and not other_settings(search, settings):
                with suppress(Timeout):
                    return cls(path)
        return None

    @classmethod
    def is_left(cls, path: Path) -> bool:
        """Whether there is a folder of a search that no process has taken up."""
        if not path.is_dir():
            return False
        try:
            cls(path).release()
        except Timeout:
            return False
        return True

    @property
    def seconds(self) -> float:
        """The time that the search has taken, but for what was lost when it was killed."""
        return self._before + time.perf_counter() - self._start

    def note_time(self) -> None:
        """Keep the time that the search has taken."""
        new = self._time.with_suffix(".new")
        new.write_text(str(self.seconds))
        new.replace(self._time)

    def save_searched(
        self, weights: Mapping[str, torch.Tensor], search: SizeSearch, mode: str
    ) -> None:
        """Keep a trained supernet, the search and whether it goes for large or small values."""
        new = self._searched.with_suffix(".new")
        write({"weights": weights, "search": search.state_dict(), "mode": mode}, new)
        new.replace(self._searched)
        self.supernet.unlink(missing_ok=True)
        shutil.rmtree(self.best, ignore_errors=True)
        self.note_time()

    @property
    def is_searched(self) -> bool:
        """Whether the supernet has been trained."""
        return self._searched.exists()

    def load_searched(self) -> dict[str, Any]:
        """What :meth:`save_searched` kept."""
        found: dict[str, Any] = read(self._searched)
        return found

    def remove(self) -> None:
        """Leave nothing behind, the parent neither if it is empty."""
        self._lock.release()
        shutil.rmtree(self._path, ignore_errors=True)
        with suppress(OSError):
            self._path.parent.rmdir()

    def release(self) -> None:
        """Let another process take up the search."""
        self._lock.release()


class PeriodicCheckpoint(Callback):
    """Keeps a training in a file every second, less often where that takes long.

    Nothing is kept after the last batch of an epoch but at the epoch's end, and nothing at the
    end of the last: Lightning would go on from there with the epoch once more, or not at all.

    Args:
        path: The file, replaced each time, at once.
        folder: Keeps the time too.
    """

    def __init__(self, path: Path, folder: SearchFolder | None = None) -> None:
        self._path = path
        self._folder = folder
        self._next = 0.0
        self._loaded: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """The state of torch's random numbers, which Lightning does not keep."""
        return {"rng": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put it back."""
        self._loaded = state_dict["rng"]
        torch.set_rng_state(self._loaded)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._next = time.monotonic() + _INTERVAL

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the random numbers back once more, in the middle of an epoch."""
        if batch_idx > 0:
            self._take_back()
        self._loaded = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the random numbers back of a training that had ended."""
        self._take_back()

    def _take_back(self) -> None:
        """Undo what the data draw when they are begun anew."""
        if self._loaded is not None:
            torch.set_rng_state(self._loaded)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the training if it is time."""
        if batch_idx + 1 < trainer.num_training_batches and _goes_on_in_epoch(trainer):
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the training if it is time."""
        if trainer.max_epochs is not None and trainer.current_epoch + 1 < trainer.max_epochs:
            self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        if not trainer.strategy.broadcast(time.monotonic() >= self._next):
            return
        start = time.monotonic()
        save_checkpoint(trainer, self._path)
        if self._folder is not None and trainer.is_global_zero:
            self._folder.note_time()
        took = time.monotonic() - start
        self._next = start + took + max(_INTERVAL, took / _MAX_SHARE - took)


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Replace a checkpoint at once: whoever is killed meanwhile leaves the old one.

    Of several processes each has one of its own, with the rows that are its own.
    """
    new = path.with_suffix(".new")
    with own_rows():
        trainer.save_checkpoint(new)
    os.replace(new, path)
    # What one of them has, all have, unless they are killed just here.
    trainer.strategy.barrier()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Convergence):
            callback.forget_earlier()


def checkpoint_of_all(path: Path, group: Group) -> Path | None:
    """A checkpoint of this process, if each process has one and all are of the same step."""
    if group.size == 1:
        return path if path.exists() else None
    step = None
    if path.exists():
        step = read(path)["global_step"]
    steps = set(group.all_of(step))
    return path if len(steps) == 1 and steps != {None} else None


def without_copies(trainer: Trainer, folder: Path) -> None:
    """Let a trainer write and read the checkpoints of a folder without a copy in memory.

    Where Lightning writes a checkpoint there is all of it in memory once more, and where it reads
    one, too. Whoever has given the trainer a way of his own keeps it.

    Args:
        trainer: The trainer.
        folder: Where the checkpoints are; for those elsewhere, such as remote ones, nothing
            changes.
    """
    own = trainer.strategy.checkpoint_io
    if type(own).__name__ == "TorchCheckpointIO":
        trainer.strategy.checkpoint_io = _Direct(own, folder)
    if trainer.world_size > 1:
        # Otherwise only the first process writes.
        trainer.strategy.save_checkpoint = _save_in_each(trainer)  # type: ignore[method-assign]


def _save_in_each(trainer: Trainer) -> Callable[..., None]:
    def save(checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    return save


def _goes_on_in_epoch(trainer: Trainer) -> bool:
    """Whether a training that is resumed in mid-epoch has the batches that are left.

    Lightning deals out to several processes what a sampler gives, always from the beginning.
    """
    sampler = getattr(trainer.train_dataloader, "sampler", None)
    return isinstance(sampler, Epochs) or not isinstance(sampler, DistributedSampler)


class _Direct(CheckpointIO):
    """Straight to a file and, page by page, from there."""

    def __init__(self, otherwise: CheckpointIO, folder: Path) -> None:
        self._otherwise = otherwise
        self._folder = folder

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        if self._is_outside(path):
            self._otherwise.save_checkpoint(checkpoint, path, storage_options)
        else:
            write(checkpoint, path)

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        if self._is_outside(path):
            return self._otherwise.load_checkpoint(path, *args, **options)
        found = read(path)
        # The weights are copied into the model. What else is taken as it is must not be in the
        # file, which is replaced while it is used.
        return {
            key: each if key == "state_dict" else deepcopy(each) for key, each in found.items()
        }

    def remove_checkpoint(self, path: Any) -> None:
        self._otherwise.remove_checkpoint(path)

    def _is_outside(self, path: Any) -> bool:
        return Path(path).parent != self._folder
