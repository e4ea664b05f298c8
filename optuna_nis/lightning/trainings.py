"""Trainings from scratch on the same data, each known to the study once it has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
import hashlib
import json
import math
from statistics import fmean
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from optuna import Study

from optuna_nis import __version__
from optuna_nis._format import duration
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning._package import is_overridden
from optuna_nis.lightning.building import BuildModel
from optuna_nis.lightning.rewards import Monitored
from optuna_nis.lightning.training import Data, evaluate, train
from optuna_nis.models import EmbeddingModule
from optuna_nis.serve.predictor import Predictor
from optuna_nis.space.allocation import Allocation
from optuna_nis.study.keys import TRAINING_KEY


@dataclass(frozen=True)
class Comparison:
    """How sizes are trained from scratch and tested.

    Attributes:
        build: Makes a model of given sizes.
        data: The data, those of the test included.
        monitored: By which value of validation a training stops and finds its best epoch.
        test_monitor: Name under which the models log their test metric.
        max_epochs: Most epochs of a training.
        patience: Epochs without improvement after which a training stops.
        callbacks: Further callbacks of the trainers, such as a progress bar.
        progress: Called with a line of text before and after each training.
        output: Folder for the best model of the best sizes, see :class:`Predictor`.
        key: Values for JSON by which a training is known again, and not run again; None runs all.
        trainer_options: Further arguments of the trainers.
    """

    build: BuildModel
    data: Data
    monitored: Monitored
    test_monitor: str
    max_epochs: int = 30
    patience: int = 3
    callbacks: Sequence[Callback] = ()
    progress: Callable[[str], None] = lambda text: None
    output: str | None = None
    key: Sequence[Any] | None = None
    trainer_options: Mapping[str, Any] | None = None

    @property
    def sign(self) -> float:
        """1 if larger values of validation are better, -1 if smaller are."""
        return 1.0 if self.monitored.mode == "max" else -1.0

    def tested(self, model: LightningModule, **trainer_options: Any) -> float:
        """The test metric of a model.

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
        return evaluate(
            model,
            self.data,
            monitor=self.test_monitor,
            callbacks=self.monitored.callbacks(),
            **{**(self.trainer_options or {}), **trainer_options},
        )


@dataclass(frozen=True)
class Run:
    """What a finished training came to.

    Attributes:
        metric: Name of the metric on the test data.
        value: The metric on the test data.
        monitor: Name of the metric on the validation data.
        val_metric: The metric on the validation data, at the best epoch.
        best_epoch: The best epoch.
        epochs: Number of epochs.
        stopped: Whether it ended by itself.
        seconds: Time it took.
        num_dense_parameters: Parameters of the model outside its embeddings.
    """

    metric: str
    value: float
    monitor: str
    val_metric: float
    best_epoch: int
    epochs: int
    stopped: bool
    seconds: float
    num_dense_parameters: int

    def __str__(self) -> str:
        return (
            f"validation {self.monitor} {self.val_metric:.4f} in epoch {self.best_epoch} of "
            f"{self.epochs}, {duration(self.seconds)}"
        )


