"""What the sizes of a study came to when they were trained from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
import json
import math
from statistics import fmean, stdev
from typing import Any

from optuna import Study

from optuna_nis._format import size
from optuna_nis._json import read_json
from optuna_nis.space.allocation import Allocation
from optuna_nis.study.attributes import is_number, naming, read_text, save_text
from optuna_nis.study.keys import (
    PLAIN_SECONDS_ATTR,
    RESULTS_ATTR,
    SEARCH_SECONDS_ATTR,
    VERDICT_ATTR,
)
from optuna_nis.study.settings import mode_of


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
        steps: Number of steps of each training.
        decays: How often the learning rate was lowered in each.
        learning_rate: The learning rate that they began with, :obj:`None` if it is not known.
        nbytes: Bytes of the embeddings as they are stored; by default those of the allocation, or
            4 for each parameter.
        metrics: Other metrics on the test data by their names, one number per seed of each.
        train_rows: Rows that each training was on, :obj:`None` if it is not known.

    Raises:
        ValueError: If there is no value, a value is not finite, there are not as many seeds as
            values, nor numbers of another metric, or a count or time is negative.

    Example:
        >>> result = RetrainResult("full", "Full size", "ROC-AUC", (0.74, 0.76), (0, 1), 1000)
        >>> print(result)
        Full size: ROC-AUC 0.7500 ± 0.0141 on the test, 4 kB (1,000 parameters)
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
    steps: tuple[int, ...] = ()
    decays: tuple[int, ...] = ()
    learning_rate: float | None = None
    nbytes: int = None  # type: ignore[assignment]
    metrics: Mapping[str, tuple[float, ...]] = field(default_factory=dict, hash=False)
    train_rows: int | None = None

    def __post_init__(self) -> None:
        if self.nbytes is None:
            found = self.allocation
            nbytes = 4 * self.num_parameters if found is None else found.nbytes()
            object.__setattr__(self, "nbytes", nbytes)
        kinds: tuple[tuple[str, type], ...] = (
            ("values", float),
            ("seeds", int),
            ("val_values", float),
            ("epochs", int),
            ("stopped", bool),
            ("steps", int),
            ("decays", int),
        )
        for name, kind in kinds:
            object.__setattr__(self, name, tuple(map(kind, getattr(self, name))))
        if not self.values or not all(math.isfinite(value) for value in self.values):
            raise ValueError(
                f"`values` of {self.name!r} must be at least one number, all finite, "
                f"got {list(self.values)}."
            )
        for name in [name for name, _ in kinds[1:]]:
            each = getattr(self, name)
            if len(each) != len(self.values) and (each or name == "seeds"):
                raise ValueError(
                    f"`{name}` of {self.name!r} must be as many as the values, "
                    f"{len(self.values)}, got {list(each)}."
                )
        metrics = {name: tuple(map(float, each)) for name, each in self.metrics.items()}
        object.__setattr__(self, "metrics", metrics)
        for name, each in metrics.items():
            if len(each) != len(self.values) or not all(map(math.isfinite, each)):
                raise ValueError(
                    f"`metrics` of {self.name!r} must have as many finite numbers of {name!r} as "
                    f"there are values, {len(self.values)}, got {list(each)}."
                )
        for name in ("num_parameters", "num_dense_parameters", "seconds", "nbytes"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"`{name}` of {self.name!r} must not be negative, got {value!r}.")

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.4f}"
        return (
            f"{self.label}: {self.metric} {self.mean:.4f}{spread} on the test, "
            f"{size(self.nbytes)} ({self.num_parameters:,} parameters)"
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
            "nbytes": self.nbytes,
            "num_parameters": self.num_parameters,
            "num_dense_parameters": self.num_dense_parameters,
            "allocation": None if self.allocation is None else self.allocation.to_json(),
            "seconds": self.seconds,
            "val_values": list(self.val_values),
            "epochs": list(self.epochs),
            "stopped": list(self.stopped),
            "steps": list(self.steps),
            "decays": list(self.decays),
            "learning_rate": self.learning_rate,
            "metrics": {name: list(values) for name, values in self.metrics.items()},
            "train_rows": self.train_rows,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RetrainResult:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ValueError: If the data are not such a result.
        """
        try:
            allocation, rate = data.get("allocation"), data.get("learning_rate")
            nbytes, rows = data.get("nbytes"), data.get("train_rows")
            known = {} if nbytes is None else {"nbytes": int(nbytes)}
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
                steps=tuple(data.get("steps", ())),
                decays=tuple(data.get("decays", ())),
                learning_rate=None if rate is None else float(rate),
                metrics={str(name): tuple(v) for name, v in data.get("metrics", {}).items()},
                train_rows=None if rows is None else int(rows),
                **known,
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"This retraining result is malformed: {error!r}.") from error


