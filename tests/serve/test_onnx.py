from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.models import RankingModule
from optuna_nis.nn import MultiSizeEmbedding, MultiSizeEmbeddingBag
from optuna_nis.serve import freeze, quantize, to_dense, to_onnx
from optuna_nis.serve import onnx as onnx_file

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TABLE = TableAllocation("f", 60, 8, (Tier(5, 8), Tier(20, 6), Tier(10, 2)))
SHARED = replace(TABLE, num_shared=4)


def _run(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return torch.from_numpy(output)


@pytest.mark.slow
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
        mean = MultiSizeEmbeddingBag(TABLE, mode="mean")
        total = MultiSizeEmbeddingBag(SHARED, mode="sum")
        shared = MultiSizeEmbedding(SHARED, ranks=torch.randperm(60))
        self.rows = nn.ModuleList(
            [rows, to_dense(rows), quantize(rows), quantize(rows, "float16"), shared]
        )
        self.bags = nn.ModuleList([mean, total, to_dense(mean), quantize(mean), quantize(total)])

    def forward(self, ids: Tensor) -> Tensor:
        rows = [layer(ids).flatten(1) for layer in self.rows]
        return torch.cat([*rows, *(layer(ids) for layer in self.bags)], 1)


@pytest.mark.slow
def test_layers_of_all_kinds(tmp_path: Path) -> None:
    model = Layers()
    ids = torch.randint(0, 61, (9, 3))
    ids[0] = 60
    to_onnx(model, ids[:4], tmp_path / "layers.onnx")
    found = _run(tmp_path / "layers.onnx", {"input_0": ids})
    torch.testing.assert_close(found, model(ids))
    assert bool((found[0] == 0).all())


@pytest.mark.slow
def test_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RankingModule(Allocation([TABLE])).eval().half()
    batch = {TABLE.name: torch.arange(50)}
    to_onnx(model, batch, tmp_path / "half.onnx")
    found = _run(tmp_path / "half.onnx", batch)
    torch.testing.assert_close(found, model(batch).detach(), rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize(
    ("dtype", "found", "wanted", "is_close"),
    [
        ("float32", [1.0, 1e-6], [1.0005, 0.0], True),
        ("float32", [1.0], [1.002], False),
        ("float32", [1e6, 0.001], [1e6, 0.0], False),  # What is large elsewhere is no excuse.
        ("float16", [0.25, 3e-4], [0.25, 0.0], True),
        ("float16", [0.25, 3e-3], [0.25, 0.0], False),
        ("float16", [0.25], [np.inf], False),
        ("float16", [np.inf, np.nan], [np.inf, np.nan], True),
        ("int64", [3], [3], True),
        ("int64", [3], [4], False),
        ("float32", [], [], True),
    ],
)
def test_outputs_are_as_close_as_numbers_of_their_type_can_be(
    dtype: str, found: Any, wanted: Any, is_close: bool
) -> None:
    arrays = np.array(found, dtype=float), np.array(wanted, dtype=float)
    assert onnx_file._is_close(*arrays, np.dtype(dtype)) == is_close


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_another_output_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"gives another output 'output' than the model: they"):
        to_onnx(Noisy(), torch.ones(4, 3, dtype=dtype), tmp_path / "noisy.onnx")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_the_file_before_stays_until_another_is_checked(tmp_path: Path) -> None:
    path, link = tmp_path / "model.onnx", tmp_path / "latest.onnx"
    layer = MultiSizeEmbedding(TABLE)
    to_onnx(layer, torch.tensor([1, 2]), path)
    path.chmod(0o640)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="gives another output"):
        to_onnx(Noisy(), torch.ones(4, 3), path)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]
    link.symlink_to(path.name)
    to_onnx(to_dense(layer), torch.tensor([1, 2]), link)
    assert link.is_symlink()
    assert path.read_bytes() != before
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.slow
@pytest.mark.parametrize("output_names", [None, ["linear"]])
def test_names_that_values_inside_have_too(output_names: Any, tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Embedding(60, 8), nn.Linear(8, 2)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            rows = sum(self.layer(ids) for ids in batch.values())
            return self.head(rows)

    model = Model()
    batch = {n: torch.randint(0, 60, (5,)) for n in ("embedding", "head.weight", "output", "add")}
    to_onnx(model, batch, tmp_path / "model.onnx", output_names=output_names)
    torch.testing.assert_close(_run(tmp_path / "model.onnx", batch), model(batch).detach())
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [node.name for node in session.get_outputs()] == (output_names or ["output_"])


@pytest.mark.slow
def test_codes_stay_small_in_the_file(tmp_path: Path) -> None:
    table = TableAllocation("f", 5000, 32, (Tier(5000, 32),))
    layer = quantize(MultiSizeEmbedding(table, ranks=torch.arange(5000)), "int8")
    to_onnx(layer, torch.arange(4, dtype=torch.int32), tmp_path / "int8.onnx")
    size = (tmp_path / "int8.onnx").stat().st_size
    assert 5000 * (32 + 4 + 4) < size < 5000 * (32 + 4 + 4) + 40_000


@pytest.mark.slow
def test_packed_tables(
    narrow: nn.Module, batch_of: Callable[[int], dict[str, Tensor]], tmp_path: Path
) -> None:
    freeze(narrow).eval()
    to_onnx(narrow, batch_of(5), tmp_path / "model.onnx", bags=["bag"])
    for length in (1, 33):
        batch = batch_of(length)
        torch.testing.assert_close(_run(tmp_path / "model.onnx", batch), narrow(batch))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_tables_of_few_bits_that_are_not_frozen(bits: int, tmp_path: Path) -> None:
    table = TableAllocation("f", 60, 8, (Tier(20, 8, bits), Tier(30, 3, bits)))
    layer = MultiSizeEmbedding(table, init_std=1.0)
    to_onnx(layer, torch.arange(4), tmp_path / "layer.onnx")
    ids = torch.randint(0, 61, (9,))
    found = _run(tmp_path / "layer.onnx", {"input_0": ids})
    torch.testing.assert_close(found, layer(ids))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4])
