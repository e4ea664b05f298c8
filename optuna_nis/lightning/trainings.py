"""Trainings from scratch on the same data, each known to the study once it has ended.

A training and its test are apart: validation decides what to take before anything is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
import hashlib
import json
import math
from pathlib import Path
import shutil
from statistics import fmean
import tempfile
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule
from optuna import Study
import torch

from optuna_nis import __version__
from optuna_nis._format import duration, size
from optuna_nis._logging import get_logger
from optuna_nis._tensor_files import read, write
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning._memory import free, looked_at
from optuna_nis.lightning._package import is_overridden
from optuna_nis.lightning._training_key import has_bar, untold
from optuna_nis.lightning.building import BuildModel
from optuna_nis.lightning.logged import warn_of_another
from optuna_nis.lightning.processes import Group
from optuna_nis.lightning.progress import RowLines
from optuna_nis.lightning.rewards import Monitored
from optuna_nis.lightning.training import Data, copies, evaluated, listed, train
from optuna_nis.models import EmbeddingModule
from optuna_nis.nn._sharded_layers import own_rows, whole_build
from optuna_nis.nn.table import TableLayer
from optuna_nis.serve.files import save as save_in_file
from optuna_nis.serve.predictor import Predictor
from optuna_nis.space.allocation import Allocation
from optuna_nis.study.keys import TRAINING_KEY

_logger = get_logger(__name__)

# Trainings that ended by other rules are other trainings.
_RULES = 2


@dataclass(frozen=True)
class Comparison:
    """How sizes are trained from scratch and tested.

    Attributes:
        build: Makes a model of given sizes.
        data: The data, those of the test included.
        monitored: By which value of validation a training stops and finds its best epoch.
        test_monitor: Name under which the models log their test metric.
        max_epochs: Most epochs of a training, see :func:`train`.
        patience: Validations without improvement, see :func:`train`.
        callbacks: Further callbacks of the trainers, such as a progress bar. Every training has
            copies of its own.
        progress: Called with a line of text before and after each training.
        output: Folder for the best model of the sizes that are taken, see :class:`Predictor`, or
            the file of a model of another kind, see :func:`~optuna_nis.serve.files.save`;
            until that is known it has the first one of the found sizes.
        key: Values for JSON by which a training is known again, and not run again; None runs all.
        trainer_options: Further arguments of the trainers.
        checkpoint_dir: Where trained weights wait for their test, in a folder of the study's own;
            by default they do not outlive the process.
        group: The processes of the trainers.
    """

    build: BuildModel
    data: Data
    monitored: Monitored
    test_monitor: str
    max_epochs: int | None = None
    patience: int = 2
    callbacks: Sequence[Callback] = ()
    progress: Callable[[str], None] = lambda text: None
    output: str | None = None
    key: Sequence[Any] | None = None
    trainer_options: Mapping[str, Any] | None = None
    checkpoint_dir: str | Path | None = None
    group: Group = field(default_factory=Group)

    def predicts(self, model: LightningModule) -> bool:
        """Whether a model and the data are of this package, and become a predictor."""
        return isinstance(model, EmbeddingModule) and isinstance(self.data, EmbeddingDataModule)

    def tested(self, model: LightningModule, **trainer_options: Any) -> dict[str, float]:
        """What a model logs in a test, the test metric among it.

        Args:
            model: The model.
            **trainer_options: Arguments of the trainer in place of those of all trainers.

        Raises:
            ValueError: If it logs none of that name, or has no test.
        """
        if not is_overridden("test_step", model):
            raise ValueError(
                f"{type(model).__name__} must define `test_step`, which logs its test metric."
            )
        found = evaluated(
            model,
            self.data,
            monitor=self.test_monitor,
            callbacks=self.monitored.callbacks(),
            named="test_monitor",
            **{**(self.trainer_options or {}), **trainer_options},
        )
        first = self.group.share(found)
        warn_of_another(self.test_monitor, found[self.test_monitor], first[self.test_monitor])
        return first


@dataclass(frozen=True)
class Run:
    """What a finished training came to.

    Attributes:
        metric: Name of the metric on the test data.
        value: The metric on the test data, None before the test.
        monitor: Name of the metric on the validation data.
        val_metric: The metric on the validation data, at its best.
        val_error: Standard error of that, None if it is unknown.
        best_epoch: The epoch, from 1, in which it was reached.
        epochs: Number of epochs.
        steps: Number of steps.
        decays: How often the learning rate was lowered.
        learning_rate: The learning rate that it began with, None if it is unknown.
        stopped: Whether it ended by itself.
        seconds: Time it took.
        num_dense_parameters: Parameters of the model outside its embeddings.
        metrics: Other metrics on the test data by their names, none before the test.
    """

    metric: str
    value: float | None
    monitor: str
    val_metric: float
    val_error: float | None
    best_epoch: int
    epochs: int
    steps: int
    decays: int
    learning_rate: float | None
    stopped: bool
    seconds: float
    num_dense_parameters: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"validation {self.monitor} {self.val_metric:.4f} in epoch {self.best_epoch} of "
            f"{self.epochs}, {self.steps:,} steps, {duration(self.seconds)}"
        )


class Trainings:
    """Trainings of one kind on the same data; those that a study knows are not run again.

    Used as a context, at whose end the weights that were kept go.

    Args:
        study: The study.
        how: How sizes are trained.
        largest: Bytes of the largest tables.
    """

    def __init__(self, study: Study, how: Comparison, largest: int) -> None:
        self._study = study
        self._how = how
        self._progress = how.progress
        self._largest = largest
        #: Trainings that are left, about.
        self.left = 0
        self._seconds: list[float] = []
        self._runs: dict[str, Run] = {}
        # The one whose model is in the output.
        self._saved: str | None = None
        # By what names people know them.
        self._labels: dict[str, list[str]] = {}
        self._group = how.group
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._lock: FileLock | None = None
        if how.checkpoint_dir is None:
            self._temporary = tempfile.TemporaryDirectory()
            self._folder = Path(self._temporary.name)
        else:
            name = hashlib.sha256(study.study_name.encode()).hexdigest()[:16]
            self._folder = self._group.own(Path(how.checkpoint_dir) / f"retrain-{name}")
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._folder / "lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                # Another comparison is at work there; its weights are not ours to remove.
                self._temporary = tempfile.TemporaryDirectory(dir=how.checkpoint_dir)
                self._folder = Path(self._temporary.name)
            self._warn_of_untold()

    def __enter__(self) -> Trainings:
        return self

    def __exit__(self, error: type[BaseException] | None, *args: object) -> None:
        if self._lock is not None:
            self._lock.release()
        # Whoever goes on needs what an interrupted comparison has trained.
        if error is None or self._temporary is not None:
            self._group.wait()
            shutil.rmtree(self._folder, ignore_errors=True)
            if self._group.is_first:
                # Of other numbers of processes that were interrupted.
                for other in self._folder.parent.glob(f"{self._folder.name}.*"):
                    shutil.rmtree(other, ignore_errors=True)
            self._group.wait()
            # The parent too, if it is empty.
            if self._how.checkpoint_dir is not None:
                with suppress(OSError):
                    self._folder.parent.rmdir()

    def run(self, label: str, allocation: Allocation, seed: int) -> Run:
        """What a training comes to, run or known."""
        key = self._key(allocation, seed)
        labels = self._labels.setdefault(key, [])
        if key not in self._runs:
            if (known := self._known(key)) is None:
                self._train(label, allocation, seed)
            else:
                self._warn_of_own(allocation)
                self._runs[key] = known
                self._seconds.append(known.seconds)
                self._progress(f"{label}, seed {seed}: finished before, {known}.")
        elif label not in labels:
            self._progress(f"{label}, seed {seed}: as {labels[0]}, {self._runs[key]}.")
        if label not in labels:
            labels.append(label)
        return self._runs[key]

    def _warn_of_untold(self) -> None:
        """Say if nothing of an interrupted comparison could be taken for what it is."""
        if self._how.key is not None or not self._group.is_first:
            return
        names = untold(self._how.trainer_options or {}, listed(self._how.callbacks))
        if names:
            _logger.warning(
                "If this is interrupted, it begins anew, in spite of `checkpoint_dir`: trainings "
                f"are known again by all that changes them, and {' and '.join(names)} cannot be "
                "told from others (they cannot be pickled)."
            )

    def _warn_of_own(self, allocation: Allocation) -> None:
        """Say once that nothing tells whether data or a model of one's own have changed."""
        if self._runs or not self._group.is_first:
            return
        of_package = isinstance(self._how.data, EmbeddingDataModule)
        # Models of one's own may be large: none is made if the data have told already.
        if not (of_package and self._how.predicts(looked_at(self._how.build, allocation))):
            _logger.warning(
                "Trainings that ended before the retraining was interrupted are taken as they "
                "are. If the data or how the model is trained have changed since, call it without "
                "`checkpoint_dir`."
            )

    def num_unknown(self, sizes: Iterable[Allocation], seeds: Iterable[int]) -> int:
        """How many of some trainings are still to be run: of all sizes with all seeds."""
        keys = {self._key(allocation, seed) for allocation in sizes for seed in seeds}
        known = self._kept()
        return sum(key not in self._runs and TRAINING_KEY + key not in known for key in keys)

    def tested(self, label: str, allocation: Allocation, seed: int) -> Run:
        """What a training that was run comes to on the test data too."""
        key = self._key(allocation, seed)
        if self._runs[key].value is None:
            model = self._trained(label, allocation, seed)
            found = self._how.tested(model)
            known = model.more_metrics if isinstance(model, EmbeddingModule) else {}
            more = {name: found[logged] for name, logged in known.items() if logged in found}
            run = replace(
                self._runs[key],
                value=found[self._how.test_monitor],
                metrics={name: value for name, value in more.items() if math.isfinite(value)},
            )
            self._record(key, run)
        return self._runs[key]

    def has_weights(self, allocation: Allocation, seed: int) -> bool:
        """Whether the weights of a training are kept."""
        there = self._file(self._key(allocation, seed)).exists()
        return all(self._group.all_of(there))

    def save(self, label: str, allocation: Allocation, seeds: Sequence[int]) -> None:
        """Save the model of some sizes with the best validation, if the output is not that."""
        output, sign = self._how.output, self._how.monitored.sign
        assert output is not None
        values = [self._runs[self._key(allocation, seed)].val_metric for seed in seeds]
        seed = seeds[max(range(len(seeds)), key=lambda index: sign * values[index])]
        key = self._key(allocation, seed)
        if self._saved == key or self._group.share(self._is_written(output, key)):
            return
        model = self._trained(label, allocation, seed)
        # All rows of tables that are spread, in the first process.
        weights = model.state_dict()
        if self._group.is_first:
            if (build := whole_build(self._how.build)) is not self._how.build:
                model = build(allocation)
                model.load_state_dict(weights)
            if self._how.predicts(model):
                assert isinstance(model, EmbeddingModule)
                assert isinstance(self._how.data, EmbeddingDataModule)
                predictor = Predictor(model, allocation, self._how.data.features)
                predictor.save(output, training=key)
            else:
                save_in_file(model, output)
        self._saved = key

    def _is_written(self, output: str, key: str) -> bool:
        """Whether an earlier call has written the model of a training, where keys tell of it."""
        return self._how.key is not None and Predictor.training_of(output) == key

    def _known(self, key: str) -> Run | None:
        key = TRAINING_KEY + key
        found = self._kept().get(key)
        return None if found is None else _read(key, found)

    def _kept(self) -> Mapping[str, Any]:
        """What the study keeps, trainings among it, if their kind can be told."""
        if self._how.key is None:
            return {}
        return self._study._storage.get_study_system_attrs(self._study._study_id)

    def _trained(self, label: str, allocation: Allocation, seed: int) -> LightningModule:
        """The model of a training that was run, which is run again if its weights are gone."""
        file = self._file(self._key(allocation, seed))
        if not self.has_weights(allocation, seed):
            self._progress(
                f"{label}, seed {seed}: trained once more, its weights are needed and not kept."
            )
            self.left += 1
            return self._train(label, allocation, seed)
        self._free()
        torch.manual_seed(seed)
        model = self._how.build(allocation)
        model.load_state_dict(read(file))
        return model

    def _train(self, label: str, allocation: Allocation, seed: int) -> LightningModule:
        self._progress(
            f"{label}, seed {seed}: embeddings of {size(allocation.nbytes())}, "
            f"{allocation.num_parameters:,} parameters."
        )
        how, key = self._how, self._key(allocation, seed)
        if isinstance(how.data, EmbeddingDataModule):
            how.data.shuffle_seed = seed
        self._folder.mkdir(parents=True, exist_ok=True)
        self._free()
        training = train(
            how.build,
            allocation,
            how.data,
            seed=seed,
            max_epochs=how.max_epochs,
            patience=how.patience,
            monitor=how.monitored.name,
            mode=how.monitored.mode,
            callbacks=[
                *how.monitored.callbacks(),
                RowLines(self._progress, f"{label}, seed {seed}"),
                *copies(how.callbacks),
            ],
            checkpoint_dir=self._folder,
            **({"enable_progress_bar": has_bar(how.callbacks)} | dict(how.trainer_options or {})),
        )
        model = training.model
        before = self._runs.get(key)
        run = Run(
            metric=getattr(model, "metric_name", how.monitored.label),
            value=None if before is None else before.value,
            metrics={} if before is None else before.metrics,
            monitor=how.monitored.label_of(model),
            val_metric=training.val_metric,
            val_error=training.val_error if math.isfinite(training.val_error) else None,
            best_epoch=training.best_epoch,
            epochs=training.epochs,
            steps=training.steps,
            decays=training.decays,
            learning_rate=model.learning_rate if isinstance(model, EmbeddingModule) else None,
            stopped=training.ended,
            seconds=training.seconds,
            num_dense_parameters=_num_dense_parameters(model, allocation),
        )
        # First the weights: what is known as finished can be tested.
        file = self._file(key)
        with own_rows():
            write(model.state_dict(), file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)
        self._group.wait()
        self._record(key, run)
        self.left -= 1
        self._seconds.append(run.seconds)
        more = ""
        if self.left > 0:
            trainings = "1 training" if self.left == 1 else f"{self.left} trainings"
            more = f"; about {duration(fmean(self._seconds) * self.left)} left for {trainings}"
        self._progress(f"{label}, seed {seed}: {run}{more}.")
        return model

    def _free(self) -> None:
        """Before another model is made, give back the memory of those of before."""
        free(self._how.data, self._largest)

    def _record(self, key: str, run: Run) -> None:
        self._runs[key] = run
        if self._how.key is not None:
            self._study._storage.set_study_system_attr(
                self._study._study_id, TRAINING_KEY + key, asdict(run)
            )

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.pt"

    def _key(self, allocation: Allocation, seed: int) -> str:
        how = self._how
        settings = [__version__, _RULES, *(how.key or ()), how.max_epochs, how.patience]
        if self._group.size > 1:
            settings.append(self._group.size)
        text = json.dumps([*settings, allocation.to_json(), seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _num_dense_parameters(model: LightningModule, allocation: Allocation) -> int:
    """Parameters outside the embeddings."""
    if isinstance(model, EmbeddingModule):
        return model.num_dense_parameters()
    tables = [module for module in model.modules() if isinstance(module, TableLayer)]
    inside = {parameter for table in tables for parameter in table.parameters()}
    # Rows that are codes have their steps too.
    own = max(sum(p.numel() for p in inside), allocation.num_parameters)
    return sum(p.numel() for p in model.parameters()) - own


def _read(key: str, value: Any) -> Run:
    try:
        run = Run(**value)
        numbers = [run.val_metric, run.best_epoch, run.epochs, run.steps, run.seconds]
        numbers += [number for number in (run.value, run.val_error) if number is not None]
        numbers += run.metrics.values()
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("a number is not finite")
        return run
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"The system attribute {key!r} must hold what a training came to, got "
            f"{str(value)[:80]!r}: {error}."
        ) from error
