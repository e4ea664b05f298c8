"""Reference models that look all features up at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.models import CrossRankingModule, EmbeddingModule, RankingModule
from optuna_nis.nn import MultiSizeEmbedding, sized_layers
from optuna_nis.serve import fused, to_onnx

WIDE = TableAllocation("wide", 9, 8, (Tier(9, 8),))
CUT = TableAllocation("cut", 30, 8, (Tier(5, 8),))
MIXED = TableAllocation("mixed", 40, 8, (Tier(6, 8), Tier(9, 3), Tier(10, 1)))
NARROW = TableAllocation("narrow", 12, 8, (Tier(2, 5), Tier(10, 2)))
GONE = TableAllocation("gone", 7, 8, ())


def _drawn(model: EmbeddingModule) -> EmbeddingModule:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def _every_id(model: EmbeddingModule, tables: Allocation) -> dict[str, Tensor]:
    """All ids of every feature, the unknown one among them."""
    share = model.embeddings.share
    most = max(table.num_embeddings for table in tables.values())
    return {
        name: torch.arange(most + 1) % (tables[share.get(name, name)].num_embeddings + 1)
        for name in model.embeddings.names
    }


@pytest.mark.parametrize(
    "tables",
    [[WIDE], [CUT], [MIXED], [NARROW], [GONE], [WIDE, MIXED, GONE, NARROW, CUT], [NARROW, WIDE]],
)
@pytest.mark.parametrize("kind", [RankingModule, CrossRankingModule])
def test_a_fused_model_gives_the_same(
    kind: type[RankingModule], tables: list[TableAllocation]
) -> None:
    sizes = Allocation(tables)
    model = _drawn(kind(sizes))
    before = dict(model.named_modules())
    served = fused(model)
    assert not any(isinstance(each, MultiSizeEmbedding) for each in served.modules())
    batch = _every_id(model, sizes)
    torch.testing.assert_close(served(batch), model(batch))
    assert dict(model.named_modules()) == before


def test_ids_out_of_range_have_zeros() -> None:
    sizes = Allocation([NARROW, MIXED, WIDE, GONE, CUT])
    ids = torch.tensor([-1, -(2**63), 41, 10**9, 2**63 - 1])
    with torch.no_grad():
        rows = fused(_drawn(RankingModule(sizes))).embeddings(dict.fromkeys(sizes, ids))
    assert not rows.any()


def test_a_table_that_two_features_share_is_kept_once() -> None:
    sizes = Allocation([MIXED, WIDE])
    model = _drawn(RankingModule(sizes, share={"second": "mixed", "third": "wide"}))
    served = fused(model)
    batch = _every_id(model, sizes)
    torch.testing.assert_close(served(batch), model(batch))
    kept = served.get_buffer("embeddings.flat"), served.get_buffer("embeddings.wide")
    # What is looked up beyond the last row: zeros.
    assert kept[0].numel() == MIXED.num_embedding_parameters - 6 * 8 + 3
    assert len(kept[1]) == 6 + 9 + 1


@pytest.mark.parametrize(
    "model",
    [
        MultiSizeEmbedding(MIXED),
        RankingModule(Allocation([MIXED]), bags={"mixed"}),
        RankingModule(Allocation([TableAllocation("few", 9, 8, (Tier(9, 8, 4),))])),
        RankingModule(Allocation([TableAllocation("one", 9, 8, (Tier(4, 8),), num_shared=1)])),
        RankingModule(Allocation([WIDE])).double(),
    ],
)
def test_others_are_left_as_they_are(model: nn.Module) -> None:
    assert fused(model) is model


def test_numbers_that_are_not_finite_stay_where_they_are() -> None:
    model = _drawn(RankingModule(Allocation([MIXED])))
    (layer,) = sized_layers(model)
    with torch.no_grad():
        layer.tier_modules()[1].weight[3, 0] = float("inf")
    assert fused(model) is model


@pytest.mark.slow
def test_onnx_runtime_looks_all_features_up_at_once(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    sizes = Allocation(
        [MIXED, WIDE, NARROW, *(replace(MIXED, name=f"more_{i}") for i in range(3))]
    )
    model = _drawn(RankingModule(sizes))
    batch = _every_id(model, sizes)
    to_onnx(model, batch, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {name: ids.numpy() for name, ids in batch.items()})
    np.testing.assert_allclose(found, model(batch).detach(), rtol=1e-3, atol=1e-5)
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    num_tiers = sum(len(table.tiers) for table in sizes.values())
    # One for each tier otherwise.
    assert sum("Gather" in kind for kind in nodes) == 7 < num_tiers
