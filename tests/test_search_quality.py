"""The benchmark that compares the search with its rivals; the trainings are pretended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from byte_laboratory import ByteLaboratory
from laboratory import uniform_without
from pretended import OPTIONS, SPACE, Pretended, uniform
import pytest
import search_quality
from search_quality import METHODS, cell, is_run, planned, save_cells
import torch
from trainings import rules_of

from optuna_nis.models import RankingModule


@pytest.fixture
def trainings() -> Pretended:
    return Pretended()


@pytest.fixture
def laboratory(trainings: Pretended) -> ByteLaboratory:
    return ByteLaboratory("flights-ranking", trainings, [0, 1])  # type: ignore[arg-type]


def run(val: float, test: float) -> dict[str, float]:
    return {"val": val, "test": test}


def test_few_candidates_are_all_tried_at_equal_cost():
    runs = [run(0.8, 0.7), run(0.8, 0.72)]
    assert search_quality._of_few(runs, [run(0.8, 0.7), run(0.1, 0.9)]) == pytest.approx(0.71)


def test_of_many_candidates_every_pair_counts_alike():
    candidates = [run(0.8, 0.7), run(0.7, 0.6), run(0.6, 0.9)]
    # The first wins two pairs, the second the one that is left.
    assert search_quality._of_few([], candidates) == pytest.approx((0.7 + 0.7 + 0.6) / 3)


def test_every_method_has_a_place_in_the_order() -> None:
    named = {name.removeprefix("method_") for name in dir(ByteLaboratory) if "method_" in name}
    assert sorted(METHODS) == sorted(named)


def test_what_is_compared_first_runs_first() -> None:
    first, second, third, fourth, *_ = planned("insteval", [0.05, 0.25], METHODS)
    assert first == [(m, b) for m in ("full", "uniform", "mde") for b in (0.05, 0.25)]
    assert second == [("nis_me", 0.05), ("nis_me", 0.25)]
    assert third == [("nis_retrained", 0.05), ("nis_retrained", 0.25)]
    assert fourth == [("nis_bits", 0.05), ("nis_bits", 0.25)]
    alone = planned("insteval", [0.25], ["nis_me", "uniform"])
    assert alone == [[("uniform", 0.25)], [("nis_me", 0.25)]]


def test_the_best_finalist_of_a_search_is_taken_by_validation() -> None:
    class Several(Pretended):
        def run(self, **job: Any) -> dict[str, Any]:
            result = super().run(**job)
            if job["kind"] == "search":
                result["finalists"] = [uniform(s).to_json() for s in (0.5, 0.25, 0.125)]
            elif job["kind"] == "train":
                best = 0.25 if job["seed"] == 0 else 0.5
                result["val"] = 0.9 if job["allocation"] == uniform(best).to_json() else 0.8
            return result

    laboratory = ByteLaboratory("flights-ranking", Several(), [0, 1])  # type: ignore[arg-type]
    line = cell(laboratory, "nis_me", 0.5)
    assert line["share"] == pytest.approx(0.375)
    # The search alone, and trainings of the two others.
    assert line["search_cost_ratio"] == 3
    assert line["finalists_cost_ratio"] == 2


def test_what_is_retrained_is_taken_by_validation() -> None:
    class Worse(Pretended):
        """The sizes found with the first seed cannot be told from others, with the second can."""

        def run(self, **job: Any) -> dict[str, Any]:
            result = super().run(**job)
            if job["kind"] == "train" and job["allocation"] == uniform(0.25).to_json():
                result |= {"val": 0.7}
            return result

    laboratory = ByteLaboratory("flights-ranking", Worse(), [0, 1])  # type: ignore[arg-type]
    runs, seconds, tried = laboratory.method_nis_retrained(0.5)
    rivals = [run["allocation"] for run in tried[1:]]
    assert len(rivals) == 3
    assert uniform(0.25) not in [run["allocation"] for run in runs]
    cheapest = min(tried, key=lambda run: run["nbytes"])
    assert [run["nbytes"] for run in runs] == [cheapest["nbytes"]] * 2
    # The search and a training of each.
    assert seconds == 30 + 4 * 10


def test_dear_methods_run_in_their_cells() -> None:
    assert is_run("full_tuned", "insteval", 0.25)
    assert not is_run("full_tuned", "insteval", 0.5)
    assert is_run("full_tuned", "insteval", 0.5, everywhere=True)
    assert not is_run("tpe_20", "movielens-1m-user-item", 0.25)
    assert is_run("grid", "insteval", 0.1)
    assert not is_run("grid", "complete_journey", 0.25)
    assert not is_run("hand_made", "insteval", 0.25, everywhere=True)
    assert planned("flights-retrieval", [0.25], ["full_tuned", "grid"]) == []


def test_a_cell_says_what_it_took(laboratory: ByteLaboratory, trainings: Pretended) -> None:
    line = cell(laboratory, "nis_me", 0.5)
    assert (line["steps"], line["best_steps"], line["steps_ratio"]) == (105, 80, 1)
    assert line["search_cost_ratio"] == 3
    # A half with the first seed, a quarter with the second.
    assert line["share"] == pytest.approx(0.375)
    assert (line["nbytes"], line["budget_nbytes"]) == (72_000, 96_000)
    assert line["options"] == OPTIONS
    assert line["rules"] == rules_of(line["method"])
    assert not any("options" in job for job in trainings.jobs)


def test_tuned_tables_are_trained_with_what_is_best_for_the_first_seed(
    laboratory: ByteLaboratory, trainings: Pretended
) -> None:
    line = cell(laboratory, "full_tuned", 0.25)
    largest = 0.0312
    assert line["options"] == OPTIONS | {"learning_rate": largest}
    assert line["mean_at_equal_compute"] is None
    assert line["share"] == 1
    # Four rates, two more of l2 and of dropout.
    assert line["search_cost_ratio"] == 8
    tuned = [job for job in trainings.jobs if job["seed"] == 1 and "options" in job]
    assert [job["options"] for job in tuned] == [{"learning_rate": largest}]


def test_both_forms_of_uniform_count_as_cost_of_the_tuned_one(laboratory: ByteLaboratory) -> None:
    assert cell(laboratory, "uniform_tuned", 0.25)["search_cost_ratio"] == 9


def test_the_sizes_of_each_seed_are_tuned(
    laboratory: ByteLaboratory, trainings: Pretended
) -> None:
    line = cell(laboratory, "nis_tuned", 0.5)
    assert line["share"] == pytest.approx(0.375)
    assert line["search_cost_ratio"] == 3 + 8
    last = [job for job in trainings.jobs if job.get("options") == {"learning_rate": 0.0312}]
    assert {(job["seed"], job["allocation"]) for job in last} == {
        (0, uniform(0.5).to_json()),
        (1, uniform(0.25).to_json()),
    }


def test_a_feature_that_does_harm_is_left_out(laboratory: ByteLaboratory) -> None:
    line = cell(laboratory, "full_one_out", 0.25)
    assert line["allocation"] == ["user: 1000x32 (of 1000x32)", "noise: removed (of 500x32)"]
    assert line["search_cost_ratio"] == 3


def test_what_others_leave_makes_uniform_tables_wider(laboratory: ByteLaboratory) -> None:
    line = cell(laboratory, "uniform_one_out", 0.25)
    assert line["num_parameters"] <= line["budget_parameters"]
    assert line["allocation"][1] == "noise: removed (of 500x32)"
    space = laboratory.space(0.25)
    assert str(uniform_without(space, ["noise"], False)).splitlines() == [
        "user: 1000x12 (of 1000x12)",
        "noise: removed (of 500x12)",
    ]
    assert str(uniform_without(space, ["noise"], True)).splitlines() == [
        "user: 1000x11 (of 1000x32)",
        "noise: removed (of 500x32)",
    ]


@pytest.mark.parametrize("projected", [False, True])
def test_models_take_tables_of_which_some_are_left_out(projected: bool) -> None:
    model = RankingModule(uniform_without(SPACE.with_budget(0.25), ["user"], projected))
    ids = torch.tensor([1, 2])
    assert model({"user": ids, "noise": ids}).isfinite().all()


def test_features_without_others_are_never_wider_than_the_full_tables() -> None:
    sizes = uniform_without(SPACE.with_budget(0.9), ["user"], False)
    assert str(sizes).splitlines()[1] == "noise: 500x32 (of 500x32)"


def test_cells_are_added_to_those_of_earlier_runs(
    laboratory: ByteLaboratory, tmp_path: Path
) -> None:
    output = tmp_path / "search_quality.json"
    uniform = cell(laboratory, "uniform", 0.5)
    before = cell(laboratory, "mde", 0.25)
    # By other rules: it stays, but counts no more.
    del before["rules"]
    save_cells([uniform, before], output)
    kept = save_cells([cell(laboratory, "nis_me", 0.5), uniform | {"val": 0.5}], output)

    assert json.loads(output.read_text()) == kept
    assert [(c["method"], c["budget"]) for c in kept["cells"]] == [
        ("mde", 0.25),
        ("nis_me", 0.5),
        ("uniform", 0.5),
    ]
    assert kept["cells"][2]["val"] == 0.5
    assert kept["summary"]["all"]["costs"]["nis_me"]["cells"] == 1
    assert list(kept["summary"]["all"]["against"]["nis_me"]) == ["uniform"]
