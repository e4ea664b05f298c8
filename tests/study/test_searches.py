from __future__ import annotations

from typing import Any

import optuna
import pytest

from optuna_nis.study.searches import SEARCH_KEY, check_search_id, finish, join, searches_of


def test_the_first_search_keeps_its_seed_and_others_get_their_own() -> None:
    study = optuna.create_study()
    searches = [join(study, name, seed=7, settings={"epochs": 2}) for name in ("a", "b", "c")]
    assert searches[0].seed == 7
    assert len({search.seed for search in searches}) == 3
    assert list(searches_of(study).values()) == searches


def test_of_two_that_enter_at_once_no_two_draw_alike() -> None:
    study = optuna.create_study()
    set_attr = study.set_user_attr
    entered: list[int] = []

    def as_another_enters(key: str, value: Any) -> None:
        set_attr(key, value)
        if not entered:
            entered.append(0)
            entered[0] = join(study, "b", seed=7).seed

    study.set_user_attr = as_another_enters  # type: ignore[method-assign]
    assert join(study, "a", seed=7).seed != entered[0]


def test_a_search_that_is_resumed_is_as_it_was() -> None:
    study = optuna.create_study()
    first = join(study, "a", seed=7)
    second = join(study, "b", seed=7)
    assert join(study, "a", seed=3) == first
    assert join(study, "b", seed=3) == second
    assert second.seconds is None
    finish(study, second, 2.5)
    assert searches_of(study)["b"].seconds == 2.5
    assert searches_of(study)["a"] == first


@pytest.mark.parametrize(
    "held",
    [
        None,
        7,
        [],
        {"seed": 0, "settings": {}, "seconds": "1"},
        {"seed": 0.5, "settings": {}, "seconds": None},
        {"seed": -1, "settings": {}, "seconds": None},
        {"seed": 0, "settings": [], "seconds": None},
        {"seed": 0, "settings": {}, "seconds": float("inf")},
        {"settings": {}, "seconds": 1.0},
    ],
)
def test_malformed_searches_are_refused_by_name(held: object) -> None:
    study = optuna.create_study()
    study.set_user_attr(f"{SEARCH_KEY}a", held)
    with pytest.raises(ValueError, match=r"user attribute 'nis:search:a' of .* cannot be read"):
        searches_of(study)


@pytest.mark.parametrize("search_id", ["", "x" * 101, 3])
def test_bad_ids(search_id: Any) -> None:
    with pytest.raises(ValueError, match="`search_id` must be a text of 1 to 100 characters, got"):
        check_search_id(search_id)
    check_search_id(None)
    check_search_id("gpu-1")
