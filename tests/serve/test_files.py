from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path
import sys
from tempfile import TemporaryDirectory
from typing import Any

from any_tables import allocations
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from safetensors import safe_open
from safetensors.torch import save_file
import torch
from torch import Tensor, nn

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.nn import (
    MultiSizeEmbedding,
    PackedEmbedding,
    PackedEmbeddingBag,
    apply_allocation,
    sized_layers,
)
from optuna_nis.serve import allocation_of, freeze, load, quantize, save
from optuna_nis.serve.files import check_savable


def _build(kind: type[nn.Module]) -> Callable[[Allocation], nn.Module]:
    return lambda sizes: apply_allocation(kind(), sizes)


def test_a_model_is_the_same_again(
    swapped: nn.Module, batch_of: Callable[[int], dict[str, Tensor]], tmp_path: Path
) -> None:
    path, build = tmp_path / "model.pt", _build(type(swapped))
    save(swapped, path)
    again = load(path, build)
    batch = batch_of(40)
    # The order of the ids comes with the weights.
    assert torch.equal(again(batch), swapped(batch))
    assert allocation_of(again) == allocation_of(swapped)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
    # What the docstring promises.
    found = torch.load(path, weights_only=True)
    assert found["version"] == 1
    assert Allocation.from_json(found["allocation"]) == allocation_of(swapped)
    assert found["state_dict"]["user.fields.0.tiers.1.weight"].shape == (20, 6)
    assert found["state_dict"]["user.fields.0.projection"].shape == (8, 8)
    assert found["state_dict"]["user.fields.0._ranks"].shape == (61,)


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_a_quantised_model_is_the_same_again(
    swapped: nn.Module,
    batch_of: Callable[[int], dict[str, Tensor]],
    tmp_path: Path,
    dtype: Any,
) -> None:
    build = _build(type(swapped))
    save(quantize(swapped, dtype), tmp_path / "model.pt")
    again = load(tmp_path / "model.pt", lambda sizes: quantize(build(sizes), dtype))
    batch = batch_of(40)
    assert torch.equal(again(batch), swapped(batch))


@pytest.mark.parametrize("file", ["model.pt", "model.safetensors"])
def test_a_frozen_model_is_the_same_again(
    narrow: nn.Module,
    batch_of: Callable[[int], dict[str, Tensor]],
    tmp_path: Path,
    file: str,
) -> None:
    build = _build(type(narrow))
    save(freeze(narrow).eval(), tmp_path / file)
    batch = batch_of(40)
    # It is frozen when it is loaded, if it is not when it is built.
    for again in (
        load(tmp_path / file, build),
        load(tmp_path / file, lambda sizes: freeze(build(sizes))),
    ):
        assert {type(layer) for layer in sized_layers(again)} == {
            PackedEmbedding,
            PackedEmbeddingBag,
        }
        assert torch.equal(again.eval()(batch), narrow(batch))
        assert allocation_of(again) == allocation_of(narrow)


@pytest.mark.parametrize("file", ["model.pt", "model.safetensors"])
def test_tables_are_made_as_they_were_stored(tmp_path: Path, file: str) -> None:
    table = TableAllocation("a", 20, 4, (Tier(10, 4, 8),))
    sizes = Allocation([table, TableAllocation("b", 20, 4, (Tier(10, 4),))])

    def build(sizes: Allocation) -> nn.ModuleDict:
        return nn.ModuleDict({name: MultiSizeEmbedding(each) for name, each in sizes.items()})

    def frozen_in_part(sizes: Allocation) -> nn.ModuleDict:
        model = build(sizes)
        model["a"] = freeze(model["a"])
        return model

    model = frozen_in_part(sizes).eval()
    save(model, tmp_path / file)
    again = load(tmp_path / file, frozen_in_part).eval()
    ids = torch.arange(20)
    for name in "ab":
        assert torch.equal(again[name](ids), model[name](ids))
    with pytest.raises(ValueError, match=r"as those of '.*' are, {'a': 'frozen'}, got tables th"):
        load(tmp_path / file, build)
    save(quantize(nn.ModuleDict({"b": build(sizes)["b"]})), tmp_path / file)
    with pytest.raises(ValueError, match=r"{'b': 'quantised'}, got tables that are neither"):
        load(tmp_path / file, build)


def test_models_that_are_not_frozen_as_safetensors(
    swapped: nn.Module, batch_of: Callable[[int], dict[str, Tensor]], tmp_path: Path
) -> None:
    path, build, batch = tmp_path / "model.safetensors", _build(type(swapped)), batch_of(40)
    save(swapped, path)
    assert torch.equal(load(path, build)(batch), swapped(batch))
    save(quantize(swapped), path)
    assert torch.equal(load(path, lambda sizes: quantize(build(sizes)))(batch), swapped(batch))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    # Whoever may read other new files may read this one.
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@settings(deadline=None, max_examples=40)
@given(sizes=allocations(), ordered=st.booleans(), head=st.booleans())
def test_a_file_has_the_bytes_of_the_allocation(
    sizes: Allocation, ordered: bool, head: bool
) -> None:
    ids = [table.num_embeddings for table in sizes.values()]
    layers = [
        MultiSizeEmbedding(table, ranks=None if ordered else torch.randperm(size))
        for table, size in zip(sizes.values(), ids)
    ]
    model = nn.ModuleList([*layers, *([nn.Linear(3, 5)] if head else [])])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tables.safetensors"
        save(freeze(model), path)
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        assert Allocation.from_json(metadata["allocation"]) == sizes
        order = 0 if ordered else sum(4 * (size + 1) for size in ids)
        assert len(content) - 8 - length == sizes.nbytes() + order + (80 if head else 0)


