from __future__ import annotations

import io

import pytest
from rich.console import Console

from optuna_nis.show.results_table import format_metrics, format_table
from optuna_nis.study import results as stored


def rendered(results, how=format_table, width=100):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(how(results))
    return console.file.getvalue()


def test_table_in_the_terminal(make_study):
    text = rendered(stored.results_of(make_study(results=True)))
    assert "Test ROC-AUC" in text
    assert "0.7750 ± 0.0071" in text
    assert "+3.33 %" in text
    (full,) = (line for line in text.splitlines() if "Full" in line)
    assert "0.7600 " in full
    assert "±" not in full
    assert "100 %" in full


def test_table_shows_brackets_and_lacks_what_is_not_there():
    text = rendered(
        [
            stored.RetrainResult("nis", "[red]x[/red]", "AUC", (0.7,), (0,), 10),
            stored.RetrainResult("tpe", "TPE", "Recall@1", (0.7,), (0,), 10),
        ]
    )
    assert "[red]x[/red]" in text
    assert "Test metric" in text
    assert "%" not in text


def test_table_of_nothing():
    with pytest.raises(ValueError, match="retrain first"):
        format_table([])


def test_other_metrics_in_the_terminal():
    nis = stored.RetrainResult(
        "nis", "NIS", "AUC", (0.7, 0.8), (0, 1), 10,
        metrics={"LogLoss": (0.3, 0.32), "[GAUC]": (0.6, 0.6)},
    )  # fmt: skip
    full = stored.RetrainResult("full", "Full", "AUC", (0.7,), (0,), 10, metrics={"LogLoss": (1,)})
    text = rendered([nis, full], format_metrics, width=50)
    rows = [line.split("│")[1:-1] for line in text.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["LogLoss", "NIS", "0.3100 ± 0.0141"],
        ["", "Full", "1.0000"],
        ["[GAUC]", "NIS", "0.6000 ± 0.0000"],
        ["", "Full", "-"],
    ]
    assert format_metrics([stored.RetrainResult("a", "A", "AUC", (0.7,), (0,), 1)]) is None
    assert format_metrics([]) is None


def test_other_metrics_of_many_sizes_are_whole():
    labels = [f"Uniform {width} in 8 bits, projected" for width in range(12)]
    metrics = {"LogLoss": (0.31, 0.3), "GAUC": (0.7, 0.6)}
    found = [
        stored.RetrainResult(label, label, "AUC", (0.7, 0.8), (0, 1), 10, metrics=metrics)
        for label in labels
    ]
    text = rendered(found, format_metrics, width=80)
    assert text.count("0.3050 ± 0.0071") == text.count("0.6500 ± 0.0707") == len(labels)
    assert all(text.count(label) == 2 for label in labels)
