from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from optuna import Study
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optuna_nis._format import size
from optuna_nis.show.figures import _style
from optuna_nis.show.figures._points import KINDS, Point, by_kind, dearest, points_of
from optuna_nis.show.figures._policy import policy_of
from optuna_nis.study import results

if TYPE_CHECKING:
    from optuna_nis.controller.sampler import PolicyHistory

_MAX_POINTS = 1_500


class _RewardHistoryInfo(NamedTuple):
    """Trials in their order.

    The means are those of ``points``, the trials scored in the cheapest way; ``others`` were
    scored in another. The running best is that of the trials scored in the dearest way, the best
    of which is recommended.
    """

    metric: str
    points: tuple[Point, ...]
    others: tuple[Point, ...]
    best: tuple[tuple[int, float], ...]
    best_kind: str | None
    mean_reward: tuple[float, ...]
    mean_quality: tuple[float, ...]
    mean_penalty: tuple[float, ...]
    mean_share: tuple[float, ...]
    window: int
    budget_share: float
    full_nbytes: int
    entropy: tuple[tuple[int, float], ...]


def plot_reward_history(study: Study, *, history: PolicyHistory | None = None) -> go.Figure:
    """Plot reward, quality, memory and penalty over the trials, and the entropy of the policy.

    Trials scored with shared weights are faint, those that were trained for real are marked; the
    best so far is that of the latter, where there is any.

    Args:
        study: A study of an embedding search.
        history: The policy over time, as for :func:`plot_policy`.

    Returns:
        The figure; the penalty has a panel if there was any, and so has the entropy.

    Raises:
        ValueError: If the study holds no search space or no finished trial.

    Example:
        >>> figure = plot_reward_history(study)
        >>> figure.layout.title.text
        'Reward and memory over the trials'
    """
    return _draw(_reward_history_info(study, history))


