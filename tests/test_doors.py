"""The doors of the benchmark, on few rows: the plain loop does what a trainer does."""

from __future__ import annotations

from typing import Any

from doors import lines_of_readme
import optuna
from plain_loop import plain_loop
import pytest

from optuna_nis import SearchPlan
from optuna_nis.data import load_dataset
from optuna_nis.lightning import reference_model, search_sizes

PLAN = SearchPlan(
    epochs=2,
    num_updates=3,
    group_size=4,
    proposals=2,
    price_shares=(),  # For which a plain loop would have to make the gradients.
    shortlist_epochs=(1,),
)


def _trials(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(t.params, t.value, t.user_attrs["fidelity"]) for t in study.trials]


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
# Of the retrieval's items the ranks are estimated, for which random numbers are drawn.
@pytest.mark.parametrize(
    ("name", "task", "max_rows"),
    [("flights", "ranking", 2_000), ("movielens-small", "retrieval", 3_000)],
)
def test_a_plain_loop_has_the_trials_of_the_one_call(name: str, task: Any, max_rows: int) -> None:
    options = {"max_rows": max_rows, "eval_batch_size": 128}
    data = load_dataset(name, task, **options)
    found = search_sizes(reference_model(data.features), data, budget="25%", seed=1, plan=PLAN)
    data = load_dataset(name, task, shuffle_seed=1, **options)
    search = plain_loop(data, "25%", 1, PLAN)
    ours, theirs = _trials(search.study), _trials(found.study)
    assert [trial[0] for trial in ours] == [trial[0] for trial in theirs]
    assert [trial[2] for trial in ours] == [trial[2] for trial in theirs]
    assert [trial[1] for trial in ours] == pytest.approx([trial[1] for trial in theirs], abs=1e-6)
    if task == "retrieval":
        assert data.num_classes > 1024


def test_the_lines_of_the_readme_are_those_that_search() -> None:
    lines = lines_of_readme("flights", "retrieval", 7)
    compile(lines, "README.md", "exec")
    assert 'load_dataset("flights", "retrieval")' in lines
    assert 'budget="25%", seed=7' in lines
    assert "retrain" not in lines
