"""Figures and tables of the page "Is it worth it?", from ``benchmarks/results``.

Results come in over days, one data set and one method after the other: whatever is there is shown,
and what is missing is said to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import readme_table

from optuna_nis._format import percent, size
from optuna_nis.show.figures import _style

Cell = Mapping[str, Any]

# What the search finds: with bits, or in float32 where that has not been measured.
NIS = ("nis_bits", "nis_me")
DATA = {
    "flights-ranking": "Flights, ranking",
    "flights-retrieval": "Flights, retrieval",
    "movielens-1m": "MovieLens-1M, ranking, all features",
    "movielens-1m-user-item": "MovieLens-1M, ranking, user and movie",
    "movielens-small": "MovieLens small, retrieval",
    "amazon-video-games": "Amazon Video Games, retrieval",
    "amazon-video-games-sasrec": "Amazon Video Games, retrieval, SASRec",
    "movielens-1m-dcn": "MovieLens-1M, ranking, DCN",
    "insteval": "Ratings of lectures",
    "complete_journey": "Lines of receipts",
    "citeulike_a": "Articles in libraries",
    "seattle_pets": "Names of pets",
}
# Label, colour and symbol, in the order of the tables.
METHODS = {
    "nis_bits": ("NIS, widths and bits", _style.VERMILION, "star"),
    "nis_me": ("NIS, float32", "#b8420a", "star-triangle-up"),
    "nis_retrained": ("NIS, float32, as `retrain` decides", "#b8420a", "star-open-dot"),
    "nis_se": ("NIS, single-size", _style.ORANGE, "star-diamond"),
    "full": ("full tables", _style.PINK, "circle"),
    "uniform": ("uniform", _style.BLUE, "square"),
    "grid": ("best of widths x rows", _style.SKY, "diamond"),
    "rule_of_thumb": ("rule of thumb", "#999933", "cross"),
    "mde": ("mixed dimensions", _style.GREEN, "triangle-up"),
    "hand_made": ("by hand, multi-size", "#6f62c4", "pentagon"),
    "pruning": ("pruning, indices counted", "#AA4499", "x"),
    "random": ("random search", _style.GREY, "triangle-down"),
    "tpe": ("TPE", "#117733", "hexagon"),
    "random_20": ("random search, 20 trainings", _style.GREY, "triangle-down-open"),
    "tpe_20": ("TPE, 20 trainings", "#117733", "hexagon-open"),
    "full_rounded": ("full tables, rounded", _style.PINK, "circle-x"),
    "full_pq": ("full tables, product-quantised", _style.PINK, "circle-cross"),
    "uniform_rounded": ("uniform, rounded", _style.BLUE, "square-x"),
    "uniform_pq": ("uniform, product-quantised", _style.BLUE, "square-cross"),
    "uniform_lsq": ("uniform, learned step", _style.BLUE, "diamond-tall"),
    "nis_rounded": ("NIS in float32, rounded", _style.ORANGE, "star-square"),
    "hashing": ("hashing", "#88CCAA", "hexagram"),
    "quotient_remainder": ("quotient and remainder", "#88CCAA", "hexagram-open"),
    "mpe": ("MPE", "#332288", "arrow-up"),
    "pep": ("PEP", "#332288", "arrow-down"),
    "optembed": ("OptEmbed", "#332288", "arrow-right"),
    "nis_tuned": ("NIS, float32, model tuned", _style.VERMILION, "star-open"),
    "full_tuned": ("full tables, model tuned", _style.PINK, "circle-open"),
    "uniform_tuned": ("uniform, model tuned", _style.BLUE, "square-open"),
    "full_one_out": ("full tables, features left out", _style.PINK, "circle-dot"),
    "uniform_one_out": ("uniform, features left out", _style.BLUE, "square-dot"),
}
# Not rivals at the same memory; those that may take many trainings have no mean of two sizes.
_APART = (*NIS, "nis_retrained", "nis_se", "full")
_FULL = ("full", "full_tuned", "full_one_out")
_PENDING = "*Not measured yet.*"
# Of ``benchmarks/without.py``.
_PARTS = {
    "nothing": "**nothing: the whole search**",
    "shortlist": "the shortlist's trainings",
    "smaller_budgets": "choices for smaller budgets",
    "prices": "prices of blocks by gradients of the loss",
    "doubt": "proposals without what is in doubt",
    "critic": "the additive model of the rewards",
    "updates": "updates of the controller, but for one",
    "proposals": "more than one proposal for a budget",
    "popularity": "sizes by popularity",
    "frequent_ids": "the most frequent ids only",
    "simpler": "the best choice without what its quality does not show",
    "memory_price": "the price of memory among choices alike good",
    "keep_simple": "places in the shortlist for the best formula and uniform sizes",
    "from_scratch": "rounds of the shortlist from scratch",
    "trained_first": "a supernet that is trained before the controller learns",
    "shared_batches": "batches shared among choices",
    "choices_near_budget": "random choices close to the budget",
    "choices_of_any_cost": "random choices of any cost",
    "wide_start": "the wide start of the policy",
    "widths_between": "widths between the powers of two",
}
# Of ``benchmarks/planted_tables.py``.
_KINDS = {
    "noise": "A feature of many ids that say nothing is removed.",
    "decisive": "A feature whose ids are alike frequent, and decide, keeps its rows.",
    "tails": "Rare ids keep rows where they say something, and have none where they do not.",
    "drift": "Items that are frequent only lately keep rows, the week itself has none.",
    "duplicates": "Of a feature that comes twice one has nearly all of the memory.",
    "rare": "Of rare positives, the feature that says which keeps its rows, another goes.",
    "two_stage": "Where interactions are learned late, sizes are as good as any rival's.",
}
OBJECTIVES = {
    "flights": "flights, a short training",
    "nk1": "NK landscape, one neighbour",
    "nk2": "NK landscape, two neighbours",
}
SAMPLERS = {
    "nis": "**NISSampler**",
    "tpe": "TPE",
    "tpe_multivariate": "TPE, multivariate",
    "random": "random",
    "nsgaii": "NSGA-II",
}


def write(results: Path, folder: Path) -> None:
    """Write the tables and figures of the page as ``quality_summary.md`` and so on."""
    cells = read_cells(results / "search_quality.json")
    # Until searches have been compared with all rivals there is the comparison of the README.
    short = summary(cells) or _of_readme(results)
    pages = {
        "quality_summary": short,
        "quality": sections(cells),
        "fewest_bytes": fewest_bytes(_read(results / "fewest_bytes.json")),
        "costs": costs(results),
        "planted": planted(_read(results / "planted.json").get("kinds", {})),
        "ablation": ablation(read_cells(results / "ablation.json")),
        "sample_efficiency": sample_efficiency(_read(results / "sample_efficiency.json")),
    }
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")


def read_cells(path: Path) -> list[Cell]:
    """The cells of a result of ``benchmarks/search_quality.py``; none if there is no file."""
    return json.loads(path.read_text())["cells"] if path.exists() else []


def summary(cells: Sequence[Cell]) -> str:
    """A line for each data set and budget: NIS, the best rival, the full tables.

    Empty without a result of NIS.
    """
    rows = []
    for data, own in _by(cells, "data", DATA).items():
        for budget, at in _by(own, "budget", ()).items():
            methods = {cell["method"]: cell for cell in at}
            nis = next((methods[name] for name in NIS if name in methods), None)
            if nis is None:
                continue
            rivals = [
                cell
                for name, cell in methods.items()
                if name not in _APART and cell["mean_at_equal_compute"] is not None
            ]
            best = max(rivals, key=lambda cell: cell["mean"], default=None)
            equal = max(rivals, key=lambda cell: cell["mean_at_equal_compute"], default=None)
            rows.append(
                [
                    f"{DATA.get(data, data)}, {nis['metric']}",
                    _percent(budget),
                    f"{_value(nis)}, {_share(nis)}",
                    "-" if best is None else f"{_value(best)}, {label(best['method'])}",
                    _gain(nis, best),
                    "-"
                    if equal is None
                    else f"{equal['mean_at_equal_compute']:.4f}, {label(equal['method'])}",
                    _gain(nis, methods.get("uniform")),
                    _gain(nis, methods.get("full")),
                    f"{nis['search_cost_ratio']:.1f}",
                ]
            )
    if not rows:
        return ""
    header = ["data", "budget", "NIS, memory", "best rival", "gain", "best with two sizes"]
    header += ["uniform", "full", "cost"]
    note = (
        "Metric on test, mean ± standard deviation over the seeds; the share of the full tables "
        "that NIS uses; its gain over the best rival; the best rival, on average, if each may try "
        "two sizes only, which costs about as much as the search; the gain over uniform sizes and "
        "over the full tables; what the search costs, in plain trainings of the full tables."
    )
    return f"{_table(header, rows)}\n\n{note}"


def fewest_bytes(result: Mapping[str, Any]) -> str:
    """For each data set the fewest bytes without loss: of NIS, of the best rival, of all."""
    rows = []
    for data, about in result.get("summary", {}).items():
        shares = {name: share for name, share in about["shares"].items() if share is not None}
        rivals = sorted((share, name) for name, share in shares.items() if name not in _APART)
        nis = shares.get(NIS[0])
        best = "-" if not rivals else f"{_percent(rivals[0][0])}, {label(rivals[0][1])}"
        others = [f"{label(name)} {_percent(share)}" for share, name in rivals[1:]]
        never = [label(name) for name in about["shares"] if name not in shares]
        others += [f"never: {', '.join(never)}"] if never else []
        own = "-" if nis is None else f"**{_percent(nis)}**"
        rows.append([DATA.get(data, data), f"{about['full']:.4f}", own, best, "; ".join(others)])
    header = ["data", "full tables", "NIS", "best rival", "others"]
    return _table(header, rows) if rows else _PENDING


def sections(cells: Sequence[Cell]) -> str:
    """A section for each data set: its figure and its table."""
    parts = []
    for data, own in _by(cells, "data", DATA).items():
        plot = figure(own).to_html(
            full_html=False, include_plotlyjs=False, include_mathjax=False, div_id=f"plot-{data}"
        )
        parts.append(f"### {DATA.get(data, data)}\n\n```{{raw}} html\n{plot}\n```\n\n{table(own)}")
    return "\n\n".join(parts) or _PENDING


def figure(cells: Sequence[Cell]) -> go.Figure:
    """Quality on test against memory used, of one data set; a line for each method."""
    drawn = go.Figure()
    for method, own in _by(cells, "method", METHODS).items():
        # The full tables are the same under every budget.
        own = own[:1] if method == "full" else own
        text, color, symbol = METHODS.get(method, (method, _style.GREY, "circle-open"))
        own = sorted(own, key=_nbytes)
        nis = method in NIS
        drawn.add_scatter(
            x=[max(_nbytes(cell), 1) for cell in own],
            y=_style.compact(cell["mean"] for cell in own),
            error_y={
                "type": "data",
                "array": _style.compact(cell["std"] for cell in own),
                "thickness": 1.2,
                "width": 4,
            },
            mode="lines+markers",
            name=text,
            line={"color": color, "width": 3 if nis else 1},
            marker={"symbol": symbol, "size": 13 if nis else 8, "color": color},
            customdata=[
                [
                    percent(cell["budget"]),
                    f"{cell['mean']:.4f} ± {cell['std']:.4f}",
                    size(_nbytes(cell)),
                ]
                for cell in own
            ],
            hovertemplate=f"<b>{text}</b>, budget %{{customdata[0]}}<br>"
            f"{cells[0]['metric']} %{{customdata[1]}}<br>%{{customdata[2]}}<extra></extra>",
        )
    places = [max(_nbytes(cell), 1) for cell in cells]
    tickvals, ticktext = _style.byte_ticks(min(places), max(places))
    return _style.style(
        drawn,
        "Quality on test against memory",
        430 + 24 * ((len(drawn.data) + 2) // 3),
        xaxis={
            "title": {"text": "Memory of the embeddings"},
            "type": "log",
            "tickvals": tickvals,
            "ticktext": ticktext,
        },
        yaxis={"title": {"text": f"{cells[0]['metric']} (test)"}},
        legend={"y": -0.2},
    )


def table(cells: Sequence[Cell]) -> str:
    """All methods under all budgets, of one data set."""
    budgets = sorted({cell["budget"] for cell in cells})
    best = {
        budget: max(
            (c for c in cells if c["budget"] == budget and c["method"] not in _FULL),
            key=lambda cell: cell["mean"],
            default=None,
        )
        for budget in budgets
    }
    rows = []
    for method, own in _by(cells, "method", METHODS).items():
        at = {cell["budget"]: cell for cell in own}
        if method == "full":
            at = dict.fromkeys(budgets, own[0])
        row = [label(method)]
        for budget in budgets:
            if budget not in at:
                row.append("-")
                continue
            text = _value(at[budget])
            text = f"**{text}**" if at[budget] is best[budget] else text
            row.append(f"{text}, {_size(at[budget])}")
        ratios = sorted(cell["search_cost_ratio"] for cell in own)
        low, high = f"{ratios[0]:.1f}", f"{ratios[-1]:.1f}"
        rows.append([*row, low if low == high else f"{low} to {high}"])
    seeds = sorted({len(cell["seeds"]) for cell in cells})
    count = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    header = ["sizes", *(f"budget {_percent(b)}" for b in budgets), "cost"]
    note = (
        f"{cells[0]['metric']} on test, mean ± standard deviation (seeds: {count}), and memory of "
        "the embeddings. In bold the highest mean within a budget. Cost: to find the sizes, in "
        "plain trainings of the full tables."
    )
    return f"{_table(header, rows)}\n\n{note}"


def ablation(cells: Sequence[Cell]) -> str:
    """The search without each of its parts: a line for each, a column for each data and budget."""
    places = list(dict.fromkeys((cell["data"], cell["budget"]) for cell in cells))
    rows = []
    for method, own in _by(cells, "method", _PARTS).items():
        at = {(cell["data"], cell["budget"]): cell for cell in own}
        texts = [
            f"{_value(at[place])}, cost {at[place]['search_cost_ratio']:.1f}"
            if place in at
            else "-"
            for place in places
        ]
        rows.append([_PARTS.get(method, method), *texts])
    if not rows:
        return _PENDING
    header = [f"{DATA.get(data, data)}, {_percent(budget)}" for data, budget in places]
    return _table(["without", *header], rows)


def planted(kinds: Mapping[str, Any]) -> str:
    """What was planted, and in how many seeds it was found."""
    rows = [
        [_KINDS.get(kind, kind), f"{counts['found']} of {counts['seeds']}"]
        for kind, counts in kinds.items()
    ]
    return _table(["what is to be found", "found"], rows) if rows else _PENDING


def sample_efficiency(medians: Mapping[str, Any]) -> str:
    """The best value after so many trials, a line for each objective and sampler."""
    rows = []
    for objective, samplers in medians.items():
        for sampler, after in samplers.items():
            name = SAMPLERS.get(sampler, sampler)
            values = (f"{value:.4f}" for value in after.values())
            rows.append([OBJECTIVES.get(objective, objective), name, *values])
    if not rows:
        return _PENDING
    counts = next(iter(next(iter(medians.values())).values()))
    return _table(["objective", "sampler", *(f"{n} trials" for n in counts)], rows)


def costs(results: Path) -> str:
    """What searching and serving cost, from whichever results there are."""
    lines = []
    for path in sorted(results.glob("flights_*.json")):
        job = json.loads(path.read_text())
        lines.append(
            f"- The search on flights, {job['task']}, takes as long as "
            f"{job['search_cost_ratio']:.1f} plain trainings."
        )
    sampler = _read(results / "sampler_overhead.json")
    if "milliseconds_at_10000" in sampler:
        times = sampler["milliseconds_at_10000"]
        lines.append(
            f"- After 10,000 trials of 40 parameters `NISSampler` takes {times['nis']:.1f} ms per "
            f"trial, random sampling {times['random']:.1f} and TPE {times['tpe']:.0f}."
        )
    layers = _read(results / "embedding_layers.json")
    for key, text in _LAYERS.items():
        if key in layers:
            lines.append(f"- {text.format(f'{layers[key]:.2g}')}")
    log = _read(results / "click_log.json")
    lines += [f"- {text.format(**log)}" for key, text in _CLICK_LOG.items() if key in log]
    return "\n".join(lines) or _PENDING


_CLICK_LOG = {
    "prepare_peak_gib": "A click log of 45 million rows, 26 columns of ids and 13 of numbers, is "
    "read and encoded with at most {prepare_peak_gib:.1f} GiB of memory, in "
    "{prepare_vs_engine:.1f} times the processor's time of a bare count of its distinct ids; 10 "
    "million rows take {growth_10m_vs_1m:.1f} times as long as one million.",
    "step_ratio_30m_vs_1m": "A training step with 30 million rows in the tables takes "
    "{step_ratio_30m_vs_1m:.2f} times as long as one with a million.",
    "search_peak_gib": "A search and a retraining on 10 million of its rows hold at most "
    "{search_peak_gib:.1f} GiB; the search costs {search_cost_ratio:.1f} trainings of the full "
    "tables. At a budget of 10 % it finds {nbytes[nis]:,} bytes with a ROC-AUC of "
    "{metric[nis]:.4f} on test; the full tables, {nbytes[full]:,} bytes, have {metric[full]:.4f}, "
    "who knows what made the clicks {best_auc:.4f}.",
}

_LAYERS = {
    "multisize_vs_dense": "A training step through a multi-size table of a million ids takes {} "
    "times as long as one through `nn.Embedding` at full width.",
    "multisize_vs_sparse": "The same with sparse gradients: {} times as long.",
    "bag_vs_bag": "Bags of 20 ids, sparse gradients: {} times as long.",
    "supernet_step_vs_plain": "A training step of the supernet, which serves two choices, takes "
    "{} times as long as a plain one.",
}


def _of_readme(results: Path) -> str:
    found = readme_table.read_results(results)
    return readme_table.table(found) if found else _PENDING


def label(method: str) -> str:
    """A method in words; bold for NIS."""
    text = METHODS[method][0] if method in METHODS else method
    return f"**{text}**" if method in NIS else text


def _by(cells: Iterable[Cell], key: str, order: Iterable[Any]) -> dict[Any, list[Cell]]:
    """Cells by what they have under a key, known keys first and in order."""
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell[key], []).append(cell)
    known = [name for name in order if name in groups]
    return {name: groups[name] for name in [*known, *sorted(set(groups) - set(known))]}


def _percent(share: float) -> str:
    return percent(share).replace(" ", "\N{NO-BREAK SPACE}")


def _value(cell: Cell) -> str:
    """Without a line break inside."""
    return f"{cell['mean']:.4f} ± {cell['std']:.4f}".replace(" ", "\N{NO-BREAK SPACE}")


def _nbytes(cell: Cell) -> int:
    """Bytes of the embeddings, which were float32 before their bytes were kept."""
    return int(cell.get("nbytes", 4 * cell["num_parameters"]))


def _size(cell: Cell) -> str:
    return size(_nbytes(cell)).replace(" ", "\N{NO-BREAK SPACE}")


def _share(cell: Cell) -> str:
    return _percent(cell["budget"] * _nbytes(cell) / (4 * cell["budget_parameters"]))


def _gain(cell: Cell, over: Cell | None) -> str:
    return "-" if over is None else f"{cell['mean'] / over['mean'] - 1:+.2%}"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
