from __future__ import annotations

import pytest

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.show.words import allocation_rows, how_scored, percent
from optuna_nis.study.searches import finish, join


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (1e-5, "< 0.01 %"),
        (0.0025, "0.25 %"),
        (0.125, "12.5 %"),
        (0.1, "10 %"),
        (1.0, "100 %"),
        (2.5, "250 %"),
    ],
)
def test_percent(share, text):
    assert percent(share) == text


def test_rows_of_an_allocation():
    gone = TableAllocation("city", 50, 8, ())
    user = TableAllocation("user", 2000, 16, (Tier(100, 16), Tier(300, 4)))
    assert allocation_rows(Allocation([gone, user])) == [
        ["user", "2,000 x 16", "100 x 16 + 300 x 4", f"{user.num_parameters:,}", "100 %"],
        ["city", "50 x 8", "removed", "0", "0 %"],
    ]
    assert allocation_rows(Allocation([gone]))[0][-1] == "0 %"


def test_a_study_says_how_its_best_was_scored(make_study):
    study = make_study(supernet=3)
    assert how_scored(study, study.trials[0]) == "shared weights; nothing has been trained yet"
    study = make_study(validated=3)
    (best,) = study.trials[-1:]
    assert how_scored(study, best).startswith("shared weights, all validation data; nothing")
    study = make_study(validated=3, dropped=4)
    (best,) = study.trials[-1:]
    assert how_scored(study, best).startswith("trained for a while")
    study = make_study(dropped=4, trained=3)
    search = join(study, "one", seed=0)
    assert how_scored(study, study.best_trial) == (
        "trained, on the validation data; 3 trained so far, the search has not ended"
    )
    finish(study, search, 1.0)
    assert how_scored(study, study.best_trial) == "trained, on the validation data"
