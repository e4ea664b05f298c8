from __future__ import annotations

from dataclasses import replace
import json
import math
from pathlib import Path
from typing import Any
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from optuna_nis import SearchSpace
from optuna_nis.data import Features
from optuna_nis.lightning.evaluating import evaluate_table
from optuna_nis.models import reference_model
from optuna_nis.models.metrics import auc_of_groups
from optuna_nis.serve.predictor import Predictor
from optuna_nis.study.uncertainty import auc_standard_error, share_standard_error

_RNG = np.random.default_rng(0)
ROWS = pd.DataFrame(
    {
        "user": _RNG.integers(0, 9, 300),
        "item": _RNG.integers(0, 7, 300),
        "trust": _RNG.integers(0, 4, 300),
        "rating": _RNG.integers(1, 6, 300),
        "next": [f"t{n % 5}" for n in range(300)],
    }
)


def _predictor(targets: Any = None, tables: Any = "multi-size") -> Predictor:
    torch.manual_seed(0)
    task: Any = "ranking" if targets is None else "retrieval"
    features = Features.fit(ROWS[["user", "item"]], task=task, targets=targets)
    full = SearchSpace(features.embedding_specs(4)).full()
    build = reference_model(features, hidden=[8], init_std=1.0)
    return Predictor(build(full), full, features).with_tables(tables)


def _auc(scores: Any, label: Any, weights: Any = None, groups: Any = None) -> Any:
    given = (scores, label, weights, groups)
    tensors = (None if each is None else torch.as_tensor(np.array(each)) for each in given)
    return auc_of_groups(*tensors)


@pytest.mark.parametrize("tables", ["multi-size", "dense", "packed"])
def test_ranking(tables: Any, tmp_path: Path) -> None:
    predictor = _predictor(tables=tables)
    scores = predictor.predict(ROWS)
    label = (ROWS["rating"] >= 4).to_numpy().astype(int)
    weights, users = ROWS["trust"].to_numpy().astype(float), ROWS["user"].to_numpy()
    ROWS.to_csv(tmp_path / "rows.csv", index=False)

    found = evaluate_table(predictor, tmp_path / "rows.csv", label="rating>=4", group="user")

    losses = -np.log(np.where(label, scores, 1 - scores))
    areas, sizes = _auc(scores, label, None, users)
    auc = _auc(scores, label)[0].item()
    assert found.metrics == pytest.approx(
        {"ROC-AUC": auc, "LogLoss": losses.mean(), "GAUC": (areas * sizes).sum().item() / 300},
        rel=1e-5,
    )
    error = auc_standard_error(auc, label.sum(), 300 - label.sum())
    assert found.errors == {"ROC-AUC": pytest.approx(error)}
    assert (found.rows, found.positives, found.groups, found.unseen) == (300, label.sum(), 9, None)
    assert json.loads(json.dumps(found.to_dict()))["metrics"] == found.metrics
    assert str(found).splitlines()[0] == f"ROC-AUC {auc:.4f}, standard error {error:.2g}"

    weighted = evaluate_table(predictor, tmp_path / "rows.csv", label="rating>=4", weight="trust")
    assert weighted.metrics == pytest.approx(
        {
            "ROC-AUC": _auc(scores, label, weights)[0].item(),
            "LogLoss": np.average(losses, weights=weights),
        },
        rel=1e-5,
    )
    assert weighted.errors["ROC-AUC"] > found.errors["ROC-AUC"]


def test_retrieval(tmp_path: Path) -> None:
    predictor = _predictor(ROWS["next"])
    new = ROWS.assign(next=[*ROWS["next"][:-1], "unseen"])
    new.to_parquet(tmp_path / "rows.parquet")
    best = predictor.predict(new)
    hits = best[:, 0] == new["next"]
    found = evaluate_table(predictor, tmp_path / "rows.parquet", label="next", group="user")
    assert found.metrics["Recall@1"] == pytest.approx(hits.mean())
    by_user = hits.groupby(new["user"]).mean().mean()
    assert found.metrics["Recall@1 by group"] == pytest.approx(by_user)
    ranks = [list(b).index(t) if t in b else math.inf for b, t in zip(best, new["next"])]
    assert found.metrics["MRR"] == pytest.approx(np.mean([1 / (1 + rank) for rank in ranks]))
    assert found.errors["MRR"] == pytest.approx(share_standard_error(found.metrics["MRR"], 300))
    assert not any(name.endswith("by group") for name in found.errors)
    assert (found.rows, found.unseen, found.positives) == (300, 1, None)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("user", "none of the values of 'user' in .* was a target in training"),
        ("next==t1", "must be the column of the targets .*, got the rule 'next==t1'"),
    ],
)
def test_a_column_without_targets_is_none(label: str, message: str, tmp_path: Path) -> None:
    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(ValueError, match=f"`label` {message}" if "==" in label else message):
        evaluate_table(_predictor(ROWS["next"]), tmp_path / "rows.csv", label=label)


