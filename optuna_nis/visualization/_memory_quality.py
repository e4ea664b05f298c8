from __future__ import annotations

from collections.abc import Sequence
import math
from typing import NamedTuple

from optuna import Study
import plotly.graph_objects as go

from optuna_nis import results
from optuna_nis.results import RetrainResult
from optuna_nis.visualization import _style
from optuna_nis.visualization._points import Point, points_of

_MAX_POINTS = 2_000
_RESULT_STYLES = {
    "nis": (_style.VERMILION, "star"),
    "uniform": (_style.BLUE, "square"),
    "full": (_style.PINK, "circle"),
}
_OTHER_SYMBOLS = ("triangle-up", "cross", "pentagon", "hexagon", "triangle-down", "x")


class _MemoryQualityInfo(NamedTuple):
    """Trials by how they were scored, each kind with its own Pareto front.

    A score with shared weights and one after real training are not comparable, hence two fronts.
    """

    metric: str
    scored: tuple[Point, ...]
    trained: tuple[Point, ...]
    scored_front: tuple[Point, ...]
    trained_front: tuple[Point, ...]
    best: int
    budget: int
    full_parameters: int
    results: tuple[RetrainResult, ...]


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
    """
    return _draw(_memory_quality_info(study))


def _memory_quality_info(study: Study) -> _MemoryQualityInfo:
    space = results.space_of(study)
    points = points_of(study, space)
    trained = tuple(point for point in points if point.trained)
    scored = [point for point in points if not point.trained]
    front = _pareto_front(scored)
    best = max(trained or scored, key=lambda point: point.reward).number
    shown = {scored[i].number for i in _style.thin(len(scored), _MAX_POINTS)}
    shown |= {point.number for point in front} | {best}
    return _MemoryQualityInfo(
        results.metric_of(study),
        tuple(point for point in scored if point.number in shown),
        trained,
        front,
        _pareto_front(trained),
        best,
        space.budget,
        space.full_parameters,
        tuple(results.results_of(study)),
    )


def _pareto_front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Points that no other beats with at most the same memory, by rising memory."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.num_parameters, -point.quality)):
        if not front or point.quality > front[-1].quality:
            front.append(point)
    return tuple(front)


def _draw(info: _MemoryQualityInfo) -> go.Figure:
    figure = go.Figure()
    costs = [point.num_parameters for point in (*info.scored, *info.trained)]
    costs += [result.num_parameters for result in info.results]
    # No place on a logarithmic axis for a model without embeddings: it goes to the left edge.
    left = min(cost for cost in [*costs, info.budget] if cost > 0) / 1.5
    tickvals, ticktext = _style.log_ticks(left, max([*costs, info.budget]))
    metric = _style.label(info.metric)
    kinds = (
        ("shared weights", info.scored, info.scored_front, _style.SKY, "circle", 5, 0.45),
        ("trained", info.trained, info.trained_front, _style.GREEN, "diamond", 10, 1.0),
    )
    for kind, points, front, color, symbol, size, opacity in kinds:
        if not points:
            continue
        figure.add_scatter(
            x=[max(point.num_parameters, left) for point in points],
            y=_style.compact(point.quality for point in points),
            mode="markers",
            name=f"Trials, {kind} (validation)",
            marker={"color": color, "symbol": symbol, "size": size, "opacity": opacity},
            customdata=[_details(point, info.full_parameters) for point in points],
            hovertemplate=f"Trial %{{customdata[0]}}, {kind}<br>{metric} %{{y:.4f}} (validation)"
            "<br>%{customdata[1]:,} parameters, %{customdata[2]} of full"
            "<br>reward %{customdata[3]}, penalty %{customdata[4]}<extra></extra>",
        )
        figure.add_scatter(
            x=[max(point.num_parameters, left) for point in front],
            y=_style.compact(point.quality for point in front),
            mode="lines",
            name=f"Pareto front, {kind}",
            line={"color": color, "width": 2, "shape": "hv"},
            hoverinfo="skip",
        )
    best = next(p for p in (*info.trained, *info.scored) if p.number == info.best)
    figure.add_scatter(
        x=[max(best.num_parameters, left)],
        y=_style.compact([best.quality]),
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
            "title": {"text": "Embedding parameters"},
            "type": "log",
            "tickvals": tickvals,
            "ticktext": ticktext,
        },
        yaxis={"title": {"text": metric}},
        legend={"y": -0.2},
    )
    figure.add_shape(
        type="line",
        x0=info.budget,
        x1=info.budget,
        y0=0,
        y1=1,
        yref="paper",
        line={"color": _style.GREY, "dash": "dash", "width": 1.5},
    )
    figure.add_annotation(
        x=math.log10(info.budget),
        y=1,
        yref="paper",
        yanchor="bottom",
        showarrow=False,
        text=f"budget {info.budget:,}",
    )
    return figure


def _details(point: Point, full: int) -> list[int | str]:
    return [
        point.number,
        point.num_parameters,
        _style.percent(point.num_parameters / full),
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
        x=[max(result.num_parameters, left)],
        y=_style.compact([result.mean]),
        error_y={
            "type": "data",
            "array": _style.compact([result.std]),
            "thickness": 2,
            "width": 7,
        },
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
                result.num_parameters,
                _style.percent(result.num_parameters / info.full_parameters),
                f"{result.mean:.4f} ± {result.std:.4f}",
            ]
        ],
        hovertemplate="<b>%{customdata[0]}</b>, retrained<br>"
        f"test {metric} %{{customdata[3]}} ({seeds})"
        "<br>%{customdata[1]:,} parameters, %{customdata[2]} of full<extra></extra>",
    )
