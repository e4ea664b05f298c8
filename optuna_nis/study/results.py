"""What a study holds after a search, read back with types.

A search writes its space and its metric into the user attributes of the study and what each trial
is made of into those of the trial; a retraining adds its results. Here are the names of these
attributes and the functions that read them.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial

from optuna_nis._format import memory
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.study.cautions import cautions, parts_of, save_parts
from optuna_nis.study.keys import *  # noqa: F403 - Names that were here in release 0.1.
from optuna_nis.study.keys import DATASET_ATTR, FINALIST_ATTR, TASK_ATTR
from optuna_nis.study.retrained import (
    Results,
    RetrainResult,
    relative_gain,
    results_of,
    save_results,
    search_cost_ratio,
)
from optuna_nis.study.searches import searches_of
from optuna_nis.study.settings import (
    metric_of,
    outputs_of,
    plan_of,
    save_plan,
    save_space,
    space_of,
)
from optuna_nis.study.trials import (
    best_trial,
    fidelity_of,
    finished_trials,
    is_feasible,
    is_trained,
    metric_value_of,
    nbytes_of,
    number_of,
    quality_of,
    value_of,
)

_MOST_FINALISTS = 3

__all__ = [
    "Results",
    "RetrainResult",
    "best_allocation",
    "best_trial",
    "cautions_of",
    "fidelity_of",
    "finalist_allocations",
    "finished_trials",
    "is_feasible",
    "is_trained",
    "metric_of",
    "metric_value_of",
    "nbytes_of",
    "number_of",
    "outputs_of",
    "parts_of",
    "plan_of",
    "quality_of",
    "relative_gain",
    "results_of",
    "save_finalist",
    "save_parts",
    "save_plan",
    "save_results",
    "save_space",
    "score_line",
    "search_cost_ratio",
    "shares_line",
    "space_of",
    "summary_of",
    "value_of",
    "unfinished",
]


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


def finalist_allocations(study: Study) -> dict[int, Allocation]:
    """The sizes among which a retraining finds the best, by the numbers of their trials.

    A search trains its last choices for a while only, so the best three of them are trained again,
    to their end: :func:`~optuna_nis.lightning.retrain`. Where none was trained, there is the best
    trial alone.

    Args:
        study: A study of an embedding search.

    Returns:
        Different sizes, at most three, by the search's own measure best first.

    Raises:
        ValueError: As for :func:`best_allocation`.

    Example:
        >>> list(finalist_allocations(study)) == [best_trial(study).number]
        True
    """
    space, best = space_of(study), best_trial(study)
    trained = [t for t in finished_trials(study) if is_trained(t) and is_feasible(t)]
    found: dict[int, Allocation] = {}
    for trial in sorted(trained, key=value_of, reverse=True):
        if len(found) == _MOST_FINALISTS:
            break
        sizes = None
        # Trials of something else may have been added.
        with suppress(ValueError):
            sizes = space.allocation(trial.params)
        # Several choices of parameters may be the same sizes.
        if sizes is not None and space.fits(sizes) and sizes not in found.values():
            found[trial.number] = sizes
    return found or {best.number: space.allocation(best.params)}


def save_finalist(study: Study, best: int, finalists: Collection[int]) -> None:
    """Keep which of the finalists was best once they were trained to their end.

    It is the :func:`~optuna_nis.study.trials.best_trial` from now on.

    Args:
        study: A study of an embedding search.
        best: The number of its trial.
        finalists: Those of all that it was compared with, itself among them.

    Example:
        >>> numbers = list(finalist_allocations(study))
        >>> save_finalist(study, numbers[0], numbers)
    """
    study.set_user_attr(FINALIST_ATTR, {"best": best, "of": list(finalists)})


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
    best, lines, results = None, [], results_of(study)
    if finished_trials(study):
        trial = best_trial(study)
        if is_trained(trial):
            best = ("the best sizes", quality_of(trial))
        lines += unfinished(study)
        if _are_others(results, space_of(study), trial):
            lines.append(
                "The sizes that were retrained are not the best sizes of the study any more, "
                "and the verdict is of those: retrain again."
            )
    return lines + cautions(parts_of(study), results, best)


def unfinished(study: Study) -> list[str]:
    """What to mind about a study whose best sizes are of a search that has not ended, a line.

    Example:
        >>> unfinished(study)
        []
    """
    searches = searches_of(study).values()
    if all(search.seconds is not None for search in searches) or is_trained(best_trial(study)):
        return []
    return [
        "The search has not come to its end: its best sizes so far have not been trained. If it "
        "was interrupted, start it again; it goes on."
    ]


def _are_others(results: Results, space: SearchSpace, best: FrozenTrial) -> bool:
    """Whether the sizes found, as they were retrained, are known and not the best ones."""
    with suppress(ValueError):
        sizes = space.allocation(best.params)
        return any(r.name == "nis" and r.allocation not in (None, sizes) for r in results)
    return False


def shares_line(study: Study, allocation: Allocation) -> str:
    """What the parameters of sizes are of: projections, and output tables where there are any.

    Example:
        >>> shares_line(study, space_of(study).full())
        '0 of them in projections'
    """
    text = f"{allocation.num_projection_parameters:,} of them in projections"
    outputs = [allocation[name] for name in outputs_of(study) if name in allocation]
    if not outputs:
        return text
    return f"{text}, {sum(table.num_parameters for table in outputs):,} in output tables"


def score_line(study: Study) -> str:
    """How good and how large the best sizes of a study are.

    Args:
        study: A study of an embedding search.

    Raises:
        ValueError: If the study holds no search space or no finished trial.
    """
    best, space = best_allocation(study), space_of(study)
    value = metric_value_of(study, best_trial(study))
    return (
        f"Validation {metric_of(study)} {value:.4f} with "
        f"{memory(best.nbytes(), space.full_nbytes)}: {best.num_parameters:,} parameters, "
        f"{shares_line(study, best)}"
    )


def summary_of(study: Study) -> dict[str, Any]:
    """A study in one JSON object, as far as it is.

    Returns:
        ``dataset``, ``task``, ``metric`` on test data, which need not be the one that the search
        goes by, ``budget`` (float32 parameters), the same as ``budget_nbytes``, ``full_nbytes`` of
        the full tables in float32, ``precisions``, ``best``, which is what the search recommends,
        for every result its ``mean``, ``std`` (null for a single seed), ``nbytes``,
        ``num_parameters``, ``seeds``, other ``metrics`` on test data, a number for each seed, and
        how its trainings went under its name, ``relative_gain``
        over uniform sizes, ``search_cost_ratio``, the ``parts`` of the data, the ``verdict`` with
        the name of the result to ``take``, and ``warnings``, what to mind. Before a retraining,
        what is not known yet is null or not there.

    Raises:
        ValueError: If the study holds no search space or no finished trial.

    Example:
        >>> save_results(study, [RetrainResult("nis", "NIS", "ROC-AUC", (0.77,), (0,), 1000)])
        >>> summary_of(study)["nis"]["mean"]
        0.77
    """
    results, best, space = results_of(study), best_trial(study), space_of(study)
    sizes = space.allocation(best.params)
    summary: dict[str, Any] = {
        "dataset": study.user_attrs.get(DATASET_ATTR),
        "task": study.user_attrs.get(TASK_ATTR),
        "metric": results[0].metric if results else None,
        "budget": space.budget,
        "budget_nbytes": space.budget_nbytes,
        "full_nbytes": space.full_nbytes,
        "precisions": list(space.precisions),
        "best": {
            "trial": best.number,
            "metric": metric_of(study),
            "value": metric_value_of(study, best),
            "fidelity": fidelity_of(best),
            "nbytes": sizes.nbytes(),
            "num_parameters": sizes.num_parameters,
        },
    }
    for result in results:
        summary[result.name] = {
            "mean": result.mean,
            "std": result.std,
            "nbytes": result.nbytes,
            "num_parameters": result.num_parameters,
            "num_dense_parameters": result.num_dense_parameters,
            "seeds": list(result.seeds),
            "val_mean": result.val_mean,
            "epochs": list(result.epochs),
            "stopped": list(result.stopped),
            "steps": list(result.steps),
            "decays": list(result.decays),
            "learning_rate": result.learning_rate,
            "metrics": {name: list(values) for name, values in result.metrics.items()},
            "train_rows": result.train_rows,
        }
    return summary | {
        "relative_gain": relative_gain(results),
        "search_cost_ratio": search_cost_ratio(study),
        "verdict": results.verdict or None,
        "take": results.best.name if results.best else None,
        "parts": {
            # Of the training rows it is known only how many they are.
            name: {"rows": part.rows} if part.metric is None else asdict(part)
            for name, part in parts_of(study).items()
        },
        "warnings": cautions_of(study),
    }
