"""What every layer that holds the table of a feature has in common, searched or sized."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from optuna_nis.nn._ranked import Ranked


class TableLayer(Ranked, ABC):
    """A layer that holds the rows of a feature.

    Attributes:
        width: Width of its rows as the model sees them.
    """

    width: int

    @property
    def num_choices(self) -> int:
        """Number of choices that a batch is shared among."""
        return 1

    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the type and on the device of the rows, also where there are none."""

    @abstractmethod
    def rows(self, choice: int = 0) -> Tensor:
        """All rows as the model sees them.

        Args:
            choice: Under which of the choices that a batch is shared among.

        Returns:
            Shape ``(num_ids, width)``, in the order of ids; zeros for those that have no row.
        """

    @abstractmethod
    def logits(self, vectors: Tensor) -> Tensor:
        """The product of vectors with all rows, without making these.

        With several choices set, each run of the vectors is multiplied by the rows of its choice.

        Args:
            vectors: Shape ``(batch, *, width)``.

        Returns:
            Shape ``(batch, *, num_ids)``, in the order of ids.
        """

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw the rows anew."""

    def check_one_choice(self) -> None:
        """Raise a RuntimeError if a batch is shared among several choices."""
        if self.num_choices > 1:
            raise RuntimeError(
                f"`weight` of {self.name!r} is not one table while a batch is shared among "
                "several choices; use NISCallback(..., choices_per_step=1)."
            )

    def check_runs(self, examples: int) -> None:
        """Raise a ValueError if a batch cannot be cut into a run for each choice."""
        if examples % self.num_choices:
            raise ValueError(
                f"The batch must be a multiple of the {self.num_choices} choices, got {examples} "
                f"examples of {self.name!r}."
            )


class OfFields(nn.Module):
    """A layer that is made of the tables of some features, one after the other.

    Attributes:
        fields: The layers that hold the tables, perhaps shared with other layers.
    """

    fields: nn.ModuleList

    def field_layers(self) -> list[TableLayer]:
        """The layers that hold the tables, in the order of their ids."""
        return [layer for layer in self.fields if isinstance(layer, TableLayer)]