class Results(list[RetrainResult]):
    """The results of trainings, and what follows from them; printed, a line each.

    Args:
        results: The results, found sizes first.
        verdict: Which sizes to take and why, a line; empty if that was not decided.
        best: Name of the result to take.
        mode: ``"max"`` if larger values are better, ``"min"`` if smaller ones are.

    Raises:
        ValueError: If two results have the same name, none has that of the best, or they were
            trained on different numbers of rows, so that they cannot be compared.

    Example:
        >>> nis = RetrainResult("nis", "NIS", "ROC-AUC", (0.77,), (0,), 1000)
        >>> results = Results([nis], "The found sizes are best.", "nis")
        >>> print(results)
        NIS: ROC-AUC 0.7700 on the test, 4 kB (1,000 parameters)
        The found sizes are best.
        >>> results.best is nis
        True
    """

    def __init__(
        self,
        results: Iterable[RetrainResult] = (),
        verdict: str = "",
        best: str | None = None,
        mode: str = "max",
    ) -> None:
        super().__init__(results)
        self.mode = mode
        names = [result.name for result in self]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"`results` has two entries named {name!r}.")
        if len(rows := {result.train_rows for result in self} - {None}) > 1:
            raise ValueError(
                "`results` must be of trainings on the same number of rows, got "
                f"{sorted(filter(None, rows))}."
            )
        if best is not None and best not in names:
            raise ValueError(f"`best` must be one of {names}, got {best!r}.")
        self.verdict = verdict
        self.best = None if best is None else self[names.index(best)]

    @property
    def train_rows(self) -> int | None:
        """Rows that all were trained on, :obj:`None` if it is not known."""
        return self[0].train_rows if self else None

    def __str__(self) -> str:
        return "\n".join([*map(str, self), *filter(None, [self.verdict])])


def save_results(study: Study, results: Iterable[RetrainResult]) -> None:
    """Write retraining results into a study, in place of earlier ones.

    Args:
        study: The study whose best allocation was retrained.
        results: The results, best allocation and baselines; with the verdict, if they are
            :class:`Results`.

    Raises:
        ValueError: If two results have the same name.

    Example:
        >>> save_results(study, [RetrainResult("nis", "NIS", "ROC-AUC", (0.77,), (0,), 1000)])
    """
    found = results if isinstance(results, Results) else Results(results)
    verdict = {"best": found.best and found.best.name, "text": found.verdict}
    # An earlier verdict does not stand beside later results, whatever happens in between.
    if VERDICT_ATTR in study.user_attrs:
        save_text(study, VERDICT_ATTR, "")
    save_text(study, RESULTS_ATTR, json.dumps([result.to_dict() for result in found]))
    if found.verdict:
        save_text(study, VERDICT_ATTR, json.dumps(verdict))


def results_of(study: Study) -> Results:
    """The retraining results of a study, none if nothing was retrained.

    Args:
        study: A study of an embedding search.

    Raises:
        ValueError: If the study holds something else in their place.

    Example:
        >>> results_of(study)
        []
    """
    text = read_text(study, RESULTS_ATTR)
    if not text:
        return Results()
    mode = mode_of(study)
    with naming(study, RESULTS_ATTR):
        data = read_json(text)
        if not isinstance(data, list):
            raise ValueError(f"must be a list, got {type(data).__name__}")
        results = Results((RetrainResult.from_dict(item) for item in data), mode=mode)
    verdict = read_text(study, VERDICT_ATTR)
    if not verdict:
        return results
    with naming(study, VERDICT_ATTR):
        match read_json(verdict):
            case {"best": str(best), "text": str(line)}:
                return Results(results, line, best, mode)
            case other:
                raise ValueError(f"must hold `best` and `text`, got {str(other)[:80]!r}")


def relative_gain(results: Iterable[RetrainResult], *, over: str = "uniform") -> float | None:
    """How much better the searched sizes are than a baseline, relative to the baseline.

    Args:
        results: Retraining results; larger values are better unless they are :class:`Results` that
            say otherwise.
        over: Name of the baseline.

    Returns:
        How much better the mean is, as a share of the baseline's: ``nis / baseline - 1`` where
        larger positive values are better. :obj:`None` if one of them is missing or the baseline
        is 0.

    Example:
        >>> nis = RetrainResult("nis", "NIS", "ROC-AUC", (0.77,), (0,), 1000)
        >>> uniform = RetrainResult("uniform", "Uniform", "ROC-AUC", (0.7,), (0,), 1000)
        >>> round(relative_gain([nis, uniform]), 3)
        0.1
    """
    by_name = {result.name: result for result in results}
    if "nis" not in by_name or over not in by_name:
        return None
    return gain(by_name["nis"], by_name[over], getattr(results, "mode", "max"))


def gain(result: RetrainResult, baseline: RetrainResult, mode: str) -> float | None:
    """How much better a result is than another, relative to that; None if that is 0.

    Args:
        result: The result.
        baseline: The other one.
        mode: ``"max"`` if larger values are better, ``"min"`` if smaller ones are.

    Example:
        >>> nis = RetrainResult("nis", "NIS", "val_loss", (0.4,), (0,), 1000)
        >>> uniform = RetrainResult("uniform", "Uniform", "val_loss", (0.5,), (0,), 1000)
        >>> round(gain(nis, uniform, "min"), 3)
        0.2
    """
    if not baseline.mean:
        return None
    more = (result.mean - baseline.mean) / abs(baseline.mean)
    return more if mode == "max" else -more


def search_cost_ratio(study: Study) -> float | None:
    """Time of all searches over that of one plain training, :obj:`None` if not recorded.

    One that ended by itself: where `max_epochs` cut it short, it is not.

    Example:
        >>> study.set_user_attr(SEARCH_SECONDS_ATTR, 30.0)
        >>> study.set_user_attr(PLAIN_SECONDS_ATTR, 20.0)
        >>> search_cost_ratio(study)
        1.5
    """
    seconds = []
    for key in (SEARCH_SECONDS_ATTR, PLAIN_SECONDS_ATTR):
        value = study.user_attrs.get(key)
        with naming(study, key):
            if value is not None and not is_number(value):
                raise ValueError(f"must be a number, got {str(value)[:80]!r}")
        seconds.append(value)
    search, plain = seconds
    return float(search) / float(plain) if search is not None and plain else None
