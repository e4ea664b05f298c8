"""What to mind about results: parts that are too small, models that have not learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optuna_nis.study.parts import NUM_ERRORS, Part
from optuna_nis.study.retrained import RetrainResult


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
        f"{part.error:.2g}, more than sizes usually differ by. More rows would tell more."
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
        f"better than {chance}, {part.chance:.4f} ± {NUM_ERRORS * part.error:.4f} (two standard "
        f"errors), with {who}. Try features that say more, other options of the training, or "
        "more rows."
    )


def _rows(part: Part) -> str:
    rows = f"{part.rows:,} row" + ("" if part.rows == 1 else "s")
    return rows if part.positives is None else f"{rows}, {part.positives:,} of them positive"
