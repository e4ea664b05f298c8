"""A search in Optuna Dashboard: figures, a note, and names, while it runs.

:func:`publish` writes them into a study once, :class:`DashboardCallback` as the search goes on.
Optuna Dashboard shows the figures in the study's history page and the note beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import copy
import math
import shlex
import threading
import time
import warnings

import optuna
from optuna import Study
from optuna.trial import FrozenTrial

try:
    import optuna_dashboard
    import plotly.graph_objects as go
except ImportError as error:
    raise ImportError(
        "Optuna Dashboard needs optuna-dashboard and plotly; install them with "
        "`pip install 'optuna-nis[dashboard]'`."
    ) from error

from optuna_nis._checks import check_integer
from optuna_nis._format import percent, size
from optuna_nis._logging import get_logger
from optuna_nis.show.figures import (
    _allocation,
    _feature_budget,
    _learning,
    _memory_quality,
    _policy,
    _reward_history,
    _style,
)
from optuna_nis.show.figures._points import Point
from optuna_nis.show.words import allocation_rows, how_scored, precisions_of
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.study import results
from optuna_nis.study.keys import DATA_ATTR, PIECE_KEY, PUBLISHED_KEY
from optuna_nis.study.moments import copy_settings, moments_of
from optuna_nis.study.recording import add_finished_trials
from optuna_nis.study.trials import finalists_of

__all__ = ["DashboardCallback", "publish", "thinned_copy"]

_logger = get_logger(__name__)

_PREFIX = "nis-"
# The dashboard gives every figure a card of this height and half the page.
_HEIGHT = 450
_MAX_FEATURES = 14
_MAX_PARAMETERS = 22
_MAX_POINTS = 400
_MAX_MOMENTS = 40
_MAX_ROWS = 50
_YOURS = "*What stands above is written by the search; your own notes go below this line.*"


# Figures are due again after so many more trials, or so large a share more.
_MORE_TRIALS = 8
_MORE_SHARE = 0.25


def publish(study: Study) -> list[str]:
    """Write figures, a note and the objective's name into a study, for Optuna Dashboard.

    Figures that were there before are replaced. In the note, what you write below the line
    that the search leaves stays; a note of your own without that line is left alone.

    Figures are thinned, so that their number and the number of trials and features do not
    matter: 400 trials of a kind, the Pareto front among them, the 14 features with the most memory
    and the 22 parameters that changed most.

    Args:
        study: A study of an embedding search, finished or running.

    Returns:
        The ids of the figures, none if no trial has finished.

    Raises:
        ValueError: If the study holds no search space, or does not maximise one reward.

    Example:
        >>> import optuna
        >>> from optuna_nis import EmbeddingSpec, SearchSpace
        >>> from optuna_nis.study.results import save_space
        >>> space = SearchSpace([EmbeddingSpec("user", 1000, 8)], budget="50%")
        >>> study = optuna.create_study(direction="maximize")
        >>> save_space(study, space)
        >>> study.optimize(lambda trial: len(space.suggest(trial)["user"].tiers), n_trials=9)
        >>> publish(study)[:2]
        ['nis-1-allocation', 'nis-2-memory-vs-quality']
    """
    return _publish(study, study)


class DashboardCallback:
    """Keeps the figures of a study up to date in Optuna Dashboard while the search runs.

    It is a callback of :meth:`optuna.Study.optimize`, and the argument ``dashboard`` of
    :class:`~optuna_nis.lightning.NISCallback`. Figures are written again after a quarter more
    trials, at most every ``interval`` seconds, and so that they take at most ``max_share`` of the
    time; of several workers one writes. A search that ends writes them once more; after
    ``Study.optimize`` you do, with :meth:`finish`.

    A study that holds no search space yet is given ``space``. What goes wrong is logged and never
    stops the search.

    Args:
        space: The search space, for a study that does not hold it: needed with
            :meth:`~optuna.Study.optimize` only.
        interval: Seconds between two updates, at least.
        max_share: Largest share of the time that updates may take.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import optuna
        >>> from optuna_nis import EmbeddingSpec, SearchSpace
        >>> space = SearchSpace([EmbeddingSpec("user", 1000, 8)], budget="50%")
        >>> study = optuna.create_study(direction="maximize")
        >>> callback = DashboardCallback(space)
        >>> study.optimize(
        ...     lambda trial: len(space.suggest(trial)["user"].tiers),
        ...     n_trials=9,
        ...     callbacks=[callback],
        ... )
        >>> callback.finish(study)
    """

    def __init__(
        self,
        space: SearchSpace | None = None,
        *,
        interval: float = 10.0,
        max_share: float = 0.02,
    ) -> None:
        if not interval >= 0:
            raise ValueError(f"`interval` must be seconds, at least 0, got {interval!r}.")
        if not 0 < max_share <= 1:
            raise ValueError(f"`max_share` must be a share in (0, 1], got {max_share!r}.")
        self._space = space
        self._interval = interval
        self._max_share = max_share
        self._lock = threading.Lock()
        self._next_time = -math.inf
        self._next_trials = 0

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Update the figures if they are due; called by :meth:`optuna.Study.optimize`."""
        self.update(study, trial.number + 1)

    def update(self, study: Study, num_trials: int) -> None:
        """Update the figures if they are due.

        Args:
            study: The study.
            num_trials: How many trials it has by now, about.
        """
        if time.monotonic() < self._next_time or num_trials < self._next_trials:
            return
        # Threads of one search share the callback: one of them writes, the others go on.
        if not self._lock.acquire(blocking=False):
            return
        try:
            start = time.monotonic()
            self._next_trials = num_trials + max(_MORE_TRIALS, round(_MORE_SHARE * num_trials))
            if self._claim(study):
                if self._space is not None:
                    results.save_space(study, self._space)
                publish(study)
            took = time.monotonic() - start
            self._next_time = start + took + max(self._interval, took / self._max_share - took)
        except Exception as error:
            self._next_time = math.inf
            _logger.warning(f"The dashboard's figures are no longer updated: {error!r}.")
        finally:
            self._lock.release()

    def finish(self, study: Study) -> None:
        """Write the figures of a search that has come to its end, due or not."""
        try:
            publish(study)
        except Exception as error:
            _logger.warning(f"The dashboard's figures could not be written: {error!r}.")

    def _claim(self, study: Study) -> bool:
        """Whether no other worker has written within the interval."""
        now = time.time()
        storage, study_id = study._storage, study._study_id
        last = storage.get_study_system_attrs(study_id).get(PUBLISHED_KEY, 0.0)
        if isinstance(last, (int, float)) and 0 <= now - last < self._interval:
            return False
        storage.set_study_system_attr(study_id, PUBLISHED_KEY, now)
        return True


