"""Ways to train tables in few bits, with sizes that are given: why a tier has one learned step.

    python benchmarks/rounding.py                                     # flights
    python benchmarks/rounding.py --data-dir DATA --data insteval

The sizes are those of a formula, ``mixed_dimensions`` at a share of the full tables, so that every
way has the same ones. Each way rounds to the same levels, a whole number and a half of a step, and
differs in what shares a step, where the step comes from, and when rows are rounded:

- ``learned``: the product's, a step for each tier that is trained with it
- ``rms``, ``rms_column``, ``rms_row``: a step for each tier, column or row, always that which is
  best for numbers of the bell curve with the spread that they have now
- ``stochastic``: as ``rms``, each number up or down at random in training, the nearer the likelier
- ``after``: as ``rms``, of a training in float32 that knows nothing of it
- ``late``: as ``rms``, for a second training that goes on from one in float32

Bytes are those that are stored, with steps in float16. Prints one JSON object as its last line,
for each data set, number of bits and way the mean metric on test, and adds all runs to
``benchmarks/results/rounding.json``, but for smoke tests.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from copy import deepcopy
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from data_sets import DATA, add_data_arguments, check_data, data_config
from host_model import build_model, metrics_on_test, specs_of, trained, validated
from kept_runs import Run, add_runs
from lightning.pytorch import LightningModule
from quiet import quiet
from rounding_ways import WAYS, hold, rounded_by, step_nbytes
from search_quality import RESULTS
from stored_tables import halve_projections

from optuna_nis import Allocation, SearchSpace, TableAllocation, Tier
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.strategy import baselines

BITS = (8, 4, 2)
FLOAT, OURS = "float32", "learned"
RANKING = [name for name, about in DATA.items() if about.get("task", "ranking") == "ranking"]


def in_bits(sizes: Allocation, bits: int) -> Allocation:
    """The same rows and widths in other bits."""
    return Allocation(
        TableAllocation(
            table.name,
            table.num_embeddings,
            table.embedding_dim,
            tuple(Tier(tier.num_embeddings, tier.embedding_dim, bits) for tier in table.tiers),
        )
        for table in sizes.values()
    )


def nbytes(sizes: Allocation, bits: int, way: str) -> int:
    """Bytes of tables that are rounded in a way."""
    if way == FLOAT:
        return sizes.nbytes()
    learned = in_bits(sizes, bits)
    tiers = [(tier.num_embeddings, tier.embedding_dim) for t in sizes.values() for tier in t.tiers]
    ours = sum(step_nbytes(OURS, *tier) for tier in tiers)
    return learned.nbytes() - ours + sum(step_nbytes(way, *tier) for tier in tiers)


def runs_of(
    data: str, datamodule: EmbeddingDataModule, sizes: Allocation, seed: int, wanted: Sequence[str]
) -> Iterator[Run]:
    """Train and test in every way that is wanted, and in float32."""
    full = SearchSpace(specs_of(data, datamodule)).full_nbytes

    def line(way: str, bits: int, model: LightningModule, steps: int) -> Run:
        metrics = metrics_on_test(model, datamodule)
        return {
            "data": data,
            "bits": bits,
            "way": way,
            "seed": seed,
            "val": validated(data, model, datamodule),
            "test": metrics["test"],
            "nbytes": nbytes(sizes, bits, way),
            "share": nbytes(sizes, bits, way) / full,
            "steps": steps,
        }

    plain = trained(data, datamodule, sizes, seed)
    exact = deepcopy(plain.model)
    yield line(FLOAT, 32, exact, plain.steps)
    for bits in BITS:
        for way in wanted:
            if way == OURS:
                found = trained(data, datamodule, in_bits(sizes, bits), seed)
                yield line(way, bits, found.model, found.steps)
                continue
            if way == "after":
                model, steps = rounded_by(deepcopy(exact), way, bits), plain.steps
            else:

                def make(sizes: Allocation, way: str = way, bits: int = bits) -> LightningModule:
                    start = deepcopy(exact) if way == "late" else None
                    model = start or build_model(data, datamodule)(sizes)
                    return rounded_by(model, way, bits)

                found = trained(data, datamodule, sizes, seed, make=make)
                model, steps = found.model, found.steps + (plain.steps if way == "late" else 0)
            hold(model)
            halve_projections(model)
            yield line(way, bits, model, steps)


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """For each data set, bits and way: the mean on test, its spread, and the share of bytes."""
    found: dict[str, Any] = {}
    for run in runs:
        place = found.setdefault(run["data"], {}).setdefault(f"{run['bits']}bit", {})
        place.setdefault(run["way"], []).append(run)
    return {
        data: {
            bits: {way: _told(own) for way, own in ways.items()} for bits, ways in about.items()
        }
        for data, about in found.items()
    }


def _told(runs: Sequence[Run]) -> dict[str, float | None]:
    values = [run["test"] for run in runs]
    return {
        "mean": fmean(values),
        "std": stdev(values) if len(values) > 1 else None,
        "share": fmean(run["share"] for run in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_arguments(parser, ("flights-ranking",))
    parser.add_argument("--ways", nargs="+", choices=[OURS, *WAYS], default=[OURS, *WAYS])
    parser.add_argument("--budget", type=float, default=0.25, help="share of the full tables")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS / "rounding.json")
    parser.add_argument("--smoke", action="store_true", help="one seed, nothing is kept")
    args = parser.parse_args()
    config = {"data_dir": args.data_dir}
    check_data(parser, args.data, config)
    if wrong := [data for data in args.data if data not in RANKING]:
        parser.error(f"`--data` must name data of a yes-or-no label, got {', '.join(wrong)}")
    quiet()
    runs = []
    for data in args.data:
        datamodule = data_config(data, config).datamodule(withhold_test=False)
        space = SearchSpace(specs_of(data, datamodule), budget=args.budget)
        sizes = baselines.mixed_dimensions(space)
        for seed in args.seeds[:1] if args.smoke else args.seeds:
            for run in runs_of(data, datamodule, sizes, seed, args.ways):
                print(*(f"{name}={value}" for name, value in run.items()), flush=True)
                runs.append(run)
                if not args.smoke:
                    keys = ("data", "bits", "way", "seed")
                    add_runs([run], args.output, by=keys, name="summary", summary=summary)
    print(json.dumps(summary(runs)), flush=True)


if __name__ == "__main__":
    main()
