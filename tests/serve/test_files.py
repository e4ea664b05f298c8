from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.nn import MultiSizeEmbedding, apply_allocation
from optuna_nis.serve import allocation_of, load, quantize, save


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
