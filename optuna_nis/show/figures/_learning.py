from __future__ import annotations

from typing import NamedTuple

from optuna import Study
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optuna_nis.show.figures import _style
from optuna_nis.study.moments import Moment, moments_of


class _LearningInfo(NamedTuple):
    """Moments of the policy, oldest first."""

    moments: tuple[Moment, ...]


def plot_learning(study: Study) -> go.Figure:
    """Plot how the policy learns: its entropy, how well its critic predicts, and its lag.

    The figure is drawn from what :class:`~optuna_nis.NISSampler` notes in the study while it is
    at work; no trial is replayed.

    Args:
        study: A study searched by :class:`~optuna_nis.NISSampler`, of any search space.

    Returns:
        The figure.

    Raises:
        ValueError: If nothing was noted yet, which happens after 8 finished trials, or what the
            study holds in its place is malformed.

    Example:
        >>> figure = plot_learning(study)
        >>> figure.layout.title.text
        'How the policy learns'
    """
    return _draw(_learning_info(study))


def _learning_info(study: Study) -> _LearningInfo:
    moments = moments_of(study)
    if not moments:
        raise ValueError(
            f"`study` {study.study_name!r} has no finished trial after which NISSampler noted how "
            "its policy is doing; it does so from the 8th on."
        )
    return _LearningInfo(tuple(moments))


def _draw(info: _LearningInfo) -> go.Figure:
    titles = [
        "Entropy of the policy (nats)",
        "Advantage of the last trials (standard deviations of the reward)",
        "Trials unseen when a worker looked",
    ]
    figure = make_subplots(
        rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.1, subplot_titles=titles
    )
    trials = [moment.num_trials for moment in info.moments]
    mean = [moment.advantage_mean for moment in info.moments]
    std = [moment.advantage_std for moment in info.moments]
    lines = (
        (1, "entropy", [moment.entropy for moment in info.moments], _style.BLUE, "solid"),
        (2, "mean advantage", mean, _style.BLUE, "solid"),
        (2, "standard deviation", std, _style.VERMILION, "dash"),
        (3, "unseen trials", [moment.replay_lag for moment in info.moments], _style.BLUE, "solid"),
    )
    for row, name, values, color, dash in lines:
        figure.add_scatter(
            x=trials,
            y=_style.compact(values),
            mode="lines+markers",
            name=name.capitalize(),
            showlegend=row == 2,
            line={"color": color, "dash": dash, "width": 2},
            marker={"size": 4},
            hovertemplate=f"after %{{x}} trials: {name} %{{y:.3g}}<extra></extra>",
            row=row,
            col=1,
        )
    _style.style(
        figure,
        "How the policy learns",
        560,
        legend={"yref": "container", "y": 0, "yanchor": "bottom"},
        margin={"l": 60, "r": 30, "t": 80, "b": 90},
    )
    figure.update_annotations(x=0, xanchor="left", font_size=13)
    figure.update_yaxes(rangemode="tozero", row=3)
    figure.update_xaxes(title_text="Finished trials", row=3)
    return figure
