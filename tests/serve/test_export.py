from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.data import Features
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


def _model(folder: Path, task: Any, bits: tuple[int, int, int] = (32, 32, 32)) -> Predictor:
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
    model = reference_model(features, hidden=[8], init_std=0.5)(sizes)
    predictor = Predictor(model, sizes, features)
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
    batch = Features.from_json((output / "features.json").read_text()).encode(FRAME)
    with torch.no_grad():
        expected = predictor.model(batch)
        expected = expected.sigmoid() if task == "ranking" else expected
        program = torch.export.load(output / "model.pt2").module()
        torch.testing.assert_close(program(batch), expected)
    session = onnxruntime.InferenceSession(output / "model.onnx")
    name = "probability" if task == "ranking" else "scores"
    (found,) = session.run([name], {name: ids.numpy() for name, ids in batch.items()})
    torch.testing.assert_close(torch.from_numpy(found), expected)


def test_torchrec(tmp_path: Path) -> None:
    torchrec = pytest.importorskip("torchrec")
    from optuna_nis.serve.torchrec import TieredEmbeddingBagCollection

    predictor = _model(tmp_path / "model", "ranking")
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
    with pytest.raises(ValueError, match="`tables` must be one of 'multi-size', 'dense'"):
        predictor.with_tables("sparse")  # type: ignore[arg-type]
