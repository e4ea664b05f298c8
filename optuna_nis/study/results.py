"""What a study holds after a search, read back with types.

A search writes its space and its metric into the user attributes of the study and what each trial
is made of into those of the trial; a retraining adds its results. Here are the names of these
attributes and the functions that read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
import json
import math
from statistics import fmean, stdev
from typing import Any

from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.study.cautions import Part, cautions

SPACE_ATTR = "nis:space"
METRIC_ATTR = "nis:metric"
DATASET_ATTR = "nis:dataset"
TASK_ATTR = "nis:task"
DATA_ATTR = "nis:data"
MODEL_OPTIONS_ATTR = "nis:model_options"
RESULTS_ATTR = "nis:results"
SEARCH_SECONDS_ATTR = "nis:search_seconds"
PLAIN_SECONDS_ATTR = "nis:plain_seconds"
PARTS_ATTR = "nis:parts"
NUM_ROWS_ATTR = "nis:num_rows"
SEEN_ROWS_ATTR = "nis:seen_rows"

QUALITY_ATTR = "quality"
PENALTY_ATTR = "penalty"
NUM_PARAMETERS_ATTR = "num_parameters"
FIDELITY_ATTR = "fidelity"
STEP_ATTR = "step"
SEARCH_ATTR = "search"

# How a trial was scored: on a validation batch with the supernet's weights, on all validation
# data with them, or on all validation data after a training of its own.
SUPERNET = "supernet"
VALIDATED = "validated"
TRAINED = "trained"
_FIDELITIES = (SUPERNET, VALIDATED, TRAINED)

# Before the name of what `Trial.set_constraint` sets.
_CONSTRAINT_PREFIX = "constraints:"

# MySQL keeps at most 65,535 bytes of an attribute. ASCII text at most doubles when Optuna writes
# it as JSON.
_PART_LENGTH = 32_000

# What a study holds may come from anyone: more than this is not read.
_MOST_TEXT = 4_000_000
_LONGEST_NAME = 200


@dataclass(frozen=True)
class RetrainResult:
    """One choice of sizes, trained from scratch with several seeds and tested.

    Args:
        name: Short name, such as ``"nis"``, ``"uniform"`` or ``"full"``.
        label: Name for people.
        metric: Name of the metric.
        values: The metric on the test data, one number per seed.
        seeds: The seeds.
        num_parameters: Embedding parameters, projections included.
        num_dense_parameters: Parameters of the rest of the model.
        allocation: The sizes, or :obj:`None` for a model without tiers.
        seconds: Time of all trainings together.
        val_values: What the search compares by, on the validation data, one number per seed.
        epochs: Number of epochs of each training.
        stopped: For each training whether it ended by itself, and not at the most epochs allowed.

    Raises:
        ValueError: If there is no value, a value is not finite, there are not as many seeds as
            values, or a count or time is negative.

    Example:
        >>> result = RetrainResult("full", "Full size", "ROC-AUC", (0.74, 0.76), (0, 1), 1000)
        >>> print(result)
        Full size: ROC-AUC 0.7500 ± 0.0141, 1,000 parameters
        >>> RetrainResult.from_dict(result.to_dict()) == result
        True
    """

    name: str
    label: str
    metric: str
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    num_parameters: int
    num_dense_parameters: int = 0
    allocation: Allocation | None = None
    seconds: float = 0.0
    val_values: tuple[float, ...] = ()
    epochs: tuple[int, ...] = ()
    stopped: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        kinds: tuple[tuple[str, type], ...] = (
            ("values", float),
            ("seeds", int),
            ("val_values", float),
            ("epochs", int),
            ("stopped", bool),
        )
        for field, kind in kinds:
            object.__setattr__(self, field, tuple(map(kind, getattr(self, field))))
        if not self.values or not all(math.isfinite(value) for value in self.values):
            raise ValueError(
                f"`values` of {self.name!r} must be at least one number, all finite, "
                f"got {list(self.values)}."
            )
        for field in ("seeds", "val_values", "epochs", "stopped"):
            each = getattr(self, field)
            if len(each) != len(self.values) and (each or field == "seeds"):
                raise ValueError(
                    f"`{field}` of {self.name!r} must be as many as the values, "
                    f"{len(self.values)}, got {list(each)}."
                )
        for field in ("num_parameters", "num_dense_parameters", "seconds"):
            value = getattr(self, field)
            if not value >= 0:
                raise ValueError(
                    f"`{field}` of {self.name!r} must not be negative, got {value!r}."
                )

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.4f}"
        return (
            f"{self.label}: {self.metric} {self.mean:.4f}{spread}, "
            f"{self.num_parameters:,} parameters"
        )

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds, :obj:`None` for a single seed: unknown."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def val_mean(self) -> float | None:
        """Mean over the seeds on the validation data, :obj:`None` if not recorded."""
        return fmean(self.val_values) if self.val_values else None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON, mean and standard deviation included."""
        return {
            "name": self.name,
            "label": self.label,
            "metric": self.metric,
            "mean": self.mean,
            "std": self.std,
            "values": list(self.values),
            "seeds": list(self.seeds),
            "num_parameters": self.num_parameters,
            "num_dense_parameters": self.num_dense_parameters,
            "allocation": None if self.allocation is None else self.allocation.to_json(),
            "seconds": self.seconds,
            "val_values": list(self.val_values),
            "epochs": list(self.epochs),
            "stopped": list(self.stopped),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RetrainResult:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ValueError: If the data are not such a result.
        """
        try:
            allocation = data.get("allocation")
            return cls(
                name=str(data["name"]),
                label=str(data["label"]),
                metric=str(data["metric"]),
                values=tuple(data["values"]),
                seeds=tuple(data["seeds"]),
                num_parameters=int(data["num_parameters"]),
                num_dense_parameters=int(data.get("num_dense_parameters", 0)),
                allocation=None if allocation is None else Allocation.from_json(allocation),
                seconds=float(data.get("seconds", 0.0)),
                val_values=tuple(data.get("val_values", ())),
                epochs=tuple(data.get("epochs", ())),
                stopped=tuple(data.get("stopped", ())),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"This retraining result is malformed: {error!r}.") from error


def save_space(study: Study, space: SearchSpace) -> None:
    """Write the search space into a study.

    Args:
        study: The study that is searched.
        space: Its space.

    Raises:
        ValueError: If the study was searched with another space.

    Example:
        >>> save_space(study, space_of(study))
    """
    before = _read_text(study, SPACE_ATTR)
    if before and (old := SearchSpace.from_json(before)) != space:
        raise ValueError(
            f"`study` {study.study_name!r} was searched with another space, {old!r}, now asked: "
            f"{space!r}. Use another study name."
        )
    _save_text(study, SPACE_ATTR, space.to_json())


def save_plan(study: Study, plan: Mapping[str, Any]) -> None:
    """Keep the plan of a search."""
    study.set_user_attr("nis:plan", dict(plan))


def space_of(study: Study) -> SearchSpace:
    """The search space that a study was searched with.

    Args:
        study: A study of an embedding search.

    Raises:
        ValueError: If the study holds no space.

    Example:
        >>> [spec.name for spec in space_of(study).specs]
        ['user', 'city']
    """
    text = _read_text(study, SPACE_ATTR)
    if not text:
        raise ValueError(
            f"`study` {study.study_name!r} holds no search space (user attribute "
            f"{SPACE_ATTR!r}); only a study written by an embedding search has one."
        )
    with _naming(study, SPACE_ATTR):
        return SearchSpace.from_json(text)


def metric_of(study: Study) -> str:
    """Name of the metric that a study improves, ``"quality"`` if it does not say.

    Raises:
        ValueError: If the study holds something else in its place.

    Example:
        >>> metric_of(study)
        'quality'
    """
    name = study.user_attrs.get(METRIC_ATTR, "quality")
    with _naming(study, METRIC_ATTR):
        if not isinstance(name, str) or len(name) > _LONGEST_NAME:
            raise ValueError(f"must be text of at most {_LONGEST_NAME} characters")
        return name


def finished_trials(study: Study) -> list[FrozenTrial]:
    """Trials that are complete with a finite value, in their order.

    Args:
        study: A study that maximises a reward.

    Raises:
        ValueError: If the study has another direction or several objectives.

    Example:
        >>> len(finished_trials(study))
        20
    """
    if study.directions != [StudyDirection.MAXIMIZE]:
        directions = [direction.name.lower() for direction in study.directions]
        raise ValueError(
            f"`study` {study.study_name!r} must maximize one reward, got directions {directions}."
        )
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]


def value_of(trial: FrozenTrial) -> float:
    """The reward of a finished trial.

    Raises:
        ValueError: If the trial has none.

    Example:
        >>> value_of(best_trial(study)) == study.best_value
        True
    """
    if trial.value is None:
        raise ValueError(f"`trial` {trial.number} has no value.")
    return trial.value


def number_of(trial: FrozenTrial, key: str, default: float) -> float:
    """A number among the user attributes of a trial.

    Args:
        trial: A trial.
        key: Name of the attribute.
        default: What stands for a missing one.

    Raises:
        ValueError: If the attribute is no number, or not finite.

    Example:
        >>> number_of(study.trials[0], "penalty", default=0.0)
        0.0
    """
    value = trial.user_attrs.get(key)
    if value is None:
        return default
    if not _is_number(value):
        raise ValueError(
            f"The user attribute {key!r} of trial {trial.number} must be a number, "
            f"got {str(value)[:80]!r}."
        )
    return float(value)


def fidelity_of(trial: FrozenTrial) -> str | None:
    """How a trial was scored, :obj:`None` if it does not say.

    Example:
        >>> fidelity_of(study.trials[0]) is None
        True
    """
    fidelity = trial.user_attrs.get(FIDELITY_ATTR)
    return fidelity if fidelity in _FIDELITIES else None


def is_trained(trial: FrozenTrial) -> bool:
    """Whether a trial was trained for real, not scored with shared weights.

    Example:
        >>> is_trained(study.trials[0])
        False
    """
    return fidelity_of(trial) == TRAINED


def best_trial(study: Study) -> FrozenTrial:
    """The trial that a search recommends.

    Trials that were trained for real, scored on all validation data with shared weights, and
    scored on a batch of it cannot be compared: the best of the first kind that there is counts.
    Trials that break a constraint count only if there are no others.

    Args:
        study: A study of an embedding search.

    Raises:
        ValueError: If no trial has finished with a finite value, or the study does not maximise
            one reward.

    Example:
        >>> best_trial(study).number == study.best_trial.number
        True
    """
    trials = finished_trials(study)
    trials = [trial for trial in trials if is_feasible(trial)] or trials
    for fidelity in reversed(_FIDELITIES):
        if alike := [t for t in trials if fidelity_of(t) == fidelity]:
            return max(alike, key=value_of)
    if not trials:
        raise ValueError(
            f"`study` {study.study_name!r} has no finished trial with a finite value; "
            "search first."
        )
    return max(trials, key=value_of)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial breaks no constraint.

    Example:
        >>> is_feasible(best_trial(study))
        True
    """
    constraints = getattr(trial, "constraints", None)
    if constraints is None:
        # They are new in Optuna 5; to Optuna 4 they are attributes like any other.
        attrs = trial.system_attrs
        constraints = {name: attrs[name] for name in attrs if name.startswith(_CONSTRAINT_PREFIX)}
    return not any(_is_number(value) and value > 0 for value in constraints.values())


def best_allocation(study: Study) -> Allocation:
    """The allocation that a search recommends: that of :func:`best_trial`.

    Args:
        study: A study of an embedding search.

    Raises:
        ValueError: If no trial has finished, the study holds no space, or its best trial is not
            of that space.

    Example:
        >>> print(best_allocation(study)["city"])
        city: 40x7 (of 40x8)
    """
    return space_of(study).allocation(best_trial(study).params)


def save_results(study: Study, results: Iterable[RetrainResult]) -> None:
    """Write retraining results into a study, in place of earlier ones.

    Args:
        study: The study whose best allocation was retrained.
        results: The results, best allocation and baselines.

    Raises:
        ValueError: If two results have the same name.

    Example:
        >>> save_results(study, [RetrainResult("nis", "NIS", "ROC-AUC", (0.77,), (0,), 1000)])
    """
    found = list(results)
    names = [result.name for result in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"`results` has two entries named {name!r}.")
    _save_text(study, RESULTS_ATTR, json.dumps([result.to_dict() for result in found]))


def results_of(study: Study) -> list[RetrainResult]:
    """The retraining results of a study, none if nothing was retrained.

    Args:
        study: A study of an embedding search.

    Raises:
        ValueError: If the study holds something else in their place.

    Example:
        >>> results_of(study)
        []
    """
    text = _read_text(study, RESULTS_ATTR)
    if not text:
        return []
    with _naming(study, RESULTS_ATTR):
        data = json.loads(text)
        if not isinstance(data, list):
            raise ValueError(f"must be a list, got {type(data).__name__}")
        return [RetrainResult.from_dict(item) for item in data]


def relative_gain(results: Iterable[RetrainResult], *, over: str = "uniform") -> float | None:
    """How much better the searched sizes are than a baseline, relative to the baseline.

    Args:
        results: Retraining results.
        over: Name of the baseline.

    Returns:
        ``nis / baseline - 1`` of the means, or :obj:`None` if one of them is missing or the
        baseline is 0.

    Example:
        >>> nis = RetrainResult("nis", "NIS", "ROC-AUC", (0.77,), (0,), 1000)
        >>> uniform = RetrainResult("uniform", "Uniform", "ROC-AUC", (0.7,), (0,), 1000)
        >>> round(relative_gain([nis, uniform]), 3)
        0.1
    """
    means = {result.name: result.mean for result in results}
    if "nis" not in means or not means.get(over):
        return None
    return means["nis"] / means[over] - 1.0


def search_cost_ratio(study: Study) -> float | None:
    """Time of the search over that of one plain training, :obj:`None` if not recorded.

    Example:
        >>> study.set_user_attr(SEARCH_SECONDS_ATTR, 30.0)
        >>> study.set_user_attr(PLAIN_SECONDS_ATTR, 20.0)
        >>> search_cost_ratio(study)
        1.5
    """
    seconds = []
    for key in (SEARCH_SECONDS_ATTR, PLAIN_SECONDS_ATTR):
        value = study.user_attrs.get(key)
        with _naming(study, key):
            if value is not None and not _is_number(value):
                raise ValueError(f"must be a number, got {str(value)[:80]!r}")
        seconds.append(value)
    search, plain = seconds
    return float(search) / float(plain) if search is not None and plain else None


def save_parts(study: Study, parts: Mapping[str, Part]) -> None:
    """Write into a study how much the parts of its data can tell.

    Args:
        study: The study.
        parts: The parts by name; others that the study holds stay.

    Example:
        >>> save_parts(study, {"train": Part(rows=800)})
        >>> parts_of(study)["train"].rows
        800
    """
    known = parts_of(study) | dict(parts)
    study.set_user_attr(PARTS_ATTR, {name: asdict(part) for name, part in known.items()})


def parts_of(study: Study) -> dict[str, Part]:
    """How much the parts of the data of a study can tell, by name; none if it does not say.

    Raises:
        ValueError: If the study holds something else in their place.

    Example:
        >>> parts_of(study)
        {}
    """
    found = study.user_attrs.get(PARTS_ATTR, {})
    with _naming(study, PARTS_ATTR):
        if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
            raise ValueError(f"must be a dictionary of dictionaries, got {str(found)[:80]!r}")
        try:
            parts = {str(name): Part(**part) for name, part in found.items()}
        except TypeError as error:
            raise ValueError(str(error)) from error
        for part in parts.values():
            numbers = (part.rows, part.positives or 0, part.chance, part.error)
            if not all(map(_is_number, numbers)) or not isinstance(part.metric, str | None):
                raise ValueError(f"must hold numbers, got {part}")
        return parts


def cautions_of(study: Study) -> list[str]:
    """What to mind about a study, a line each: see :func:`optuna_nis.study.cautions.cautions`.

    Args:
        study: A study of an embedding search, retrained or not.

    Raises:
        ValueError: If the study cannot be read.

    Example:
        >>> cautions_of(study)
        []
    """
    best = None
    if finished_trials(study) and is_trained(trial := best_trial(study)):
        best = ("the best sizes", _quality_of(trial))
    return cautions(parts_of(study), results_of(study), best)


def summary_of(study: Study) -> dict[str, Any]:
    """A study in one JSON object, as far as it is.

    Returns:
        ``dataset``, ``task``, ``metric`` on test data, which need not be the one that the search
        goes by, ``budget`` (parameters), ``best``, which is what the search recommends, for every
        result its ``mean``, ``std`` (null for a single seed), ``num_parameters``, ``seeds`` and
        how its trainings went under its name, ``relative_gain`` over uniform sizes,
        ``search_cost_ratio``, the ``parts`` of the data, and ``warnings``, what to mind. Before a
        retraining, what is not known yet is null or not there.

    Raises:
        ValueError: If the study holds no search space or no finished trial.

    Example:
        >>> save_results(study, [RetrainResult("nis", "NIS", "ROC-AUC", (0.77,), (0,), 1000)])
        >>> summary_of(study)["nis"]["mean"]
        0.77
    """
    results, best = results_of(study), best_trial(study)
    summary: dict[str, Any] = {
        "dataset": study.user_attrs.get(DATASET_ATTR),
        "task": study.user_attrs.get(TASK_ATTR),
        "metric": results[0].metric if results else None,
        "budget": space_of(study).budget,
        "best": {
            "trial": best.number,
            "metric": metric_of(study),
            "value": _quality_of(best),
            "fidelity": fidelity_of(best),
            "num_parameters": best_allocation(study).num_parameters,
        },
    }
    for result in results:
        summary[result.name] = {
            "mean": result.mean,
            "std": result.std,
            "num_parameters": result.num_parameters,
            "num_dense_parameters": result.num_dense_parameters,
            "seeds": list(result.seeds),
            "val_mean": result.val_mean,
            "epochs": list(result.epochs),
            "stopped": list(result.stopped),
        }
    return summary | {
        "relative_gain": relative_gain(results),
        "search_cost_ratio": search_cost_ratio(study),
        "parts": {name: asdict(part) for name, part in parts_of(study).items()},
        "warnings": cautions_of(study),
    }


def _quality_of(trial: FrozenTrial) -> float:
    return number_of(trial, QUALITY_ATTR, value_of(trial))


def _save_text(study: Study, key: str, text: str) -> None:
    parts = [text[i : i + _PART_LENGTH] for i in range(0, len(text), _PART_LENGTH)] or [""]
    attrs = study.user_attrs
    stale = len(parts)
    while attrs.get(_part(key, stale)):
        stale += 1
    for index in range(stale):
        part = parts[index] if index < len(parts) else ""
        if attrs.get(_part(key, index)) != part:
            study.set_user_attr(_part(key, index), part)


def _read_text(study: Study, key: str) -> str:
    attrs = study.user_attrs
    parts: list[str] = []
    while part := attrs.get(_part(key, len(parts))):
        if not isinstance(part, str):
            raise ValueError(
                f"The user attribute {_part(key, len(parts))!r} of {study.study_name!r} must be "
                f"text, got {type(part).__name__}."
            )
        parts.append(part)
        if sum(map(len, parts)) > _MOST_TEXT:
            raise ValueError(
                f"The user attribute {key!r} of {study.study_name!r} must be of at most "
                f"{_MOST_TEXT:,} characters in all."
            )
    return "".join(parts)


@contextmanager
def _naming(study: Study, key: str) -> Iterator[None]:
    """Let errors say which attribute of which study cannot be read."""
    try:
        yield
    except (ValueError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"The user attribute {key!r} of {study.study_name!r} cannot be read: "
            f"{str(error)[:200]}"
        ) from error


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _part(key: str, index: int) -> str:
    return key if index == 0 else f"{key}:{index}"
