from __future__ import annotations

import math

import optuna
import pytest

from optuna_nis.study import results as stored
from optuna_nis.study.parts import Part


def test_parts_are_read_back():
    study = optuna.create_study(storage="sqlite://")
    assert stored.parts_of(study) == {}
    part = Part(20, 9, "ROC-AUC", 0.5, 0.13)
    stored.save_parts(study, {"train": Part(160), "validation": part})
    stored.save_parts(study, {"test": part})
    assert stored.parts_of(study) == {"train": Part(160), "validation": part, "test": part}


@pytest.mark.parametrize(
    "value",
    [[], "text", {"train": 3}, {"train": {}}, {"train": {"rows": "x"}}, {"a": {"cells": 1}},
     {"a": {"rows": 1, "metric": 3}}, {"a": {"rows": math.inf}}],
)  # fmt: skip
def test_malformed_parts(value):
    study = optuna.create_study(study_name="mine")
    study.set_user_attr(stored.PARTS_ATTR, value)
    with pytest.raises(ValueError, match="'nis:parts' of 'mine' cannot be read"):
        stored.parts_of(study)