class Trainings:
    """Trainings of one kind on the same data; those that a study knows are not run again."""

    def __init__(self, study: Study, comparison: Comparison, total: int) -> None:
        self._study = study
        self._how = comparison
        self._progress = comparison.progress
        self._left = total
        self._seconds: list[float] = []

    def run(self, label: str, allocation: Allocation, seed: int) -> Run:
        """What a training comes to, run or known."""
        return self._known(label, allocation, seed) or self._train(label, allocation, seed)[0]

    def best_sizes(self, label: str, allocation: Allocation, seeds: Sequence[int]) -> list[Run]:
        """What a training with each seed comes to; the best model is kept in a folder."""
        output, sign = self._how.output, self._how.sign
        runs: list[Run] = []
        for seed in seeds:
            known = self._known(label, allocation, seed)
            if known is not None:
                runs.append(known)
                continue
            run, model = self._train(label, allocation, seed)
            if output is not None and all(
                sign * run.val_metric > sign * other.val_metric for other in runs
            ):
                self._save(model, allocation, seed, output)
            runs.append(run)
        leader = max(range(len(seeds)), key=lambda index: sign * runs[index].val_metric)
        key = self._key(allocation, seeds[leader])
        if output is not None and Predictor.training_of(output) != key:
            self._progress(
                f"{label}: {output} does not hold the best model, which is kept nowhere."
            )
            self._left += 1
            _, model = self._train(label, allocation, seeds[leader])
            self._save(model, allocation, seeds[leader], output)
        return runs

    def _known(self, label: str, allocation: Allocation, seed: int) -> Run | None:
        if self._how.key is None:
            return None
        key = TRAINING_KEY + self._key(allocation, seed)
        found = self._study._storage.get_study_system_attrs(self._study._study_id).get(key)
        if found is None:
            return None
        run = _read(key, found)
        self._count(run)
        self._progress(f"{label}, seed {seed}: finished before, {run}.")
        return run

    def _train(self, label: str, allocation: Allocation, seed: int) -> tuple[Run, LightningModule]:
        self._progress(
            f"{label}, seed {seed}: {allocation.num_parameters:,} embedding parameters."
        )
        how = self._how
        if isinstance(how.data, EmbeddingDataModule):
            how.data.shuffle_seed = seed
        epochs = _Epochs(how.monitored.name, how.sign)
        training = train(
            how.build,
            allocation,
            how.data,
            seed=seed,
            max_epochs=how.max_epochs,
            patience=how.patience,
            monitor=how.monitored.name,
            mode=how.monitored.mode,
            callbacks=[*how.monitored.callbacks(), epochs, *how.callbacks],
            **({"enable_progress_bar": bool(how.callbacks)} | dict(how.trainer_options or {})),
        )
        model = training.model
        test = how.tested(model)
        run = Run(
            metric=getattr(model, "metric_name", how.monitored.label),
            value=test,
            monitor=getattr(model, "monitor_name", how.monitored.label),
            val_metric=training.val_metric,
            best_epoch=epochs.best + 1,
            epochs=training.epochs,
            stopped=len(epochs.values) - 1 - epochs.best >= how.patience,
            seconds=training.seconds,
            num_dense_parameters=_num_dense_parameters(model, allocation),
        )
        if how.key is not None:
            self._study._storage.set_study_system_attr(
                self._study._study_id, TRAINING_KEY + self._key(allocation, seed), asdict(run)
            )
        self._count(run)
        more = ""
        if self._left:
            trainings = "1 training" if self._left == 1 else f"{self._left} trainings"
            more = f"; about {duration(fmean(self._seconds) * self._left)} left for {trainings}"
        self._progress(f"{label}, seed {seed}: {run}{more}.")
        return run, model

    def _count(self, run: Run) -> None:
        self._left -= 1
        self._seconds.append(run.seconds)

    def _save(
        self, model: LightningModule, allocation: Allocation, seed: int, output: str
    ) -> None:
        assert isinstance(model, EmbeddingModule)
        assert isinstance(self._how.data, EmbeddingDataModule)
        predictor = Predictor(model, allocation, self._how.data.features)
        predictor.save(output, training=self._key(allocation, seed))

    def _key(self, allocation: Allocation, seed: int) -> str:
        how = self._how
        settings = [__version__, *(how.key or ()), how.max_epochs, how.patience]
        text = json.dumps([*settings, allocation.to_json(), seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _num_dense_parameters(model: LightningModule, allocation: Allocation) -> int:
    """Parameters outside the embeddings."""
    if isinstance(model, EmbeddingModule):
        return model.num_dense_parameters()
    return sum(p.numel() for p in model.parameters()) - allocation.num_parameters


class _Epochs(Callback):
    """The validation metric after each epoch, negated if smaller is better."""

    def __init__(self, monitor: str, sign: float) -> None:
        self._monitor, self._sign = monitor, sign
        self.values: list[float] = []

    @property
    def best(self) -> int:
        """The epoch, from 0, that a training returns to."""
        return max(range(len(self.values)), key=lambda epoch: self.values[epoch])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note it."""
        self.values.append(self._sign * float(trainer.callback_metrics[self._monitor]))


def _read(key: str, value: Any) -> Run:
    try:
        run = Run(**value)
        numbers = (run.value, run.val_metric, run.best_epoch, run.epochs, run.seconds)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("a number is not finite")
        return run
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The system attribute {key!r} must hold what a training came to, got "
            f"{str(value)[:80]!r}: {error}."
        ) from error
