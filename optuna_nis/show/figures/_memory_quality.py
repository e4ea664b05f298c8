from __future__ import annotations

from collections.abc import Iterable, Sequence
import math
from typing import NamedTuple

from optuna import Study
import plotly.graph_objects as go

from optuna_nis._format import memory, size
from optuna_nis.show.figures import _style
from optuna_nis.show.figures._points import KINDS, Point, by_kind, dearest, points_of
from optuna_nis.study import results
from optuna_nis.study.results import RetrainResult
from optuna_nis.study.settings import sign_of

_MAX_POINTS = 2_000
_RESULT_STYLES = {
    "nis": (_style.VERMILION, "star"),
    "uniform": (_style.BLUE, "square"),
    "full": (_style.PINK, "circle"),
}
_OTHER_SYMBOLS = ("triangle-up", "cross", "pentagon", "hexagon", "triangle-down", "x")


class _MemoryQualityInfo(NamedTuple):
    """Trials by how they were scored, each kind with its own Pareto front.

    Scores with shared weights and after real training are not comparable, hence several fronts.
    """

    metric: str
    points: dict[str | None, tuple[Point, ...]]
    fronts: dict[str | None, tuple[Point, ...]]
    best: Point
    budget_nbytes: int
    full_nbytes: int
    results: tuple[RetrainResult, ...]
    sign: float

    def measured(self, points: Iterable[Point]) -> list[float]:
        """The metric of points as it was measured: qualities are the larger the better."""
        return _style.compact(self.sign * point.quality for point in points)


def plot_memory_vs_quality(study: Study) -> go.Figure:
    """Plot the quality of all trials against the memory that they take.

    Trials scored with shared weights are faint, those that were trained for real are marked, each
    kind with its Pareto front. After a retraining its results are drawn with their standard
    deviation over the seeds; they are on test data, all else on validation data.

    Args:
        study: A study of an embedding search.

    Returns:
        The figure.

    Raises:
        ValueError: If the study holds no search space or no finished trial.

    Example:
        >>> figure = plot_memory_vs_quality(study)
        >>> figure.layout.title.text
        'Quality against memory'
    """
    return _draw(_memory_quality_info(study))


def _memory_quality_info(study: Study) -> _MemoryQualityInfo:
    space = results.space_of(study)
    groups = by_kind(points_of(study, space))
    fronts = {kind: _pareto_front(points) for kind, points in groups.items()}
    rivals, recommended = groups[dearest(groups)], results.best_trial(study).number
    best = max(rivals, key=lambda point: (point.number == recommended, point.reward))
    shown = {best.number} | {point.number for front in fronts.values() for point in front}
    for points in groups.values():
        shown |= {points[i].number for i in _style.thin(len(points), _MAX_POINTS)}
    return _MemoryQualityInfo(
        results.metric_of(study),
        {kind: tuple(p for p in points if p.number in shown) for kind, points in groups.items()},
        fronts,
        best,
        space.budget_nbytes,
        space.full_nbytes,
        tuple(results.results_of(study)),
        sign_of(study),
    )


def _pareto_front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Points that no other beats with at most the same memory, by rising memory."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.nbytes, -point.quality)):
        if not front or point.quality > front[-1].quality:
            front.append(point)
    return tuple(front)


