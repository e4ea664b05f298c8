from __future__ import annotations

import json
import math

from anything import anything, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
import optuna
import pytest

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.study import results as stored
from optuna_nis.study.settings import plan_of, save_plan

SPACE_TEXT = SearchSpace([EmbeddingSpec("user", 100, 8)], budget=0.5).to_json()


def test_space_is_read_back(make_study):
    study = make_study(2)
    space = stored.space_of(study)
    assert [spec.name for spec in space.specs] == ["f0", "f1"]
    stored.save_space(study, space)
    assert stored.space_of(study) == space


@pytest.mark.parametrize("version", [1, 2])
def test_the_space_of_an_earlier_release_goes_on(make_study, version):
    study = make_study(2, trained=1, old=True)
    space, best = stored.space_of(study), stored.best_allocation(study)
    data = json.loads(space.to_json()) | {"version": version}
    for spec in data["specs"]:
        del spec["precisions"]
        if version == 1:
            del spec["mean_counts"]
    study.set_user_attr(stored.SPACE_ATTR, json.dumps(data))
    assert stored.space_of(study) == space
    stored.save_space(study, space)
    assert stored.best_allocation(study) == best


def test_a_space_of_other_precisions_is_another(make_study):
    study = make_study(2)
    with pytest.raises(
        ValueError, match=r"another space: `precisions` of .* was .*, now \(8, 2\)"
    ):
        stored.save_space(study, stored.space_of(study).with_precisions([8, 2]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"budget": 0.4999}, r"a budget of 16,800 of 33,600 bytes, now 16,796"),
        ({"mode": "single"}, "mode 'multi', now 'single'"),
        ({"names": ("v", "i")}, r"features \['u', 'i'\], now \['v', 'i'\]"),
        ({"names": ("i", "u")}, r"features \['u', 'i'\], now \['i', 'u'\]"),
        ({"row_blocks": 3}, "`row_blocks` of 'u' was .*, now "),
        ({"oov": "shared"}, "`oov` of 'u' was 'zero', now 'shared'"),
        ({"embedding_dim": 4}, "`embedding_dim` of 'u' was 8, now 4"),
    ],
)
def test_what_is_another_about_a_space_is_told(change, told):
    def space(names=("u", "i"), embedding_dim=8, budget=0.5, mode="multi", **options):
        specs = {
            "u": EmbeddingSpec(names[0], 1000, embedding_dim, **options),
            "i": EmbeddingSpec(names[1], 50, embedding_dim),
        }
        return SearchSpace(list(specs.values()), budget=budget, mode=mode)

    study = optuna.create_study(direction="maximize")
    stored.save_space(study, space())
    with pytest.raises(ValueError, match=f"another space: {told}.*\\. Use another study name"):
        stored.save_space(study, space(**change))


def test_a_space_without_counts_does_not_take_those_of_the_study():
    study = optuna.create_study(direction="maximize")
    counted = SearchSpace([EmbeddingSpec.from_counts("user", range(100), 8)], budget=0.5)
    rows = counted.specs[0].row_blocks
    plain = SearchSpace([EmbeddingSpec("user", 100, 8, row_blocks=rows)], budget=0.5)
    for space, known in ((plain, False), (counted, True), (plain, True)):
        stored.save_space(study, space)
        assert (stored.space_of(study).specs[0].mean_counts is not None) == known


def test_space_missing():
    study = optuna.create_study(study_name="other")
    with pytest.raises(ValueError, match="`study` 'other' holds no search space"):
        stored.space_of(study)


def test_another_space_is_refused(make_study):
    with pytest.raises(ValueError, match="another space"):
        stored.save_space(make_study(2), SearchSpace([EmbeddingSpec("x", 10, 4)]))


@given(
    key=st.sampled_from(["version", "mode", "budget", "specs"]),
    within=st.sampled_from([None, None, "name", "num_embeddings", "embedding_dim", "row_blocks"]),
    value=anything | st.just(10**30) | st.just([10**30]) | st.just([2**62] * 4),
)
@settings(deadline=None)
def test_any_space_is_read_or_refused_by_name(key, within, value):
    data = json.loads(SPACE_TEXT)
    if within is None:
        data[key] = value
    else:
        data["specs"][0][within] = value
    study = optuna.create_study(study_name="s")
    study.set_user_attr(stored.SPACE_ATTR, json.dumps(data))
    message = refusal(lambda: stored.space_of(study))
    if message is not None:
        assert message.startswith("The user attribute 'nis:space' of 's' cannot be read: ")
        assert len(message) < 400


def test_metric_has_a_default(make_study):
    assert stored.metric_of(make_study()) == "ROC-AUC"
    assert stored.metric_of(optuna.create_study()) == "quality"


PLAN = {"warmup": 0.1, "shares": (1.0, 0.5), "num_updates": None}


def test_a_plan_is_read_back_and_kept():
    study = optuna.create_study(study_name="s", storage="sqlite://")
    assert plan_of(study) is None
    save_plan(study, PLAN)
    assert plan_of(study) == PLAN | {"shares": [1.0, 0.5]}
    save_plan(study, PLAN)
    with pytest.raises(
        ValueError,
        match=r"`study` 's' was searched with another plan, with warmup 0.1 \(now 0.2\), "
        r"epochs unset \(now 4\). Use another study name.",
    ):
        save_plan(study, PLAN | {"warmup": 0.2, "epochs": 4})
    assert plan_of(study) == PLAN | {"shares": [1.0, 0.5]}


@pytest.mark.parametrize("value", [object(), math.nan])
def test_a_plan_must_be_json(value):
    study = optuna.create_study()
    with pytest.raises(ValueError, match="'nis:plan' must hold values for JSON"):
        save_plan(study, {"warmup": value})
    assert plan_of(study) is None


@pytest.mark.parametrize("held", [[], "text", 3])
def test_what_others_wrote_in_place_of_a_plan_is_refused(held):
    study = optuna.create_study(study_name="mine")
    study.set_user_attr("nis:plan", held)
    for use in (plan_of, lambda study: save_plan(study, PLAN)):
        with pytest.raises(ValueError, match="'nis:plan' of 'mine' cannot be read: must be"):
            use(study)


def test_a_study_that_minimises_is_refused_before_it_is_searched():
    study = optuna.create_study(direction="minimize", study_name="mine")
    with pytest.raises(
        ValueError, match="`study` 'mine' must maximize one reward, got directions"
    ):
        stored.save_space(study, SearchSpace([EmbeddingSpec("x", 10, 4)]))
    assert not study.user_attrs
