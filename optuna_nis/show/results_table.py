"""What was trained from scratch, in tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal

from optuna_nis._format import percent, size
from optuna_nis.study.results import RetrainResult
from optuna_nis.study.retrained import gain

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
    header, rows = result_rows(results)
    title = f"Trained from scratch{trained_on(results)}, tested once per seed"
    return _rich_table(title, header, rows)


def format_metrics(results: Sequence[RetrainResult]) -> Table | None:
    """The other metrics of the results as a table for the terminal.

    A row for each metric of each result, so that it fits however many there are.

    Args:
        results: As in :func:`format_table`.

    Returns:
        A table for :func:`rich.print`; None if there are no other metrics.

    Raises:
        ImportError: If rich is not installed.

    Example:
        >>> from optuna_nis.study.results import RetrainResult
        >>> more = {"LogLoss": (0.31,), "GAUC": (0.7,)}
        >>> nis = RetrainResult("nis", "NIS", "ROC-AUC", (0.77,), (0,), 1000, metrics=more)
        >>> format_metrics([nis]).row_count
        2
    """
    (_, *labels), found = metric_rows(results)
    if not found:
        return None
    rows = [
        # Named once.
        [name if index == 0 else "", label, value]
        for name, *values in found
        for index, (label, value) in enumerate(zip(labels, values))
    ]
    title = "Other metrics on the test data"
    return _rich_table(title, ["Metric", "Sizes", "Mean"], rows, texts=2)


def trained_on(found: Sequence[RetrainResult]) -> str:
    """On how many rows results were trained, empty if it is not known.

    Example:
        >>> from optuna_nis.study.results import RetrainResult
        >>> trained_on([RetrainResult("nis", "NIS", "AUC", (0.7,), (0,), 9, train_rows=8_000)])
        ' on 8,000 rows'
    """
    rows = found[0].train_rows
    return "" if rows is None else f" on {rows:,} rows"


def metric_rows(found: Sequence[RetrainResult]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table of other metrics, no row if there are none."""
    names = dict.fromkeys(name for result in found for name in result.metrics)
    rows = [[name, *(_mean(result.metrics.get(name, ())) for result in found)] for name in names]
    return ["Metric", *(result.label for result in found)], rows


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
            _mean(result.values),
            str(len(result.seeds)),
            size(result.nbytes),
            _share(result.nbytes, full),
            _gain(result, uniform, getattr(found, "mode", "max")),
        ]
        for result in found
    ]
    return ["Sizes", f"Test {metric}", "Seeds", "Memory", "Of full", "Vs uniform"], rows


def _rich_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1
) -> Table:
    """A table whose first columns are texts, which may be broken, and the others numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for index, name in enumerate(header):
        is_text = index < texts
        justify: Literal["left", "right"] = "left" if is_text else "right"
        table.add_column(Text(name), justify=justify, no_wrap=not is_text)
    for row in rows:
        # Text and not str: square brackets in a name are no markup.
        table.add_row(*(Text(cell) for cell in row))
    return table


def _mean(values: Sequence[float]) -> str:
    """The mean of the values of several seeds, and their standard deviation if it is known."""
    if not values:
        return "-"
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def _share(nbytes: int, full: RetrainResult | None) -> str:
    if full is None or not full.nbytes:
        return "-"
    return percent(nbytes / full.nbytes)


def _gain(result: RetrainResult, uniform: RetrainResult | None, mode: str) -> str:
    if uniform is None or result is uniform:
        return "-"
    better = gain(result, uniform, mode)
    return "-" if better is None else f"{100 * better:+.2f} %"
