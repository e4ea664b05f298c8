from __future__ import annotations

from collections.abc import Sequence
import math
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from plotly.colors import sample_colorscale
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optuna_nis.show.figures import _style
from optuna_nis.space.constraint import Choice
from optuna_nis.study import results

if TYPE_CHECKING:
    from optuna_nis.controller.sampler import PolicyHistory

_MAX_PARAMETERS = 200
_MAX_NUMBERS = 80_000
_MOST_NAMES = 40
_MIN_POINTS = 8
_ROW_HEIGHT = 18
_MIN_ROW_HEIGHT = 12
# Rows and width, width and bits, or all three: "606x8", "8x4bit", "606x8x4bit".
_SIZE = re.compile(r"(\d+)x(\d+)(?:bit|x(\d+)bit)?")


class _ParameterInfo(NamedTuple):
    """Probabilities of the options of one parameter, shape ``(points, options)``."""

    name: str
    options: tuple[str, ...]
    probabilities: NDArray[np.float64]
    summary: NDArray[np.float64]


class _PolicyInfo(NamedTuple):
    """The policy over time; ``summary`` of a parameter is what ``measure`` says."""

    trial_numbers: tuple[int, ...]
    parameters: tuple[_ParameterInfo, ...]
    measure: str
    num_left_out: int


def plot_policy(study: Study, *, history: PolicyHistory | None = None) -> go.Figure:
    """Plot how the probabilities of the policy change over the trials.

    Above, one row per parameter: its expected size as a share of the largest one. Below, the
    probabilities of all choices of one parameter, chosen from the menu.

    Args:
        study: A study searched by :class:`~optuna_nis.NISSampler`, of any search space.
        history: What :func:`~optuna_nis.policy_history` returned for it, for a sampler
            with a budget that the study does not tell; by default the budget is the search space
            of the study, if it holds one.

    Returns:
        The figure; at most 200 parameters are shown, those that changed most.

    Raises:
        ValueError: If the study has no finished trial for the policy to learn from.

    Example:
        >>> figure = plot_policy(study)
        >>> figure.layout.title.text
        'Policy over the trials'
    """
    return _draw(_policy_info(history or policy_of(study)))


def policy_of(study: Study, num_points: int = 50) -> PolicyHistory:
    """The policy of a study over time.

    Raises:
        ValueError: If the study has no finished trial for the policy to learn from.
    """
    from optuna_nis.controller.sampler import policy_history

    searched = results.SPACE_ATTR in study.user_attrs
    history = policy_history(study, results.space_of(study) if searched else None, num_points)
    if not history.trial_numbers or not history.choices:
        raise ValueError(
            f"`study` {study.study_name!r} has no finished trial that a policy learned from."
        )
    return history


def _policy_info(history: PolicyHistory, max_parameters: int | None = None) -> _PolicyInfo:
    max_parameters = max_parameters or _MAX_PARAMETERS
    # Trials of several workers finish out of order: what is drawn is the last number so far.
    numbers = np.maximum.accumulate(np.asarray(history.trial_numbers))
    moments = np.flatnonzero(np.append(numbers[1:] != numbers[:-1], True))
    probabilities = {
        name: np.asarray(history.probabilities[name], dtype=np.float64)[moments]
        for name in history.choices
    }
    shown = list(history.choices)
    if len(shown) > max_parameters:
        change = {name: float(np.abs(p[-1] - p[0]).sum()) for name, p in probabilities.items()}
        most = set(sorted(shown, key=lambda name: -change[name])[:max_parameters])
        shown = [name for name in shown if name in most]
    sizes = {name: _sizes(history.choices[name]) for name in shown}
    sized = all(size is not None for size in sizes.values())
    parameters = []
    for name in shown:
        size = sizes[name]
        p = probabilities[name]
        summary = p @ size if sized and size is not None else p.max(axis=1)
        options = tuple(str(choice) for choice in history.choices[name])
        parameters.append(_ParameterInfo(name, options, p, summary))
    return _PolicyInfo(
        tuple(numbers[moments].tolist()),
        tuple(parameters),
        "Expected size, % of the largest" if sized else "Probability of the likeliest choice, %",
        len(history.choices) - len(shown),
    )


def _sizes(choices: Sequence[Choice]) -> NDArray[np.float64] | None:
    """Size of every option relative to the largest, if the options are sizes."""
    sizes: list[float] = []
    for choice in choices:
        if isinstance(choice, str) and (match := _SIZE.fullmatch(choice)):
            sizes.append(math.prod(int(number) for number in match.groups(default="1")))
        elif choice == "0":
            sizes.append(0.0)
        elif isinstance(choice, bool) or not isinstance(choice, (int, float)):
            return None
        elif 0 <= choice <= sys.float_info.max:
            sizes.append(float(choice))
        else:
            return None
    largest = max(sizes)
    return np.array(sizes) / largest if largest > 0 else None


