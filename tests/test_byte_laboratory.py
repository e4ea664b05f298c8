"""Rivals at equal bytes; the trainings are pretended."""

from __future__ import annotations

import json
from typing import Any

from byte_laboratory import MPE_PENALTIES, ByteLaboratory
from pretended import SPACE, Pretended, uniform
import pytest
from search_quality import cell
from stored_tables import stored_nbytes

from optuna_nis import Allocation

RIVALS = (
    *("uniform", "mde", "rule_of_thumb", "full_rounded", "full_pq", "uniform_rounded"),
    *("uniform_pq", "uniform_lsq", "hashing", "quotient_remainder", "mpe", "pep", "optembed"),
)


@pytest.fixture
def trainings() -> Pretended:
    return Pretended()


@pytest.fixture
def laboratory(trainings: Pretended) -> ByteLaboratory:
    return ByteLaboratory("flights-ranking", trainings, [0, 1])  # type: ignore[arg-type]


def of_kind(trainings: Pretended, kind: str) -> list[dict[str, Any]]:
    return [job for job in trainings.jobs if job["kind"] == kind]


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.25])
@pytest.mark.parametrize("method", RIVALS)
def test_what_a_rival_has_is_within_the_budget(
    laboratory: ByteLaboratory, method: str, budget: float
) -> None:
    line = cell(laboratory, method, budget)
    if line is None:
        assert budget < 0.25
    else:
        assert line["nbytes"] <= line["budget_nbytes"] == int(budget * SPACE.full_nbytes)
        assert line["share"] == line["nbytes"] / SPACE.full_nbytes


def test_full_tables_are_as_exact_as_the_budget_allows(
    laboratory: ByteLaboratory, trainings: Pretended
) -> None:
    line = cell(laboratory, "full_rounded", 0.2)
    assert line["share"] == pytest.approx(0.15625)
    assert line["allocation"][-1] == "stored as 4bit"
    assert cell(laboratory, "full_rounded", 0.5)["share"] == 0.5
    assert cell(laboratory, "full_rounded", 0.05) is None
    # Once for each seed, whatever the bits and the budget.
    keys = {json.dumps(job, sort_keys=True) for job in of_kind(trainings, "stored")}
    assert len(keys) == 2


def test_of_ways_of_one_training_only_the_best_is_a_try(laboratory: ByteLaboratory) -> None:
    line = cell(laboratory, "full_pq", 0.25)
    assert line["search_cost_ratio"] == 1
    assert line["mean_at_equal_compute"] == pytest.approx(line["mean"])
    assert line["allocation"][-1] == "stored as pq2x6"
    # 16 indices of 6 bits for each row, 64 centroids for each table.
    assert line["nbytes"] == 16 * (750 + 375) + 2 * 64 * 32 * 2


def test_rounded_uniform_tables_are_as_wide_as_their_bytes_allow(
    laboratory: ByteLaboratory,
) -> None:
    line = cell(laboratory, "uniform_rounded", 0.1)
    # 12.8 bytes for a row: 2 bits of 32 numbers and 4 bytes of scale and offset take 12.
    two = laboratory.widest(0.1, lambda sizes: stored_nbytes(sizes, "2bit"), projected=False)
    assert str(two).splitlines()[0] == "user: 1000x32 (of 1000x32)"
    four = laboratory.widest(0.1, lambda sizes: stored_nbytes(sizes, "4bit"), projected=False)
    assert str(four).splitlines()[0] == "user: 1000x16 (of 1000x16)"
    assert line["nbytes"] <= 19_200


def test_uniform_tables_of_too_small_a_budget_keep_the_most_frequent_ids(
    laboratory: ByteLaboratory,
) -> None:
    def nbytes(sizes: Allocation) -> int:
        return stored_nbytes(sizes, "16bit")

    # 1,920 bytes: with 2 for a row, 960 of the 1,500.
    sizes = laboratory.widest(0.01, nbytes, projected=False)
    assert [table.kept for table in sizes.values()] == [480, 480]
    assert nbytes(sizes) == 1_920
    assert laboratory.widest(0.01, lambda sizes: 10**9, projected=False) is None