def _draw(info: _MemoryQualityInfo) -> go.Figure:
    figure = go.Figure()
    costs = [point.nbytes for points in info.points.values() for point in points]
    costs += [result.nbytes for result in info.results] + [info.budget_nbytes]
    # No place on a logarithmic axis for a model without embeddings: it goes to the left edge.
    smallest = min(cost for cost in costs if cost > 0)
    left = smallest / 1.5
    tickvals, ticktext = _style.byte_ticks(smallest, max(costs))
    metric = _style.label(info.metric)
    for fidelity, points in info.points.items():
        kind, front = KINDS[fidelity], info.fronts[fidelity]
        figure.add_scatter(
            x=[max(point.nbytes, left) for point in points],
            y=info.measured(points),
            mode="markers",
            name=f"Trials, {kind.label} (validation)",
            marker=kind.marker(),
            customdata=[_details(point, info.full_nbytes) for point in points],
            hovertemplate=f"Trial %{{customdata[0]}}, {kind.label}<br>{metric} %{{y:.4f}} "
            "(validation)<br>%{customdata[1]}<br>reward %{customdata[2]}, penalty "
            "%{customdata[3]}<extra></extra>",
        )
        figure.add_scatter(
            x=[max(point.nbytes, left) for point in front],
            y=info.measured(front),
            mode="lines",
            name=f"Pareto front, {kind.label}",
            line={"color": kind.color, "width": 2, "shape": "hv"},
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=[max(info.best.nbytes, left)],
        y=info.measured([info.best]),
        mode="markers",
        name="Best trial",
        marker={
            "symbol": "circle-open",
            "size": 18,
            "color": _style.VERMILION,
            "line": {"width": 2},
        },
        hoverinfo="skip",
    )
    for index, result in enumerate(info.results):
        _add_result(figure, index, result, left, info)
    _style.style(
        figure,
        "Quality against memory",
        520 + 22 * (len(figure.data) // 3),
        xaxis={
            "title": {"text": "Memory of the embeddings"},
            "type": "log",
            "tickvals": tickvals,
            "ticktext": ticktext,
        },
        yaxis={"title": {"text": _axis_title(info)}},
        legend={"y": -0.2},
    )
    figure.add_shape(
        type="line",
        x0=info.budget_nbytes,
        x1=info.budget_nbytes,
        y0=0,
        y1=1,
        yref="paper",
        line={"color": _style.GREY, "dash": "dash", "width": 1.5},
    )
    figure.add_annotation(
        x=math.log10(info.budget_nbytes),
        y=1,
        yref="paper",
        yanchor="bottom",
        showarrow=False,
        text=f"budget {size(info.budget_nbytes)}",
    )
    return figure


def _axis_title(info: _MemoryQualityInfo) -> str:
    """The metric of the trials, and that of the results where it is another."""
    metric = _style.label(info.metric)
    tested = {_style.label(result.metric) for result in info.results} - {metric}
    return f"{metric} of trials, {', '.join(sorted(tested))} of results" if tested else metric


def _details(point: Point, full_nbytes: int) -> list[int | str]:
    return [
        point.number,
        memory(point.nbytes, full_nbytes),
        f"{point.reward:.4f}",
        f"{point.penalty:.4g}",
    ]


def _add_result(
    figure: go.Figure, index: int, result: RetrainResult, left: float, info: _MemoryQualityInfo
) -> None:
    color, symbol = _RESULT_STYLES.get(
        result.name,
        (_style.MANY[index % len(_style.MANY)], _OTHER_SYMBOLS[index % len(_OTHER_SYMBOLS)]),
    )
    seeds = f"{len(result.values)} seed" + ("s" if len(result.values) > 1 else "")
    metric = _style.label(result.metric)
    figure.add_scatter(
        x=[max(result.nbytes, left)],
        y=_style.compact([result.mean]),
        error_y=None
        if result.std is None
        else {"type": "data", "array": _style.compact([result.std]), "thickness": 2, "width": 7},
        mode="markers",
        name=f"{_style.label(result.label)}, retrained (test {metric}, {seeds})",
        marker={
            "color": color,
            "symbol": symbol,
            "size": 14,
            "line": {"color": "white", "width": 1},
        },
        customdata=[
            [
                _style.full_label(result.label),
                memory(result.nbytes, info.full_nbytes),
                f"{result.mean:.4f}" + ("" if result.std is None else f" ± {result.std:.4f}"),
            ]
        ],
        hovertemplate="<b>%{customdata[0]}</b>, retrained<br>"
        f"test {metric} %{{customdata[2]}} ({seeds})<br>%{{customdata[1]}}<extra></extra>",
    )
