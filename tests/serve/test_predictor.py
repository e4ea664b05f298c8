from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from optuna_nis import Allocation, SearchSpace, TableAllocation, Tier
from optuna_nis.data import Features, TableDataModule, read_table
from optuna_nis.data.unknown import UnknownIds
from optuna_nis.models import reference_model
from optuna_nis.nn.multi_size import MultiSize
from optuna_nis.serve.predictions import predict_table
from optuna_nis.serve.predictor import Predictor

FRAME = pd.DataFrame(
    {
        "user": [f"u{i % 1000:04}" for i in range(3000)],
        "city": [i % 7 for i in range(3000)],
        "tags": [[i % 50, i % 3] for i in range(3000)],
    }
)
SIZES = Allocation(
    [
        TableAllocation("user", 1000, 4, (Tier(3, 4), Tier(2, 2))),
        TableAllocation("city", 7, 4, ()),
        TableAllocation("tags", 50, 4, (Tier(3, 4),)),
    ]
)


def _predictor(datamodule: TableDataModule, embedding_dim: int = 4) -> Predictor:
    full: Allocation = SearchSpace(datamodule.embedding_specs(embedding_dim)).full()
    return Predictor(reference_model(datamodule.features)(full), full, datamodule.features)


def test_a_folder_says_which_training_it_holds(
    datamodule: TableDataModule, tmp_path: Path
) -> None:
    assert Predictor.training_of(tmp_path) is None
    predictor = _predictor(datamodule)
    predictor.save(tmp_path)
    assert Predictor.training_of(tmp_path) is None
    predictor.save(tmp_path, training="one")
    assert Predictor.training_of(tmp_path) == "one"
    (tmp_path / "model.json").write_text("no JSON")
    assert Predictor.training_of(tmp_path) is None
    (tmp_path / "model.json").unlink()
    assert Predictor.training_of(tmp_path) is None


def test_who_is_killed_while_writing_leaves_the_earlier_model(
    datamodule: TableDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _predictor(datamodule)
    before.save(tmp_path)

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        _predictor(datamodule, 8).save(tmp_path)
    assert Predictor.load(tmp_path).allocation == before.allocation


@pytest.mark.parametrize("moved", range(4))
def test_who_is_killed_while_replacing_leaves_no_mixture(
    datamodule: TableDataModule, tmp_path: Path, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _predictor(datamodule).save(tmp_path)
    replace, done = Path.replace, []

    def killed(path: Path, target: Path) -> Path:
        if len(done) == moved:
            raise KeyboardInterrupt
        done.append(target)
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            _predictor(datamodule, 8).save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.json"):
        Predictor.load(tmp_path)
    after = _predictor(datamodule, 8)
    after.save(tmp_path)
    assert Predictor.load(tmp_path).allocation == after.allocation
    assert len(list(tmp_path.iterdir())) == 4


def test_packed_tables_replace_others_and_are_replaced(
    datamodule: TableDataModule, tmp_path: Path
) -> None:
    plain = _predictor(datamodule)
    packed = plain.with_tables("packed")
    for predictor, weights in (
        (plain, "weights.pt"),
        (packed, "weights.safetensors"),
        (plain, "weights.pt"),
    ):
        predictor.save(tmp_path)
        assert [file.name for file in tmp_path.glob("*weights*")] == [weights]
        again = Predictor.load(tmp_path)
        assert again.tables == predictor.tables
        for name, value in predictor.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], value)
    packed.save(tmp_path)
    with pytest.raises(ValueError, match="kept as packed already"):
        Predictor.load(tmp_path).with_tables("packed")
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors"):
        Predictor.load(tmp_path)


