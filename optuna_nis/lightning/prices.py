"""What the blocks of all tables are worth, by gradients of the validation loss of any module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
import numpy as np
import torch
from torch import Tensor

from optuna_nis._logging import get_logger
from optuna_nis._steps import step_arguments, takes_iterator
from optuna_nis.lightning._batch import copied, examples_length, take
from optuna_nis.lightning._evaluation import Evaluation
from optuna_nis.lightning._validation import batch_weight, on_device
from optuna_nis.lightning.validation_scores import ValidationScores
from optuna_nis.nn import mask_gradients
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.strategy.block_values import Gradients, Path
from optuna_nis.strategy.pricing import Pricing

_logger = get_logger(__name__)

# What a module may define to say what its loss is.
_HOOK = "choice_loss"


class Prices:
    """Gradients of the loss on validation data, as a search asks for them.

    The loss is what the module's own ``choice_loss(batch)`` computes, if it has one; else what its
    ``training_step`` returns for a batch of validation data, in evaluation mode and without being
    logged. A module whose ``training_step`` cannot be used so is not priced: the search goes on
    without, and a warning says why. As scoring, it leaves no trace in the module.

    Args:
        space: The space of the choices.
        scores: Gives the validation examples.
    """

    def __init__(self, space: SearchSpace, scores: ValidationScores) -> None:
        self._full = space.full()
        self._scores = scores
        self._evaluation = Evaluation(space)

    def gradients(
        self, trainer: Trainer, pl_module: LightningModule, pricing: Pricing
    ) -> list[list[Gradients]] | None:
        """The gradients for each batch, means over processes; None if there are none."""
        why, found = "", []
        # Dataloaders draw random numbers for their workers; an error inside is to be undone, too.
        with isolate_rng(include_cuda=pl_module.device.type == "cuda"):
            try:
                found = self._gradients(trainer, pl_module, pricing)
            except Exception as error:  # Of the module, whatever it is.
                why = f"{type(error).__name__}: {error}"
        if trainer.world_size > 1:
            if trainer.strategy.reduce_boolean_decision(bool(why), all=False):
                why = why or "there are no gradients in another process"
            else:
                found = [[_mean(trainer, each) for each in batch] for batch in found]
        if not why:
            return found
        if trainer.is_global_zero:
            hint = (
                f" A method `{_HOOK}(batch)` of {type(pl_module).__name__}, which returns the "
                "loss of a validation batch, makes them possible."
            )
            _logger.warning(
                "The search goes on without gradients of the loss, which tell what each block of "
                f"the tables is worth: {why.rstrip('.')}."
                + ("" if hasattr(pl_module, _HOOK) else hint)
            )
        return None

    def _gradients(
        self, trainer: Trainer, pl_module: LightningModule, pricing: Pricing
    ) -> list[list[Gradients]]:
        _check(pl_module)
        parts = self._scores.parts(trainer, pricing.num_examples)
        found = []
        with self._evaluation.prepared(trainer, pl_module):
            for number, (paths, part) in enumerate(zip(pricing.batches, parts)):

                def measured(_: Sequence[Allocation]) -> list[Gradients]:
                    # Sampled losses see other samples each time.
                    torch.manual_seed(number)  # noqa: B023
                    return _of_part(trainer, pl_module, paths, part)  # noqa: B023

                found.append(self._evaluation.under(pl_module, [self._full], measured))
        return found


def _of_part(
    trainer: Trainer,
    pl_module: LightningModule,
    paths: Sequence[Path],
    part: Sequence[tuple[Any, int | None]],
) -> list[Gradients]:
    """The mean of the gradients on some batches, by their examples or the weights of these."""
    sums = [batch_weight(pl_module, batch) for batch, _ in part]
    # Of examples without weight the gradients are 0.
    weights = [each / (sum(sums) or 1.0) for each in sums]
    found = [_of_batch(trainer, pl_module, paths, batch, index) for batch, index in part]
    return [
        {
            name: np.sum([w * each[n][name] for w, each in zip(weights, found)], axis=0)
            for name in found[0][n]
        }
        for n in range(len(paths))
    ]


def _of_batch(
    trainer: Trainer,
    pl_module: LightningModule,
    paths: Sequence[Path],
    batch: Any,
    index: int | None,
) -> list[Gradients]:
    """The gradients on a batch that is shared among paths, if it can be."""
    groups = [[path] for path in paths]
    if len(paths) > 1:
        with suppress(ValueError):
            length = examples_length(batch)
            if length >= len(paths):
                batch, groups = take(batch, length - length % len(paths)), [[*paths]]
    found: list[Gradients] = []
    for group in groups:
        on_it = on_device(trainer, pl_module, copied(batch), index)

        def loss() -> Tensor:
            computed: Tensor = _loss(trainer, pl_module, on_it)  # noqa: B023
            return computed

        found += mask_gradients(pl_module, group, loss)
    for gradients in found:
        for name, own in gradients.items():
            if not np.isfinite(own).all():
                raise FloatingPointError(f"the gradients of {name!r} are not finite numbers")
    return found


def _loss(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
    with trainer.precision_plugin.train_step_context(), _silent(pl_module):
        if (hook := getattr(pl_module, _HOOK, None)) is not None:
            return hook(batch)
        outputs: Any = pl_module.training_step(*step_arguments(pl_module.training_step, batch, 0))
    return outputs.get("loss") if isinstance(outputs, Mapping) else outputs


def _check(pl_module: LightningModule) -> None:
    if hasattr(pl_module, _HOOK):
        return
    if not pl_module.automatic_optimization:
        raise TypeError("`training_step` optimises by itself")
    if takes_iterator(pl_module.training_step):
        raise TypeError("`training_step` takes no batch")


@contextmanager
def _silent(pl_module: LightningModule) -> Iterator[None]:
    """Let a module log nothing."""

    def ignore(*args: Any, **kwargs: Any) -> None:
        pass

    attributes = vars(pl_module)
    attributes |= {"log": ignore, "log_dict": ignore}
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            attributes.pop(name, None)


def _mean(trainer: Trainer, gradients: Gradients) -> Gradients:
    """The mean over all processes."""
    flat = torch.from_numpy(np.concatenate([own.ravel() for own in gradients.values()]))
    device = trainer.strategy.root_device
    mean = trainer.strategy.reduce(flat.float().to(device), reduce_op="mean").double().cpu()
    ends = np.cumsum([own.size for own in gradients.values()])[:-1]
    parts = np.split(mean.numpy(), ends)
    return {name: part.reshape(own.shape) for (name, own), part in zip(gradients.items(), parts)}