def thinned_copy(study: Study, *, max_trials: int = 400, name: str | None = None) -> Study:
    """Copy a study with a part of its trials, for a dashboard page that opens at once.

    Optuna Dashboard loads all trials of a study with all their parameters. A copy holds those
    that were trained or scored on all validation data, the Pareto front, and of the others
    every so-and-so-many-th; its figures and its note are those of the whole study.

    Args:
        study: A study of an embedding search.
        max_trials: Trials in the copy.
        name: Name of the copy, by default the study's with ``" (thinned)"``. A study of that name
            is replaced.

    Returns:
        The copy, in the same storage.

    Raises:
        ValueError: If ``max_trials`` is no positive integer, the name is the study's own, or the
            study holds no search space or no finished trial.

    Example:
        >>> copy = thinned_copy(study, max_trials=10)
        >>> copy.study_name, len(copy.trials)
        ('clicks (thinned)', 10)
    """
    check_integer("max_trials", max_trials, 1)
    name = f"{study.study_name} (thinned)" if name is None else name
    if name == study.study_name:
        raise ValueError(f"`name` must not be the name of the study itself, got {name!r}.")
    kept = _kept_trials(study, max_trials)
    storage = study._storage
    if name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=name, storage=storage)
    thinned = optuna.create_study(storage=storage, study_name=name, directions=study.directions)
    for key, value in storage.get_study_system_attrs(study._study_id).items():
        if key.startswith(PIECE_KEY):
            storage.set_study_system_attr(thinned._study_id, key, value)
    copy_settings(study, thinned)
    for key, value in study.user_attrs.items():
        thinned.set_user_attr(key, value)
    numbers = dict(zip((t.number for t in kept), add_finished_trials(thinned, kept)))
    best, compared = finalists_of(study)
    if best in numbers:
        finalists = [numbers[number] for number in compared if number in numbers]
        results.save_finalist(thinned, numbers[best], finalists)
    _publish(study, thinned)
    return thinned