def _draw(info: _PolicyInfo) -> go.Figure:
    count = len(info.parameters)
    rows = max(110, count * (_ROW_HEIGHT if count <= 40 else _MIN_ROW_HEIGHT))
    below, gap, margins = 260, 110, 190
    inner = rows + gap + below
    figure = make_subplots(
        rows=2,
        cols=1,
        row_heights=[rows, below],
        vertical_spacing=gap / inner,
    )
    _add_sizes(figure, info, min(rows, 300))
    buttons = _add_probabilities(figure, info)
    _style.style(
        figure,
        _title(info),
        margins + inner,
        margin={"l": 60, "r": 30, "t": 90, "b": 100},
        legend={
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        # More names than that would cover the figure; whoever hovers is told them.
        showlegend=max(len(each.options) for each in info.parameters) <= _MOST_NAMES,
        updatemenus=[
            {
                "buttons": buttons,
                "x": 0,
                "xanchor": "left",
                "y": (below + 12) / inner,
                "yanchor": "bottom",
                "bgcolor": "#e8eaed",
                "font": {"color": "#202328"},
                "showactive": True,
            }
        ],
    )
    _style_sizes(figure, info)
    figure.update_yaxes(title_text="Probability (%)", range=[0, 100], row=2)
    figure.update_xaxes(title_text="Trial", row=2)
    return figure


def _draw_sizes(info: _PolicyInfo) -> go.Figure:
    """The upper part of the figure alone."""
    figure = make_subplots(rows=1, cols=1)
    _add_sizes(figure, info, 300)
    _style.style(figure, _title(info), 450, margin={"l": 60, "r": 30, "t": 90, "b": 50})
    _style_sizes(figure, info)
    figure.update_xaxes(title_text="Trial")
    return figure


def _title(info: _PolicyInfo) -> str:
    title = "Policy over the trials"
    if info.num_left_out:
        title += (
            f" ({len(info.parameters)} parameters that changed most, {info.num_left_out} left out)"
        )
    return title


def _add_sizes(figure: go.Figure, info: _PolicyInfo, bar_length: int) -> None:
    figure.add_heatmap(
        x=[str(number) for number in info.trial_numbers],
        y=list(range(len(info.parameters))),
        z=[_style.compact(100 * parameter.summary, 3) for parameter in info.parameters],
        zmin=0,
        zmax=100,
        colorscale=_style.SCALE,
        colorbar={
            "title": {"text": "%", "side": "top"},
            "thickness": 12,
            "lenmode": "pixels",
            "len": bar_length,
            "y": 1,
            "yanchor": "top",
        },
        hovertemplate=f"<b>%{{y}}</b><br>after trial %{{x}}<br>{info.measure}: %{{z}}"
        "<extra></extra>",
        row=1,
        col=1,
    )


def _style_sizes(figure: go.Figure, info: _PolicyInfo) -> None:
    count = len(info.parameters)
    figure.update_yaxes(
        tickvals=list(range(count)),
        ticktext=_style.labels((parameter.name for parameter in info.parameters), 28),
        range=[count - 0.5, -0.5],
        showgrid=False,
        tickfont={"size": 11 if count <= 40 else 9},
        row=1,
    )
    figure.update_xaxes(type="category", nticks=12, showgrid=False, row=1)
    figure.add_annotation(
        text=info.measure,
        x=0,
        xref="paper",
        xanchor="left",
        y=1,
        yref="paper",
        yanchor="bottom",
        showarrow=False,
    )


def _add_probabilities(figure: go.Figure, info: _PolicyInfo) -> list[dict[str, Any]]:
    """Draw the first parameter and return the menu that shows any other in its place."""
    most = max(len(parameter.options) for parameter in info.parameters)
    numbers = sum(len(parameter.options) for parameter in info.parameters)
    points = len(info.trial_numbers)
    moments = _style.thin(points, max(_MIN_POINTS, min(points, _MAX_NUMBERS // numbers)))
    menu: list[dict[str, Any]] = []
    for parameter in info.parameters:
        lines = [
            _style.compact(100 * parameter.probabilities[moments, option], 3)
            for option in range(len(parameter.options))
        ]
        missing = most - len(lines)
        names = [_style.label(option, 20) for option in parameter.options] + [""] * missing
        colors = _option_colors(parameter.options) + [_style.GREY] * missing
        menu.append(
            {
                "y": lines + [[]] * missing,
                "name": names,
                "visible": [True] * len(lines) + [False] * missing,
                "fillcolor": colors,
                "line.color": colors,
            }
        )
    first = menu[0]
    for option in range(most):
        figure.add_scatter(
            x=[info.trial_numbers[i] for i in moments],
            y=first["y"][option],
            name=first["name"][option],
            visible=first["visible"][option],
            mode="lines",
            stackgroup="probability",
            line={"width": 0.5, "color": first["line.color"][option]},
            fillcolor=first["fillcolor"][option],
            hovertemplate="after trial %{x}: %{y:.3g} %",
            row=2,
            col=1,
        )
    areas = list(range(1, most + 1))
    return [
        {"label": name, "method": "restyle", "args": [update, areas]}
        for name, update in zip(_style.labels(each.name for each in info.parameters), menu)
    ]


def _option_colors(options: Sequence[str]) -> list[str]:
    removal = sum(option in ("0", "0x0") for option in options[:1])
    others = len(options) - removal
    if others == 0:
        return [_style.GREY] * removal
    places = [i / max(1, others - 1) for i in range(others)]
    return [_style.GREY] * removal + list(sample_colorscale(_style.SCALE, places))
