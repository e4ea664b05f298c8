from __future__ import annotations

import json

from anything import anything, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
import optuna
import pytest

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.study import results as stored

SPACE_TEXT = SearchSpace([EmbeddingSpec("user", 100, 8)], budget=0.5).to_json()


def test_space_is_read_back(make_study):
    study = make_study(2)
    space = stored.space_of(study)
    assert [spec.name for spec in space.specs] == ["f0", "f1"]
    stored.save_space(study, space)
    assert stored.space_of(study) == space


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