def test_packed_codes_stay_so_in_the_file(bits: int, tmp_path: Path) -> None:
    table = TableAllocation("f", 5000, 32, (Tier(5000, 31, bits),))
    to_onnx(freeze(MultiSizeEmbedding(table)), torch.arange(4), tmp_path / "packed.onnx")
    size = (tmp_path / "packed.onnx").stat().st_size
    assert table.nbytes() < size < table.nbytes() + 40_000


@pytest.mark.slow
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


@pytest.mark.slow
def test_recurrent_layers_and_attention(sequences: nn.Module, tmp_path: Path) -> None:
    to_onnx(sequences, torch.randint(0, 60, (4, 3)), tmp_path / "model.onnx")
    for length in (1, 2, 7):
        ids = torch.randint(0, 60, (length, 3))
        torch.testing.assert_close(_run(tmp_path / "model.onnx", {"input_0": ids}), sequences(ids))


class Bags(nn.Module):
    """Bags of torch in every mode, and those of a sized model made dense."""

    def __init__(self) -> None:
        super().__init__()
        sized = [MultiSizeEmbeddingBag(TABLE, mode=mode) for mode in ("sum", "mean")]
        self.dense = nn.ModuleList(map(to_dense, sized))
        self.plain = nn.ModuleList(
            nn.EmbeddingBag(61, 8, mode=mode, padding_idx=padding)
            for mode in ("sum", "mean", "max")
            for padding in (None, 5, -1)
        )

    def forward(self, *, weights: Tensor, ids: Tensor) -> Tensor:
        bags = [layer(ids) for layer in (*self.dense, *self.plain)]
        for layer in (self.dense[0], *self.plain[:3]):
            bags.append(layer(ids, per_sample_weights=weights))
        table = self.plain[0].weight
        bags.append(functional.embedding_bag(ids, table, padding_idx=2, mode="max"))
        return torch.cat(bags, 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bags_of_torch_become_gathers(dtype: torch.dtype, tmp_path: Path) -> None:
    model, path = Bags(), tmp_path / "bags.onnx"

    def batch(length: int, width: int) -> dict[str, Tensor]:
        ids = torch.randint(0, 61, (length, width), dtype=dtype)
        ids[0] = 5
        ids[-1] = 60
        return {"ids": ids, "weights": torch.rand(length, width)}

    to_onnx(model, batch(4, 3), path)
    for length in (1, 2, 7):
        more = batch(length, 3)
        torch.testing.assert_close(_run(path, more), model(**more))
    graph = onnx.load(path).graph
    assert [node.name for node in graph.input] == ["ids", "weights"]
    operators = {node.op_type for node in graph.node}
    assert "Gather" in operators
    assert not operators & {"Loop", "Scan", "If", "SequenceAt"}


def test_the_length_of_bags_of_torch_is_free(tmp_path: Path) -> None:
    model, path = nn.EmbeddingBag(61, 8, padding_idx=5), tmp_path / "bags.onnx"
    to_onnx(model, torch.randint(0, 61, (4, 3)), path, bags=["input_0"])
    for shape in ((1, 1), (1, 4), (2, 1), (7, 5)):
        ids = torch.randint(0, 61, shape)
        torch.testing.assert_close(_run(path, {"input_0": ids}), model(ids))


def test_bags_by_offsets_stay_as_torch_writes_them(tmp_path: Path) -> None:
    class Offsets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = to_dense(MultiSizeEmbeddingBag(TABLE))

        def forward(self, ids: Tensor) -> Tensor:
            return self.bag(ids, torch.arange(ids.shape[0], dtype=ids.dtype))

    to_onnx(Offsets(), torch.arange(4), tmp_path / "model.onnx")
    assert "Loop" in {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    with pytest.raises(RuntimeError, match="ONNX Runtime cannot run the model"):
        to_onnx(Offsets(), torch.arange(4).int(), tmp_path / "model.onnx")


def test_what_the_runtime_gives_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(onnxruntime.InferenceSession):
        def run(self, *args: Any) -> Any:
            return [output + 1e-3 for output in super().run(*args)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    with pytest.raises(RuntimeError, match="'output' than the model: they differ by 0"):
        to_onnx(MultiSizeEmbedding(TABLE), torch.arange(4), tmp_path / "model.onnx")


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"`onnxscript`.*optuna-nis\[export\]"):
        to_onnx(MultiSizeEmbedding(TABLE), torch.arange(4), tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ranking", "retrieval"])
def test_the_reference_models(task: str, tmp_path: Path) -> None:
    from optuna_nis.models import RankingModule, RetrievalModule

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


def test_a_name_is_not_empty(tmp_path: Path) -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 9, 4, (Tier(5, 2),)))
    with pytest.raises(ValueError, match="ONNX has no inputs or outputs without a name"):
        to_onnx(layer, torch.tensor([0, 3]), tmp_path / "model.onnx", output_names=[""])


@pytest.mark.parametrize("names", [("a", "b"), (), "output"])
def test_each_output_has_a_name(names: Any, tmp_path: Path) -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 9, 4, (Tier(5, 2),)))
    with pytest.raises(ValueError, match="`output_names` must name the 1 outputs of `model`, got"):
        to_onnx(layer, torch.tensor([0, 3]), tmp_path / "model.onnx", output_names=names)


@pytest.mark.slow
def test_an_output_has_not_the_name_of_an_input(tmp_path: Path) -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 9, 4, (Tier(5, 2),)))
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"others than those of the inputs, \['input_0'\], got"):
        to_onnx(layer, torch.tensor([0, 3]), path, output_names=["input_0"])
    assert not path.exists()


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = MultiSizeEmbedding(TableAllocation("f", 9, 4, (Tier(5, 2),)))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.layer(ids)
        return rows, rows.sum(1)


def test_several_outputs_have_names_without_being_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    to_onnx(_Two(), torch.tensor([0, 3]), path)
    names = [output.name for output in onnx.load(path).graph.output]
    assert names == ["output_0", "output_1"]


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 9, 4, (Tier(5, 2),)))
    with pytest.raises(ValueError, match="`path` must be a file to write, got the folder"):
        to_onnx(layer, torch.tensor([0, 3]), tmp_path)