def _kept_trials(study: Study, max_trials: int) -> list[FrozenTrial]:
    info = _memory_quality._memory_quality_info(study)
    numbers = {info.best.number} | {p.number for front in info.fronts.values() for p in front}
    trials = results.finished_trials(study)
    # The best trial first, so that it is kept in any case.
    trials.sort(key=lambda trial: trial.number != info.best.number)
    wanted = [
        t
        for t in trials
        if t.number in numbers or results.fidelity_of(t) not in (None, results.SUPERNET)
    ]
    known = {trial.number for trial in wanted}
    others = [trial for trial in trials if trial.number not in known]
    kept = [wanted[i] for i in _style.thin(len(wanted), max_trials)]
    room = max_trials - len(kept)
    kept += [others[i] for i in _style.thin(len(others), room)] if room else []
    copies = [copy.copy(trial) for trial in sorted(kept, key=lambda trial: trial.number)]
    for trial in copies:
        trial.intermediate_values = {}
    return copies


def _publish(source: Study, target: Study) -> list[str]:
    """Write into one study the figures of another, or of itself."""
    results.space_of(source)
    # A study that is refused stays as it is.
    finished = results.finished_trials(source)
    _name_objective(source, target)
    if not finished:
        return []
    allocation = results.best_allocation(source)
    _save_note(source, target, allocation)
    ids = []
    for index, (name, figure) in enumerate(_figures(source, allocation), start=1):
        ids.append(f"{_PREFIX}{index}-{name}")
        _fit(figure)
        optuna_dashboard.save_plotly_graph_object(target, figure, graph_object_id=ids[-1])
    return ids


def _name_objective(source: Study, target: Study) -> None:
    if target.metric_names:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        target.set_metric_names([f"reward ({results.metric_of(source)})"])


def _figures(study: Study, best: Allocation) -> Iterator[tuple[str, go.Figure]]:
    """The figures that fit a card of the dashboard, most wanted first."""
    sizes = _allocation._allocation_info(study)
    shown = sizes._replace(features=sizes.features[:_MAX_FEATURES])
    yield "allocation", _allocation._draw(shown, num_left_out=len(sizes.features) - _MAX_FEATURES)
    quality = _memory_quality._memory_quality_info(study)
    fronts = {p.number for front in quality.fronts.values() for p in front}
    fronts.add(quality.best.number)
    points = {kind: _thinned(points, fronts) for kind, points in quality.points.items()}
    yield "memory-vs-quality", _memory_quality._draw(quality._replace(points=points))
    yield "feature-budget", _feature_budget._draw(_feature_budget._feature_budget_info(study))
    try:
        history = _policy.policy_of(study, num_points=_MAX_MOMENTS)
    except ValueError:
        history = None
    rewards = _reward_history._reward_history_info(study, history)
    yield "reward-history", _reward_history._draw(_thin_rewards(rewards))
    if history is not None:
        policy = _policy._policy_info(history, max_parameters=_MAX_PARAMETERS)
        yield "policy", _policy._draw_sizes(policy)
    if moments_of(study):
        yield "learning", _learning._draw(_learning._learning_info(study))


def _fit(figure: go.Figure) -> None:
    """Make a figure fit its card: smaller letters and few, short entries in the legend."""
    figure.update_layout(
        height=_HEIGHT,
        font_size=11,
        title_font_size=14,
        legend={"font": {"size": 10}, "tracegroupgap": 0},
    )
    figure.update_xaxes(title_font_size=11)
    figure.update_yaxes(title_font_size=11)
    for trace in figure.data:
        name = trace.name or ""
        for words in ("Trials, ", "Reward, ", " (validation)"):
            name = name.replace(words, "")
        trace.name = name.replace("all validation data", "all data")
        if name.startswith("Pareto front"):
            trace.showlegend = False


