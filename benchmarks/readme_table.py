"""Write the results table of the README from ``benchmarks/results``.

python benchmarks/readme_table.py           # rewrites README.md
python benchmarks/readme_table.py --check   # fails if it is not up to date
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import sys
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
METHODS = {"nis": "**NIS**", "uniform": "uniform, same budget", "full": "full tables"}


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| data, metric on test | sizes | mean ± std | embedding parameters | gain over uniform |",
        "| --- | --- | --- | --- | --- |",
    ]
    for result in results:
        data = f"{result['dataset']}, {result['metric']}"
        for name, label in METHODS.items():
            row = result[name]
            gain = row["mean"] / result["uniform"]["mean"] - 1
            lines.append(
                f"| {data} | {label} | {row['mean']:.4f} ± {row['std']:.4f} "
                f"| {row['num_parameters']:,} | {gain:+.1%} |"
            )
    costs = ", ".join(f"{r['search_cost_ratio']:.1f} ({r['task']})" for r in results)
    seeds = results[0]["nis"]["seeds"]
    lines += [
        "",
        f"Budget {results[0]['budget_text']} of the full tables, {len(seeds)} seeds each; the "
        f"search took as long as {costs} plain trainings of the full model.",
    ]
    return "\n".join(lines)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results of ``benchmarks/main_job.py``."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("flights_*.json"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    results = read_results(ROOT / "benchmarks/results")
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    new = f"{before}{BEGIN}\n{table(results)}\n{END}{after}"
    if args.check and new != text:
        sys.exit("README.md is not up to date: run python benchmarks/readme_table.py")
    readme.write_text(new)


if __name__ == "__main__":
    main()
