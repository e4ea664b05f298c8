"""Ways to round rows: their levels, their bytes, and a whole run with trainings of one epoch."""

from __future__ import annotations

from functools import partial
import json
from pathlib import Path
import sys

import host_model
import pytest
import rounding
from rounding import in_bits, nbytes, summary
from rounding_ways import WAYS, Rounding, hold, rounded_by
from small_tables import write_table
import torch

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.models import RankingModule

SIZES = Allocation([TableAllocation("user", 20, 8, (Tier(4, 8), Tier(10, 3)))])


def test_bytes_are_those_of_the_product_but_for_the_steps() -> None:
    assert nbytes(SIZES, 32, "float32") == SIZES.nbytes()
    ours = in_bits(SIZES, 4).nbytes()
    assert nbytes(SIZES, 4, "learned") == nbytes(SIZES, 4, "stochastic") == ours
    assert nbytes(SIZES, 4, "rms_column") - ours == 2 * (8 + 3 - 2)
    assert nbytes(SIZES, 4, "rms_row") - ours == 2 * (4 + 10 - 2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rows_have_no_more_levels_than_their_bits_say(way: str, bits: int) -> None:
    torch.manual_seed(0)
    model = rounded_by(RankingModule(SIZES), way, bits)
    (layer,) = model.embeddings.layers
    weights = [tier.parametrizations.weight.original for tier in layer.tiers]
    before = [weight.detach().clone() for weight in weights]
    layer.tiers[0].weight.sum().backward()
    assert torch.equal(weights[0].grad, torch.ones(4, 8))
    hold(model)
    for tier, rows in zip(layer.tiers, before):
        sharing = {(0, 1): [tier.weight], (0,): tier.weight.T, (1,): tier.weight}
        assert max(len(each.unique()) for each in sharing[WAYS[way].over]) <= 2**bits
        assert (tier.weight - rows).square().mean() < rows.square().mean()


def test_random_rounding_is_right_on_average_and_only_in_training() -> None:
    torch.manual_seed(0)
    rows = torch.linspace(-0.9, 0.9, 60).view(6, 10)
    rounding = Rounding(WAYS["stochastic"], 4)
    drawn = torch.stack([rounding(rows) for _ in range(500)])
    assert len(drawn[:, 0, 0].unique()) > 1
    torch.testing.assert_close(drawn.mean(0), rows, rtol=0, atol=0.02)
    rounding.eval()
    assert torch.equal(rounding(rows), Rounding(WAYS["rms"], 4)(rows))


def test_a_whole_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table("insteval", tmp_path)
    monkeypatch.setattr(host_model, "train", partial(host_model.train, max_epochs=1))
    monkeypatch.setattr(rounding, "BITS", (2,))
    output = tmp_path / "rounding.json"
    args = ["--data", "insteval", "--data-dir", str(tmp_path), "--output", str(output)]
    ways = ["--ways", "learned", "after", "late"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *args, "--seeds", "0", *ways])
    rounding.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    kept = json.loads(output.read_text())
    assert kept["summary"] == found == summary(kept["runs"])
    assert set(found["insteval"]["2bit"]) == {"learned", "after", "late"}
    exact = found["insteval"]["32bit"]["float32"]
    for way in found["insteval"]["2bit"].values():
        assert 0 <= way["mean"] <= 1
        assert way["share"] < exact["share"] <= 0.25


def test_data_of_another_task_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--data", "flights-retrieval"])
    with pytest.raises(SystemExit):
        rounding.main()
    assert "`--data` must name data of a yes-or-no label" in capsys.readouterr().err
