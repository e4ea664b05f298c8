"""Memory of models: none for those that are only looked at, and none that is kept for nothing."""

from __future__ import annotations

from collections.abc import Sequence
import gc
from typing import Any

from lightning.pytorch import Callback, LightningModule
import torch

from optuna_nis.lightning._package import is_a
from optuna_nis.lightning.building import BuildModel
from optuna_nis.models.reference import ReferenceModel
from optuna_nis.nn._sharded_layers import whole_build
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace

# Below, what is left lying about is not worth the time to look for it.
_MUCH = 64 << 20


def looked_at(build: BuildModel, tables: SearchSpace | Allocation) -> LightningModule:
    """A model of which only names and shapes count, not its weights.

    A reference model has no memory for them. Whether other functions can make such a model is not
    known: what they make is whole.

    Args:
        build: Makes the model.
        tables: Its space or its sizes.
    """
    # That of a model whose tables are spread is as large as a whole one.
    plain = whole_build(build)
    if isinstance(plain, ReferenceModel):
        with torch.device("meta"):
            return plain(tables)
    return build(tables)  # type: ignore[arg-type]


def free(data: Any, nbytes: int, callbacks: Sequence[Callback] = ()) -> None:
    """Give back the memory of a model that was trained and that nobody uses any more.

    Lightning lets a data module and callbacks refer to the last trainer and its model, and these
    refer to each other: all of it stays until Python next looks through all its objects, which may
    be several models later.

    Args:
        data: What the model was trained on; what is asked of it before the next training must not
            need a trainer.
        nbytes: Bytes of the model's tables. Where they are few, Python is left alone.
        callbacks: Those of its trainer that are used again.
    """
    if nbytes < _MUCH:
        return
    if getattr(data, "trainer", None) is not None:
        data.trainer = None
    for callback in callbacks:
        own = vars(callback)
        for name in ("log", "log_dict"):
            own.pop(name, None)
        if is_a(callback, "ProgressBar"):
            own["_trainer"] = None
    gc.collect()