def test_rows_without_label_or_weight_are_left_out(tmp_path: Path) -> None:
    path, whole = tmp_path / "rows.csv", tmp_path / "whole.csv"
    rows = ROWS.astype({"rating": object, "trust": object})
    rows.loc[:29, "rating"] = None
    rows.loc[20:49, "trust"] = None
    rows.to_csv(path, index=False)
    ROWS[50:].to_csv(whole, index=False)
    options: Any = {"label": "rating>3", "weight": "trust", "group": "item"}
    with pytest.warns(UserWarning, match=r"csv: dropped [23]0 of 300 rows.*'(rating|trust)'"):
        found = evaluate_table(_predictor(), path, **options)
    assert found.rows == 250
    assert found == evaluate_table(_predictor(), whole, **options)


@pytest.mark.parametrize("task", ["ranking", "retrieval"])
def test_unknown_values_of_the_rows_that_count_are_told(task: str, tmp_path: Path) -> None:
    rows = ROWS.astype({"user": object})
    rows.loc[:29, "user"] = "new"
    rows.loc[30:44, "user"] = None
    label = "next" if task == "retrieval" else "rating"
    rows.loc[:19, label] = None
    rows.to_csv(tmp_path / "rows.csv", index=False)
    predictor = _predictor(ROWS["next"] if task == "retrieval" else None)
    rule = label if task == "retrieval" else "rating>=4"
    with pytest.warns(UserWarning, match="dropped 20 of 300 rows") as told:
        found = evaluate_table(predictor, tmp_path / "rows.csv", label=rule)
    assert not any("are unknown" in str(each.message) for each in told)
    user = {"rows": 280, "missing": 15, "values": 265, "unknown": 10}
    item = {"rows": 280, "missing": 0, "values": 280, "unknown": 0}
    assert json.loads(json.dumps(found.to_dict()))["tally"] == {"user": user, "item": item}
    lines = ["unknown: user 10 of 265 values (3.8%)", "missing: user 15 of 280 rows (5.4%)"]
    assert str(found).splitlines()[-2:] == lines