def test_files_are_of_one_model(datamodule: TableDataModule, tmp_path: Path) -> None:
    full = _predictor(datamodule).allocation
    tables = [replace(each, tiers=(Tier(4, 4, 4),)) for each in full.values()]
    packed = Predictor(
        reference_model(datamodule.features)(Allocation(tables)),
        Allocation(tables),
        datamodule.features,
    ).with_tables("packed")
    packed.save(tmp_path)
    Predictor.load(tmp_path)
    # Rows of 3 and of 4 such numbers have as many bytes.
    narrower = Allocation([replace(tables[0], tiers=(Tier(4, 3, 4),)), *tables[1:]])
    (tmp_path / "allocation.json").write_text(narrower.to_json())
    message = r"'weights\.safetensors' is not of it, .* other sizes than 'allocation\.json'"
    with pytest.raises(ValueError, match=message):
        Predictor.load(tmp_path)


def test_tables_that_are_converted_are_not_copied_before(
    datamodule: TableDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise MemoryError

    plain = _predictor(datamodule)
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(MultiSize, "__deepcopy__", refuse, raising=False)
        for tables in ("dense", "int8", "float16", "packed"):
            assert plain.with_tables(tables).tables == tables
    torch.testing.assert_close(plain.model.state_dict(), before, rtol=0, atol=0)


def test_a_file_is_no_folder(datamodule: TableDataModule, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("x")
    with pytest.raises(ValueError, match="`folder` must be a folder to write, got the file"):
        _predictor(datamodule).save(tmp_path / "model")


@pytest.mark.parametrize("task", ["ranking", "retrieval"])
def test_a_model_forgets_ids_that_have_no_row(task: Any, tmp_path: Path) -> None:
    targets = FRAME["city"] if task == "retrieval" else None
    features = Features.fit(FRAME, task=task, separators={"tags": None}, targets=targets)
    torch.manual_seed(0)
    model = reference_model(features, hidden=[8], init_std=0.5)(SIZES).eval()
    with torch.no_grad():
        expected = model.predict_step(features.encode(FRAME)).numpy()
    if features.targets is not None:
        expected = np.array(features.targets.values)[expected]

    predictor = Predictor(model, SIZES, features)
    predictor.save(tmp_path)
    again = Predictor.load(tmp_path)

    for each in (predictor, again):
        assert {name: len(known) for name, known in each.features.vocabularies.items()} == {
            **{"user": 5, "city": 1, "tags": 50}
        }
        np.testing.assert_array_equal(each.predict(FRAME), expected)
    dense = predictor.with_tables("dense").predict(FRAME)
    if task == "ranking":
        np.testing.assert_allclose(dense, expected, atol=1e-6)
    assert len((tmp_path / "features.json").read_text()) < len(features.to_json()) / 4


def test_a_model_keeps_ids_that_share_rows(tmp_path: Path) -> None:
    features = Features.fit(FRAME, task="ranking", separators={"tags": None})
    shared = {"user": 9, "city": 0, "tags": 4}
    sizes = Allocation(replace(table, num_shared=shared[name]) for name, table in SIZES.items())
    torch.manual_seed(0)
    model = reference_model(features, hidden=[8], init_std=0.5)(sizes).eval()
    with torch.no_grad():
        expected = model.predict_step(features.encode(FRAME)).numpy()
    Predictor(model, sizes, features).save(tmp_path)
    again = Predictor.load(tmp_path)
    known = {name: len(values) for name, values in again.features.vocabularies.items()}
    assert known == {"user": 1000, "city": 1, "tags": 50}
    np.testing.assert_array_equal(again.predict(FRAME), expected)
    for tables in ("dense", "packed"):
        found = again.with_tables(tables).predict(FRAME)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("num_shared", [0, 1, 3])
def test_new_and_rare_values_share_rows(num_shared: int, tmp_path: Path) -> None:
    row = np.arange(600)
    frame = pd.DataFrame({"user": np.where(row % 2, row % 20, row), "city": row % 4})
    features = Features.fit(frame, task="ranking", min_count=3, oov="hash")
    user = features.vocabularies["user"]
    assert user.unknown is not None
    assert features.vocabularies["city"].unknown is None
    assert (user.unknown.first, user.unknown.number) == (len(user), 256) == (10, 256)
    tables = [
        TableAllocation("user", user.num_embeddings, 4, (Tier(5, 4),), num_shared=num_shared),
        TableAllocation("city", 4, 4, (Tier(4, 4),)),
    ]
    sizes = Allocation(tables)
    torch.manual_seed(0)
    model = reference_model(features, hidden=[8], init_std=0.5)(sizes).eval()
    new = pd.DataFrame({"user": [-1, -2, -3, -4, -5, 599, None], "city": 1})
    with torch.no_grad():
        expected = model.predict_step(features.encode(new)).numpy()
    Predictor(model, sizes, features).save(tmp_path)

    again = Predictor.load(tmp_path)

    forms = [again, *(again.with_tables(form) for form in ("dense", "packed"))]
    for each in forms:
        np.testing.assert_allclose(each.predict(new), expected, atol=1e-6)
        np.testing.assert_allclose(each.predict(new.iloc[:1]), expected[:1], atol=1e-6)
    # Rows that were drawn differ; a missing value has none.
    different = len(np.unique(expected[:-1]))
    assert different == 1 if num_shared < 2 else 2 <= different <= num_shared
    assert (expected[0] == expected[-1]) == (num_shared == 0)


def test_features_of_one_table_share_rows_for_new_values(tmp_path: Path) -> None:
    row = np.arange(400)
    item = np.where(row % 2, row % 20, row)
    frame = pd.DataFrame({"item": item, "last": np.roll(item, 1)})
    features = Features.fit(frame, task="ranking", min_count=3, oov="hash", share={"last": "item"})
    known = features.vocabularies["item"]
    assert known.unknown == UnknownIds(10, 16, 400)
    sizes = Allocation(
        [TableAllocation("item", known.num_embeddings, 4, (Tier(5, 4),), num_shared=3)]
    )
    torch.manual_seed(0)
    build = reference_model(features, hidden=[8], init_std=0.5)
    Predictor(build(sizes), sizes, features).save(tmp_path)
    again = Predictor.load(tmp_path)
    ids = again.features.encode(pd.DataFrame({"item": range(-9, 0), "last": range(-9, 0)}))
    assert torch.equal(ids["item"], ids["last"])
    rows = again.model.embeddings(ids)
    assert torch.equal(rows[:, 0], rows[:, 1])
    assert 1 < len(rows[:, 0].unique(dim=0)) <= 3


def test_one_strange_id_does_not_depend_on_its_batch() -> None:
    frame = pd.DataFrame({"user": [11, 12, 13] * 5, "city": [1, 2, 3] * 5})
    features = Features.fit(frame, task="ranking")
    sizes = Allocation([TableAllocation(name, 3, 4, (Tier(3, 4),)) for name in features.names])
    predictor = Predictor(reference_model(features, hidden=[8])(sizes), sizes, features)
    new = pd.DataFrame({"user": ["11", "12", "guest"], "city": [1, 2, 3]})

    found = predictor.predict(new, batch_size=1)

    np.testing.assert_allclose(found, predictor.predict(new), rtol=1e-6)
    known = predictor.predict(frame.iloc[:2])
    np.testing.assert_allclose(found[:2], known, rtol=1e-6)


def test_a_model_that_takes_numbers_predicts(tmp_path: Path) -> None:
    frame = FRAME[["user", "city"]][:20].assign(price=np.linspace(-3, 30, 20))
    features = Features.fit(frame, task="ranking", numeric=["price"])
    sizes = SearchSpace(features.embedding_specs(4)).full()
    predictor = Predictor(reference_model(features)(sizes), sizes, features)
    batch = features.encode(frame)
    expected = predictor.model(batch).sigmoid().detach().numpy()
    np.testing.assert_array_equal(predictor.predict(frame), expected)
    predictor.save(tmp_path)
    np.testing.assert_array_equal(Predictor.load(tmp_path).predict(frame), expected)
    one = features.encode(frame[:1])
    assert predictor.predict(frame, batch_size=1)[0] == predictor.model(one).sigmoid().item()


def test_columns_of_features_without_rows_need_not_be_there(tmp_path: Path) -> None:
    features = Features.fit(FRAME, task="ranking", separators={"tags": None})
    sizes = [TableAllocation(name, SIZES[name].num_embeddings, 4, ()) for name in ("city", "tags")]
    allocation = Allocation([SIZES["user"], *sizes])
    whole = Predictor(reference_model(features)(allocation), allocation, features)
    whole.save(tmp_path)
    predictor = Predictor.load(tmp_path)
    assert predictor.features.needed == ("user",)
    expected = predictor.predict(FRAME)
    np.testing.assert_array_equal(predictor.predict(FRAME[["user"]]), expected)
    path, output = tmp_path / "new.parquet", tmp_path / "found.csv"
    FRAME[["user"]].to_parquet(path)
    done = predict_table(predictor, path, output)
    np.testing.assert_allclose(pd.read_csv(output)["prediction"], expected, rtol=1e-6)
    assert "city" not in str(done.tally)
    with pytest.raises(ValueError, match="no column 'user'"):
        predictor.predict(FRAME[["city"]])
    assert list(FRAME) == ["user", "city", "tags"]


def test_what_is_not_needed_is_not_looked_at(tmp_path: Path) -> None:
    features = Features.fit(FRAME, task="ranking", separators={"tags": None})
    allocation = Allocation([SIZES["user"], SIZES["city"], SIZES["tags"]])
    predictor = Predictor(reference_model(features)(allocation), allocation, features)
    new = FRAME.assign(city=[{"no": "id"}] * len(FRAME))
    np.testing.assert_array_equal(predictor.predict(new), predictor.predict(FRAME))
    path = tmp_path / "new.parquet"
    FRAME.drop(columns="city").to_parquet(path)
    read = read_table(path, like=predictor.features)
    assert list(read) == ["user", "tags"]
    np.testing.assert_array_equal(predictor.predict(read), predictor.predict(FRAME))


def test_a_table_shared_by_the_model_alone_is_removed(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3, 3], "b": [3, 1, 2, 3], "c": [5, 5, 6, 6]})
    features = Features.fit(frame, task="ranking")
    removed, kept = TableAllocation("a", 3, 4, ()), TableAllocation("c", 2, 4, (Tier(2, 4),))
    allocation = Allocation([removed, kept])
    predictor = Predictor(
        reference_model(features, share={"b": "a"})(allocation), allocation, features
    )
    predictor.save(tmp_path)
    again = Predictor.load(tmp_path)
    np.testing.assert_array_equal(again.predict(frame), predictor.predict(frame))


