"""Which sizes to take, in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna_nis._format import percent, size


@dataclass(frozen=True)
class Contender:
    """Sizes that were trained, as a verdict speaks of them.

    Attributes:
        name: ``"nis"`` for the found sizes, ``"full"`` for the full tables.
        label: Name for people, such as "Uniform 8".
        value: Mean of the metric on the validation data.
        share: Their memory as a share of the full tables' in float32.
        nbytes: Their memory in bytes, if that is known.
    """

    name: str
    label: str
    value: float
    share: float
    nbytes: int | None = None

    @property
    def words(self) -> str:
        """What they are called within a sentence."""
        known = {"nis": "the found sizes", "full": "the full tables"}
        return known.get(self.name, self.label[0].lower() + self.label[1:])

    @property
    def memory(self) -> str:
        """What they take."""
        share = percent(self.share)
        return share if self.nbytes is None else f"{size(self.nbytes)}, {share}"

    @property
    def are(self) -> str:
        """The verb."""
        return "is" if self.name.startswith("uniform") else "are"

    @property
    def them(self) -> str:
        """The pronoun."""
        return "it" if self.are == "is" else "them"


def verdict(
    metric: str,
    taken: Contender,
    tied: Sequence[Contender],
    others: Sequence[Contender],
    reference: Contender | None = None,
    alike: str = "",
) -> str:
    """Say which sizes to take and why.

    Args:
        metric: Name of the metric on the validation data.
        taken: The sizes that are taken.
        tied: Others that cannot be told apart from the best.
        others: Those that are worse, best first.
        reference: The full tables, where they are above the budget but better than what is taken.
        alike: Label of sizes that anyone would try, where those that are taken are these.

    Example:
        >>> nis = Contender("nis", "NIS", 0.7753, 0.12)
        >>> uniform = Contender("uniform", "Uniform 8", 0.7641, 0.25)
        >>> verdict("AUC", nis, [], [uniform]).partition(", with ")[0]
        'The found sizes are best: validation AUC 0.7753 against 0.7641 of uniform 8'
        >>> verdict("AUC", uniform, [nis], []).partition(":")[0]
        'Uniform 8 is as good, take it'
    """
    everyone = [*tied, *others]
    is_found = taken.name == "nis"
    # Found sizes are held against the best rival, if one is left, a rival against them.
    against = next((c for c in everyone if is_found or c.name == "nis"), None)
    subject = taken.words[0].upper() + taken.words[1:]
    if alike:
        subject += f", which are those of {alike[0].lower() + alike[1:]},"
    if against in tied:
        how = f"{taken.are} as good, take {taken.them}"
    else:
        how = f"{taken.are} best" if is_found else f"{taken.are} better, take {taken.them}"
    compared = "" if against is None else f" against {against.value:.4f} of {against.words}"
    text = (
        f"{subject} {how}: validation {metric} {taken.value:.4f}{compared}, with {taken.memory} "
        "of the full tables"
    )
    if reference is not None:
        text += f"; the full tables, above the budget, reach {reference.value:.4f}"
    return text + "."
