from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planted_tables import KINDS
import pytest
from without import WITHOUT
import worth_it

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def cell(
    method: str,
    mean: float,
    *,
    data: str = "flights-ranking",
    budget: float = 0.25,
    **changes: Any,
) -> dict[str, Any]:
    return {
        "data": data,
        "budget": budget,
        "method": method,
        "metric": "ROC-AUC",
        "mean": mean,
        "std": 0.001,
        "seeds": [0, 1, 2],
        "num_parameters": 2_500,
        "budget_parameters": 25_000,
        "search_cost_ratio": 2.0,
        "mean_at_equal_compute": mean,
    } | changes


CELLS = [
    cell("uniform", 0.74),
    cell("nis_me", 0.77),
    cell("full", 0.75, num_parameters=100_000),
    cell("grid", 0.76, search_cost_ratio=14.25, mean_at_equal_compute=0.735),
    cell("tpe_20", 0.79, mean_at_equal_compute=None),
    cell("uniform", 0.73, budget=0.05),
]


def lines(table: str) -> list[list[str]]:
    table = table.replace("\N{NO-BREAK SPACE}", " ")
    rows = [line for line in table.splitlines() if line.startswith("|")]
    return [[part.strip() for part in row.strip("|").split("|")] for row in rows]


def test_the_summary_compares_with_the_best_rival_of_the_same_budget_and_cost():
    _, _, row = lines(worth_it.summary(CELLS))
    assert row == [
        "Flights, ranking, ROC-AUC",
        "25 %",
        "0.7700 ± 0.0010, 2.5 %",
        "0.7600 ± 0.0010, best of widths x rows",
        "+1.32%",
        "0.7400, uniform",
        "+4.05%",
        "+2.67%",
        "2.0",
    ]


def test_the_summary_says_what_is_missing():
    _, _, row = lines(worth_it.summary([cell("nis_me", 0.77)]))
    assert row[3:8] == ["-"] * 5
    assert worth_it.summary([cell("grid", 0.76)]) == ""


def test_what_has_bits_stands_for_the_search():
    bits = cell("nis_bits", 0.78, num_parameters=9_000, nbytes=4_000)
    _, _, row = lines(worth_it.summary([*CELLS, bits]))
    assert row[2] == "0.7800 ± 0.0010, 1 %"
    assert row[3] == "0.7600 ± 0.0010, best of widths x rows"
    assert list(worth_it.figure([bits]).data[0].x) == [4_000]


def test_the_fewest_bytes_of_the_best_rival_come_first():
    shares = {"nis_bits": 0.005, "uniform": 0.3, "full_pq": 0.04, "nis_me": 0.02, "pep": None}
    summary = {"flights-ranking": {"full": 0.75, "shares": shares}}
    _, _, row = lines(worth_it.fewest_bytes({"summary": summary}))
    assert row == [
        "Flights, ranking",
        "0.7500",
        "**0.5 %**",
        "4 %, full tables, product-quantised",
        "uniform 30 %; never: PEP",
    ]


def test_the_table_has_all_methods_and_budgets():
    header, _, *rows = lines(worth_it.table(CELLS))
    assert header == ["sizes", "budget 5 %", "budget 25 %", "cost"]
    assert [row[0] for row in rows] == [
        "**NIS, float32**",
        "full tables",
        "uniform",
        "best of widths x rows",
        "TPE, 20 trainings",
    ]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["**NIS, float32**"] == ["-", "0.7700 ± 0.0010, 10 kB", "2.0"]
    assert by_name["TPE, 20 trainings"][1] == "**0.7900 ± 0.0010**, 10 kB"
    assert by_name["full tables"][:2] == ["0.7500 ± 0.0010, 400 kB"] * 2
    assert by_name["uniform"][0] == "**0.7300 ± 0.0010**, 10 kB"


def test_the_figure_has_a_line_for_each_method():
    drawn = {trace.name: trace for trace in worth_it.figure(CELLS).data}
    assert len(drawn) == 5
    assert list(drawn["uniform"].y) == [0.74, 0.73]
    assert list(drawn["full tables"].x) == [400_000]
    packed = worth_it.figure([cell("nis_me", 0.77, nbytes=700)])
    assert list(packed.data[0].x) == [700]
    assert drawn["NIS, float32"].error_y.array == (0.001,)