def test_a_failed_save_leaves_the_model_before(
    datamodule: TableDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = _predictor(datamodule)
    predictor.save(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())

    def fails(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="no space left"):
        predictor.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_files_that_do_not_go_together(datamodule: TableDataModule, tmp_path: Path) -> None:
    _predictor(datamodule).save(tmp_path)
    meta = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(meta | {"options": {"model": "sasrec"}}))
    with pytest.raises(
        ValueError, match="files of one model, whole, but these do not go together"
    ):
        Predictor.load(tmp_path)


def test_a_sequence_is_needed_whatever_rows_its_items_have() -> None:
    frame = pd.DataFrame({"user": ["a", "b", "a"], "history": [[2], [1, 1], [2]]})
    features = Features.fit(
        frame, task="retrieval", separators={"history": None}, targets=pd.Series([1, 2, 1])
    )
    build = reference_model(features, model="sasrec")
    specs = build.specs(8)
    allocation = Allocation(
        TableAllocation(spec.name, spec.num_embeddings, 8, ()) for spec in specs
    )
    assert Predictor(build(allocation), allocation, features).features.needed == ("history",)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _without_options(path: Path) -> None:
    meta = json.loads(path.read_text())
    del meta["options"]
    path.write_text(json.dumps(meta))


def _with_list(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"options": [1]}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *[(name, _cut) for name in ("allocation.json", "features.json", "model.json")],
        *[(name, _cut) for name in ("weights.pt", "weights.safetensors")],
        ("weights.pt", lambda path: path.write_text("")),
        ("weights.pt", lambda path: path.write_bytes(path.read_bytes()[:-10])),
        ("weights.pt", lambda path: torch.save([1], path)),
        ("features.json", lambda path: path.write_bytes(b"\xff\xfe{}")),
        ("model.json", _without_options),
        ("model.json", _with_list),
    ],
)
def test_a_damaged_file_is_named(
    name: str, damage: Any, datamodule: TableDataModule, tmp_path: Path
) -> None:
    predictor = _predictor(datamodule)
    if name == "weights.safetensors":
        predictor = predictor.with_tables("packed")
    predictor.save(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=f"must hold the files of one model, whole, but '{name}'"):
        Predictor.load(tmp_path)


