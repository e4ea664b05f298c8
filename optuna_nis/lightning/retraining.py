"""The best sizes of a study, trained from scratch beside baselines and tested once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
import hashlib
import json
import math
from statistics import fmean
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from optuna import Study

from optuna_nis import __version__
from optuna_nis._checks import check_folder, check_integer
from optuna_nis._format import duration
from optuna_nis._logging import get_logger
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.data.config import data_of, read_data
from optuna_nis.lightning.parts import parts_of_data
from optuna_nis.lightning.training import evaluate, train
from optuna_nis.models import EmbeddingModule, reference_model
from optuna_nis.serve.predictor import Predictor
from optuna_nis.space.allocation import Allocation
from optuna_nis.strategy import baselines
from optuna_nis.study.results import (
    MODEL_OPTIONS_ATTR,
    PLAIN_SECONDS_ATTR,
    RetrainResult,
    best_allocation,
    cautions_of,
    save_parts,
    save_results,
    space_of,
)

TRAINING_KEY = "nis:training:"
"""Study system attribute: a finished training, the rest of the name says which."""

_logger = get_logger(__name__)


def retrain(
    study: Study,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    output: str | None = None,
    max_epochs: int = 30,
    patience: int = 3,
    callbacks: Sequence[Callback] = (),
    progress: Callable[[str], None] = lambda text: None,
    **model_options: Any,
) -> list[RetrainResult]:
    """Train the best allocation of a study from scratch, and baselines, and test them.

    The baselines are the full tables and uniform sizes at the same budget; of the latter the rows
    are taken as they are or projected to the full width, whichever validates better. Each
    training goes on until validation stops improving and returns to its best epoch.

    Ids are those that were searched, whatever has come into the table since. The study keeps what
    each finished training came to: called again, with the same data and options, only those are
    run that are not finished, with the same results.

    Args:
        study: A searched study; the results are written into it.
        seeds: Seeds of the weights and of the order of the training rows.
        output: Folder for the model of the best allocation with the best validation, see
            :class:`Predictor`. It holds one as soon as the first is trained.
        max_epochs: Most epochs of a training.
        patience: Epochs without improvement after which a training stops.
        callbacks: Further callbacks of the trainers, such as a progress bar.
        progress: Called with a line of text before and after each training.
        **model_options: Arguments of the reference model in place of those of the search.

    Returns:
        The results, best allocation first.

    Raises:
        ValueError: If the study has not been searched, the seeds are not distinct integers from 0
            or there is none, or ``output`` cannot be written.

    Example:
        >>> import optuna
        >>> from optuna_nis.lightning import DataConfig, search
        >>> study = optuna.create_study(direction="maximize")
        >>> config = DataConfig(dataset="flights", max_rows=2_000)
        >>> _ = search(study, config, budget="25%", epochs=1, num_updates=2)
        >>> [result.name for result in retrain(study, seeds=[0], max_epochs=1)]
        ['nis', 'uniform', 'full']
    """
    if not seeds:
        raise ValueError("`seeds` must hold at least one seed, got none.")
    for seed in seeds:
        check_integer("seeds", seed, 0)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` must hold each seed once, got {list(seeds)}.")
    check_integer("max_epochs", max_epochs, 1)
    check_integer("patience", patience, 1)
    if output is not None:
        check_folder("output", output)
    data, space, best = data_of(study), space_of(study), best_allocation(study)
    datamodule = read_data(study, data, withhold_test=False, progress=progress)
    options = study.user_attrs.get(MODEL_OPTIONS_ATTR, {}) | model_options
    trainings = _Trainings(
        study,
        datamodule,
        options,
        max_epochs=max_epochs,
        patience=patience,
        callbacks=callbacks,
        progress=progress,
        total=3 * len(seeds) + 1,
    )

    def result(name: str, label: str, sizes: Allocation, runs: Sequence[_Run]) -> RetrainResult:
        return RetrainResult(
            name=name,
            label=label,
            metric=runs[0].metric,
            values=tuple(run.value for run in runs),
            seeds=tuple(seeds),
            num_parameters=sizes.num_parameters,
            num_dense_parameters=runs[0].num_dense_parameters,
            allocation=sizes,
            seconds=sum(run.seconds for run in runs),
            val_values=tuple(run.val_metric for run in runs),
            epochs=tuple(run.epochs for run in runs),
            stopped=tuple(run.stopped for run in runs),
        )

    nis = trainings.best_sizes("NIS", best, seeds, output)
    variants = []
    for projected in (False, True):
        sizes = baselines.uniform(space, projected=projected)
        label = "Uniform, projected" if projected else "Uniform"
        variants.append((label, sizes, trainings.run(label, sizes, seeds[0])))
    label, sizes, first = max(variants, key=lambda variant: variant[2].val_metric)
    uniform = [first, *(trainings.run(label, sizes, seed) for seed in seeds[1:])]
    full = [trainings.run("Full size", space.full(), seed) for seed in seeds]
    results = [
        result("nis", "NIS", best, nis),
        result("uniform", label, sizes, uniform),
        result("full", "Full size", space.full(), full),
    ]
    save_parts(study, parts_of_data(datamodule, trainings.build(best), ["validation", "test"]))
    save_results(study, results)
    study.set_user_attr(PLAIN_SECONDS_ATTR, fmean(run.seconds for run in full))
    for line in cautions_of(study):
        _logger.warning(line)
    return results


@dataclass(frozen=True)
class _Run:
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


class _Trainings:
    """Trainings of one kind on the same data; those that a study knows are not run again."""

    def __init__(
        self,
        study: Study,
        datamodule: EmbeddingDataModule,
        options: dict[str, Any],
        *,
        max_epochs: int,
        patience: int,
        callbacks: Sequence[Callback],
        progress: Callable[[str], None],
        total: int,
    ) -> None:
        self.build = reference_model(datamodule.features, **options)
        self._study = study
        self._datamodule = datamodule
        self._max_epochs = max_epochs
        self._patience = patience
        self._callbacks = list(callbacks)
        self._progress = progress
        self._left = total
        self._seconds: list[float] = []
        # Whatever changes what a training comes to.
        self._settings = [
            __version__,
            datamodule.fingerprint(),
            datamodule.batch_size,
            max_epochs,
            patience,
            json.loads(json.dumps(options, default=float)),
        ]

    def run(self, label: str, allocation: Allocation, seed: int) -> _Run:
        """What a training comes to, run or known."""
        return self._known(label, allocation, seed) or self._train(label, allocation, seed)[0]

    def best_sizes(
        self, label: str, allocation: Allocation, seeds: Sequence[int], output: str | None
    ) -> list[_Run]:
        """What a training with each seed comes to; the best model is kept in a folder."""
        runs: list[_Run] = []
        for seed in seeds:
            known = self._known(label, allocation, seed)
            if known is not None:
                runs.append(known)
                continue
            run, model = self._train(label, allocation, seed)
            if output is not None and all(run.val_metric > other.val_metric for other in runs):
                self._save(model, allocation, seed, output)
            runs.append(run)
        leader = max(range(len(seeds)), key=lambda index: runs[index].val_metric)
        key = self._key(allocation, seeds[leader])
        if output is not None and Predictor.training_of(output) != key:
            self._progress(
                f"{label}: {output} does not hold the best model, which is kept nowhere."
            )
            self._left += 1
            _, model = self._train(label, allocation, seeds[leader])
            self._save(model, allocation, seeds[leader], output)
        return runs

    def _known(self, label: str, allocation: Allocation, seed: int) -> _Run | None:
        key = TRAINING_KEY + self._key(allocation, seed)
        found = self._study._storage.get_study_system_attrs(self._study._study_id).get(key)
        if found is None:
            return None
        run = _read(key, found)
        self._count(run)
        self._progress(f"{label}, seed {seed}: finished before, {run}.")
        return run

    def _train(
        self, label: str, allocation: Allocation, seed: int
    ) -> tuple[_Run, EmbeddingModule]:
        self._progress(
            f"{label}, seed {seed}: {allocation.num_parameters:,} embedding parameters."
        )
        self._datamodule.shuffle_seed = seed
        monitor = self.build(allocation).monitor
        epochs = _Epochs(monitor)
        training = train(
            self.build,
            allocation,
            self._datamodule,
            seed=seed,
            max_epochs=self._max_epochs,
            patience=self._patience,
            monitor=monitor,
            callbacks=[epochs, *self._callbacks],
            enable_progress_bar=bool(self._callbacks),
        )
        model = training.model
        assert isinstance(model, EmbeddingModule)
        run = _Run(
            metric=model.metric_name,
            value=evaluate(model, self._datamodule),
            monitor=model.monitor_name,
            val_metric=training.val_metric,
            best_epoch=epochs.best + 1,
            epochs=training.epochs,
            stopped=len(epochs.values) - 1 - epochs.best >= self._patience,
            seconds=training.seconds,
            num_dense_parameters=model.num_dense_parameters(),
        )
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

    def _count(self, run: _Run) -> None:
        self._left -= 1
        self._seconds.append(run.seconds)

    def _save(
        self, model: EmbeddingModule, allocation: Allocation, seed: int, output: str
    ) -> None:
        predictor = Predictor(model, allocation, self._datamodule.features)
        predictor.save(output, training=self._key(allocation, seed))

    def _key(self, allocation: Allocation, seed: int) -> str:
        text = json.dumps([*self._settings, allocation.to_json(), seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class _Epochs(Callback):
    """The validation metric after each epoch, larger is better."""

    def __init__(self, monitor: str) -> None:
        self._monitor = monitor
        self.values: list[float] = []

    @property
    def best(self) -> int:
        """The epoch, from 0, that a training returns to."""
        return max(range(len(self.values)), key=lambda epoch: self.values[epoch])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note it."""
        self.values.append(float(trainer.callback_metrics[self._monitor]))


def _read(key: str, value: Any) -> _Run:
    try:
        run = _Run(**value)
        numbers = (run.value, run.val_metric, run.best_epoch, run.epochs, run.seconds)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("a number is not finite")
        return run
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The system attribute {key!r} must hold what a training came to, got "
            f"{str(value)[:80]!r}: {error}."
        ) from error
