from __future__ import annotations

from typing import NamedTuple

from optuna import Study
import plotly.graph_objects as go

from optuna_nis._format import size
from optuna_nis.show.figures import _style
from optuna_nis.study import results

_MAX_TRIALS = 1_000
_MAX_POINTS = 200
_MAX_FEATURES = 10


class _FeatureBudgetInfo(NamedTuple):
    """Memory of every feature over time, as a moving mean in shares of the budget.

    The features with the most memory are kept apart, by falling memory; ``other`` is the rest.
    """

    trial_numbers: tuple[int, ...]
    features: dict[str, tuple[float, ...]]
    other: tuple[float, ...] | None
    num_other: int
    budget_nbytes: int


def plot_feature_budget(study: Study) -> go.Figure:
    """Plot which features get the memory as the search goes on.

    Args:
        study: A study of an embedding search.

    Returns:
        The figure: stacked areas, one per feature; beyond ten features, those with the least
        memory are put together.

    Raises:
        ValueError: If the study holds no search space or no finished trial.

    Example:
        >>> figure = plot_feature_budget(study)
        >>> figure.layout.title.text
        'Which features get the memory'
    """
    return _draw(_feature_budget_info(study))


def _feature_budget_info(study: Study) -> _FeatureBudgetInfo:
    space = results.space_of(study)
    finished = results.finished_trials(study)
    # What the policy proposes; those scored better are picked from these by another rule.
    proposed = (None, results.SUPERNET)
    finished = [
        trial for trial in finished if trial.user_attrs.get(results.FIDELITY_ATTR) in proposed
    ] or finished
    numbers: list[int] = []
    costs: dict[str, list[float]] = {spec.name: [] for spec in space.specs}
    for index in _style.thin(len(finished), _MAX_TRIALS):
        try:
            allocation = space.allocation(finished[index].params)
        except ValueError:
            continue
        numbers.append(finished[index].number)
        for name, table in allocation.items():
            costs[name].append(table.nbytes() / space.budget_nbytes)
    if not numbers:
        raise ValueError(
            f"`study` {study.study_name!r} has no finished trial of its search space; "
            "search first."
        )
    window = _style.window_of(len(numbers))
    keep = _style.thin(len(numbers), _MAX_POINTS)
    means: dict[str, tuple[float, ...]] = {}
    for name, values in costs.items():
        mean = _style.moving_mean(values, window)
        means[name] = tuple(mean[i] for i in keep)
    order = sorted(means, key=lambda name: -sum(means[name]))
    shown = order if len(order) <= _MAX_FEATURES else order[:_MAX_FEATURES]
    rest = order[len(shown) :]
    return _FeatureBudgetInfo(
        tuple(numbers[i] for i in keep),
        {name: means[name] for name in shown},
        tuple(sum(column) for column in zip(*(means[name] for name in rest))) if rest else None,
        len(rest),
        space.budget_nbytes,
    )


def _draw(info: _FeatureBudgetInfo) -> go.Figure:
    figure = go.Figure()
    names = _style.labels(info.features)
    areas = [*zip(names, info.features.values(), _style.MANY)]
    if info.other is not None:
        what = f"{info.num_other} other feature" + ("s" if info.num_other > 1 else "")
        areas.append((what, info.other, _style.GREY))
    for name, values, color in areas:
        figure.add_scatter(
            x=list(info.trial_numbers),
            y=_style.compact((100 * value for value in values), 4),
            mode="lines",
            stackgroup="memory",
            name=name,
            line={"width": 0.5, "color": color},
            fillcolor=color,
            hovertemplate="%{y:.3g} % of the budget at trial %{x}",
        )
    figure.add_scatter(
        x=[info.trial_numbers[0], info.trial_numbers[-1]],
        y=[100, 100],
        mode="lines",
        name="Budget",
        line={"color": _style.GREY, "dash": "dash", "width": 1.5},
        hovertemplate=f"budget: {size(info.budget_nbytes)}<extra></extra>",
    )
    return _style.style(
        figure,
        "Which features get the memory",
        480,
        xaxis={"title": {"text": "Trial"}},
        yaxis={
            "title": {"text": "% of the budget (moving mean)"},
            "rangemode": "tozero",
        },
        legend={"y": -0.2, "traceorder": "normal"},
    )