def test_weights_of_another_model_are_refused(datamodule: TableDataModule, tmp_path: Path) -> None:
    _predictor(datamodule).save(tmp_path / "one")
    _predictor(datamodule, 8).save(tmp_path / "other")
    (tmp_path / "other" / "weights.pt").replace(tmp_path / "one" / "weights.pt")
    with pytest.raises(ValueError, match=r"'weights\.pt' is not of it"):
        Predictor.load(tmp_path / "one")


def test_a_predictor_knows_what_its_tables_are(datamodule: TableDataModule) -> None:
    predictor = _predictor(datamodule)
    packed, dense = predictor.with_tables("packed"), predictor.with_tables("dense")
    for each in (packed, dense):
        for tables in ("multi-size", "packed", "dense"):
            with pytest.raises(ValueError, match=f"kept as {each.tables} already"):
                each.with_tables(tables)  # type: ignore[arg-type]
    model, sizes, features = predictor.model, predictor.allocation, predictor.features
    for wrong, given, kept, message in (
        (model, sizes, "packed", "'packed' for tables that are as they were trained"),
        (model, sizes, "dense", "must have plain tables"),
        (packed.model, sizes, "multi-size", "'multi-size' for tables that are frozen"),
        (model, _predictor(datamodule, 8).allocation, "multi-size", "must be the sizes of"),
        (model, sizes, "foo", "`tables` must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            Predictor(wrong, given, features, kept)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [0, -5, 2.5, "3", None])
def test_a_batch_has_a_row_at_least(batch_size: Any, datamodule: TableDataModule) -> None:
    frame = pd.DataFrame({"user": [1], "item": [2]})
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1"):
        _predictor(datamodule).predict(frame, batch_size=batch_size)


@pytest.mark.parametrize(
    ("column", "cell"), [("user", ["u1"]), ("user", {"a": 1}), ("user", 2j), ("tags", [[[1]]])]
)
def test_a_cell_that_is_no_value_is_told_with_its_column(column: str, cell: Any) -> None:
    features = Features.fit(FRAME, task="ranking", separators={"tags": None})
    full = SearchSpace(features.embedding_specs(4)).full()
    predictor = Predictor(reference_model(features)(full), full, features)
    rows = FRAME[:2].copy()
    rows[column] = pd.Series([None, cell], dtype=object)
    value = predictor.features.vocabularies[column].values[0]
    message = f"The column '{column}' must be of the type seen in training, with values such as "
    message += f"{value!r}, got {cell if column == 'user' else cell[0]}."
    with pytest.raises(TypeError, match=re.escape(message)):
        predictor.predict(rows)


def test_predictions_of_no_row_are_of_the_same_type(datamodule: TableDataModule) -> None:
    predictor, frame = _predictor(datamodule), read_table(datamodule.path)
    assert predictor.predict(frame[:0]).dtype == predictor.predict(frame).dtype == np.float32
