"""What callbacks and options of trainers are to a training, which is known again by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
import json
from pathlib import PurePath
import re
from typing import Any

from lightning.pytorch import Callback, LightningModule
import numpy as np

from optuna_nis.lightning._digest import digest
from optuna_nis.models import EmbeddingModule

# Of an object that shows as nothing else.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# Of the trainer: what says where it runs and what it shows, not what it comes to.
_OF_PLACE = frozenset(
    {
        "accelerator",
        "default_root_dir",
        "devices",
        "enable_checkpointing",
        "enable_model_summary",
        "enable_progress_bar",
        "log_every_n_steps",
        "logger",
        "num_nodes",
        "strategy",
    }
)
# Classes of callbacks, of either package of Lightning, that change nothing.
_ONLY_LOOK = frozenset(
    {"ProgressBar", "ModelSummary", "LearningRateMonitor", "DeviceStatsMonitor"}
)


def _class_names(callback: Callback) -> set[str]:
    """The names of its class and of those that it is made from."""
    return {kind.__name__ for kind in type(callback).__mro__}


def has_bar(callbacks: Sequence[Callback]) -> bool:
    """Whether there is a progress bar, of either package of Lightning."""
    return any("ProgressBar" in _class_names(each) for each in callbacks)


def options_key(
    trainer_options: Mapping[str, Any], callbacks: Sequence[Callback]
) -> list[Any] | None:
    """What options of trainers and callbacks change in a training, as values for JSON.

    Args:
        trainer_options: Arguments of the trainer.
        callbacks: Callbacks, none of which has been at work.

    Returns:
        Nothing for options and callbacks that change nothing; None where it cannot be told what
        they are.
    """
    options, digests, unknown = _told(trainer_options, callbacks)
    if unknown:
        return None
    return [each for each in (options, digests) if each]


def shown_options(trainer_options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of trainers that change what a training comes to, as far as they can be told."""
    options, _, unknown = _told(trainer_options, ())
    return options | ({"untold": unknown} if unknown else {})


def model_key(model: LightningModule) -> str:
    """What a model is known again by: what it was made of, as far as it tells."""
    made_of = dict(model.hparams)
    if isinstance(model, EmbeddingModule):
        # Kept by what makes reference models.
        made_of |= getattr(model, "options", {})
    try:
        return digest(made_of)[:32]
    except Exception:  # Whatever the objects in it raise.
        # Where something is in memory says nothing of it.
        return _ADDRESS.sub("", str(made_of))


def shown_model(model: LightningModule) -> str:
    """A digest of what a model is made of and how it shows, its layers and their sizes."""
    # Where something is in memory says nothing of it.
    return digest([model_key(model), _ADDRESS.sub("", str(model))])[:32]


def untold(trainer_options: Mapping[str, Any], callbacks: Sequence[Callback]) -> list[str]:
    """For which options and callbacks, by their names, :func:`options_key` is None."""
    return _told(trainer_options, callbacks)[-1]


def _told(
    trainer_options: Mapping[str, Any], callbacks: Sequence[Callback]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Options as JSON has them, digests of callbacks, and the names of those that have neither."""
    options: dict[str, Any] = {}
    digests: list[str] = []
    unknown: list[str] = []
    for name, value in sorted(trainer_options.items()):
        if name not in _OF_PLACE:
            try:
                options[name] = json.loads(json.dumps(value, sort_keys=True, default=_plain))
            except Exception:  # Whatever the objects in it raise.
                unknown.append(f"`{name}`")
    for callback in callbacks:
        if _ONLY_LOOK.isdisjoint(_class_names(callback)):
            try:
                digests.append(digest(callback)[:32])
            except Exception:  # Likewise.
                unknown.append(type(callback).__name__)
    return options, digests, unknown


def _plain(value: object) -> object:
    """What JSON has no word for: numbers of NumPy, paths, times.

    Raises:
        TypeError: If it is anything else.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PurePath | timedelta):
        return str(value)
    raise TypeError(f"{value!r} cannot be told.")