def _reward_history_info(study: Study, history: PolicyHistory | None) -> _RewardHistoryInfo:
    space = results.space_of(study)
    groups = by_kind(points_of(study, space))
    points, *others = groups.values()
    best_kind = dearest(groups)
    rivals = groups[best_kind]
    best = list(accumulate((point.reward for point in rivals), max))
    window = _style.window_of(len(points))
    full = space.full_nbytes

    def mean(of: Callable[[Point], float]) -> list[float]:
        return _style.moving_mean([of(point) for point in points], window)

    keep = _style.thin(len(points), _MAX_POINTS)

    def kept(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(values[i] for i in keep)

    try:
        history = history or policy_of(study)
        # Trials of several workers finish out of order; a line must not go back.
        numbers = accumulate(history.trial_numbers, max)
        entropy = tuple(zip(numbers, map(float, history.entropy)))
    except ValueError:
        entropy = ()
    return _RewardHistoryInfo(
        results.metric_of(study),
        tuple(points[i] for i in keep),
        tuple(point for group in others for point in group),
        tuple((rivals[i].number, best[i]) for i in _style.thin(len(rivals), _MAX_POINTS)),
        best_kind,
        kept(mean(lambda point: point.reward)),
        kept(mean(lambda point: point.quality)),
        kept(mean(lambda point: point.penalty)),
        kept(mean(lambda point: point.nbytes / full)),
        window,
        space.budget_nbytes / full,
        full,
        entropy,
    )


def _draw(info: _RewardHistoryInfo) -> go.Figure:
    every = (*info.points, *info.others)
    penalised = any(point.penalty for point in every)
    compared = any(point.reference for point in every)
    where = "as on all validation data" if compared else "validation"
    titles = [f"Reward ({_style.label(info.metric)}, {where})", "Memory (% of full tables)"]
    titles += ["Penalty"] if penalised else []
    titles += ["Entropy of the policy (nats)"] if info.entropy else []
    heights = [2.0] + [1.0] * (len(titles) - 1)
    figure = make_subplots(
        rows=len(titles),
        cols=1,
        shared_xaxes=True,
        row_heights=heights,
        vertical_spacing=0.2 / len(titles),
        subplot_titles=titles,
    )
    _add_rewards(figure, info, penalised)
    _add_memory(figure, info)
    numbers = [point.number for point in info.points]
    if penalised:
        _add_mean(figure, "penalty", numbers, info.mean_penalty, info.window, _style.PINK, 3)
    if info.entropy:
        figure.add_scatter(
            x=[number for number, _ in info.entropy],
            y=_style.compact(value for _, value in info.entropy),
            mode="lines",
            name="Entropy of the policy",
            showlegend=False,
            line={"color": _style.BLUE, "width": 2},
            hovertemplate="after trial %{x}: entropy %{y:.3f} nats<extra></extra>",
            row=len(titles),
            col=1,
        )
    _style.style(
        figure,
        "Reward and memory over the trials",
        220 + 120 * int(sum(heights)),
        legend={"yref": "container", "y": 0, "yanchor": "bottom"},
        margin={"l": 60, "r": 30, "t": 80, "b": 110},
    )
    figure.update_annotations(x=0, xanchor="left", font_size=13)
    figure.update_xaxes(title_text="Trial", row=len(titles))
    return figure


def _add_rewards(figure: go.Figure, info: _RewardHistoryInfo, penalised: bool) -> None:
    numbers = [point.number for point in info.points]
    for fidelity, points in by_kind((*info.points, *info.others)).items():
        kind = KINDS[fidelity]
        figure.add_scatter(
            x=[point.number for point in points],
            y=_style.compact(point.reward for point in points),
            mode="markers",
            name=f"Reward, {kind.label}",
            marker=kind.marker(),
            customdata=[
                [
                    f"{point.quality:.4f}",
                    f"{point.penalty:.4g}",
                    (f"<br>{point.reference:+.4f} for its examples" if point.reference else "")
                    + ("" if point.step is None else f"<br>training step {point.step:,}"),
                ]
                for point in points
            ],
            hovertemplate=f"Trial %{{x}}, {kind.label}<br>reward %{{y:.4f}}"
            "<br>quality %{customdata[0]}, penalty %{customdata[1]}%{customdata[2]}"
            "<extra></extra>",
            row=1,
            col=1,
        )
    if penalised:
        _add_mean(figure, "quality", numbers, info.mean_quality, info.window, _style.PINK, 1)
    _add_mean(figure, "reward", numbers, info.mean_reward, info.window, _style.BLUE, 1)
    figure.add_scatter(
        x=[number for number, _ in info.best],
        y=_style.compact(reward for _, reward in info.best),
        mode="lines",
        name=f"Best so far, {KINDS[info.best_kind].label}",
        line={"color": _style.VERMILION, "width": 2, "shape": "hv"},
        hovertemplate="best up to trial %{x}: %{y:.4f}<extra></extra>",
        row=1,
        col=1,
    )


def _add_memory(figure: go.Figure, info: _RewardHistoryInfo) -> None:
    for fidelity, points in by_kind((*info.points, *info.others)).items():
        figure.add_scatter(
            x=[point.number for point in points],
            y=_style.compact(100 * point.nbytes / info.full_nbytes for point in points),
            mode="markers",
            name="Memory",
            showlegend=False,
            marker=KINDS[fidelity].marker(0.8),
            customdata=[size(point.nbytes) for point in points],
            hovertemplate="Trial %{x}<br>%{customdata}, %{y:.3g} % of the full tables"
            "<extra></extra>",
            row=2,
            col=1,
        )
    numbers = [point.number for point in info.points]
    shares = [100 * share for share in info.mean_share]
    _add_mean(figure, "memory", numbers, shares, info.window, _style.BLUE, 2)
    figure.add_scatter(
        x=[min(numbers), max([*numbers, *(point.number for point in info.others)])],
        y=_style.compact([100 * info.budget_share] * 2),
        mode="lines",
        name="Budget",
        line={"color": _style.GREY, "dash": "dash", "width": 1.5},
        hovertemplate="budget %{y:.3g} % of the full tables<extra></extra>",
        row=2,
        col=1,
    )


def _add_mean(
    figure: go.Figure,
    what: str,
    numbers: Sequence[int],
    values: Sequence[float],
    window: int,
    color: str,
    row: int,
) -> None:
    over = f"mean over {window} trials" if window > 1 else "every trial"
    figure.add_scatter(
        x=list(numbers),
        y=_style.compact(values),
        mode="lines",
        name=f"{what.capitalize()}, {over}",
        showlegend=row == 1,
        line={"color": color, "width": 2},
        hovertemplate=f"{what}, {over}: %{{y:.4g}}<extra></extra>",
        row=row,
        col=1,
    )
