"""The base of the data modules, which trainers of both of Lightning's packages take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning import pytorch

if TYPE_CHECKING:
    LightningDataModule = pytorch.LightningDataModule
else:
    try:
        import pytorch_lightning
    except ImportError:
        LightningDataModule = pytorch.LightningDataModule
    else:
        # The trainers of each package ask for data modules of its own class.
        class LightningDataModule(
            pytorch.LightningDataModule, pytorch_lightning.LightningDataModule
        ):
            """A data module of ``lightning.pytorch`` and of ``pytorch_lightning``."""

        class _Hook:
            """A hook of the package whose trainer is at work.

            A trainer compares the code of a hook with that of its own package to see whether it
            is overridden, and then calls no such hook of the model any more. The code of the
            other package differs where their versions do.
            """

            def __init__(self, name: str) -> None:
                self._name = name

            def __get__(self, module: Any, kind: Any = None) -> Any:
                trainer = getattr(module, "trainer", None)
                other = isinstance(trainer, pytorch_lightning.Trainer)
                package = pytorch_lightning if other else pytorch
                return getattr(package.LightningDataModule, self._name).__get__(module, kind)

        for _name in vars(pytorch.core.hooks.DataHooks):
            if not _name.startswith("_"):
                setattr(LightningDataModule, _name, _Hook(_name))
