"""What callbacks and options of trainers are to a training, which is known again by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
import json
import pickle
from typing import Any

from lightning.pytorch import Callback

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
    options = {name: value for name, value in trainer_options.items() if name not in _OF_PLACE}
    at_work = [each for each in callbacks if _ONLY_LOOK.isdisjoint(_class_names(each))]
    try:
        found = [json.loads(json.dumps(options, sort_keys=True))] if options else []
        digests = [hashlib.sha256(pickle.dumps(each)).hexdigest()[:32] for each in at_work]
    except Exception:  # Whatever the objects in them raise.
        return None
    return [*found, digests] if digests else found
