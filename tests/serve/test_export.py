from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from optuna_nis import Allocation, SearchSpace, TableAllocation, Tier
from optuna_nis.data import Features
from optuna_nis.data.keeping import load_features
from optuna_nis.models import reference_model
from optuna_nis.serve import load
from optuna_nis.serve.export import export_model
from optuna_nis.serve.predictor import Predictor

FRAME = pd.DataFrame(
    {
        "user": [f"u{i % 40}" for i in range(200)],
        "genres": ["war|love" if i % 3 else "noir" for i in range(200)],
        "city": [i % 7 for i in range(200)],
    }
)


def _model(
    folder: Path, task: Any, bits: tuple[int, int, int] = (32, 32, 32), **options: Any
) -> Predictor:
    targets = FRAME["city"] if task == "retrieval" else None
    features = Features.fit(FRAME, task=task, separators={"genres": "|"}, targets=targets)
    sizes = Allocation(
        [
            TableAllocation(
                "user",
                40,
                16,
                (Tier(5, 16, bits[0]), Tier(20, 8, bits[1]), Tier(10, 2, bits[2])),
                num_shared=2,
            ),
            TableAllocation("genres", 3, 16, (Tier(2, 6, bits[1]),)),
            TableAllocation("city", 7, 16, ()),
        ]
    )
    torch.manual_seed(0)
    model = reference_model(features, hidden=[8], init_std=0.5, **options)(sizes)
    predictor = Predictor(model, sizes, features)
    predictor.save(folder)
    return predictor


HISTORIES = pd.DataFrame(
    {
        "item": [i % 30 for i in range(120)],
        "history": [[i % 30, (i + 7) % 30] for i in range(120)],
        "user": [i % 11 for i in range(120)],
    }
)


def _shared(folder: Path) -> Predictor:
    features = Features.fit(HISTORIES, task="ranking", separators={"history": None})
    same = {"item": features.vocabularies["item"], "history": features.vocabularies["item"]}
    features = replace(features, vocabularies=features.vocabularies | same)
    sizes = Allocation(
        [
            TableAllocation("item", 30, 8, (Tier(5, 8), Tier(20, 2))),
            TableAllocation("user", 11, 8, (Tier(11, 4),)),
        ]
    )
    torch.manual_seed(0)
    build = reference_model(features, hidden=[8], init_std=0.5, share={"history": "item"})
    predictor = Predictor(build(sizes), sizes, features)
    predictor.save(folder)
    return predictor


