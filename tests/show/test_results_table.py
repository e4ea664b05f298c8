from __future__ import annotations

import io

import pytest
from rich.console import Console

from optuna_nis.show.results_table import format_table
from optuna_nis.study import results as stored


def rendered(results):
    console = Console(file=io.StringIO(), width=100, no_color=True)
    console.print(format_table(results))
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