def test_learned_steps_are_tried_in_both_forms_and_ways(
    laboratory: ByteLaboratory, trainings: Pretended
) -> None:
    line = cell(laboratory, "uniform_lsq", 0.05)
    assert line["share"] <= 0.05
    first = {
        (job["bits"], job["start"])
        for job in of_kind(trainings, "learned_step")
        if job["seed"] == 0
    }
    assert first == {(bits, start) for bits in (4, 2) for start in ("scratch", "trained")}
    # 9,600 bytes: 3 bytes a row are 6 numbers of 4 bits or 12 of 2; a step of 2 bytes a table.
    narrow = {
        (job["bits"], Allocation.from_json(job["allocation"])["user"].tiers[0].embedding_dim)
        for job in of_kind(trainings, "learned_step")
    }
    assert narrow <= {(4, 12), (4, 11), (4, 10), (4, 9), (4, 8), (2, 24), (2, 20), (2, 16)}


def test_sizes_of_the_search_are_rounded_where_they_fit(
    laboratory: ByteLaboratory, trainings: Pretended
) -> None:
    line = cell(laboratory, "nis_rounded", 0.25)
    # What is pretended takes a half with the first seed, a quarter with the second: in 8 bits too.
    sizes = [stored_nbytes(uniform(share), "8bit") for share in (0.5, 0.25)]
    assert line["nbytes"] == round(sum(sizes) / 2)
    assert line["search_cost_ratio"] == 3
    assert cell(laboratory, "nis_rounded", 0.05) is None


def test_hashed_tables_use_up_their_budget(
    laboratory: ByteLaboratory, trainings: Pretended
) -> None:
    line = cell(laboratory, "hashing", 0.1)
    # 19,200 bytes: 150 rows of 64 bytes of each table.
    assert of_kind(trainings, "hashed")[0]["rows"] == 150
    assert line["nbytes"] == 2 * 150 * 64
    line = cell(laboratory, "quotient_remainder", 0.1)
    assert 0.9 * 19_200 < line["nbytes"] <= 19_200
    # Not even the fewest rows, 32 remainders and 32 quotients and as many as 46 of the other.
    assert cell(laboratory, "quotient_remainder", 0.01) is None


def test_the_weakest_penalty_within_the_budget_is_taken(
    laboratory: ByteLaboratory, trainings: Pretended
) -> None:
    assert MPE_PENALTIES[:3] == (1e-6, 3e-6, 1e-5)
    assert MPE_PENALTIES[-1] == 0.1
    line = cell(laboratory, "mpe", 0.25)
    assert line["nbytes"] == 10
    assert line["search_cost_ratio"] == 2
    assert len(of_kind(trainings, "mpe")) < 2 * len(MPE_PENALTIES)


def test_who_does_not_come_within_the_budget_has_no_cell(
    laboratory: ByteLaboratory, trainings: Pretended
) -> None:
    assert cell(laboratory, "pep", 0.01) is None
    assert cell(laboratory, "pep", 0.25)["nbytes"] == 1000
    assert cell(laboratory, "optembed", 0.25)["allocation"] == ["widths [2, 3]"]
    penalties = [job["penalty"] for job in of_kind(trainings, "optembed") if job["seed"] == 0]
    assert penalties == [1e-5, 1e-4, 1e-3]


@pytest.mark.parametrize("method", ["hashing", "quotient_remainder", "mpe", "pep", "optembed"])
def test_rivals_of_inputs_leave_outputs_alone(laboratory: ByteLaboratory, method: str) -> None:
    laboratory.output_features = ["items"]
    assert cell(laboratory, method, 0.25) is None


def test_a_method_over_its_budget_is_a_fault(laboratory: ByteLaboratory) -> None:
    with pytest.raises(RuntimeError, match=r"nis_me .* takes 96,000 bytes, 25.0% are 48,000"):
        cell(laboratory, "nis_me", 0.25)


def test_a_search_in_bits_knows_all_precisions(
    laboratory: ByteLaboratory, trainings: Pretended
) -> None:
    cell(laboratory, "nis_bits", 0.5)
    assert of_kind(trainings, "search")[0]["precisions"] == [32, 16, 8, 4, 2]
    # It is trained as what it is, with its bits; seeds go side by side, in any order.
    trained = [(job["seed"], job["allocation"]) for job in of_kind(trainings, "train")]
    assert (0, uniform(0.5).to_json()) in trained
