"""Sizes trained from scratch beside uniform and full tables, each tested once."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from optuna import Study

from optuna_nis._checks import check_folder, check_integer
from optuna_nis.lightning.trainings import Comparison, Run, Trainings
from optuna_nis.models import EmbeddingModule
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.strategy import baselines
from optuna_nis.study.keys import PLAIN_SECONDS_ATTR
from optuna_nis.study.retrained import RetrainResult, save_results


def check_options(
    seeds: Sequence[int], max_epochs: int, patience: int, output: str | None = None
) -> None:
    """Check the options of a comparison, before data are read or anything is trained.

    Raises:
        ValueError: If the seeds are not distinct integers from 0, or there is none, a number is
            out of range, or ``output`` cannot be written.
    """
    if not seeds:
        raise ValueError("`seeds` must hold at least one seed, got none.")
    for seed in seeds:
        check_integer("seeds", seed, 0)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` must hold each seed once, got {list(seeds)}.")
    check_integer("max_epochs", max_epochs, 1)
    check_integer("patience", patience, 1)
    if output is not None:
        check_folder("output", output)


class Results(list[RetrainResult]):
    """The results of trainings; printed, a line each."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def compare(
    study: Study,
    comparison: Comparison,
    space: SearchSpace,
    best: Allocation,
    seeds: Sequence[int],
) -> Results:
    """Train the best sizes of a study from scratch, and baselines, and test them.

    The baselines are the full tables and uniform sizes at the same budget; of the latter the rows
    are taken as they are, where the model can, or projected to the full width, whichever
    validates better.

    Args:
        study: The results are written into it.
        comparison: How they are trained.
        space: The search space.
        best: The best sizes.
        seeds: Seeds of the weights and of the order of the training rows.

    Returns:
        The results, best sizes first.

    Raises:
        ValueError: If the seeds or a number are out of range, the output cannot be written, or
            the model logs no such value in a test.
    """
    check_options(seeds, comparison.max_epochs, comparison.patience, comparison.output)
    uniforms = [("Uniform, projected", baselines.uniform(space, projected=True))]
    model = comparison.build(best)
    if isinstance(model, EmbeddingModule):
        # Other models want rows of the width that they were made for.
        uniforms.insert(0, ("Uniform", baselines.uniform(space)))
    elif comparison.output is not None:
        raise ValueError(
            "`output` is for reference models on a data module of optuna_nis.data, got "
            f"{comparison.output!r}. Train a model of your own with `train`, and save it."
        )
    else:
        # Rather than after the first training.
        comparison.tested(model, limit_test_batches=1)
    trainings = Trainings(study, comparison, (2 + 1) * len(seeds) + len(uniforms) - 1)

    def result(name: str, label: str, sizes: Allocation, runs: Sequence[Run]) -> RetrainResult:
        return RetrainResult(
            name=name,
            label=label,
            metric=runs[0].metric,
            values=tuple(run.value for run in runs),
            seeds=tuple(seeds),
            num_parameters=sizes.num_parameters,
            num_dense_parameters=runs[0].num_dense_parameters,
            allocation=sizes,
            seconds=sum(run.seconds for run in runs),
            val_values=tuple(run.val_metric for run in runs),
            epochs=tuple(run.epochs for run in runs),
            stopped=tuple(run.stopped for run in runs),
        )

    nis = trainings.best_sizes("NIS", best, seeds)
    tried = [(label, sizes, trainings.run(label, sizes, seeds[0])) for label, sizes in uniforms]
    sign = comparison.sign
    label, sizes, first = max(tried, key=lambda variant: sign * variant[2].val_metric)
    uniform = [first, *(trainings.run(label, sizes, seed) for seed in seeds[1:])]
    full = [trainings.run("Full size", space.full(), seed) for seed in seeds]
    results = Results(
        [
            result("nis", "NIS", best, nis),
            result("uniform", label, sizes, uniform),
            result("full", "Full size", space.full(), full),
        ]
    )
    save_results(study, results)
    study.set_user_attr(PLAIN_SECONDS_ATTR, fmean(run.seconds for run in full))
    return results
