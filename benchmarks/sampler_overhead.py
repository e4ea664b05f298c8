"""What the sampler costs: per trial, beside random sampling and TPE, and to replay a study.

    python benchmarks/sampler_overhead.py --output benchmarks/results/sampler_overhead.json \
        --plot benchmarks/results/sampler_overhead.html

40 categorical parameters of 6 choices, an objective that costs nothing. Samplers take turns in
short pieces, so that a busy machine slows all of them. Prints one JSON object as its last line:
seconds per trial of each sampler around the trials 1,000 and 10,000, their ratios, the seconds
that a fresh process needs to load a study of 10,000 trials from SQLite and, on top of that, to
replay it, and the seconds of a replay in memory for up to 100,000 trials. What is not measured in
turns is given in seconds of the processor, which on a quiet machine are those of the clock.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime, timedelta
import json
import math
from pathlib import Path
from statistics import median
import tempfile
import time
from typing import Any

import numpy as np
import optuna
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_nis import NISSampler
from optuna_nis.controller.replay import LOG_PROB_KEY, Replay
from optuna_nis.study.recording import add_finished_trials

_NUM_PARAMETERS = 40
_CHOICES = (0, 1, 2, 3, 4, 5)
_DISTRIBUTIONS: dict[str, BaseDistribution] = {
    f"p{index:02}": CategoricalDistribution(_CHOICES) for index in range(_NUM_PARAMETERS)
}
_PIECES = 40
_TRIALS_PER_PIECE = 10
_TPE_TRIALS = 5
_WRITTEN_AT_ONCE = 500


def objective(trial: optuna.Trial) -> float:
    return float(sum(trial.suggest_categorical(name, _CHOICES) for name in _DISTRIBUTIONS))


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    work()
    return clock() - start


def cpu_seconds(work: Callable[[], object]) -> float:
    return seconds(work, time.process_time)


def per_trial(studies: dict[str, Study], at: int) -> dict[str, float]:
    """Seconds per trial around a trial number, as medians of pieces taken in turns."""
    half = _PIECES * _TRIALS_PER_PIECE // 2
    for study in studies.values():
        study.optimize(objective, n_trials=at - half - len(study.trials))
    pieces: dict[str, list[float]] = {name: [] for name in studies}
    for _ in range(_PIECES):
        for name, study in studies.items():
            spent = seconds(lambda: study.optimize(objective, n_trials=_TRIALS_PER_PIECE))  # noqa: B023
            pieces[name].append(spent / _TRIALS_PER_PIECE)
    found = {name: median(spent) for name, spent in pieces.items()}
    # TPE is slow: it goes on from the random trials, for a few.
    random = studies["random"]
    with_tpe = optuna.load_study(
        study_name=random.study_name, storage=random._storage, sampler=TPESampler(seed=0)
    )
    tpe = [seconds(lambda: with_tpe.optimize(objective, n_trials=1)) for _ in range(_TPE_TRIALS)]
    return found | {"tpe": median(tpe)}


def history(count: int) -> list[FrozenTrial]:
    """Finished trials, drawn at random."""
    rng = np.random.default_rng(0)
    options = rng.integers(0, len(_CHOICES), (count, _NUM_PARAMETERS))
    values = options.sum(axis=1) + rng.normal(size=count)
    log_prob = -_NUM_PARAMETERS * math.log(len(_CHOICES))
    start = datetime(2026, 1, 1)
    return [
        FrozenTrial(
            number=number,
            trial_id=number,
            state=TrialState.COMPLETE,
            value=float(value),
            datetime_start=start + timedelta(seconds=number),
            datetime_complete=start + timedelta(seconds=number + 1),
            params=dict(zip(_DISTRIBUTIONS, row)),
            distributions=_DISTRIBUTIONS,
            user_attrs={},
            system_attrs={LOG_PROB_KEY: log_prob},
            intermediate_values={},
        )
        for number, (row, value) in enumerate(zip(options.tolist(), values))
    ]


def loading_and_replay(trials: list[FrozenTrial]) -> tuple[float, float]:
    """Seconds to load a study from SQLite, and to replay it once it is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/study.db"
        study = optuna.create_study(storage=url, study_name="s", direction="maximize")
        for first in range(0, len(trials), _WRITTEN_AT_ONCE):
            add_finished_trials(study, trials[first : first + _WRITTEN_AT_ONCE])
        loads, replays = [], []
        for _ in range(3):
            opened = optuna.load_study(storage=url, study_name="s")
            loads.append(cpu_seconds(lambda: opened.get_trials(deepcopy=False)))  # noqa: B023
            replays.append(cpu_seconds(lambda: NISSampler().policy(opened)))  # noqa: B023
    return median(loads), median(replays)


def replay(trials: list[FrozenTrial]) -> None:
    Replay(StudyDirection.MAXIMIZE).follow(trials)


def draw(sizes: list[int], spent: list[float], path: Path) -> None:
    import plotly.graph_objects as go

    figure = go.Figure(go.Scatter(x=sizes, y=spent, mode="lines+markers", name="replay"))
    linear = [spent[0] * size / sizes[0] for size in sizes]
    figure.add_scatter(x=sizes, y=linear, mode="lines", line_dash="dot", name="linear growth")
    figure.update_xaxes(type="log", title="Finished trials")
    figure.update_yaxes(type="log", title="Seconds of a replay")
    figure.write_html(path, include_plotlyjs="cdn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most-trials", type=int, default=100_000, help="of the longest replay")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path, help="HTML file for the cost of a replay")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    samplers: dict[str, BaseSampler] = {"random": RandomSampler(seed=0), "nis": NISSampler(seed=0)}
    studies = {
        name: optuna.create_study(direction="maximize", sampler=sampler)
        for name, sampler in samplers.items()
    }
    summary: dict[str, Any] = {}
    for at in (1_000, 10_000):
        found = per_trial(studies, at)
        summary[f"ratio_at_{at}"] = round(found["nis"] / found["random"], 3)
        summary[f"tpe_ratio_at_{at}"] = round(found["tpe"] / found["random"], 1)
        summary[f"milliseconds_at_{at}"] = {n: round(1e3 * s, 3) for n, s in found.items()}
    del studies

    loading, replaying = loading_and_replay(history(10_000))
    summary["load_10000_seconds"] = round(loading, 2)
    summary["replay_10000_seconds"] = round(replaying, 2)

    sizes = [size for size in (1_000, 3_000, 10_000, 30_000, 100_000) if size <= args.most_trials]
    trials = history(sizes[-1])
    spent = [cpu_seconds(lambda: replay(trials[:size])) for size in sizes]  # noqa: B023
    summary["replay_seconds"] = {size: round(s, 2) for size, s in zip(sizes, spent)}
    if args.plot is not None:
        draw(sizes, spent, args.plot)
    if args.output is not None:
        args.output.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
