"""Write the tables of README and docs from ``benchmarks/results``.

python benchmarks/readme_table.py           # rewrites them
python benchmarks/readme_table.py --check   # fails if one is not up to date
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import sys
from typing import Any

from optuna_nis._format import percent, size

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
METHODS = {"nis": "**NIS**", "uniform": "uniform, same budget", "full": "full tables"}


def table(results: list[dict[str, Any]]) -> str:
    """What the sizes found are worth."""
    lines = [
        "| data, metric on test | sizes | mean ± std | embeddings | gain over uniform |",
        "| --- | --- | --- | --- | --- |",
    ]
    for result in results:
        data = f"{result['dataset']}, {result['metric']}"
        for name, label in METHODS.items():
            row = result[name]
            gain = row["mean"] / result["uniform"]["mean"] - 1
            spread = "" if row["std"] is None else f" ± {row['std']:.4f}"
            used, full = (nbytes(result[each]) for each in (name, "full"))
            lines.append(
                f"| {data} | {label} | {row['mean']:.4f}{spread} "
                f"| {size(used)}, {percent(used / full)} | {gain:+.1%} |"
            )
    costs = ", ".join(f"{r['search_cost_ratio']:.1f} ({r['task']})" for r in results)
    seeds = results[0]["nis"]["seeds"]
    lines += [
        "",
        f"Budget {results[0]['budget_text']} of the full tables, {len(seeds)} seeds each; the "
        f"search took as long as {costs} plain trainings of the full model.",
    ]
    return "\n".join(lines)


def nbytes(row: dict[str, Any]) -> int:
    """Bytes of embeddings, which were float32 before their bytes were kept."""
    return int(row.get("nbytes", 4 * row["num_parameters"]))


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results of ``benchmarks/main_job.py``."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("flights_*.json"))]


def speed() -> str:
    """What the layers cost in time and memory."""
    layers: dict[str, Any] = json.loads((RESULTS / "embedding_layers.json").read_text())
    large: dict[str, Any] = json.loads((RESULTS / "large_table.json").read_text())
    lines = ["| what | against | times as long |", "| --- | --- | --- |"]
    for key, what, against in LAYERS:
        lines.append(f"| {what} | {against} | {layers[key]:.2f} |")
    rows, small_rows = large["rows"]
    lines += [
        f"| step of a search, {rows:,} rows | {small_rows:,} rows "
        f"| {large['step_ratio_10m_vs_1m']:.2f} |",
        "",
        f"The search over {rows:,} x {large['embedding_dim']} in {large['blocks']} blocks, with "
        f"{large['updates']} updates of the controller, held at most {large['peak_gib']:.1f} GiB; "
        f"the table itself takes {large['table_gib']:.1f} GiB.",
    ]
    return "\n".join(lines)


LAYERS = (
    ("multisize_vs_sparse", "`MultiSizeEmbedding`, sparse gradients", "`nn.Embedding`, sparse"),
    ("multisize_step_vs_sparse_step", "the same, with the optimiser's step", "the same"),
    ("multisize_vs_dense", "`MultiSizeEmbedding`, dense gradients", "`nn.Embedding`, dense"),
    ("bag_vs_bag", "`MultiSizeEmbeddingBag`, bags of 20", "`nn.EmbeddingBag`, sparse"),
    ("supernet_step_vs_plain", "training step of the flights supernet", "full tables"),
)
BLOCKS = {
    "README.md": ("results", lambda: table(read_results(RESULTS))),
    "docs/how_it_works.md": ("speed", speed),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for name, (block, write) in BLOCKS.items():
        text = (ROOT / name).read_text()
        begin, end = f"<!-- {block}: begin -->", f"<!-- {block}: end -->"
        before, rest = text.split(begin)
        after = rest.split(end)[1]
        new = f"{before}{begin}\n{write()}\n{end}{after}"
        if args.check and new != text:
            sys.exit(f"{name} is not up to date: run python benchmarks/readme_table.py")
        (ROOT / name).write_text(new)


if __name__ == "__main__":
    main()