@pytest.mark.parametrize("known", [0, 6, 60])
def test_a_column_of_which_hardly_a_value_is_known_is_told(known: int, tmp_path: Path) -> None:
    rows = ROWS.assign(user=ROWS["user"] + 1000)
    rows.loc[: known - 1, "user"] -= 1000
    rows.to_csv(tmp_path / "rows.csv", index=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        evaluate_table(_predictor(), tmp_path / "rows.csv", label="rating>=4")
    message = f"{300 - known} of 300 values of the column 'user' are unknown to the model. Are its"
    assert sum(message in str(each.message) for each in told) == (known < 60)


@pytest.mark.parametrize("marker", [None, "NA"])
def test_targets_that_have_become_floats_are_the_texts_of_training(
    marker: str | None, tmp_path: Path
) -> None:
    targets = ["guest" if n % 5 == 0 else str(n % 5) for n in range(300)]
    predictor = _predictor(pd.Series(targets))
    predictor.features = replace(predictor.features, na_values=("NA",))
    rows = ROWS.assign(next=[marker if n % 5 == 0 else str(float(n % 5)) for n in range(300)])
    rows.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.warns(UserWarning, match="dropped 60 of 300 rows"):
        found = evaluate_table(predictor, tmp_path / "rows.csv", label="next")
    assert (found.rows, found.unseen) == (240, 0)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("task", ["ranking", "retrieval"])
def test_rows_without_a_group_have_no_part_in_means_over_groups(
    task: str, kind: str, tmp_path: Path
) -> None:
    path, fewer = tmp_path / f"rows.{kind}", tmp_path / f"fewer.{kind}"
    rows = ROWS.assign(of=[f"u{number}" for number in ROWS["user"]])
    rows.loc[:19, "of"] = "NA"
    rows.loc[20:59, "of"] = None
    for table, name in ((rows, path), (rows[60:], fewer)):
        table.to_csv(name, index=False) if kind == "csv" else table.to_parquet(name)
    predictor = _predictor(ROWS["next"] if task == "retrieval" else None)
    predictor.features = replace(predictor.features, na_values=("NA",))
    options: Any = {"label": "next" if task == "retrieval" else "rating>3", "group": "of"}
    with pytest.warns(UserWarning, match="60 of 300 rows have no value in the column 'of'. They"):
        found = evaluate_table(predictor, path, **options)
    wanted = evaluate_table(predictor, fewer, **options)
    assert (found.rows, found.groups) == (300, wanted.groups)
    by_group = [name for name in found.metrics if name == "GAUC" or name.endswith("by group")]
    assert by_group
    for name in by_group:
        assert found.metrics[name] == pytest.approx(wanted.metrics[name])
    first = next(iter(found.metrics))
    assert found.metrics[first] != wanted.metrics[first]


def test_no_group_has_both_classes(tmp_path: Path) -> None:
    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    found = evaluate_table(_predictor(), tmp_path / "rows.csv", label="rating>=4", group="rating")
    assert math.isnan(found.metrics["GAUC"])
    assert found.to_dict()["metrics"]["GAUC"] is None
    assert "GAUC unknown: no group has both classes" in str(found)
    assert str(found).endswith(", 5 groups, 0 of them with both classes")


def test_groups_with_both_classes_are_counted(tmp_path: Path) -> None:
    rows = ROWS.assign(of=ROWS["user"])
    rows.loc[rows["user"] < 4, "rating"] = 1
    rows.to_csv(tmp_path / "rows.csv", index=False)
    found = evaluate_table(_predictor(), tmp_path / "rows.csv", label="rating>=4", group="of")
    assert (found.groups, found.mixed_groups) == (9, 5)
    assert str(found).endswith(", 9 groups, 5 of them with both classes")
    # Those without a group are none.
    some = rows.assign(of=rows["user"].where(rows["user"] > 6).astype("Int64"))
    some.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.warns(UserWarning, match="have no value in the column 'of'"):
        found = evaluate_table(_predictor(), tmp_path / "rows.csv", label="rating>=4", group="of")
    assert (found.groups, found.mixed_groups) == (2, 2)
    # Rows of no weight count for nothing.
    rows.assign(trust=(rows["user"] > 5) * 1.0).to_csv(tmp_path / "rows.csv", index=False)
    options: Any = {"label": "rating>=4", "group": "of", "weight": "trust"}
    assert evaluate_table(_predictor(), tmp_path / "rows.csv", **options).mixed_groups == 3


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"label": "clicked"}, "has no column 'clicked'"),
        ({}, {"label": "rating"}, r"The label 'rating' must hold 0 and 1 only.*`rating>=3`"),
        ({}, {"label": "rating>9"}, "must give two classes, got 0 in every row"),
        ({"rating": None}, {"label": "rating>3"}, "has no label: 'rating' is empty"),
        ({"trust": -1}, {"label": "rating>3", "weight": "trust"}, "weights of at least 0"),
        (
            {"trust": (ROWS["rating"] > 3).astype(int)},
            {"label": "rating>3", "weight": "trust"},
            "must have both classes among the rows that count, got only 1",
        ),
    ],
)
def test_labels_of_which_nothing_can_be_measured_are_told_before_anything_is_predicted(
    columns: Any,
    options: Any,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ROWS.assign(**columns).to_csv(tmp_path / "rows.csv", index=False)
    predictor = _predictor()
    monkeypatch.setattr(predictor, "model", None)
    with pytest.raises(ValueError, match=message):
        evaluate_table(predictor, tmp_path / "rows.csv", **options)


@pytest.mark.parametrize(("argument", "column"), [("group", "item"), ("weight", "trust")])
def test_a_feature_has_the_name_of_what_else_is_in_a_batch(
    argument: str, column: str, tmp_path: Path
) -> None:
    rows = ROWS.rename(columns={"user": argument})
    features = Features.fit(rows[[argument, "item"]], task="ranking")
    full = SearchSpace(features.embedding_specs(4)).full()
    predictor = Predictor(reference_model(features)(full), full, features)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    assert evaluate_table(predictor, tmp_path / "rows.csv", label="rating>=4").rows == 300
    with pytest.raises(ValueError, match=f"`{argument}` is not for a model with a feature"):
        evaluate_table(predictor, tmp_path / "rows.csv", label="rating>=4", **{argument: column})