def _thinned(points: Sequence[Point], numbers: Iterable[int] = ()) -> tuple[Point, ...]:
    shown = {points[i].number for i in _style.thin(len(points), _MAX_POINTS)} | set(numbers)
    return tuple(point for point in points if point.number in shown)


def _thin_rewards(info: _reward_history._RewardHistoryInfo) -> _reward_history._RewardHistoryInfo:
    keep = _style.thin(len(info.points), _MAX_POINTS)
    return info._replace(
        points=tuple(info.points[i] for i in keep),
        others=_thinned(info.others),
        best=tuple(info.best[i] for i in _style.thin(len(info.best), _MAX_POINTS)),
        mean_reward=tuple(info.mean_reward[i] for i in keep),
        mean_quality=tuple(info.mean_quality[i] for i in keep),
        mean_penalty=tuple(info.mean_penalty[i] for i in keep),
        mean_share=tuple(info.mean_share[i] for i in keep),
    )


def _save_note(source: Study, target: Study, best: Allocation) -> None:
    before = optuna_dashboard.get_note(target)
    if before.strip() and _YOURS not in before:
        return
    yours = before.partition(_YOURS)[2]
    note = f"{_note(source, best)}\n{_YOURS}{yours}"
    if note != before:
        optuna_dashboard.save_note(target, note)


def _note(study: Study, best: Allocation) -> str:
    """Budget, best sizes and what to do with them, in Markdown."""
    space = results.space_of(study)
    full = space.full_nbytes
    trial = results.best_trial(study)
    metric = _code(results.metric_of(study))
    precisions = precisions_of(space)
    rows = [
        f"| {_code(feature)} | {table} | {kept} | {cost} |"
        for feature, table, kept, cost, _ in allocation_rows(best)[:_MAX_ROWS]
    ]
    if len(best) > _MAX_ROWS:
        rows.append(f"| {len(best) - _MAX_ROWS} more | | | |")
    verdict = results.results_of(study).verdict
    verdict = verdict or "What sizes are worth is known after they are trained again and tested."
    return "\n".join(
        [
            "## Embedding sizes",
            "",
            f"- Budget: **{size(space.budget_nbytes)}**, {percent(space.budget_nbytes / full)} of "
            f"the full tables ({size(full)} in float32, {len(space.specs)} features)"
            f"{f'; {precisions}' if precisions else ''}.",
            f"- Sizes found: **{size(best.nbytes())}**, {percent(best.nbytes() / full)} of the "
            f"full tables ({best.num_parameters:,} parameters); trial {trial.number}, {metric} "
            f"{results.metric_value_of(study, trial):.4f}, {how_scored(study, trial)}.",
            "- Trials scored with shared weights only rank choices; Optuna takes them for pruned. "
            "Its best trial is one that was trained.",
            f"- {verdict}",
            "",
            "| feature | full table | kept, most frequent ids first | memory |",
            "| --- | --- | --- | ---: |",
            *rows,
            "",
            *_commands(study),
            "",
            "In Python: `optuna_nis.study.results.best_allocation(study).to_json()`.",
            "",
        ]
    )


def _commands(study: Study) -> list[str]:
    """What to do next: where the study says which data it is about, all that commands can."""
    name = shlex.quote(study.study_name)
    report = f"    optuna-nis report --study-name {name}"
    if DATA_ATTR not in study.user_attrs:
        return [
            "The figures are on the History page. Write the whole report, with the `--storage` of "
            "this study:",
            "",
            report,
        ]
    return [
        "The figures are on the History page. Train again, test and keep the model, write the "
        "whole report (both with the `--storage` of this study), and export the model:",
        "",
        f"    optuna-nis retrain --study-name {name} --output model",
        report,
        "    optuna-nis export --model model --format dense --output served",
    ]


def _code(text: str) -> str:
    """A name as Markdown shows it literally, in a table too."""
    name = " ".join(text.replace("`", "'").split())
    return "`" + name.replace("|", "\\|") + "`" if name else ""
