"""One training for each trial: an ordinary objective for ``Study.optimize``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import math
import threading
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
import optuna

from optuna_nis._logging import get_logger
from optuna_nis.lightning.building import BuildModel
from optuna_nis.lightning.logged import logged
from optuna_nis.lightning.rewards import MonitorMode, mode_by_name
from optuna_nis.lightning.training import Data, copies, train
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.strategy.reward import Reward
from optuna_nis.strategy.rewarding import reward_of
from optuna_nis.study.keys import NBYTES_ATTR, NUM_PARAMETERS_ATTR, TRAINED
from optuna_nis.study.recording import save_score
from optuna_nis.study.settings import save_space

_logger = get_logger(__name__)

# Trials that train now, in all threads of the process.
_lock = threading.Lock()
_num_trained = 0
_is_told = False


def objective(
    build_model: BuildModel,
    datamodule: Data,
    space: SearchSpace,
    *,
    max_epochs: int | None = None,
    patience: int = 2,
    monitor: str = "val_metric",
    mode: MonitorMode | None = None,
    penalty_weight: float = 1.0,
    seed: int = 0,
    **trainer_options: Any,
) -> Callable[[optuna.Trial], float]:
    """An objective that trains a model of the suggested sizes and returns its penalised metric.

    After every validation, by default one for each epoch, the reward is reported, as step 0, 1 and
    so on, and the trial is pruned if the study's pruner says so. Quality, penalty, bytes and
    parameters become user attributes of the trial, and a choice above the budget breaks the
    constraint ``"memory"``. A training whose metric is never a finite number makes its trial fail,
    and the study goes on. The study remembers the space.

    Args:
        build_model: Makes a model of given sizes, such as ``lambda sizes:
            apply_allocation(Model(), sizes)`` (:func:`~optuna_nis.nn.apply_allocation`).
        datamodule: Train and validation data, or the dataloaders of both.
        space: The sizes to choose from, and their budget.
        max_epochs: As in :func:`train`.
        patience: As in :func:`train`.
        monitor: Name under which the model logs its validation metric.
        mode: Whether the largest (``"max"``) or the smallest (``"min"``) value of it is best; by
            default ``"min"`` for a monitor with "loss" in its name, ``"max"`` for one such as an
            accuracy, an AUC or a recall. Others need it. The quality of a trial is
            negated for ``"min"``.
        penalty_weight: Weight of the memory above the budget, see
            :func:`~optuna_nis.penalised_reward`.
        seed: Seed of every training, so that they differ in their sizes only. It does not hold
            for trials that train in several threads at once (``n_jobs``), which share torch's
            random numbers.
        **trainer_options: Further arguments of the :class:`lightning.pytorch.Trainer`. Of
            ``callbacks`` every training has copies of its own.

    Returns:
        A function for :meth:`optuna.Study.optimize` of a study that maximises, also with a loss
        as the monitor. It raises a :exc:`ValueError` if the study has another direction or was
        searched with another space, or the model does not log ``monitor`` in validation.

    Example:
        >>> from optuna_nis import NISSampler
        >>> from optuna_nis.lightning import RankingModule
        >>> space = SearchSpace(data.embedding_specs(8), budget="50%")
        >>> study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=space))
        >>> study.optimize(objective(RankingModule, data, space, max_epochs=1), n_trials=2)
        >>> study.best_trial.user_attrs["fidelity"]
        'trained'
    """
    direction = mode_by_name(monitor, mode)

    def rewarded(metric: float, allocation: Allocation) -> Reward:
        quality = metric if direction == "max" else -metric
        return reward_of(allocation, quality, space, penalty_weight=penalty_weight)

    def run(trial: optuna.Trial) -> float:
        save_space(trial.study, space)
        allocation = space.suggest(trial)
        trial.set_user_attr(NUM_PARAMETERS_ATTR, allocation.num_parameters)
        trial.set_user_attr(NBYTES_ATTR, allocation.nbytes())
        # Constraints of trials are new in Optuna 5.
        if hasattr(trial, "set_constraint"):
            trial.set_constraint("memory", float(allocation.nbytes() - space.budget_nbytes))
        pruning = _Pruning(trial, monitor, lambda metric: rewarded(metric, allocation).value)
        callbacks = [pruning, *copies(trainer_options.get("callbacks"))]
        try:
            with _alone(seed):
                training = train(
                    build_model,
                    allocation,
                    datamodule,
                    seed=seed,
                    max_epochs=max_epochs,
                    patience=patience,
                    monitor=monitor,
                    mode=direction,
                    **(trainer_options | {"callbacks": callbacks}),
                )
        except FloatingPointError as error:
            _logger.warning(str(error))
            return math.nan  # With which a trial fails.
        reward = rewarded(training.val_metric, allocation)
        save_score(trial, reward, TRAINED)
        return reward.value

    return run


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """Warn, once, if another training goes on in this process."""
    global _is_told, _num_trained
    with _lock:
        _num_trained += 1
        is_new = _num_trained > 1 and not _is_told
        _is_told |= is_new
    if is_new:
        _logger.warning(
            "Several trials train at once in threads of one process, which share torch's random "
            f"numbers: `seed` {seed} does not make their trainings alike. Processes, in place of "
            "`n_jobs`, have their own."
        )
    try:
        yield
    finally:
        with _lock:
            _num_trained -= 1


class _Pruning(Callback):
    """Report the reward after each validation; stop where the pruner says so."""

    def __init__(
        self, trial: optuna.Trial, monitor: str, reward: Callable[[float], float]
    ) -> None:
        self._trial = trial
        self._monitor = monitor
        self._reward = reward
        self._step = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metric = logged(trainer, self._monitor)
        if math.isfinite(metric):
            self._trial.report(self._reward(metric), step=self._step)
        self._step += 1
        if self._trial.should_prune():
            raise optuna.TrialPruned(f"Pruned after epoch {trainer.current_epoch}.")
