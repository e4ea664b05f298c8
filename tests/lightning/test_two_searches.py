"""Two processes search one study at once, each with a supernet and half of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

import optuna
from programs import run_program
import pytest
from two_searches import GROUP_SIZE, NUM_UPDATES, digest

from optuna_nis.controller.replay import GROUP_KEY, GROUP_SIZE_KEY, Replay
from optuna_nis.study.results import space_of
from optuna_nis.study.searches import searches_of
from optuna_nis.study.storages import open_storage


@pytest.mark.slow
def test_two_processes_learn_from_each_other(
    clicks: Path, tmp_path: Path, servers: Callable[[str], str]
) -> None:
    addresses = [f"sqlite:///{tmp_path}/study.db", servers("postgresql")]
    script = Path(__file__).parent / "two_searches.py"
    run_program("-W", "ignore", script, clicks, tmp_path, *addresses, timeout=240)
    reports = [json.loads((tmp_path / f"{shard}.json").read_text()) for shard in (0, 1)]
    for place, address in enumerate(addresses):
        study = optuna.load_study(storage=open_storage(address), study_name="two")
        _check(study, [report[place]["taken"] for report in reports])
    assert not list(tmp_path.glob("checkpoints-*"))


def _check(study: optuna.Study, taken_of: list[list[dict[str, Any]]]) -> None:
    trials = study.get_trials()
    searches = searches_of(study)
    assert len(searches) == 2
    assert len({search.seed for search in searches.values()}) == 2
    assert all(search.seconds for search in searches.values())

    # Nothing is lost and nothing twice.
    assert [trial.number for trial in trials] == list(range(len(trials)))
    kinds = Counter((t.user_attrs["search"], t.user_attrs["fidelity"]) for t in trials)
    for name in searches:
        assert kinds[name, "supernet"] == NUM_UPDATES * GROUP_SIZE
        for_real = kinds[name, "trained"] + kinds[name, "dropped"]
        assert kinds[name, "validated"] >= for_real > kinds[name, "trained"] > 0
    groups = Counter((t.system_attrs[GROUP_KEY], t.system_attrs[GROUP_SIZE_KEY]) for t in trials)
    assert all(count == size for (_, size), count in groups.items())
    # Those of the updates; what all validation data have scored; what was dropped, and trained.
    assert len(groups) == 2 * (NUM_UPDATES + 3)

    # What each took from the study while it ran is the replay of what was there, of both.
    space = space_of(study)
    for taken in taken_of:
        assert len(taken) >= NUM_UPDATES // 2
        for moment in taken:
            replay = Replay(study.direction, space)
            replay.learn([trials[number] for number in moment["trials"]])
            assert replay.policy is not None
            assert digest(replay.policy) == moment["policy"]
        middle = taken[len(taken) // 2]["trials"]
        assert {trials[number].user_attrs["search"] for number in middle} == set(searches)
