"""What to mind about results: parts that are too small, models that have not learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from optuna import Study

from optuna_nis.study.attributes import is_number, naming
from optuna_nis.study.keys import PARTS_ATTR
from optuna_nis.study.retrained import RetrainResult
from optuna_nis.study.uncertainty import LARGE_ERROR

_NUM_ERRORS = 2
# Log losses of more than so many times that of the share of positives are worse.
_WORSE = 1.01
# Under which a model of chosen sizes tells its log loss.
_LOG_LOSS = "LogLoss"


@dataclass(frozen=True)
class Part:
    """How much one part of the data can tell.

    Attributes:
        rows: Its rows.
        positives: Those with a positive label, for ranking.
        metric: What is measured on it, None for training data.
        chance: The metric of a model that knows no feature: 0.5 for an AUC, for retrieval that of
            the targets in the order of their frequency.
        error: Standard error of the metric there.
        log_loss: For ranking, that of the share of positives as the probability of all rows.
    """

    rows: int
    positives: int | None = None
    metric: str | None = None
    chance: float = 0.0
    error: float = 0.0
    log_loss: float | None = None

    @property
    def is_small(self) -> bool:
        """Whether its metric may be off by more than sizes usually differ by."""
        return self.metric is not None and self.error > LARGE_ERROR

    def is_chance(self, value: float) -> bool:
        """Whether a value of its metric is no better than chance.

        Example:
            >>> part = Part(rows=100, positives=50, metric="ROC-AUC", chance=0.5, error=0.06)
            >>> part.is_chance(0.6), part.is_chance(0.7), part.is_small
            (True, False, True)
        """
        return self.metric is not None and value <= self.chance + _NUM_ERRORS * self.error


def save_parts(study: Study, parts: Mapping[str, Part]) -> None:
    """Write into a study how much the parts of its data can tell.

    Args:
        study: The study.
        parts: The parts by name; others that the study holds stay.

    Example:
        >>> save_parts(study, {"train": Part(rows=800)})
        >>> parts_of(study)["train"].rows
        800
    """
    known = parts_of(study) | dict(parts)
    study.set_user_attr(PARTS_ATTR, {name: asdict(part) for name, part in known.items()})


def parts_of(study: Study) -> dict[str, Part]:
    """How much the parts of the data of a study can tell, by name; none if it does not say.

    Raises:
        ValueError: If the study holds something else in their place.

    Example:
        >>> parts_of(study)
        {}
    """
    found = study.user_attrs.get(PARTS_ATTR, {})
    with naming(study, PARTS_ATTR):
        if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
            raise ValueError(f"must be a dictionary of dictionaries, got {str(found)[:80]!r}")
        try:
            parts = {str(name): Part(**part) for name, part in found.items()}
        except TypeError as error:
            raise ValueError(str(error)) from error
        for part in parts.values():
            optional = (part.positives, part.log_loss)
            numbers = (part.rows, part.chance, part.error, *(each or 0 for each in optional))
            if not all(map(is_number, numbers)) or not isinstance(part.metric, str | None):
                raise ValueError(f"must hold numbers, got {part}")
        return parts


def cautions(
    parts: Mapping[str, Part],
    results: Sequence[RetrainResult] = (),
    best: tuple[str, float] | None = None,
) -> list[str]:
    """What to mind, a line each, none where all is well.

    Args:
        parts: ``"validation"`` and, after a retraining, ``"test"``.
        results: What was retrained.
        best: The name of the best choice of a search and its metric on the validation data, as
            long as nothing was retrained.

    Example:
        >>> part = Part(rows=20, positives=9, metric="ROC-AUC", chance=0.5, error=0.13)
        >>> for line in cautions({"validation": part}, best=("the best sizes", 0.27)):
        ...     print(line[:73])
        The validation part is small, 20 rows, 9 of them positive: the standard e
        Nothing shows that the model has learned: on the validation part, ROC-AUC
    """
    lines = [
        f"The {name} part is small, {_rows(part)}: the standard error of its {part.metric} is "
        f"{part.error:.2g}, more than sizes usually differ by, so that it cannot tell well which "
        "are best. More rows would tell more."
        for name, part in parts.items()
        if part.is_small
    ]
    for name, part in parts.items():
        values = [(r.label, r.mean) for r in results] if name == "test" else []
        if name == "validation":
            values = [(r.label, r.val_mean) for r in results if r.val_mean is not None]
            values += [best] if best is not None and not results else []
        if failed := [each for each in values if part.is_chance(each[1])]:
            lines.append(_not_learned(name, part, failed))
    if (base := parts["test"].log_loss if "test" in parts else None) is not None:
        known = [each for each in results if _LOG_LOSS in each.metrics]
        losses = {each.label: fmean(each.metrics[_LOG_LOSS]) for each in known}
        worse = [f"{who} ({loss:.4f})" for who, loss in losses.items() if loss > _WORSE * base]
        if worse:
            lines.append(
                "As probabilities, predictions are worse than the share of positives for all "
                f"rows, whose log loss on the test part is {base:.4f}: {', '.join(worse)}. Take "
                "them for scores by which rows are ranked, unless they are calibrated."
            )
    cut = [
        f"{result.label} ({result.stopped.count(False)} of {len(result.stopped)})"
        for result in results
        if False in result.stopped
    ]
    if cut:
        most = max(max(result.epochs) for result in results if result.epochs)
        lines.append(
            f"Trainings ended at the most epochs allowed, {most}, and not by themselves: "
            f"{', '.join(cut)}. Allow more with --max-epochs."
        )
    return lines


def _not_learned(name: str, part: Part, failed: Sequence[tuple[str, float]]) -> str:
    chance = "chance" if part.positives is not None else "naming the most frequent targets"
    who = ", ".join(f"{label} ({value:.4f})" for label, value in failed)
    return (
        f"Nothing shows that the model has learned: on the {name} part, {part.metric} is no "
        f"better than {chance}, {part.chance:.4f} ± {_NUM_ERRORS * part.error:.4f} (two standard "
        f"errors), with {who}. Try features that say more, other options of the training, or "
        "more rows."
    )


def _rows(part: Part) -> str:
    rows = f"{part.rows:,} row" + ("" if part.rows == 1 else "s")
    return rows if part.positives is None else f"{rows}, {part.positives:,} of them positive"
