from __future__ import annotations

from dataclasses import fields, replace
import json

import optuna
import pytest

from optuna_nis import PolicySettings
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.study.keys import PLAN_ATTR
from optuna_nis.study.settings import plan_of, save_plan


def test_a_plan_is_read_as_it_was_written() -> None:
    plan = SearchPlan(
        warmup=0.5,
        near_costs=(0.5, 1.0),
        shortlist_epochs=(2,),
        policy=PolicySettings(temperature=2.0),
    )
    read = SearchPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert read == plan
    assert read != SearchPlan()


def test_fields_take_the_place_of_those_of_a_plan() -> None:
    plan = SearchPlan(epochs=7)
    assert SearchPlan.of(plan, {"warmup": 0.1}) == replace(plan, warmup=0.1)
    assert SearchPlan.of(None, {}) == SearchPlan()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "an integer of at least 1"),
        ("num_updates", 1.5, "an integer of at least 1"),
        ("group_size", 1, "an integer of at least 2"),
        ("choices_per_step", 0, "an integer of at least 1"),
        ("warmup", 1.1, r"a share in \[0, 1\]"),
        ("warmup", "much", r"a share in \[0, 1\]"),
        ("near_budget", 1.5, "a number in"),
        ("near_costs", (0.8,), "a tuple of 2 numbers from 0 to inf"),
        ("near_costs", 0.8, "2 numbers from 0 to inf"),
        ("near_costs", (1.05, 0.8), "the lowest and the highest"),
        ("budget_shares", (0.5,), "the first being 1"),
        ("budget_shares", (1.0, 2.0), "numbers from 0 to 1"),
        ("further_shares", (1.5,), "numbers from 0 to 1"),
        ("popularity_powers", ("x",), "numbers from 0 to inf"),
        ("shortlist_epochs", (1, 0), "an integer of at least 1"),
        ("shortlist_epochs", 2, "a tuple"),
        ("shortlist_batches", 0.0, "a number in"),
        ("warm_rounds", -1, "an integer of at least 0"),
        ("keep_frequent", 1, "True or False"),
        ("keep_simple", "yes", "True or False"),
        ("frequent_narrower", [False], "True or False"),
        ("policy", "fast", "PolicySettings"),
    ],
)
def test_what_is_out_of_range_is_told_by_name(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"`{field}` must be .*{message}.*got"):
        SearchPlan(**{field: value})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("max_epochs", r"\. Do you mean `epochs`\?"),
        ("updates", r"\. Do you mean `num_updates`\?"),
        ("rounds", r"\. Do you mean `shortlist_epochs`\?"),
        ("warm_up", r"\. Do you mean `warmup`\?"),
        ("temperature", r", but of its `policy`: `policy=PolicySettings\(temperature=...\)`"),
        ("wings", r", which has \['epochs', "),
    ],
)
def test_a_name_that_is_no_field_leads_to_the_one_that_is_meant(name: str, told: str) -> None:
    with pytest.raises(TypeError, match=f"`{name}` is no field of a SearchPlan{told}"):
        SearchPlan.of(None, {name: 0.5})


def test_what_is_read_must_be_a_plan() -> None:
    with pytest.raises(ValueError, match="no plan of a search"):
        SearchPlan.from_dict({"warm_up": 0.5})
    for wrong in ([1], "abc", None):
        with pytest.raises(ValueError, match="no plan of a search"):
            SearchPlan.from_dict(wrong)  # type: ignore[arg-type]


def test_a_plan_of_before_has_no_rounds_from_scratch() -> None:
    values = SearchPlan(shortlist_epochs=(1, 2, 4)).to_dict()
    assert SearchPlan.from_dict(values).warm_rounds == 1
    del values["warm_rounds"], values["keep_simple"]
    before = SearchPlan.from_dict(values)
    assert (before.warm_rounds, before.keep_simple) == (3, False)


def test_a_plan_of_before_has_a_field_that_has_gone() -> None:
    before = {**SearchPlan(warmup=0.3).to_dict(), "same_cost": 1.25}
    assert SearchPlan.from_dict(before) == SearchPlan(warmup=0.3)
    study = optuna.create_study()
    study.set_user_attr(PLAN_ATTR, before)
    save_plan(study, SearchPlan(warmup=0.3).to_dict())
    assert plan_of(study) == before
    with pytest.raises(ValueError, match=r"with warmup 0\.3 \(now 0\.2\)"):
        save_plan(study, SearchPlan(warmup=0.2).to_dict())


def test_every_field_is_documented() -> None:
    assert SearchPlan.__doc__ is not None
    for field in fields(SearchPlan):
        assert f"        {field.name}: " in SearchPlan.__doc__
