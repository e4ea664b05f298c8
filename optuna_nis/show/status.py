"""The state of a study at a glance: its trials, its policy, its best choices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from optuna_nis._format import memory, percent, size
from optuna_nis.controller.replay import FINISHED
from optuna_nis.controller.sampler import NISSampler
from optuna_nis.controller.settings import settings_of
from optuna_nis.show.words import SCORED, precisions_of
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.study import results
from optuna_nis.study.keys import SHARED_WEIGHTS
from optuna_nis.study.moments import mean_and_std, moments_of
from optuna_nis.study.searches import searches_of
from optuna_nis.study.settings import sign_of
from optuna_nis.study.trials import is_scored

if TYPE_CHECKING:
    from rich.console import RenderableType

_RECENT = 100
_MOST_FEATURES = 20


@dataclass(frozen=True)
class PolicyStatus:
    """What the policy of a study is like now.

    Attributes:
        entropy: Its entropy in nats.
        initial_entropy: The entropy that it had before any trial; None if it is not known.
        advantage_mean: Mean advantage of the trials learned last, in standard deviations of the
            reward.
        advantage_std: Their standard deviation.
        replay_lag: Trials that a worker had not seen when it last noted it; None if none did.
        num_parameters: Embedding parameters of its likeliest choice, for an embedding search.
        nbytes: The bytes of that choice.
    """

    entropy: float
    initial_entropy: float | None
    advantage_mean: float
    advantage_std: float
    replay_lag: int | None
    num_parameters: int | None
    nbytes: int | None = None


@dataclass(frozen=True)
class StudyStatus:
    """The state of a study.

    Attributes:
        name: Name of the study.
        metric: What it improves.
        states: Number of trials in each state, such as ``"COMPLETE"``.
        trials_per_minute: Trials finished per minute, over the last 100 of them; None before the
            second.
        seconds_since_last: Seconds since a trial finished last; None if none has.
        best: The best trials, best first.
        space: The search space, for an embedding search.
        policy: The policy; None if there is nothing to learn from.
        searches: Number of one-shot searches.
        searches_ended: Number of those that have come to their end.
        shared_weights: Number of trials scored with shared weights, which are pruned to Optuna.
        verdict: Which sizes to take, once they have been retrained.
        sign: -1 if the metric is the smaller the better and was negated for the study.
    """

    name: str
    metric: str
    states: dict[str, int]
    trials_per_minute: float | None
    seconds_since_last: float | None
    best: tuple[FrozenTrial, ...]
    space: SearchSpace | None
    policy: PolicyStatus | None
    searches: int = 0
    searches_ended: int = 0
    shared_weights: int = 0
    verdict: str = ""
    sign: float = 1.0


def status_of(
    study: Study, sampler: NISSampler | None = None, *, num_best: int = 5
) -> StudyStatus:
    """The state of a study.

    Args:
        study: A study with a single objective, whatever sampler it uses.
        sampler: A sampler that learns the policy; hand in the same one again to learn only what
            is new. By default one with the search space of the study, if it holds one, or else
            what the study's own sampler has noted.
        num_best: Number of trials to name as the best.

    Raises:
        ValueError: If the study has several objectives.

    Example:
        >>> import optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(sampler=NISSampler(seed=0))
        >>> study.optimize(lambda trial: trial.suggest_int("x", 0, 3), n_trials=20)
        >>> status_of(study).states
        {'COMPLETE': 20}
    """
    if len(study.directions) > 1:
        raise ValueError(
            f"`study` must have a single objective, got {len(study.directions)} directions."
        )
    trials = study.get_trials(deepcopy=False)
    space = space_of(study)
    searches = searches_of(study).values()
    times = sorted(
        trial.datetime_complete
        for trial in trials
        if trial.state in FINISHED and trial.datetime_complete is not None
    )
    return StudyStatus(
        name=study.study_name,
        metric=results.metric_of(study),
        states=dict(sorted(Counter(trial.state.name for trial in trials).items())),
        trials_per_minute=_per_minute(times[-_RECENT:]),
        seconds_since_last=(datetime.now() - times[-1]).total_seconds() if times else None,
        best=tuple(_best(study, trials)[:num_best]),
        space=space,
        policy=_policy(study, sampler, space),
        searches=len(searches),
        searches_ended=sum(search.seconds is not None for search in searches),
        shared_weights=sum(results.fidelity_of(trial) in SHARED_WEIGHTS for trial in trials),
        verdict=results.results_of(study).verdict,
        sign=sign_of(study),
    )


def space_of(study: Study) -> SearchSpace | None:
    """The search space of a study, None if it holds none."""
    return results.space_of(study) if results.SPACE_ATTR in study.user_attrs else None


def sampler_of(study: Study) -> NISSampler:
    """A sampler that learns the policy of a study, as far as the study tells how."""
    return NISSampler(budget=space_of(study), settings=settings_of(study))


def _per_minute(times: Sequence[datetime]) -> float | None:
    spent = (times[-1] - times[0]).total_seconds() if times else 0.0
    return 60 * (len(times) - 1) / spent if spent > 0 else None


def _best(study: Study, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials scored in the dearest way first; what is scored differently cannot be compared.

    The finalist that a retraining has found best comes before the others.
    """
    finalist = None
    with suppress(ValueError):
        finalist = results.best_trial(study).number
    sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
    fidelities = list(SCORED)

    def order(trial: FrozenTrial) -> tuple[bool, bool, int, float]:
        fidelity = results.fidelity_of(trial)
        place = fidelities.index(fidelity) if fidelity else len(fidelities)
        value = -sign * results.value_of(trial)
        return (trial.number != finalist, not results.is_feasible(trial), place, value)

    return sorted(filter(is_scored, trials), key=order)


