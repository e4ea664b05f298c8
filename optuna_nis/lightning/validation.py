"""Which validation examples choices are scored on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
import math
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer


class ValidationBatches:
    """The first validation dataloader, cut as the trainer cuts it."""

    def __init__(self, trainer: Trainer) -> None:
        loaders: Any = trainer.val_dataloaders
        limits: Any = trainer.num_val_batches
        if isinstance(loaders, Mapping):
            loaders = list(loaders.values())
        several = isinstance(loaders, (list, tuple))
        self.loader: Any = next(iter(loaders), None) if several else loaders
        self._limit = next(iter(limits), 0) if isinstance(limits, list) else limits

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, None if math.isinf(self._limit) else int(self._limit))

    def __len__(self) -> int:
        return 0 if math.isinf(self._limit) else int(self._limit)

    def without_end(self, past: int) -> Iterator[Any]:
        """Batches again and again, after so many that were seen before.

        Raises:
            lightning.pytorch.utilities.exceptions.MisconfigurationException: If there is none.
        """
        skipped = past % max(len(self), 1)
        while True:
            empty = True
            for batch in islice(self, skipped, None):
                empty = False
                yield batch
            if empty:
                raise MisconfigurationException(
                    "NISCallback scores choices on validation data: the validation dataloader "
                    "gave no batch."
                )
            skipped = 0
