from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.export import quantize, to_dense, to_onnx
from optuna_nis.nn import MultiSizeEmbedding, MultiSizeEmbeddingBag

onnxruntime = pytest.importorskip("onnxruntime")

TABLE = TableAllocation("f", 60, 8, (Tier(5, 8), Tier(20, 6), Tier(10, 2)))


def _run(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return torch.from_numpy(output)


def test_a_swapped_model(
    swapped: nn.Module, batch_of: Callable[[int], dict[str, Tensor]], tmp_path: Path
) -> None:
    to_onnx(swapped, batch_of(5), tmp_path / "model.onnx", bags=["bag"])
    for length in (1, 2, 33):
        batch = batch_of(length)
        torch.testing.assert_close(_run(tmp_path / "model.onnx", batch), swapped(batch))
    batch["bag"] = batch["bag"][:, :3]
    torch.testing.assert_close(_run(tmp_path / "model.onnx", batch), swapped(batch))


class Layers(nn.Module):
    """Layers of all kinds, plain, dense and quantised, that look the same bags up."""

    def __init__(self) -> None:
        super().__init__()
        rows = MultiSizeEmbedding(TABLE, ranks=torch.randperm(60))
        mean, total = (MultiSizeEmbeddingBag(TABLE, mode=mode) for mode in ("mean", "sum"))
        self.rows = nn.ModuleList(
            [rows, to_dense(rows), quantize(rows), quantize(rows, "float16")]
        )
        self.bags = nn.ModuleList([mean, total, to_dense(mean), quantize(mean), quantize(total)])

    def forward(self, ids: Tensor) -> Tensor:
        rows = [layer(ids).flatten(1) for layer in self.rows]
        return torch.cat([*rows, *(layer(ids) for layer in self.bags)], 1)


def test_layers_of_all_kinds(tmp_path: Path) -> None:
    model = Layers()
    ids = torch.randint(0, 61, (9, 3))
    ids[0] = 60
    to_onnx(model, ids[:4], tmp_path / "layers.onnx")
    found = _run(tmp_path / "layers.onnx", {"input_0": ids})
    torch.testing.assert_close(found, model(ids))
    assert bool((found[0] == 0).all())


def test_codes_stay_small_in_the_file(tmp_path: Path) -> None:
    table = TableAllocation("f", 5000, 32, (Tier(5000, 32),))
    layer = quantize(MultiSizeEmbedding(table, ranks=torch.arange(5000)), "int8")
    to_onnx(layer, torch.arange(4, dtype=torch.int32), tmp_path / "int8.onnx")
    size = (tmp_path / "int8.onnx").stat().st_size
    assert 5000 * (32 + 4 + 4) < size < 5000 * (32 + 4 + 4) + 40_000


def test_a_model_with_several_inputs_and_outputs(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = MultiSizeEmbedding(TABLE)

        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"row": self.layer(a), "product": (self.layer(a) * self.layer(b)).sum(1)}

    path = tmp_path / "model.onnx"
    batch = torch.tensor([1, 2]), torch.tensor([3, 4])
    to_onnx(Model(), batch, path, output_names=["row", "product"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == ["input_0", "input_1"]
    assert [node.name for node in session.get_outputs()] == ["row", "product"]
    assert session.get_inputs()[0].shape == ["batch"]


def test_what_the_runtime_gives_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(onnxruntime.InferenceSession):
        def run(self, *args: Any) -> Any:
            return [output + 1e-3 for output in super().run(*args)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    with pytest.raises(RuntimeError, match="'output' than the model: they differ by 0"):
        to_onnx(MultiSizeEmbedding(TABLE), torch.arange(4), tmp_path / "model.onnx")


def test_what_the_runtime_cannot_do_is_told(tmp_path: Path) -> None:
    bag = to_dense(MultiSizeEmbeddingBag(TABLE))
    ids = torch.zeros(4, 3, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="ONNX Runtime cannot run the model"):
        to_onnx(bag, ids, tmp_path / "model.onnx")


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"`onnxscript`.*optuna-nis\[export\]"):
        to_onnx(MultiSizeEmbedding(TABLE), torch.arange(4), tmp_path / "model.onnx")


@pytest.mark.parametrize("task", ["ranking", "retrieval"])
def test_the_reference_models(task: str, tmp_path: Path) -> None:
    from optuna_nis.lightning import RankingModule, RetrievalModule

    removed = TableAllocation("city", 9, 8, ())
    genres = TableAllocation("genres", 18, 8, (Tier(6, 8), Tier(9, 2)))
    sizes, bags = Allocation([TABLE, removed, genres]), ["genres"]
    model = (
        RankingModule(sizes, bags=bags)
        if task == "ranking"
        else RetrievalModule(sizes, num_classes=5, bags=bags)
    )

    def batch(length: int, width: int) -> dict[str, Tensor]:
        return {
            "f": torch.randint(0, 61, (length,)),
            "city": torch.randint(0, 10, (length,)),
            "genres": torch.randint(0, 19, (length, width)),
        }

    to_onnx(model, batch(4, 3), tmp_path / "model.onnx", bags=bags)
    more = batch(17, 6)
    torch.testing.assert_close(_run(tmp_path / "model.onnx", more), model.eval()(more))
