"""What was trained from scratch, in tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optuna_nis._format import percent, size
from optuna_nis.study.results import RetrainResult

if TYPE_CHECKING:
    from rich.table import Table


def format_table(results: Sequence[RetrainResult]) -> Table:
    """The retraining results as a table for the terminal.

    Args:
        results: What :func:`optuna_nis.study.results.results_of` returns.

    Returns:
        A table for :func:`rich.print`, one row per result.

    Raises:
        ValueError: If there is no result.
        ImportError: If rich is not installed.

    Example:
        >>> from optuna_nis.study.results import RetrainResult
        >>> nis = RetrainResult("nis", "NIS", "ROC-AUC", (0.77, 0.78), (0, 1), 1000)
        >>> format_table([nis]).row_count
        1
    """
    from rich.table import Table
    from rich.text import Text

    header, rows = result_rows(results)
    table = Table(title="Trained from scratch, tested once per seed")
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="left" if index == 0 else "right", no_wrap=index > 0)
    for row in rows:
        # Text and not str: square brackets in a name are no markup.
        table.add_row(*(Text(cell) for cell in row))
    return table


def result_rows(found: Sequence[RetrainResult]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table of the results.

    Raises:
        ValueError: If there is no result.
    """
    if not found:
        raise ValueError("`results` must hold at least one result, got none; retrain first.")
    by_name = {result.name: result for result in found}
    metrics = {result.metric for result in found}
    metric = metrics.pop() if len(metrics) == 1 else "metric"
    full, uniform = by_name.get("full"), by_name.get("uniform")
    rows = [
        [
            result.label,
            f"{result.mean:.4f}" + ("" if result.std is None else f" ± {result.std:.4f}"),
            str(len(result.seeds)),
            size(result.nbytes),
            _share(result.nbytes, full),
            _gain(result, uniform),
        ]
        for result in found
    ]
    return ["Sizes", f"Test {metric}", "Seeds", "Memory", "Of full", "Vs uniform"], rows


def _share(nbytes: int, full: RetrainResult | None) -> str:
    if full is None or not full.nbytes:
        return "-"
    return percent(nbytes / full.nbytes)


def _gain(result: RetrainResult, uniform: RetrainResult | None) -> str:
    if uniform is None or result is uniform or not uniform.mean:
        return "-"
    return f"{100 * (result.mean / uniform.mean - 1):+.2f} %"
