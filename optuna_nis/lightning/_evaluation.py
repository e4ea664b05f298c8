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

from optuna_nis.allocation import Allocation
from optuna_nis.lightning._package import is_overridden
from optuna_nis.lightning._snapshot import Change, Snapshot, undo
from optuna_nis.lightning._validation import silent
from optuna_nis.nn import set_choices, supernet_layers
from optuna_nis.nn._modes import modes_kept
from optuna_nis.space import SearchSpace

_T = TypeVar("_T")

# Layers of these modules hold weights and the choice, which the next choice replaces.
_OURS = "optuna_nis.nn"

_KEPT = (
    "The choices cannot be told apart: {} was evaluated under several without looking up any of "
    "its embeddings. It seems to keep what it computed before; let it forget that in "
    "`on_validation_start`, which is called for every choice, or in `validation_step`."
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
        # Which layers have ever been looked up, which in this run, and which in these runs.
        self._layers: set[str] = set()
        self._run: set[str] = set()
        self._runs: set[str] = set()
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
            self._run, self._runs, self._forgets = set(), set(), False
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
        self._runs |= self._run
        return measured

    def check(self, pl_module: LightningModule, quality: Sequence[float]) -> None:
        """Check that choices which are all of one quality have been looked up at all.

        Raises:
            lightning.pytorch.utilities.exceptions.MisconfigurationException: If they have not.
        """
        if self._is_watched and not self._runs and len(quality) > 1 and len(set(quality)) == 1:
            raise MisconfigurationException(_KEPT.format(type(pl_module).__name__))

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