def test_safetensors_that_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match="is not a file written by `save`"):
        load(path, MultiSizeEmbedding)  # type: ignore[arg-type]
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="must be a file of version 1 written by `save`, got ver"):
        load(path, MultiSizeEmbedding)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.safetensors", MultiSizeEmbedding)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    layer = MultiSizeEmbedding(TableAllocation("f", 9, 4, ()))
    with pytest.raises(ModuleNotFoundError, match=r'pip install "optuna-nis\[export\]"'):
        save(layer, path)


def test_ranks_of_a_layer_come_with_its_weights(tmp_path: Path) -> None:
    table = TableAllocation("f", 9, 4, (Tier(5, 2),))
    layer = MultiSizeEmbedding(table, ranks=torch.randperm(9))
    save(layer, tmp_path / "layer.pt")
    again = load(tmp_path / "layer.pt", lambda sizes: MultiSizeEmbedding(sizes["f"]))
    assert torch.equal(again(torch.arange(10)), layer(torch.arange(10)))


def test_an_earlier_file_is_lost_only_to_a_complete_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 9, 4, ()))
    (tmp_path / "model.pt").write_text("before")

    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save(layer, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_text() == "before"


class _Extra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = MultiSizeEmbedding(TableAllocation("f", 9, 4, ()))

    def get_extra_state(self) -> Any:
        return object()


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 9, 4, ()))
    twins = nn.ModuleList([layer, MultiSizeEmbedding(layer.table)])
    for model, message in (
        (nn.Linear(2, 2), "must have a multi-size layer, got a Linear"),
        (twins, "names the feature 'f' twice"),
        (_Extra(), "must be tensors only, got '_extra_state' of type object"),
    ):
        with pytest.raises(ValueError, match=message):
            save(model, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


class _Subclass(Tensor):
    pass


@pytest.mark.parametrize(
    ("ending", "buffer", "message"),
    [
        (".safetensors", torch.arange(100)[:8], "is a part of a larger tensor"),
        (".safetensors", torch.ones(1).expand(5), "repeats a smaller one"),
        (".safetensors", torch.eye(3).to_sparse(), "is of the layout torch.sparse_coo"),
        (".safetensors", torch.ones(2, dtype=torch.complex128), "is of the type torch.complex128"),
        (".pt", torch.ones(2).as_subclass(_Subclass), "got 'x' of type _Subclass"),
    ],
)
def test_buffers_that_a_format_does_not_have(
    ending: str, buffer: Tensor, message: str, tmp_path: Path
) -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 9, 4, ()))
    layer.register_buffer("x", buffer)
    with pytest.raises(ValueError, match=message):
        check_savable(layer, tmp_path / f"model{ending}", "output")
    with pytest.raises(ValueError, match=message):
        save(layer, tmp_path / f"model{ending}")
    assert not list(tmp_path.iterdir())


class _Evil:
    def __reduce__(self) -> Any:
        return (Path("/nowhere/executed").touch, ())


@pytest.mark.parametrize("content", [_Evil(), {"version": 2}, [1], b"text"])
def test_what_cannot_be_loaded(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match="written by `save`"):
        load(path, MultiSizeEmbedding)  # type: ignore[arg-type]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "model.pt", MultiSizeEmbedding)  # type: ignore[arg-type]


def _damaged(path: Path, **changes: Any) -> Path:
    layer = MultiSizeEmbedding(TableAllocation("f", 9, 4, (Tier(5, 2),)))
    save(layer, path)
    if path.suffix == ".pt":
        found = torch.load(path) | changes
        torch.save({key: value for key, value in found.items() if value is not None}, path)
    else:
        with safe_open(path, "pt") as file:
            texts = file.metadata() | changes
        texts = {key: value for key, value in texts.items() if value is not None}
        save_file({"weight": torch.zeros(1)}, path, texts)
    return path


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "changes",
    [{"allocation": None}, {"allocation": "{"}, {"stored": "{"}, {"stored": "3"}, {"tables": "x"}],
)
def test_a_file_that_is_damaged(changes: Any, suffix: str, tmp_path: Path) -> None:
    path = _damaged(tmp_path / f"model.{suffix}", **changes)
    with pytest.raises(ValueError, match="is not a file written by `save`"):
        load(path, lambda sizes: MultiSizeEmbedding(sizes["f"]))


@pytest.mark.parametrize("changes", [{"state_dict": None}, {"state_dict": [1]}, {"stored": 3}])
def test_a_file_of_torch_that_is_damaged(changes: Any, tmp_path: Path) -> None:
    path = _damaged(tmp_path / "model.pt", **changes)
    with pytest.raises(ValueError, match="is not a file written by `save`"):
        load(path, lambda sizes: MultiSizeEmbedding(sizes["f"]))
    path.write_bytes(_damaged(path).read_bytes()[:-10])
    with pytest.raises(ValueError, match="is not a file written by `save`"):
        load(path, lambda sizes: MultiSizeEmbedding(sizes["f"]))


def test_what_builds_no_model(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="`build` must return a model, got None"):
        load(_damaged(tmp_path / "model.pt"), lambda sizes: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_what_cannot_be_written_leaves_nothing(name: str, tmp_path: Path) -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 9, 4, (Tier(5, 2),)))
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="`path` must be a file to write, got the folder"):
        save(layer, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    save(layer, tmp_path / "new" / name)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