def test_a_packed_folder(tmp_path: Path) -> None:
    predictor = _model(tmp_path / "model", "ranking", bits=(16, 8, 4))
    sizes = predictor.allocation
    text = export_model(tmp_path / "model", "packed", tmp_path / "served")
    assert text == f"packed tables, {sizes.nbytes():,} bytes: {tmp_path / 'served'}"
    names = {"allocation.json", "features.json", "model.json", "weights.safetensors"}
    assert {file.name for file in (tmp_path / "served").iterdir()} == names
    served = Predictor.load(tmp_path / "served")
    assert served.tables == "packed"
    assert {type(layer).__name__ for layer in served.model.embeddings.layers} == {
        "PackedEmbedding",
        "PackedEmbeddingBag",
    }
    np.testing.assert_allclose(served.predict(FRAME), predictor.predict(FRAME), rtol=1e-5)
    with pytest.raises(ValueError, match="got one that was exported as packed"):
        export_model(tmp_path / "served", "packed", tmp_path / "again")
    with pytest.raises(ValueError, match=r"4 bits .*: `freeze\(model\)` .*`--format packed`"):
        export_model(tmp_path / "model", "int8", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("form", ["dense", "int8", "fp16"])
def test_a_folder_that_predicts(form: str, tmp_path: Path) -> None:
    expected = _model(tmp_path / "model", "ranking").predict(FRAME)
    text = export_model(tmp_path / "model", form, tmp_path / "served")
    served = Predictor.load(tmp_path / "served")
    kinds = {type(layer).__name__ for layer in served.model.embeddings.layers}
    assert kinds == (
        {"Embedding", "EmbeddingBag"}
        if form == "dense"
        else {"QuantizedEmbedding", "QuantizedEmbeddingBag"}
    )
    exact = {"dense": 1e-6, "fp16": 2e-3, "int8": 2e-2}[form]
    np.testing.assert_allclose(served.predict(FRAME), expected, atol=exact)
    assert ("all tables: " in text) == (form != "dense")
    with pytest.raises(ValueError, match="got one that was exported as"):
        export_model(tmp_path / "served", form, tmp_path / "again")


@pytest.mark.slow
def test_sequences_of_any_length_as_onnx_and_torch_export(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    frame = pd.DataFrame({"history": [[i % 7, (2 * i) % 7, 99 + i % 2] for i in range(50)]})
    features = Features.fit(
        frame, task="retrieval", separators={"history": None}, targets=frame.index.to_series() % 7
    )
    sizes = Allocation([TableAllocation("items", 7, 8, (Tier(2, 8), Tier(4, 3)))])
    model = reference_model(features, model="sasrec", init_std=0.5, num_blocks=1, max_length=5)(
        sizes
    )
    Predictor(model, sizes, features).save(tmp_path / "model")
    for form in ("onnx", "torch-export"):
        export_model(tmp_path / "model", form, tmp_path)
    program = torch.export.load(tmp_path / "model.pt2").module()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for length in (1, 9):
        long = [3, 98, 5, 1, 2, 0, 4, 6, 100][:length]
        batch = features.encode(pd.DataFrame({"history": [long, [], [6]]}))
        expected = model(batch).detach()
        torch.testing.assert_close(program(batch), expected)
        (found,) = session.run(None, {"history": batch["history"].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected)


@pytest.mark.parametrize(("task", "bits"), [("ranking", (32, 16, 4)), ("retrieval", (32, 32, 32))])
def test_onnx_and_torch_export(task: str, bits: tuple[int, int, int], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    predictor = _model(tmp_path / "model", task, bits)
    output = tmp_path / "served"
    for form in ("onnx", "torch-export"):
        export_model(tmp_path / "model", form, output)
    names = {"features.json", "model.onnx", "model.pt2"}
    assert {file.name for file in output.iterdir()} == names
    batch = load_features(output).encode(FRAME)
    with torch.no_grad():
        expected = predictor.model(batch)
        expected = expected.sigmoid() if task == "ranking" else expected
        program = torch.export.load(output / "model.pt2").module()
        torch.testing.assert_close(program(batch), expected)
    session = onnxruntime.InferenceSession(output / "model.onnx")
    name = "probability" if task == "ranking" else "scores"
    (found,) = session.run([name], {name: ids.numpy() for name, ids in batch.items()})
    torch.testing.assert_close(torch.from_numpy(found), expected)


def test_large_vocabularies_go_into_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optuna_nis.data.keeping._LARGE", 2)
    predictor = _model(tmp_path / "model", "ranking")

    export_model(tmp_path / "model", "torch-export", tmp_path / "served")

    assert len(list((tmp_path / "served").glob("vocabularies-*.parquet"))) == 1
    assert load_features(tmp_path / "served") == predictor.features


@pytest.mark.slow
@pytest.mark.parametrize("model", ["deepfm", "dcn", "mlp"])
def test_a_model_that_takes_numbers(model: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    task = "retrieval" if model == "mlp" else "ranking"
    predictor = _model(tmp_path / "model", task, (16, 8, 4), model=model, num_numeric=3)
    for form in ("onnx", "torch-export"):
        export_model(tmp_path / "model", form, tmp_path / form)
    batch = predictor.features.encode(FRAME) | {"numeric": torch.randn(len(FRAME), 3)}
    with torch.no_grad():
        expected = predictor.model(batch)
        for tables in ("packed", "dense"):
            served = predictor.with_tables(tables)
            torch.testing.assert_close(served.model(batch), expected)
        expected = expected.sigmoid() if task == "ranking" else expected
        program = torch.export.load(tmp_path / "torch-export" / "model.pt2").module()
        for number in (1, len(FRAME)):
            some = {name: values[:number] for name, values in batch.items()}
            torch.testing.assert_close(program(some), expected[:number])
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    (found,) = session.run(None, {name: values.numpy() for name, values in batch.items()})
    torch.testing.assert_close(torch.from_numpy(found), expected)


@pytest.mark.parametrize(("form", "exact"), [("int8", 2e-2), ("float16", 2e-3)])
def test_a_quantised_model_that_takes_numbers(form: Any, exact: float, tmp_path: Path) -> None:
    predictor = _model(tmp_path / "model", "ranking", num_numeric=3)
    batch = predictor.features.encode(FRAME) | {"numeric": torch.randn(len(FRAME), 3)}
    with torch.no_grad():
        found = predictor.with_tables(form).model.predict_step(batch)
        torch.testing.assert_close(found, predictor.model.predict_step(batch), atol=exact, rtol=0)


@pytest.mark.parametrize("num_numeric", [0, 3])
def test_torchrec(num_numeric: int, tmp_path: Path) -> None:
    torchrec = pytest.importorskip("torchrec")
    from optuna_nis.serve.torchrec import TieredEmbeddingBagCollection

    predictor = _model(tmp_path / "model", "ranking", num_numeric=num_numeric)
    export_model(tmp_path / "model", "torchrec", tmp_path / "served")
    tables = load(
        tmp_path / "served" / "tables.pt",
        lambda sizes: TieredEmbeddingBagCollection(sizes, mean=["genres"]),
    )
    batch = predictor.features.encode(FRAME)
    bags = torchrec.KeyedJaggedTensor(
        keys=list(batch),
        values=torch.cat([ids.reshape(-1) for ids in batch.values()]),
        lengths=torch.cat([torch.full((200,), ids[0].numel()) for ids in batch.values()]),
    )
    expected = predictor.model.embeddings(batch)
    torch.testing.assert_close(tables(bags).values().view(200, 3, 16), expected)


@pytest.mark.parametrize("form", ["packed", "dense", "int8", "fp16"])
def test_features_that_share_a_table(form: str, tmp_path: Path) -> None:
    predictor = _shared(tmp_path / "model")
    export_model(tmp_path / "model", form, tmp_path / "served")
    served = Predictor.load(tmp_path / "served")
    assert len(served.model.embeddings.layers) == 2
    exact = {"fp16": 2e-3, "int8": 2e-2}.get(form, 1e-5)
    np.testing.assert_allclose(served.predict(HISTORIES), predictor.predict(HISTORIES), atol=exact)


@pytest.mark.slow
def test_features_that_share_a_table_in_programs(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    predictor = _shared(tmp_path / "model")
    for form in ("onnx", "torch-export"):
        export_model(tmp_path / "model", form, tmp_path)
    batch = predictor.features.encode(HISTORIES)
    expected = torch.from_numpy(predictor.predict(HISTORIES))
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(batch).detach(), expected)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {name: ids.numpy() for name, ids in batch.items()})
    torch.testing.assert_close(torch.from_numpy(found), expected)


def test_features_that_share_a_table_do_not_go_to_torchrec(tmp_path: Path) -> None:
    pytest.importorskip("torchrec")
    _shared(tmp_path / "model")
    with pytest.raises(ValueError, match=r"it has features that share one: {'history': 'item'}"):
        export_model(tmp_path / "model", "torchrec", tmp_path / "served")


def test_what_is_refused(tmp_path: Path) -> None:
    predictor = _model(tmp_path / "model", "ranking")
    for form, output, message in (
        ("pickle", "served", '`format` must be one of "packed"'.replace('"', "'")),
        ("dense", "model", "`output` must be another folder than `model`"),
    ):
        with pytest.raises(ValueError, match=message):
            export_model(tmp_path / "model", form, tmp_path / output)
    with pytest.raises(FileNotFoundError, match="is not there"):
        export_model(tmp_path / "nowhere", "dense", tmp_path / "served")
    assert not (tmp_path / "served").exists()
    served = tmp_path / "onnx"
    served.mkdir()
    (served / "model.onnx").touch()
    with pytest.raises(FileNotFoundError, match=r"has 'model\.onnx', which ONNX Runtime reads"):
        export_model(served, "dense", tmp_path / "served")
    with pytest.raises(ValueError, match="`tables` must be one of 'multi-size', 'dense'"):
        predictor.with_tables("sparse")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_feature_has_the_name_of_the_output(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    frame = pd.DataFrame({"probability": range(20), "item": range(20)})
    features = Features.fit(frame, task="ranking")
    full = SearchSpace(features.embedding_specs(4)).full()
    Predictor(reference_model(features)(full), full, features).save(tmp_path / "model")
    export_model(tmp_path / "model", "onnx", tmp_path / "served")
    session = onnxruntime.InferenceSession(tmp_path / "served" / "model.onnx")
    assert {node.name for node in session.get_inputs()} == {"probability", "item"}
    assert [node.name for node in session.get_outputs()] == ["probability_"]
