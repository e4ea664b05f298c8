"""Sizes trained from scratch beside those that anyone would try: decided, then tested once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
import math
from statistics import fmean

from lightning.pytorch import LightningModule
from optuna import Study

from optuna_nis._checks import check_folder, check_seed
from optuna_nis._format import size
from optuna_nis._logging import get_logger
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning._memory import looked_at
from optuna_nis.lightning.convergence import check_ending
from optuna_nis.lightning.processes import group_of, shared_batches
from optuna_nis.lightning.training import copies
from optuna_nis.lightning.trainings import Comparison, Run, Trainings
from optuna_nis.models import EmbeddingModule
from optuna_nis.serve.files import check_savable
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.strategy import baselines
from optuna_nis.strategy.decision import Decision, decide, within_error
from optuna_nis.strategy.proposers import of_low_precision
from optuna_nis.study.keys import PLAIN_SECONDS_ATTR
from optuna_nis.study.results import save_finalist
from optuna_nis.study.retrained import Results, RetrainResult, save_results
from optuna_nis.study.uncertainty import LARGE_ERROR
from optuna_nis.study.verdict import Contender, verdict

_logger = get_logger(__name__)

# From this share of the trainings on they are said to overfit at once.
_OVERFITTING = 0.75


def check_options(
    seeds: Sequence[int], max_epochs: int | None, patience: int, output: str | None = None
) -> None:
    """Check the options of a comparison, before data are read or anything is trained.

    Raises:
        ValueError: If the seeds are not distinct integers from 0, or there is none, a number is
            out of range, or ``output`` cannot be written.
    """
    if isinstance(seeds, str) or not isinstance(seeds, Sequence):
        raise ValueError(
            f"`seeds` must be a list of integers, such as [0, 1, 2], got {seeds!r:.80}."
        )
    if not seeds:
        raise ValueError("`seeds` must hold at least one seed, got none.")
    for seed in seeds:
        check_seed("seeds", seed)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` must hold each seed once, got {list(seeds)}.")
    check_ending(max_epochs, patience)
    if output is not None:
        check_folder("output", output)


@dataclass(frozen=True)
class _Sizes:
    """Sizes that are trained.

    Attributes:
        name: Short name of their result.
        label: Name for people.
        allocation: The sizes.
    """

    name: str
    label: str
    allocation: Allocation


def compare(
    study: Study,
    comparison: Comparison,
    space: SearchSpace,
    finalists: Mapping[int, Allocation],
    seeds: Sequence[int],
) -> Results:
    """Train the best sizes of a study from scratch and what else one would try, decide, and test.

    A search trains its finalists for a while only: each of them is trained to its end with the
    first seed, and those that tie with the best by validation, or on few rows are within one
    standard error of it, with the other seeds. The best, or the smallest of those that tie with it
    then (:func:`~optuna_nis.strategy.decision.decide`), is the best sizes.

    Contenders are the best sizes, uniform sizes at the same budget, their rows as they are, where
    the model can, and projected to the full width, mixed dimensions by popularity, where it is
    known, and the full tables, if they fit the budget. These are float32; uniform sizes are tried
    in the lowest precisions of the space too. All are trained alike with the first seed.
    Those that validation cannot tell from the best one, the best sizes, the better uniform sizes
    and the full tables go on with the other seeds. Sizes whose training diverges are
    left out, and it is said. Then validation decides which sizes to take
    (:func:`~optuna_nis.strategy.decision.decide`), and only then each of these is tested, once.

    Args:
        study: The results are written into it.
        comparison: How they are trained.
        space: The search space.
        finalists: The finalists of the study by the numbers of their trials, the search's best
            first.
        seeds: Seeds of the weights and of the order of the training rows.

    Returns:
        The results with the verdict, best sizes first, then uniform sizes, the full tables, and
        others.

    Raises:
        ValueError: If the seeds or a number are out of range, the output cannot be written, or
            the model logs no such value in a test.
    """
    check_options(seeds, comparison.max_epochs, comparison.patience)
    # Told before anything is trained, if they cannot be copied.
    copies(comparison.callbacks)
    group = group_of(comparison.trainer_options or {})
    study = group.study(study)
    progress = group.only_first(comparison.progress)
    comparison = replace(comparison, progress=progress, group=group)
    model = looked_at(comparison.build, next(iter(finalists.values())))
    # Other models want rows of the width that they were made for.
    native = isinstance(model, EmbeddingModule)
    _check_output(comparison, model)
    if not native:
        # Rather than after the first training; of untrained weights, and for the name alone.
        comparison.tested(model, limit_test_batches=1)
    del model
    full = _Sizes("full", "Full size", space.full(32))
    uniforms, mixed = _uniforms(space, native), _mixed(space)
    known = [*uniforms, *mixed]
    contenders = [*known]
    if space.fits(full.allocation):
        contenders.append(full)
    sign = comparison.monitored.sign
    with (
        shared_batches(comparison.data, group),
        Trainings(study, comparison, full.allocation.nbytes()) as trainings,
    ):
        tried = [*finalists.values(), *(sizes.allocation for sizes in (*contenders, full))]
        # The found sizes, uniform ones and the full tables at least go on with other seeds.
        once = trainings.num_unknown(tried, seeds[:1])
        trainings.left = once + 3 * (len(seeds) - 1)
        if once:
            what = "1 size" if once == 1 else f"{once} sizes"
            more = f", then the best with {len(seeds) - 1} more" if len(seeds) > 1 else ""
            progress(f"{what} to train from scratch with seed {seeds[0]}{more}.")

        def runs(sizes: _Sizes, seeds: Sequence[int]) -> list[Run]:
            return [trainings.run(sizes.label, sizes.allocation, seed) for seed in seeds]

        def ending(every: Sequence[_Sizes], seeds: Sequence[int]) -> dict[_Sizes, list[Run]]:
            """The trainings of sizes none of whose trainings diverges, the found ones first."""
            done = {every[0]: runs(every[0], seeds)}
            for sizes in every[1:]:
                try:
                    done[sizes] = runs(sizes, seeds)
                except FloatingPointError as error:
                    progress(f"{sizes.label}: left out, {error}")
            return done

        number = _best_of(finalists, trainings, seeds, comparison)
        found = _Sizes("nis", "NIS", finalists[number])
        if comparison.output is not None and trainings.has_weights(found.allocation, seeds[0]):
            # Whoever interrupts the rest has a model.
            trainings.save(found.label, found.allocation, seeds[:1])
        contenders.insert(0, found)
        firsts = ending(contenders, seeds[:1])
        contenders = [*firsts]
        values = [sign * run.val_metric for (run,) in firsts.values()]
        leader = firsts[contenders[max(range(len(firsts)), key=values.__getitem__)]][0]
        kept = {contenders[index] for index in within_error(values, leader.val_error)}
        uniform = max(
            (sizes for sizes in uniforms if sizes in firsts),
            key=lambda sizes: values[contenders.index(sizes)],
            default=None,
        )
        # What is always reported, in this order, then what may be taken too.
        reported = [found, *([] if uniform is None else [uniform]), full]
        for sizes in contenders:
            if sizes in kept and _is_new(sizes, reported):
                reported.append(sizes)
        trainings.left = trainings.num_unknown([s.allocation for s in reported], seeds)
        trained = ending(reported, seeds)
        reported = [*trained]

        # What is the same as the found sizes, or others before, is no rival of them.
        rivals: list[_Sizes] = []
        for sizes in reported:
            if sizes in contenders and _is_new(sizes, rivals):
                rivals.append(sizes)
        decision = decide(
            [[sign * run.val_metric for run in trained[sizes]] for sizes in rivals],
            [sizes.allocation.nbytes() for sizes in rivals],
            error=leader.val_error,
        )
        taken = rivals[decision.taken]
        if comparison.output is not None:
            trainings.save(taken.label, taken.allocation, seeds)
        tested = {
            sizes: [trainings.tested(sizes.label, sizes.allocation, seed) for seed in seeds]
            for sizes in reported
        }
    said = {
        sizes: Contender(
            sizes.name,
            sizes.label,
            fmean(run.val_metric for run in trained[sizes]),
            space.share(sizes.allocation),
            sizes.allocation.nbytes(),
        )
        for sizes in reported
    }
    others = sorted(
        (index for index in range(len(rivals)) if index != decision.taken),
        key=lambda index: -sign * said[rivals[index]].value,
    )
    if group.is_first:
        _warn_of_overfitting([run for runs in trained.values() for run in runs])
    data = comparison.data
    rows = data.sizes["train"] if isinstance(data, EmbeddingDataModule) else None
    above = (
        full in said and full not in rivals and sign * said[full].value > sign * said[taken].value
    )
    results = Results(
        [
            _result(
                "uniform" if sizes is uniform else sizes.name, sizes, seeds, tested[sizes], rows
            )
            for sizes in reported
        ],
        verdict(
            leader.monitor,
            said[taken],
            [said[rivals[index]] for index in others if index in decision.tied],
            [said[rivals[index]] for index in others if index not in decision.tied],
            said[full] if above else None,
            next((same.label for same in known if same.allocation == taken.allocation), "")
            if taken is found
            else "",
        ),
        "uniform" if taken is uniform else taken.name,
        comparison.monitored.mode,
    )
    save_results(study, results)
    if len(finalists) > 1:
        save_finalist(study, number, finalists)
    # How long a training takes, only one tells that was not cut short.
    if full in trained and all(run.stopped for run in trained[full]):
        study.set_user_attr(PLAIN_SECONDS_ATTR, fmean(run.seconds for run in trained[full]))
    return results


def _warn_of_overfitting(runs: Sequence[Run]) -> None:
    """Say so where most trainings were best when they had hardly begun."""
    early = sum(run.best_epoch == 1 < run.epochs for run in runs)
    if early >= _OVERFITTING * len(runs):
        _logger.warning(
            f"{early} of {len(runs)} trainings were best after their first epoch and overfit in "
            "the next: with a lower learning rate, more dropout or l2 all sizes may become "
            "better, and others may be best."
        )


def _check_output(comparison: Comparison, model: LightningModule) -> None:
    """Refuse what the model could not be written to, before anything is trained."""
    if comparison.output is None:
        return
    if comparison.predicts(model):
        check_folder("output", comparison.output)
    else:
        check_savable(model, comparison.output, "output")


def _best_of(
    finalists: Mapping[int, Allocation],
    trainings: Trainings,
    seeds: Sequence[int],
    comparison: Comparison,
) -> int:
    """The best of the finalists, or the smallest of those that validation cannot tell from it.

    Raises:
        FloatingPointError: If the trainings of all of them diverge.
    """
    runs: dict[int, list[Run]] = {}
    sign = comparison.monitored.sign
    labels = {
        number: f"NIS, finalist {place}" if len(finalists) > 1 else "NIS"
        for place, number in enumerate(finalists, start=1)
    }

    def train(numbers: Sequence[int], seeds: Sequence[int]) -> None:
        for number in numbers:
            try:
                own = [trainings.run(labels[number], finalists[number], seed) for seed in seeds]
                runs[number] = runs.get(number, []) + own
            except FloatingPointError as error:
                runs.pop(number, None)
                if number == numbers[-1] and runs.keys().isdisjoint(numbers):
                    raise
                comparison.progress(f"{labels[number]}: {error}")

    def decided(numbers: Sequence[int]) -> Decision:
        values = [[sign * run.val_metric for run in runs[n]] for n in numbers]
        best = max(range(len(numbers)), key=lambda index: values[index][0])
        return decide(
            values,
            [finalists[number].nbytes() for number in numbers],
            error=runs[numbers[best]][0].val_error,
        )

    train([*finalists], seeds[:1])
    numbers = [*runs]
    decision = decided(numbers)
    tied: Sequence[int] = decision.tied
    error = runs[numbers[decision.best]][0].val_error
    if error is not None and LARGE_ERROR < error < math.inf:
        # Of few rows a quarter of the error is less than what seeds differ by.
        tied = within_error([sign * runs[number][0].val_metric for number in numbers], error)
    if len(tied) > 1 and len(seeds) > 1:
        numbers = [numbers[index] for index in tied]
        comparison.progress(
            f"NIS: validation cannot tell {len(numbers)} of {len(finalists)} finalists apart, so "
            "they are trained with the other seeds too."
        )
        # Those of one of them are counted already.
        more = trainings.num_unknown([finalists[number] for number in numbers], seeds[1:])
        trainings.left += more - (len(seeds) - 1)
        train(numbers, seeds[1:])
        numbers = [number for number in numbers if number in runs]
        decision = decided(numbers)
    taken = numbers[decision.taken]
    if len(finalists) > 1:
        values = {n: fmean(run.val_metric for run in runs[n]) for n in numbers}
        best = numbers[decision.best]
        why = ""
        if taken != best:
            other = size(finalists[best].nbytes())
            why = f": the smaller, it ties with {values[best]:.4f} of that of {other}"
        comparison.progress(
            f"NIS: of {len(finalists)} finalists that of {size(finalists[taken].nbytes())} goes "
            f"on, validation {runs[taken][0].monitor} {values[taken]:.4f}{why}."
        )
    return taken


def _uniforms(space: SearchSpace, native: bool) -> list[_Sizes]:
    """Uniform sizes at the budget, as they are and projected to the full width.

    In float32, and in the precisions of the space with which a budget goes furthest.
    """
    found: list[_Sizes] = []
    refusal = None
    for bits, each in (*_float32(space).items(), *of_low_precision(space).items()):
        own = sorted({spec.precisions[0] for spec in each.specs})
        written = " to ".join(str(most) for most in dict.fromkeys((own[0], own[-1])))
        for projected in (False, True) if native else (True,):
            try:
                sizes = baselines.uniform(each, projected=projected)
            except ValueError as error:
                # A small budget may have no room for projections.
                refusal = error
                continue
            if all(sizes != other.allocation for other in found):
                found.append(
                    _Sizes(
                        f"uniform_{'projected' if projected else 'native'}"
                        + ("" if own == [32] else f"_{bits}bit"),
                        f"Uniform {_width(sizes)}"
                        + ("" if own == [32] else f" in {written} bits")
                        + (", projected" if projected else ""),
                        sizes,
                    )
                )
    if refusal is not None and not found:
        raise refusal
    return found


def _is_new(sizes: _Sizes, others: Iterable[_Sizes]) -> bool:
    """Whether none of some others is the same, whatever they are called."""
    return all(sizes.allocation != other.allocation for other in others)


def _mixed(space: SearchSpace) -> list[_Sizes]:
    """Mixed dimensions by popularity, where that is known and the budget has room for them."""
    if any(spec.mean_counts is None for spec in space.specs):
        return []
    found = []
    for each in _float32(space).values():
        with suppress(ValueError):
            found.append(_Sizes("mixed", "Mixed dimensions", baselines.mixed_dimensions(each)))
    return found


def _float32(space: SearchSpace) -> dict[int, SearchSpace]:
    """The space in float32, where the budget has room for any such embedding."""
    with suppress(ValueError):
        return {32: space.with_precisions([32])}
    return {}


def _width(sizes: Allocation) -> int:
    return max(tier.embedding_dim for table in sizes.values() for tier in table.tiers)


def _result(
    name: str, sizes: _Sizes, seeds: Sequence[int], runs: Sequence[Run], rows: int | None
) -> RetrainResult:
    return RetrainResult(
        name=name,
        label=sizes.label,
        metric=runs[0].metric,
        values=tuple(run.value for run in runs if run.value is not None),
        seeds=tuple(seeds),
        num_parameters=sizes.allocation.num_parameters,
        num_dense_parameters=runs[0].num_dense_parameters,
        allocation=sizes.allocation,
        seconds=sum(run.seconds for run in runs),
        val_values=tuple(run.val_metric for run in runs),
        epochs=tuple(run.epochs for run in runs),
        stopped=tuple(run.stopped for run in runs),
        steps=tuple(run.steps for run in runs),
        decays=tuple(run.decays for run in runs),
        learning_rate=runs[0].learning_rate,
        metrics={
            name: tuple(run.metrics[name] for run in runs)
            for name in runs[0].metrics
            if all(name in run.metrics for run in runs)
        },
        train_rows=rows,
    )
