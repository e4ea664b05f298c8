"""What a search asks of the loop that trains the supernet."""

from __future__ import annotations

from dataclasses import dataclass

from optuna_nis.space.allocation import Allocation


@dataclass(frozen=True)
class Scoring:
    """Choices whose quality a search asks for.

    Attributes:
        choices: The choices, to be scored on the same examples with the weights of the moment.
        num_examples: Score on the next so many validation examples, going over them again and
            again; None is all validation data.
    """

    choices: tuple[Allocation, ...]
    num_examples: int | None
