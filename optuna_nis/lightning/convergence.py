"""When a training has ended: not after some number of epochs, but when nothing more is learned."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
import math
from pathlib import Path
import tempfile
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
import torch

from optuna_nis._checks import check_integer
from optuna_nis._tensor_files import read, write
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning._batch import batch_length
from optuna_nis.lightning._package import is_a
from optuna_nis.lightning.logged import logged_by_first
from optuna_nis.lightning.parts import labels_of, num_rows
from optuna_nis.lightning.rewards import Monitored
from optuna_nis.models import EmbeddingModule
from optuna_nis.models.items import ItemsModule
from optuna_nis.nn._sharded_layers import own_rows
from optuna_nis.study.uncertainty import auc_standard_error, share_standard_error

#: Standard error of a value of the metric on validation data.
Error = Callable[[float], float]

#: Validations without improvement that are waited for by default.
PATIENCE = 2
# By what the learning rate is multiplied when validation has stopped improving, and how often.
_DECAY = 0.2
NUM_DECAYS = 1
# What single ids say is learned soon, their interactions only after a while in which validation
# hardly moves: so many steps are waited for, and half of those that were needed so far.
_LEAST_STEPS = 300
_LEAST_SHARE = 0.5
# Validations this far below the best, one after the other, are no plateau but overfitting.
_DECLINE_ERRORS = 2.0
_NUM_DECLINED = 2
# Steps between two validations, at most, in epochs that are long enough for more than one.
_STEPS_BETWEEN = 500
_MOST_IN_EPOCH = 8
# What a training may take if nothing else is said.
_EPOCHS, _STEPS = 30, 10_000


def check_ending(max_epochs: int | None, patience: int) -> None:
    """Raise a ValueError if no training can end by these numbers; see :class:`Convergence`."""
    if max_epochs is not None:
        check_integer("max_epochs", max_epochs, 1)
    check_integer("patience", patience, 1)


class Convergence(Callback):
    """Ends a training when it has ended, at its best weights.

    The training begins with the learning rate of the model's optimisers. When validation has
    stopped improving, the weights and the state of the optimisers go back to their best, the
    learning rate is lowered to a fifth, and the training goes on; when validation stops improving
    again, it ends. So a rate that is somewhat too large does no harm, and one set of rules serves
    all data. Models that have a schedule of the learning rate keep it and train in one stage.

    Validation has stopped improving

    - after ``patience`` validations without a better one, which are at least 300 steps and half
      as many as the best took, since many data are learned in stages with a plateau between them
      (with the lowered rate the validations alone count), or
    - at once where two validations in a row are below the best by more than twice the standard
      error of the metric: that is no plateau but overfitting.

    There is a validation after each epoch, in epochs of 1,000 steps and more up to eight at equal
    distances.

    Args:
        monitored: The value that tells how good the model is, or what tells it after a validation,
            where it is not known before whether large or small is good.
        patience: Validations without improvement.
        max_epochs: Most epochs; by default 30, and where epochs are short and the model has no
            schedule of the learning rate, as many as make 10,000 steps.
        error: Standard error of the value; by default that of a share of the validation examples,
            where it is between 0 and 1 and large is good.
        num_decays: How often the learning rate is lowered before the training ends.
        min_delta: Standard errors by which a validation must be better for the waiting to begin
            anew; the best weights are the best in any case. By default whatever is better does.
        folder: Where the best weights are kept meanwhile. A checkpoint has the name of their file
            only, and whoever has replaced a checkpoint must :meth:`forget_earlier` ones. By
            default they are in a folder for temporary files, and in each checkpoint too.
    """

    def __init__(
        self,
        monitored: Monitored | Callable[[], Monitored],
        *,
        patience: int = PATIENCE,
        max_epochs: int | None = None,
        error: Error | None = None,
        num_decays: int = NUM_DECAYS,
        min_delta: float = 0.0,
        folder: Path | None = None,
    ) -> None:
        self._num_decays = num_decays
        self._min_delta = min_delta
        self._told = monitored
        self._patience = patience
        self._max_epochs = max_epochs
        self._error = error
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory()
            folder = Path(self._temporary.name)
        self._folder = folder
        # The file of the best weights, and the one that the checkpoint on disk names.
        self._file: Path | None = None
        self._needed: Path | None = None
        self._num_saved = 0
        self._rows = 0
        #: The best value and the last one, as they were logged.
        self.best = self.last = math.nan
        #: Validations so far.
        self.num_validations = 0
        #: Steps, and epochs from 1, after which it was reached.
        self.best_step = self.best_epoch = 0
        #: How often the learning rate has been lowered.
        self.decays = 0
        #: Whether the training has ended by itself, and not at the most epochs allowed.
        self.ended = self._had_ended = False
        # The value and the step since which it waits.
        self._mark, self._mark_step = math.nan, 0
        self._waited = self._declined = 0

    @staticmethod
    def most_epochs(max_epochs: int | None) -> int:
        """What the trainer is to be made with."""
        return _EPOCHS if max_epochs is None else max_epochs

    def state_dict(self) -> dict[str, Any]:
        """What a training that is resumed needs, the best weights or their file among it."""
        state = {
            "best": self.best,
            "best_step": self.best_step,
            "best_epoch": self.best_epoch,
            "decays": self.decays,
            "mark": self._mark,
            "mark_step": self._mark_step,
            "waited": self._waited,
            "declined": self._declined,
            "ended": self.ended,
        }
        if self._temporary is None:
            return state | {"file": None if self._file is None else self._file.name}
        return state | {"weights": None if self._file is None else self._load()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            FileNotFoundError: If the best weights are no longer where they were.
        """
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.best_epoch, self.decays = state_dict["best_epoch"], state_dict["decays"]
        self._waited, self._declined = state_dict["waited"], state_dict["declined"]
        self._mark = state_dict.get("mark", self.best)
        self._mark_step = state_dict.get("mark_step", self.best_step)
        self._had_ended = state_dict.get("ended", False)
        if state_dict.get("weights") is not None:
            self._replace(state_dict["weights"])
        elif (name := state_dict.get("file")) is not None:
            self._file = self._needed = self._folder / name
            if not self._file.is_file():
                raise FileNotFoundError(
                    f"The best weights of the training that is resumed must be in {self._file}, "
                    "beside its checkpoint. Remove the checkpoint to train anew."
                )
            self._num_saved = int(self._file.stem)

    def forget_earlier(self) -> None:
        """Remove the weights that were best before: no checkpoint names them any more."""
        self._needed = self._file
        self._remove_others()

    @property
    def _monitored(self) -> Monitored:
        return self._told if isinstance(self._told, Monitored) else self._told()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan the validations, and how long it may take."""
        # A checkpoint may be of the end, and trainers do not remember that they were to stop.
        self.ended, self._had_ended = self._had_ended, False
        trainer.should_stop = trainer.should_stop or self.ended
        batches = trainer.num_training_batches
        scheduled = bool(trainer.lr_scheduler_configs)
        self._can_decay = bool(trainer.optimizers) and _is_rate_free(trainer, pl_module)
        if trainer.global_step == 0 and self._num_decays > 0:
            # Where a rate is so large that nothing is learned, a lower one begins anew.
            self._save(trainer, pl_module)
        if not math.isfinite(batches):
            return
        steps = math.ceil(batches / trainer.accumulate_grad_batches)
        if self._max_epochs is None and not scheduled and trainer.max_steps == -1:
            trainer.fit_loop.max_epochs = max(_EPOCHS, math.ceil(_STEPS / steps))
        own = trainer.val_check_batch != batches or trainer.check_val_every_n_epoch != 1
        parts = min(steps // _STEPS_BETWEEN, _MOST_IN_EPOCH)
        if parts > 1 and not own:
            trainer.val_check_batch = int(batches) // parts

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._rows = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the examples."""
        if self._error is None:
            try:
                self._rows += batch_length(batch)
            except ValueError:
                self._rows += 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best weights, or go back to them, or end the training."""
        # What is validated before or after the training is not its own.
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        monitored = self._monitored
        sign = monitored.sign
        # Of several processes all go by what the first one has seen.
        self.last = logged_by_first(trainer, monitored.name)
        self._rows = trainer.strategy.broadcast(self._rows * trainer.world_size)
        value = sign * self.last
        best = sign * self.best if self.best_epoch else -math.inf
        self.num_validations += 1
        if math.isfinite(value) and value > best:
            first = not self.best_epoch
            self.best, self.best_step = self.last, trainer.global_step
            self.best_epoch = trainer.current_epoch + 1
            self._declined = 0
            self._save(trainer, pl_module)
            if first or value > sign * self._mark + self._least_gain():
                self._mark, self._mark_step = self.best, self.best_step
                self._waited = 0
                return
        self._waited += 1
        falling = not math.isfinite(value) or (
            value < best - _DECLINE_ERRORS * self.standard_error(self.best)
        )
        self._declined = self._declined + 1 if falling else 0
        if not (self._is_patient(trainer) or self._declined >= _NUM_DECLINED):
            return
        if self._can_decay and self.decays < self._num_decays:
            self._decay(trainer, pl_module)
        else:
            self.ended = trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to the best weights."""
        if self.best_epoch:
            self.restore(pl_module)

    def restore(self, pl_module: LightningModule) -> None:
        """Give the model its best weights."""
        self._give(pl_module, self._load()["model"])

    def standard_error(self, value: float) -> float:
        """That of a value of the metric on the validation data; infinite if it is unknown."""
        if self._error is not None:
            return self._error(value)
        if self._monitored.mode == "min" or not 0.0 <= value <= 1.0 or not self._rows:
            return math.inf
        return share_standard_error(value, self._rows)

    def _least_gain(self) -> float:
        """By how much a value must be better for the waiting to begin anew."""
        gain = self._min_delta * self.standard_error(self._mark) if self._min_delta else 0.0
        return gain if math.isfinite(gain) else 0.0

    def _is_patient(self, trainer: Trainer) -> bool:
        if self._waited < self._patience:
            return False
        steps = trainer.global_step - self._mark_step
        needed = max(_LEAST_STEPS, _LEAST_SHARE * self._mark_step)
        return self.decays > 0 or steps >= needed

    @own_rows()
    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = {"state_dict": pl_module.state_dict()}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if is_a(callback, "WeightAveraging"):
                # What was validated are the averages; what is trained on is not.
                callback.on_save_checkpoint(trainer, pl_module, weights)
        state = {
            "model": weights["state_dict"],
            "trained": weights.get("current_model_state", weights["state_dict"]),
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "decays": self.decays,
        }
        self._replace(state)

    def _replace(self, state: dict[str, Any]) -> None:
        """Keep weights in a new file: a checkpoint may need that of before."""
        self._num_saved += 1
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._folder / f"{self._num_saved}.pt"
        new = self._file.with_suffix(".new")
        write(state, new)
        new.replace(self._file)
        self._remove_others()

    def _remove_others(self) -> None:
        for file in set(self._folder.glob("*.pt")) - {self._file, self._needed}:
            file.unlink(missing_ok=True)

    def _load(self) -> dict[str, Any]:
        """The best weights, not yet in memory."""
        assert self._file is not None
        state: dict[str, Any] = read(self._file)
        return state

    def _give(self, pl_module: LightningModule, weights: dict[str, Any]) -> None:
        pl_module.load_state_dict(weights, strict=pl_module.strict_loading)

    def _decay(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.decays += 1
        self._waited = self._declined = 0
        self._mark, self._mark_step = self.best, self.best_step
        state = self._load()
        # What is made under inference mode could not be trained afterwards.
        with torch.inference_mode(False):
            self._give(pl_module, state["trained"])
            for optimizer, known in zip(trainer.optimizers, state["optimizers"]):
                # What the file holds, an optimiser would train on.
                optimizer.load_state_dict(deepcopy(known))
        _scale_learning_rates(trainer, _DECAY ** (self.decays - state.get("decays", 0)))


def _is_rate_free(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Whether learning rates are neither those of a schedule nor the module's own business."""
    return not trainer.lr_scheduler_configs and pl_module.automatic_optimization


def _scale_learning_rates(trainer: Trainer, factor: float) -> None:
    """Multiply the learning rates of all optimisers."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor


def error_on_validation(
    model: LightningModule, data: object, monitor: str | None = None
) -> Error | None:
    """The standard error of the metric of a reference model on the validation part of its data.

    Args:
        model: The model.
        data: The data.
        monitor: Name of the value that is gone by; by default the metric that the model has.

    Returns:
        None for other models, data and values.
    """
    if not (isinstance(model, EmbeddingModule) and isinstance(data, EmbeddingDataModule)):
        return None
    if monitor not in (None, "val_metric", model.monitor):
        return None
    labels, weights = labels_of(data.val_dataloader(), model)
    if isinstance(model, ItemsModule):
        rows = num_rows(torch.ones_like(labels, dtype=torch.bool), weights)
        return _within(lambda value: share_standard_error(value, rows))
    positives, negatives = (num_rows(each, weights) for each in (labels > 0.5, labels <= 0.5))
    return _within(lambda value: auc_standard_error(value, positives, negatives))


def _within(error: Error) -> Error:
    """Infinite for what is no share: a model may say its quality by another number."""
    return lambda value: error(value) if 0.0 <= value <= 1.0 else math.inf