def _policy(
    study: Study, sampler: NISSampler | None, space: SearchSpace | None
) -> PolicyStatus | None:
    moments = moments_of(study)
    if sampler is None and space is None and moments:
        # Of which budget the study's sampler is, only that sampler knows; this it has noted.
        last = moments[-1]
        return PolicyStatus(
            last.entropy, None, last.advantage_mean, last.advantage_std, last.replay_lag, None
        )
    sampler = sampler or sampler_of(study)
    try:
        policy = sampler.policy(study)
    except ValueError:
        return None  # No parameter that all trials have in common.
    mean, std = mean_and_std(policy.advantages.tolist())
    likeliest = None if space is None else space.allocation(policy.params(policy.mode())[0])
    _, entropy = policy.summaries([policy.initial_logits, policy.logits])
    return PolicyStatus(
        entropy=float(entropy[1]),
        initial_entropy=float(entropy[0]),
        advantage_mean=mean,
        advantage_std=std,
        replay_lag=moments[-1].replay_lag if moments else None,
        num_parameters=None if likeliest is None else likeliest.num_parameters,
        nbytes=None if likeliest is None else likeliest.nbytes(),
    )


def render(status: StudyStatus) -> RenderableType:
    """A status for the terminal.

    Raises:
        ImportError: If rich is not installed.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(status):
        # Text and not str: square brackets in a name are no markup.
        facts.add_row(Text(name, style="dim"), Text(text))
    if not status.best:
        return facts
    best = Table(title="Best trials", title_justify="left")
    # The reward is the metric less what memory costs.
    header = ["Trial", status.metric, "Reward", "Memory", "Of budget", "Scored with"]
    for name in header if status.space else header[:2]:
        best.add_column(Text(name), justify="left" if name == header[-1] else "right")
    for trial in status.best:
        best.add_row(*(Text(cell) for cell in _cells(status, trial)))
    return Group(facts, best, Text(_choice(status.space, status.best[0])))


def _facts(status: StudyStatus) -> list[tuple[str, str]]:
    counts = ", ".join(f"{count:,} {state.lower()}" for state, count in status.states.items())
    if status.shared_weights:
        counts += f"; {status.shared_weights:,} of them scored with shared weights"
    facts = [("Study", status.name), ("Trials", counts or "none")]
    speed = []
    if status.trials_per_minute is not None:
        digits = 0 if status.trials_per_minute >= 100 else 1
        speed.append(f"{status.trials_per_minute:,.{digits}f} trials per minute")
    if status.seconds_since_last is not None:
        speed.append(f"the last finished {max(status.seconds_since_last, 0.0):,.0f} s ago")
    if speed:
        facts.append(("Throughput", ", ".join(speed)))
    if status.searches > 1:
        facts.append(("Searches", f"{status.searches:,}, {status.searches_ended:,} of them ended"))
    space, policy = status.space, status.policy
    if space is not None:
        facts.append(("Budget", memory(space.budget_nbytes, space.full_nbytes)))
        if precisions := precisions_of(space):
            facts.append(("Precisions", precisions))
    if policy is not None:
        entropy = f"{policy.entropy:.3f} nats"
        if policy.initial_entropy:
            share = policy.entropy / policy.initial_entropy
            entropy += f", {100 * share:.0f} % of the untrained policy"
        facts += [
            ("Entropy", entropy),
            (
                "Advantage",
                f"{policy.advantage_mean:+.3f} ± {policy.advantage_std:.3f} standard deviations "
                "of the reward",
            ),
        ]
        if policy.replay_lag is not None:
            facts.append(("Replay lag", f"{policy.replay_lag:,} trials"))
        if policy.nbytes is not None:
            facts.append(("Likeliest", size(policy.nbytes)))
    if status.verdict:
        facts.append(("Verdict", status.verdict))
    return facts


def _cells(status: StudyStatus, trial: FrozenTrial) -> list[str]:
    space = status.space
    cells = [str(trial.number), f"{status.sign * results.quality_of(trial):.5g}"]
    if space is None:
        return cells
    cells.append(f"{results.value_of(trial):.5g}")
    scored = SCORED.get(results.fidelity_of(trial) or "", "")
    allocation = _allocation(space, trial)
    if allocation is None:
        return [*cells, "-", "-", scored]
    nbytes = allocation.nbytes()
    return [*cells, size(nbytes), percent(nbytes / space.budget_nbytes), scored]


def _allocation(space: SearchSpace, trial: FrozenTrial) -> Allocation | None:
    try:
        return space.allocation(trial.params)
    except ValueError:
        return None


def _choice(space: SearchSpace | None, trial: FrozenTrial) -> str:
    allocation = None if space is None else _allocation(space, trial)
    if allocation is None:
        lines = [f"{name}: {value}" for name, value in trial.params.items()]
    else:
        lines = str(allocation).splitlines()
    left = len(lines) - _MOST_FEATURES
    return "\n".join(lines[:_MOST_FEATURES] + ([f"and {left} more"] if left > 0 else []))
