"""The base of the data modules, which trainers of both of Lightning's packages take."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
