"""Evaluating a supernet under several choices, each from the same state, and leaving none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
import torch
from torch import nn

from optuna_nis.lightning._package import is_overridden
from optuna_nis.lightning._validation import silent
from optuna_nis.nn import set_choices, supernet_layers
from optuna_nis.nn._modes import modes_kept
from optuna_nis.nn._snapshot import Change, Snapshot, undo
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace

_T = TypeVar("_T")

# Layers of these modules hold weights and the choice, which the next choice replaces.
_OURS = "optuna_nis.nn"

_KEPT = (
    "It seems to keep what it computed before; let it forget that in `on_validation_start`, which "
    "is called for every choice, or in `validation_step`."
)


class Evaluation:
    """Evaluates a module under choices. What a choice leaves in the module, none after it sees.

    Models that keep their vectors while they are evaluated until they are trained again, such as
    those of RecBole, are evaluated as if they had just been trained.

    Args:
        space: The space of the choices.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._snapshot: Snapshot | None = None
        # Which layers have ever been looked up, which in this run, and which in each of the runs
        # that are compared.
        self._layers: set[str] = set()
        self._run: set[str] = set()
        self._runs: list[set[str]] = []
        # What evaluating adds to a module that has just been trained: this is what it may keep.
        self._kept: list[Change] = []
        self._forgets = False
        self._is_watched = False

    @contextmanager
    def prepared(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
        """Evaluate without gradients, and put everything back."""
        stage = trainer.state.stage
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.callback(setattr, trainer.state, "stage", stage)
            # Of the trainer's own package.
            trainer.state.stage = type(stage).VALIDATING  # type: ignore[union-attr]
            stack.enter_context(silent(trainer))
            stack.enter_context(modes_kept(pl_module))
            if not is_overridden("on_validation_model_eval", pl_module):
                pl_module.eval()
            ours = [m for m in pl_module.modules() if type(m).__module__.startswith(_OURS)]
            self._snapshot = Snapshot(pl_module, without=ours, earlier=self._snapshot)
            self._run, self._runs, self._forgets = set(), [], False
            self._is_watched = not _is_compiled(pl_module)
            if self._is_watched:
                for name, layer in supernet_layers(pl_module).items():
                    hook = layer.register_forward_pre_hook(partial(self._look_up, name))
                    stack.callback(hook.remove)
            stack.callback(self._put_back)
            yield

    def under(
        self,
        pl_module: LightningModule,
        choices: Sequence[Allocation],
        measure: Callable[[Sequence[Allocation]], _T],
    ) -> _T:
        """What is measured under some choices, from the state that the module was in."""
        measured = self._attempt(pl_module, choices, measure)
        if self._run < self._layers and self._kept and not self._forgets:
            self._forgets = True
            measured = self._attempt(pl_module, choices, measure)
        self._runs.append(self._run)
        return measured

    def check(self, pl_module: LightningModule, quality: Sequence[float]) -> None:
        """Check that the choices evaluated since the last check were each looked up.

        Raises:
            lightning.pytorch.utilities.exceptions.MisconfigurationException: If some have looked
                up layers that others have not, or none any and all are of one quality.
        """
        runs, self._runs = self._runs, []
        if not self._is_watched or len(runs) < 2:
            return
        kind = type(pl_module).__name__
        seen: set[str] = set().union(*runs)
        if missed := seen.difference(runs[0].intersection(*runs)):
            raise MisconfigurationException(
                f"The choices cannot be told apart: {kind} looked up {sorted(missed)} under one "
                f"of them but not under another, on the same examples. {_KEPT}"
            )
        if not seen and len(set(quality)) == 1:
            raise MisconfigurationException(
                f"The choices cannot be told apart: {kind} was evaluated under several without "
                f"looking up any of its embeddings. {_KEPT}"
            )

    def _attempt(
        self,
        pl_module: LightningModule,
        choices: Sequence[Allocation],
        measure: Callable[[Sequence[Allocation]], _T],
    ) -> _T:
        self._put_back()
        if self._forgets:
            undo(self._kept)
        set_choices(pl_module, self._space, choices)
        self._run = set()
        # All choices see the same random numbers, and the training those that it would see.
        with isolate_rng(include_cuda=pl_module.device.type == "cuda"):
            measured = measure(choices)
        self._layers |= self._run
        return measured

    def _look_up(self, name: str, layer: nn.Module, inputs: Any) -> None:
        self._run.add(name)

    def _put_back(self) -> None:
        assert self._snapshot is not None
        changes = self._snapshot.put_back()
        if changes and self._run and self._run == self._layers and not self._forgets:
            self._kept = changes


def _is_compiled(pl_module: LightningModule) -> bool:
    """Whether hooks of submodules may be passed over."""
    return getattr(pl_module, "_compiler_ctx", None) is not None or any(
        type(m).__name__ == "OptimizedModule" or m._compiled_call_impl is not None
        for m in pl_module.modules()
    )
