"""What a comparison decides, by validation, before it tests; the trainings are pretended."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest

from optuna_nis._format import size
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning import Predictor, comparison, reference_model, trainings
from optuna_nis.lightning.comparison import check_options
from optuna_nis.lightning.rewards import Monitored
from optuna_nis.lightning.training import Training
from optuna_nis.lightning.trainings import Comparison
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec
from optuna_nis.strategy import baselines
from optuna_nis.strategy.journal import write_found
from optuna_nis.strategy.reward import Reward
from optuna_nis.strategy.shortlist import Candidate
from optuna_nis.study.results import (
    Results,
    best_allocation,
    finalist_allocations,
    results_of,
)

# Validation with seeds 0, 1 and 2.
Values = dict[str, Sequence[float]]


class Pretended:
    """A comparison whose trainings come to given values.

    Args:
        values: Of each of nis, uniform_native, uniform_projected, mixed and full, and of uniform
            sizes of lower precisions.
        budget: Of the space.
        error: Standard error of the metric.
        precisions: Of the space.
    """

    def __init__(
        self,
        data: EmbeddingDataModule,
        monkeypatch: pytest.MonkeyPatch,
        values: Values,
        budget: float = 0.5,
        error: float = 0.01,
        precisions: Sequence[int] = (32,),
    ) -> None:
        self.events: list[tuple[str, str, int]] = []
        self.space = SearchSpace(data.embedding_specs(4, precisions), budget=budget)
        plain = self.space.with_precisions([32])
        self.nis = baselines.frequent_ids(self.space, full_width=budget > 0.1)
        self.finalists = {0: self.nis}
        self.sizes = {
            "nis": self.nis,
            "uniform_native": baselines.uniform(plain),
            "uniform_projected": baselines.uniform(plain, projected=True),
            "full": plain.full(),
        }
        # Where there is room for them.
        with suppress(ValueError):
            self.sizes["mixed"] = baselines.mixed_dimensions(plain)
        for bits in sorted(set(precisions) - {32})[:2]:
            low = self.space.with_precisions([bits])
            self.sizes[f"uniform_native_{bits}bit"] = baselines.uniform(low)
            self.sizes[f"uniform_projected_{bits}bit"] = baselines.uniform(low, projected=True)
        self.study = optuna.create_study(direction="maximize")
        build = reference_model(data.features, hidden=(2,))
        self.how = Comparison(build, data, Monitored("val_metric"), "test_metric", key=[])

        def train(build: Any, allocation: Any, data: Any, *, seed: int, **options: Any) -> Any:
            (name,) = [name for name, sizes in self.sizes.items() if sizes == allocation]
            self.events.append(("train", name, seed))
            model = build(allocation)
            return Training(
                model, values[name][seed], 4, 0.5, best_epoch=3, steps=40, decays=1,
                val_error=error,
            )  # fmt: skip

        def evaluated(model: Any, data: Any, **options: Any) -> dict[str, float]:
            self.events.append(("test", "", 0))
            more = {"test_logloss": 0.5, "test_gauc": math.nan, "test_else": 0.75}
            return {"test_metric": 0.25} | more

        monkeypatch.setattr(trainings, "train", train)
        monkeypatch.setattr(trainings, "evaluated", evaluated)

    def run(self, seeds: Sequence[int] = (0, 1, 2), **more: Any) -> Results:
        return comparison.compare(
            self.study, replace(self.how, **more), self.space, self.finalists, seeds
        )

    def add_finalist(self, name: str, share: float) -> Allocation:
        """Another finalist, of so much of the budget; all of them become trials of the study."""
        smaller = self.space.with_budget(int(share * self.space.budget))
        found = baselines.frequent_ids(smaller, full_width=False)
        self.sizes[name] = found
        candidates = [Candidate(each, 0.7) for each in (self.nis, found)]
        write_found(self.study, self.space, name, candidates, self._reward, 0, {})
        self.finalists = finalist_allocations(self.study)
        assert list(self.finalists.values()) == [self.nis, found]
        return found

    def _reward(self, value: float, allocation: Allocation) -> Reward:
        return Reward(value, value, 0.0, allocation.num_parameters, allocation.nbytes())

    def trained(self, name: str) -> list[int]:
        return [seed for kind, each, seed in self.events if (kind, each) == ("train", name)]


BEST: Values = {
    "nis": (0.80, 0.81, 0.82),
    "uniform_native": (0.70, 0.71, 0.72),
    "uniform_projected": (0.69, 0.71, 0.72),
    "mixed": (0.60, 0.61, 0.62),
    "full": (0.75, 0.75, 0.75),
}


def test_validation_decides_before_anything_is_tested(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST)
    results = pretended.run()
    kinds = [kind for kind, _, _ in pretended.events]
    assert kinds == ["train"] * (3 * 3 + 2) + ["test"] * 9
    assert [result.name for result in results] == ["nis", "uniform", "full"]
    assert results.verdict.startswith(
        "The found sizes are best: validation ROC-AUC 0.8100 against 0.7100 of uniform "
    )
    assert "\n" not in results.verdict
    assert str(results).splitlines()[-1] == results.verdict
    assert results.best is results[0]
    stored = results_of(pretended.study)
    assert stored == results
    assert (stored.verdict, stored.best) == (results.verdict, results.best)


@pytest.mark.parametrize(
    ("values", "taken", "tied"),
    [
        ((0.81, 0.81, 0.82), True, False),
        ((0.79, 0.9, 0.9), False, False),
        # A seed alone cannot tell them apart.
        ((0.7985, 0.81, 0.8205), True, True),
        ((0.7985, 0.7, 0.7), False, True),
        ((0.8015, 0.7, 0.7), False, True),
    ],
    ids=["better", "worse", "as good and smaller", "worse by other seeds", "not better at last"],
)
def test_the_best_finalist_goes_on(
    datamodule: EmbeddingDataModule,
    monkeypatch: pytest.MonkeyPatch,
    values: Sequence[float],
    taken: bool,
    tied: bool,
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST | {"other": values})
    other = pretended.add_finalist("other", 0.5)
    assert best_allocation(pretended.study) == pretended.nis
    lines: list[str] = []
    results = pretended.run(progress=lines.append)
    assert pretended.trained("other") == ([0, 1, 2] if taken or tied else [0])
    assert pretended.trained("nis") == ([0, 1, 2] if tied or not taken else [0])
    best = other if taken else pretended.nis
    assert (results[0].name, results[0].label) == ("nis", "NIS")
    assert results[0].allocation == best
    assert best_allocation(pretended.study) == best
    assert any(f"of 2 finalists that of {size(best.nbytes())} goes on" in line for line in lines)


@pytest.mark.parametrize(("error", "seeds"), [(0.02, [0, 1, 2]), (0.01, [0]), (math.inf, [0])])
def test_a_small_validation_part_trains_the_finalists_with_all_seeds(
    datamodule: EmbeddingDataModule,
    monkeypatch: pytest.MonkeyPatch,
    error: float,
    seeds: list[int],
) -> None:
    # Behind by more than a quarter of the larger error, and less than that.
    values = BEST | {"other": (0.79, 0.815, 0.83)}
    pretended = Pretended(datamodule, monkeypatch, values, error=error)
    other = pretended.add_finalist("other", 0.5)
    results = pretended.run()
    assert pretended.trained("other") == seeds
    assert results[0].allocation == (other if len(seeds) > 1 else pretended.nis)


@pytest.mark.parametrize(("best_epoch", "told"), [(1, True), (2, False)])
def test_trainings_that_overfit_at_once_are_told(
    datamodule: EmbeddingDataModule,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    best_epoch: int,
    told: bool,
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST)
    train = trainings.train
    monkeypatch.setattr(
        trainings,
        "train",
        lambda *args, **how: replace(train(*args, **how), best_epoch=best_epoch),
    )
    pretended.run(seeds=[0])
    text = "3 of 3 trainings were best after their first epoch"
    assert (text in caplog.text) == told


@pytest.mark.parametrize("seeds", [3, "012", np.array([0, 1])])
def test_seeds_are_a_list(seeds: Any) -> None:
    with pytest.raises(ValueError, match="`seeds` must be a list of integers, such as"):
        check_options(seeds, None, 2)


def test_what_others_have_found_meanwhile_is_no_finalist(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST | {"other": (0.9, 0.9, 0.9)})
    other = pretended.add_finalist("other", 0.5)
    full = Candidate(pretended.sizes["uniform_projected"], 0.75)

    def found(line: str) -> None:
        write_found(pretended.study, pretended.space, "b", [full], pretended._reward, 0, {})

    results = pretended.run(progress=found)
    assert results[0].allocation == other
    # It looks better than all of these, and nobody has trained it to its end.
    assert best_allocation(pretended.study) == full.allocation


def test_a_finalist_that_diverges_is_none(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST | {"other": (0.9, 0.9, 0.9)})
    other = pretended.add_finalist("other", 0.5)
    train, diverging = trainings.train, [pretended.nis]

    def diverge(build: Any, allocation: Any, data: Any, **options: Any) -> Any:
        if allocation in diverging:
            raise FloatingPointError("The training diverged.")
        return train(build, allocation, data, **options)

    monkeypatch.setattr(trainings, "train", diverge)
    lines: list[str] = []
    assert pretended.run(progress=lines.append)[0].allocation == other
    assert "NIS, finalist 1: The training diverged." in lines
    assert lines[0] == "6 sizes to train from scratch with seed 0, then the best with 2 more."
    again = Pretended(datamodule, monkeypatch, BEST)
    diverging += [again.nis]
    monkeypatch.setattr(trainings, "train", diverge)
    with pytest.raises(FloatingPointError, match="The training diverged"):
        again.run()


@pytest.mark.parametrize(
    ("name", "diverging", "left"),
    [
        ("uniform_native", 0, {"nis", "uniform", "full"}),  # Projected ones stand in.
        ("uniform_native", 1, {"nis", "full"}),
        ("full", 0, {"nis", "uniform"}),
        ("full", 2, {"nis", "uniform"}),
    ],
)
def test_rivals_that_diverge_are_left_out_and_it_is_said(
    name: str,
    diverging: int,
    left: set[str],
    datamodule: EmbeddingDataModule,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST)
    train, sizes = trainings.train, pretended.sizes[name]

    def diverge(build: Any, allocation: Any, data: Any, *, seed: int, **options: Any) -> Any:
        if (allocation, seed) == (sizes, diverging):
            raise FloatingPointError("The training diverged.")
        return train(build, allocation, data, seed=seed, **options)

    monkeypatch.setattr(trainings, "train", diverge)
    lines: list[str] = []
    results = pretended.run(progress=lines.append)
    assert {result.name for result in results} == left
    assert sizes not in [result.allocation for result in results]
    assert results.best is not None
    assert results.best.name == "nis"
    assert sum("left out, The training diverged." in line for line in lines) == 1
    assert [*results_of(pretended.study)] == [*results]


def test_a_comparison_beside_another_leaves_its_weights_alone(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST)
    how = replace(pretended.how, checkpoint_dir=tmp_path)
    with trainings.Trainings(pretended.study, how, 1) as first:
        first.run("NIS", pretended.nis, 0)
        pretended.run(seeds=[0, 1], checkpoint_dir=tmp_path)
        assert first.has_weights(pretended.nis, 0)
    assert not tmp_path.exists()


def test_finalists_that_tie_and_all_diverge_with_another_seed(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST)
    values = dict(zip(pretended.sizes.values(), (0.8, 0.8, 0.5)))
    tried: list[int] = []

    def run(label: str, allocation: Allocation, seed: int) -> Any:
        tried.append(seed)
        if seed:
            raise FloatingPointError(f"{label} diverged.")
        return SimpleNamespace(val_metric=values[allocation], val_error=0.01, monitor="AUC")

    ran: Any = SimpleNamespace(run=run, left=0, num_unknown=lambda sizes, seeds: 0)
    with pytest.raises(FloatingPointError, match="NIS, finalist 2 diverged"):
        comparison._best_of(dict(enumerate(values)), ran, [0, 1], pretended.how)
    assert tried == [0, 0, 0, 1, 1]


def test_what_is_far_behind_is_trained_once(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST | {"mixed": (0.795, 0.70, 0.71)})
    results = pretended.run()
    assert pretended.trained("uniform_projected") == [0]
    assert pretended.trained("mixed") == [0, 1, 2]
    assert [result.name for result in results] == ["nis", "uniform", "full", "mixed"]


def test_a_better_rival_is_taken_and_saved(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = BEST | {"uniform_native": (0.83, 0.86, 0.84)}
    pretended = Pretended(datamodule, monkeypatch, values)
    results = pretended.run(output=str(tmp_path))
    assert results.best is results[1]
    assert results.best.name == "uniform"
    assert " is better, take it: " in results.verdict
    # The seed with the best validation.
    assert Predictor.load(tmp_path).allocation == pretended.sizes["uniform_native"]
    key = Predictor.training_of(tmp_path)
    ran = trainings.Trainings(pretended.study, pretended.how, largest=0)
    assert key == ran._key(pretended.sizes["uniform_native"], 1)


@pytest.mark.parametrize("name", ["mixed", "uniform_native"])
def test_the_same_sizes_are_no_rivals(
    name: str, datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST)
    # The search may find what a formula gives, or uniform sizes, which are always reported.
    pretended.finalists = {0: pretended.sizes.pop(name)}
    pretended.sizes["nis"] = pretended.finalists[0]
    results = pretended.run()
    assert [result.name for result in results] == ["nis", "uniform", "full"]
    assert " are best: " in results.verdict
    assert ("against" in results.verdict) == (name == "mixed")


def test_a_tie_goes_to_the_fewest_bytes(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = BEST | {"uniform_native": (0.81, 0.79, 0.83), "mixed": (0.82, 0.80, 0.81)}
    pretended = Pretended(datamodule, monkeypatch, values, error=0.05)
    results = pretended.run()
    tied = [r for r in results if r.name in ("nis", "uniform", "mixed")]
    assert results.best == min(tied, key=lambda result: result.nbytes)
    assert " as good, take " in results.verdict


def test_better_uniform_sizes_are_the_ones_reported(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = BEST | {"uniform_projected": (0.77, 0.77, 0.77)}
    results = Pretended(datamodule, monkeypatch, values).run()
    assert results[1].label.endswith(", projected")
    # Where both may be taken, both are there.
    values = BEST | {"uniform_projected": (0.80, 0.77, 0.77), "uniform_native": (0.799, 0.7, 0.7)}
    results = Pretended(datamodule, monkeypatch, values).run()
    assert [r.name for r in results] == ["nis", "uniform", "full", "uniform_native"]


def test_full_tables_may_be_taken_where_they_fit(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = BEST | {"full": (0.9, 0.9, 0.9)}
    results = Pretended(datamodule, monkeypatch, values).run()
    assert results.best is results[0]
    assert results.verdict.endswith("; the full tables, above the budget, reach 0.9000.")
    pretended = Pretended(datamodule, monkeypatch, values, budget=1.0)
    # Uniform sizes of the whole budget are the full tables.
    del pretended.sizes["uniform_native"], pretended.sizes["uniform_projected"]
    del pretended.sizes["mixed"]
    pretended.nis = pretended.sizes["nis"] = baselines.uniform(pretended.space, width=1)
    results = pretended.run()
    assert pretended.trained("full") == [0, 1, 2]
    assert results.best is not None
    assert results.best.num_parameters == pretended.space.full_parameters


LOW: Values = BEST | {
    "uniform_native_8bit": (0.60, 0.61, 0.62),
    "uniform_projected_8bit": (0.60, 0.61, 0.62),
    "uniform_native_4bit": (0.84, 0.85, 0.86),
    "uniform_projected_4bit": (0.60, 0.61, 0.62),
}


def test_uniform_sizes_of_low_precision_are_rivals(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(datamodule, monkeypatch, LOW, budget=0.1, precisions=(32, 8, 4))
    results = pretended.run()
    nis, uniform, full = results[:3]
    assert uniform.allocation == pretended.sizes["uniform_native_4bit"]
    assert uniform.label == "Uniform 2 in 4 bits"
    assert uniform.nbytes == pretended.sizes["uniform_native_4bit"].nbytes()
    assert max(nis.nbytes, uniform.nbytes) <= pretended.space.budget_nbytes
    assert (full.nbytes, full.allocation) == (
        pretended.space.full_nbytes,
        pretended.space.full(32),
    )
    assert results.best is uniform
    share = 100 * uniform.nbytes / full.nbytes
    assert results.verdict.startswith("Uniform 2 in 4 bits is better, take it: ")
    assert results.verdict.endswith(
        f", with {size(uniform.nbytes)}, {share:.2f} % of the full tables."
    )
    names = [name for name in pretended.sizes if pretended.trained(name)]
    assert names == list(pretended.sizes)
    assert results_of(pretended.study) == results


def test_a_budget_below_any_float32_row_has_rivals_of_low_precision(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = SearchSpace(datamodule.embedding_specs(4, (2,)), budget=7)
    with pytest.raises(ValueError, match="`budget` must be at least"):
        space.with_precisions([32])
    uniforms = comparison._uniforms(space, native=True)
    assert {sizes.name for sizes in uniforms} >= {"uniform_native_2bit"}
    assert all(sizes.name.endswith("_2bit") for sizes in uniforms)
    assert all(space.fits(sizes.allocation) for sizes in uniforms)
    assert comparison._mixed(space) == []


def test_small_values_may_be_best(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST)
    results = pretended.run(monitored=Monitored("val_metric", "min"))
    assert results.best is not None
    assert results.best.name == "mixed"
    assert pretended.trained("uniform_projected") == [0, 1, 2]


def test_a_single_seed_ties_within_a_quarter_of_the_error(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, tied in ((0.1, True), (0.01, False)):
        values = BEST | {"uniform_native": (0.82,)}
        pretended = Pretended(datamodule, monkeypatch, values, error=error)
        verdict = pretended.run(seeds=[0]).verdict
        assert ("as good" in verdict) == tied, verdict


def test_other_metrics_that_a_model_names_are_kept(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST)
    for result in (*pretended.run(), *results_of(pretended.study)):
        # One that is not known, where no group has both classes, is left out.
        assert result.metrics == {"LogLoss": (0.5, 0.5, 0.5)}
    pretended.events.clear()
    assert pretended.run()[0].metrics == {"LogLoss": (0.5, 0.5, 0.5)}
    assert pretended.events == []


def test_how_the_trainings_ended_is_kept(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST)
    nis = pretended.run()[0]
    assert (nis.steps, nis.decays, nis.epochs) == ((40,) * 3, (1,) * 3, (4,) * 3)
    assert nis.learning_rate == pretended.how.build(pretended.nis).learning_rate


def test_trained_weights_wait_for_their_test(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST)
    train, calls = trainings.train, 0

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return train(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trainings, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretended.run(checkpoint_dir=tmp_path)
    assert len(list(tmp_path.rglob("*.pt"))) == 5
    assert {kind for kind, _, _ in pretended.events} == {"train"}
    pretended.run(checkpoint_dir=tmp_path)
    assert [kind for kind, _, _ in pretended.events].count("train") == 3 * 3 + 2
    assert not tmp_path.exists()


def test_weights_that_are_gone_are_trained_again(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(datamodule, monkeypatch, BEST)
    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "tested", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pretended.run()
    before = len(pretended.events)
    lines: list[str] = []
    pretended.run(progress=lines.append)
    assert len(pretended.events) - before == 9 + 9
    assert sum("trained once more, its weights" in line for line in lines) == 9


def test_uniform_sizes_of_several_precisions_are_beside_those_in_float32_and_say_so() -> None:
    specs = [EmbeddingSpec("user", 100, 8, precisions=(2,)), EmbeddingSpec("city", 50, 8)]
    uniforms = comparison._uniforms(SearchSpace(specs, budget="30%"), native=False)
    assert [(sizes.name, sizes.label) for sizes in uniforms] == [
        ("uniform_projected", "Uniform 2, projected"),
        ("uniform_projected_32bit", "Uniform 4 in 2 to 32 bits, projected"),
    ]
    bits = [{table.tiers[0].bits for table in s.allocation.values()} for s in uniforms]
    assert bits == [{32}, {2, 32}]