def test_data_sets_and_methods_that_nobody_named_come_last():
    cells = [cell("magic", 0.9, data="books"), *CELLS]
    page = worth_it.sections(cells)
    assert page.index("### Flights, ranking") < page.index("### books")
    assert "| magic |" in page
    assert page.count("<div id=") + page.count('id="plot-') >= 2


def test_nothing_has_been_measured(tmp_path: Path):
    (tmp_path / "pages").mkdir()
    worth_it.write(RESULTS.parent, tmp_path / "pages")
    pages = {path.name: path.read_text() for path in (tmp_path / "pages").iterdir()}
    assert set(pages) == {
        "ablation.md",
        "costs.md",
        "fewest_bytes.md",
        "quality.md",
        "quality_summary.md",
        "planted.md",
        "sample_efficiency.md",
    }
    assert all("Not measured yet" in text for text in pages.values())


def test_the_results_that_there_are(tmp_path: Path):
    worth_it.write(RESULTS, tmp_path)
    measured = json.loads((RESULTS / "sampler_overhead.json").read_text())
    assert (
        f"{measured['milliseconds_at_10000']['nis']:.1f} ms" in (tmp_path / "costs.md").read_text()
    )
    assert "| --- |" in (tmp_path / "quality_summary.md").read_text()


def test_a_click_log_has_a_line_for_each_stage(tmp_path: Path):
    (tmp_path / "click_log.json").write_text(json.dumps({"step_ratio_30m_vs_1m": 1.013}))
    (line,) = worth_it.costs(tmp_path).split("\n")
    assert "30 million rows in the tables takes 1.01 times" in line
    found = {"prepare_peak_gib": 3.21, "prepare_vs_engine": 2.04, "growth_10m_vs_1m": 9.1}
    (tmp_path / "click_log.json").write_text(json.dumps(found))
    text = worth_it.costs(tmp_path)
    assert all(number in text for number in ("3.2 GiB", "2.0 times", "9.1 times"))
    found = {
        "search_peak_gib": 4.57,
        "search_cost_ratio": 1.15,
        "metric": {"nis": 0.7664, "full": 0.7467},
        "nbytes": {"nis": 9_655_048, "full": 1_567_532_544},
        "best_auc": 0.8335,
    }
    (tmp_path / "click_log.json").write_text(json.dumps(found))
    text = worth_it.costs(tmp_path)
    assert all(n in text for n in ("4.6 GiB", "1.1 trainings", "9,655,048 bytes with", "0.7467"))


@pytest.mark.parametrize("std", [0.0, 0.004])
def test_one_seed_is_said_to_be_one(std):
    assert "of 1 seeds" not in worth_it.table([cell("full", 0.7, seeds=[0], std=std)])


def test_the_ablation_has_a_line_for_each_part_and_a_column_for_each_place():
    cells = [
        cell("critic", 0.75),
        cell("nothing", 0.77),
        cell("nothing", 0.81, data="movielens-1m-user-item"),
    ]
    header, _, whole, critic = lines(worth_it.ablation(cells))
    assert header == [
        "without",
        "Flights, ranking, 25 %",
        "MovieLens-1M, ranking, user and movie, 25 %",
    ]
    assert whole[1:] == ["0.7700 ± 0.0010, cost 2.0", "0.8100 ± 0.0010, cost 2.0"]
    assert critic[1:] == ["0.7500 ± 0.0010, cost 2.0", "-"]


def test_every_part_that_the_ablation_takes_away_has_a_name():
    assert {"nothing", *WITHOUT} == set(worth_it._PARTS)


def test_every_kind_of_planted_table_has_a_line():
    kinds = {kind: {"found": 9, "seeds": 10} for kind in KINDS}
    header, _, *rows = lines(worth_it.planted(kinds))
    assert header == ["what is to be found", "found"]
    assert [text for text, _ in rows] == [worth_it._KINDS[kind] for kind in KINDS]
    assert {found for _, found in rows} == {"9 of 10"}


def test_sample_efficiency_has_a_line_for_each_sampler():
    medians = {"nk1": {"nis": {"50": 0.7, "100": 0.75}, "random": {"50": 0.6, "100": 0.65}}}
    header, _, nis, random = lines(worth_it.sample_efficiency(medians))
    assert header == ["objective", "sampler", "50 trials", "100 trials"]
    assert nis == ["NK landscape, one neighbour", "**NISSampler**", "0.7000", "0.7500"]
    assert random[1:] == ["random", "0.6000", "0.6500"]
