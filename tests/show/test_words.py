from __future__ import annotations

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace, TableAllocation, Tier
from optuna_nis._format import size
from optuna_nis.show.words import allocation_rows, how_scored, precisions_of
from optuna_nis.study.results import finalist_allocations, save_finalist
from optuna_nis.study.searches import finish, join


def test_rows_of_an_allocation():
    gone = TableAllocation("city", 50, 8, ())
    user = TableAllocation("user", 2000, 16, (Tier(100, 16), Tier(300, 4)))
    assert allocation_rows(Allocation([gone, user])) == [
        ["user", "2,000 x 16", "100 x 16 + 300 x 4", "12.2 kB", "100 %"],
        ["city", "50 x 8", "removed", "0 bytes", "0 %"],
    ]
    assert allocation_rows(Allocation([gone]))[0][-1] == "0 %"
    hashed = TableAllocation("user", 20000, 16, (Tier(100, 16),), num_shared=4096)
    assert allocation_rows(Allocation([hashed]))[0][2] == "100 x 16 + 4,096 shared"
    user = TableAllocation("user", 2000, 16, (Tier(100, 16), Tier(300, 4, 2)))
    city = TableAllocation("city", 50, 8, (Tier(50, 8, 32),))
    assert allocation_rows(Allocation([city, user])) == [
        ["user", "2,000 x 16", "100 x 16 + 300 x 4 in 2 bits", size(user.nbytes()), "81.8 %"],
        ["city", "50 x 8", "50 x 8", "1.6 kB", "18.2 %"],
    ]


def test_precisions_of_a_space(make_study):
    spaces = [
        SearchSpace([EmbeddingSpec("x", 9, 2, precisions=p)]) for p in ((32,), (8,), (32, 2))
    ]
    assert list(map(precisions_of, spaces)) == ["", "8 bits a number", "32 or 2 bits a number"]


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
    finalists = finalist_allocations(study)
    save_finalist(study, study.best_trial.number, finalists)
    assert how_scored(study, study.best_trial) == (
        "trained in the shortlist, on the validation data; best of the finalists retrained"
    )
