"""Whose proposals win: what the best sizes of a search were proposed by, all competing.

    python benchmarks/proposals.py --data flights-ranking --budgets 0.25
    python benchmarks/proposals.py --data-dir DATA MORE      # everything, hours

The policy, the prices of blocks, closed formulas, uniform sizes and as many random choices as the
policy proposes compete in each shortlist; the winner is what was best when trained for real.
Prints one JSON object as its last line, ``{"wins": {"policy": n, "formula": n, "random": n,
"uniform": n}}``, in which the prices, which are the prior of the policy's critic, count as the
policy's (``"by_price"`` of them), and adds all searches to ``benchmarks/results/proposals.json``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
import json
from pathlib import Path
import time
from typing import Any

from data_sets import (
    DATA,
    JUDGED,
    add_data_arguments,
    check_data,
    data_config,
    half,
    model_options,
)
from kept_runs import Run, add_runs
import optuna
from quiet import quiet
import torch

from optuna_nis.lightning import SearchPlan, search
from optuna_nis.study.keys import ORIGIN_ATTR

RESULTS = Path(__file__).parent / "results"
BUDGETS = (0.05, 0.125, 0.25, 0.5)
ORIGINS = ("policy", "formula", "random", "uniform")
PLAN = SearchPlan(random_proposals=SearchPlan().proposals)


def run(data: str, config: dict[str, Any], budget: float, seed: int) -> Run:
    """Search once."""
    study = optuna.create_study(direction="maximize")
    start = time.process_time()
    search(
        study,
        data_config(data, config),
        budget=budget,
        plan=PLAN,
        seed=seed,
        **model_options(data),
    )
    return {
        "data": data,
        "half": half(data),
        "budget": budget,
        "seed": seed,
        "winner": study.best_trial.user_attrs[ORIGIN_ATTR],
        "value": study.best_value,
        "seconds": time.process_time() - start,
    }


def wins(runs: Iterable[Run]) -> dict[str, int]:
    """How often each kind of proposals won."""
    counts = Counter(each["winner"] for each in runs)
    by_price = counts.pop("values", 0)
    counts["policy"] += by_price
    return {origin: counts[origin] for origin in ORIGINS} | {"by_price": by_price}


def save(runs: list[Run], output: Path) -> None:
    """Add runs to those of earlier times."""
    add_runs(runs, output, by=("data", "budget", "seed"), name="wins", summary=wins)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_arguments(parser, [name for name in DATA if name not in JUDGED])
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    config = {"data_dir": args.data_dir}
    check_data(parser, args.data, config)
    runs: list[Run] = []
    for data in args.data:
        for budget in args.budgets:
            for seed in args.seeds:
                runs.append(run(data, config, budget, seed))
                print(json.dumps(runs[-1]), flush=True)
                save(runs, args.results / "proposals.json")
    print(json.dumps({"wins": wins(runs)}), flush=True)


if __name__ == "__main__":
    main()
