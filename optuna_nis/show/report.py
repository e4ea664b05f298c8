"""The results of a study: a table for the terminal, and a page to look at and pass on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import contextlib
import html
import json
import os
from pathlib import Path
import shlex
from string import Template
from typing import TYPE_CHECKING, Any

from optuna import Study

from optuna_nis import __version__
from optuna_nis._checks import check_file
from optuna_nis._format import memory, percent, size
from optuna_nis.show.results_table import format_table as format_table  # It was here.
from optuna_nis.show.results_table import metric_rows, result_rows, trained_on
from optuna_nis.show.words import allocation_rows, how_scored, precisions_of
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.study import results
from optuna_nis.study.moments import moments_of
from optuna_nis.study.results import RetrainResult
from optuna_nis.study.searches import searches_of

if TYPE_CHECKING:
    import plotly.graph_objects as go


def write_report(study: Study, path: str | os.PathLike[str]) -> Path:
    """Write what a study found as one HTML page, which needs no network and no other file.

    Args:
        study: A study of an embedding search, retrained or not.
        path: The file to write; its folder is created if need be.

    Returns:
        The path.

    Raises:
        ValueError: If the study holds no search space or no finished trial, or the file cannot
            be written.
        ImportError: If plotly is not installed.
    """
    check_page("path", path)
    best = results.best_trial(study)
    space = results.space_of(study)
    allocation = space.allocation(best.params)
    retrained = results.results_of(study)
    figures = _figures(study)
    from plotly.offline import get_plotlyjs

    page = _PAGE.substitute(
        title=html.escape(study.study_name),
        summary=_definitions(_summary(study, space, allocation)),
        cautions=_cautions(results.cautions_of(study)),
        results=_results_section(study, retrained),
        allocation=_table(_SIZES, allocation_rows(allocation), numbers_from=3),
        figures="\n".join(
            f'<section class="figure"><p>{html.escape(text)}</p>'
            f'<div id="figure-{index}" class="plot"></div></section>'
            for index, (text, _) in enumerate(figures)
        ),
        plotly=get_plotlyjs(),
        data=_script_json([json.loads(figure.to_json()) for _, figure in figures]),
        version=html.escape(__version__),
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8", errors="replace")
    return target


def check_page(name: str, path: str | os.PathLike[str]) -> None:
    """Check that a page can be written into a file, and that nothing but a page would be lost.

    Raises:
        ValueError: If not.
    """
    check_file(name, path)
    page = Path(path)
    if page.exists() and page.stat().st_size:
        with page.open("rb") as file:
            start = file.read(_START).lstrip().lower()
        if not start.startswith((b"<!doctype html", b"<html")):
            raise ValueError(
                f"`{name}` must be a new file or an HTML page to replace, got {str(path)!r}, "
                "which holds something else."
            )


def _figures(study: Study) -> list[tuple[str, go.Figure]]:
    from optuna_nis.show import figures as visualization
    from optuna_nis.show.figures._policy import policy_of

    found: list[tuple[str, go.Figure]] = [
        (
            "Which ids keep an embedding, how wide and how precise it is. Ids are in the order of "
            "their frequency in the training data.",
            visualization.plot_allocation(study),
        ),
        (
            "Every choice that was scored. Scores with shared weights rank choices; those that "
            "were trained are marked. Only retrained models, on test data, say how good a choice "
            "is.",
            visualization.plot_memory_vs_quality(study),
        ),
        (
            "The share of the budget that the choices proposed gave to each feature.",
            visualization.plot_feature_budget(study),
        ),
    ]
    try:
        history = policy_of(study)
    except ValueError:
        return [*found, (_REWARD_TEXT, visualization.plot_reward_history(study))]
    found += [
        (_REWARD_TEXT, visualization.plot_reward_history(study, history=history)),
        (
            "What the controller believes after so many trials.",
            visualization.plot_policy(study, history=history),
        ),
    ]
    if moments_of(study):
        found.append((_LEARNING_TEXT, visualization.plot_learning(study)))
    return found


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _summary(study: Study, space: SearchSpace, allocation: Allocation) -> list[tuple[str, str]]:
    best = results.best_trial(study)
    metric = results.metric_of(study)
    taken = results.results_of(study).best
    lines = [("Study", study.study_name), *_data(study)]
    full, used = space.full_nbytes, allocation.nbytes()
    gone = _count(sum(not table.tiers for table in allocation.values()), "feature")
    lines += [
        (
            "Full tables",
            f"{_count(len(space.specs), 'feature')}, {size(full)} in float32 "
            f"({space.full_parameters:,} parameters)",
        ),
        ("Budget", memory(space.budget_nbytes, full)),
        ("Precisions", precisions_of(space)),
        (
            "Sizes found",
            f"{memory(used, full)} ({allocation.num_parameters:,} parameters, "
            f"{results.shares_line(study, allocation)}); {gone} removed",
        ),
        (
            "Sizes to take",
            ""
            if taken is None or taken.name == "nis"
            else f"{taken.label}, {memory(taken.nbytes, full)}",
        ),
        (
            "Best trial",
            f"number {best.number}, {metric} {results.metric_value_of(study, best):.4f}, "
            f"{how_scored(study, best)}",
        ),
        ("Finished trials", f"{len(results.finished_trials(study)):,}"),
    ]
    return [(name, text) for name, text in lines if text]


def _data(study: Study) -> Iterable[tuple[str, str]]:
    attrs = study.user_attrs
    described: dict[str, Any] = {}
    with contextlib.suppress(TypeError, ValueError):
        described = dict(json.loads(attrs.get(results.DATA_ATTR, "{}")))
    table = described.get("table")
    name = attrs.get(results.DATASET_ATTR) or described.get("dataset")
    yield "Data", str(name or (Path(str(table)).name if table else ""))
    yield "Task", str(attrs.get(results.TASK_ATTR) or described.get("task") or "")
    yield "Metric", results.metric_of(study)
    parts = results.parts_of(study)
    searched = parts.pop("search", None)
    yield "Rows", ", ".join(f"{part.rows:,} ({name})" for name, part in parts.items())
    yield "Searched on", "" if searched is None else f"{searched.rows:,} training rows"


def _results_section(study: Study, found: results.Results) -> str:
    if not found:
        unknown = (
            "Nothing has been retrained yet, so what these sizes are worth is not known: scores "
            "during a search only rank choices."
        )
        if results.DATA_ATTR not in study.user_attrs:
            return f"<p>{unknown} The study does not say which data it is about.</p>"
        command = f"optuna-nis retrain --study-name {shlex.quote(study.study_name)}"
        return (
            f"<p>{unknown} Next, with the <code>--storage</code> of this study:</p>"
            f"<pre><code>{html.escape(command)}</code></pre>"
        )
    lines = []
    if (gain := results.relative_gain(found)) is not None:
        word = "better" if gain >= 0 else "worse"
        lines.append(
            f"The sizes found are {percent(abs(gain))} {word} than uniform ones (relative)."
        )
    if (ratio := results.search_cost_ratio(study)) is not None:
        ended = [each for each in searches_of(study).values() if each.seconds is not None]
        who = (
            "The search" if len(ended) < 2 else f"All {len(ended)} searches, one after the other,"
        )
        lines.append(f"{who} took {ratio:.1f} times as long as one plain training.")
    text = " ".join(lines)
    verdict = f"<p><strong>{html.escape(found.verdict)}</strong></p>\n" if found.verdict else ""
    return (
        f"{verdict}<p>Each trained from scratch{trained_on(found)} and tested once per seed, on "
        "data that neither training nor search has seen, once it was decided what to take; mean ± "
        f"standard deviation over the seeds. {text}</p>"
        + _table(*result_rows(found), numbers_from=1)
        + _more_metrics(found)
        + f"<p>Memory is that of the embeddings as they are stored: rows, their steps and "
        f"projections, not the order of the ids. {_rest(found)}</p>" + _endings(found)
    )


def _more_metrics(found: Sequence[RetrainResult]) -> str:
    header, rows = metric_rows(found)
    if not rows:
        return ""
    return "<p>Other metrics in the same tests, by which nothing was decided:</p>" + _table(
        header, rows, numbers_from=1
    )


def _endings(found: Sequence[RetrainResult]) -> str:
    """How the trainings went, a row for each result that says so."""
    rows = [
        [
            result.label,
            *(_range(each) for each in (result.steps, result.epochs, result.decays)),
            "-" if result.learning_rate is None else f"{result.learning_rate:.3g}",
            f"{result.stopped.count(True)} of {len(result.stopped)}",
        ]
        for result in found
        if result.steps
    ]
    if not rows:
        return ""
    return (
        "<p>How the trainings ended: until validation no longer improved, the learning rate being "
        "lowered from the best weights before that, or at the most epochs allowed.</p>"
        + _table(_ENDINGS, rows, numbers_from=1)
    )


def _range(numbers: Sequence[int]) -> str:
    """Numbers of several seeds."""
    low, high = min(numbers, default=0), max(numbers, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _cautions(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "\n".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<h2>What to mind</h2>\n<ul>\n{items}\n</ul>"


def _rest(found: Sequence[RetrainResult]) -> str:
    dense = sorted({result.num_dense_parameters for result in found})
    numbers = " to ".join(f"{number:,}" for number in (dense[0], dense[-1])[: len(dense)])
    seconds = sum(result.seconds for result in found)
    return (
        f"The rest of the model has {numbers} parameters. "
        f"The trainings of this table took {seconds:,.0f} seconds."
    )


def _definitions(lines: Iterable[tuple[str, str]]) -> str:
    return "\n".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>"
        for name, text in lines
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        inner = "".join(
            f"<{tag}{' class=number' if index >= numbers_from else ''}>{html.escape(cell)}</{tag}>"
            for index, cell in enumerate(cells)
        )
        return f"<tr>{inner}</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return (
        f'<div class="scroll"><table><thead>{row(header, "th")}</thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _script_json(data: object) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


# Bytes that tell a page from something else.
_START = 256
_ENDINGS = ["Sizes", "Steps", "Epochs", "Rate lowered", "Learning rate", "Ended by itself"]

_SIZES = ["Feature", "Full table", "Kept, most frequent ids first", "Memory", "Share"]

_REWARD_TEXT = (
    "How the search went: many choices scored with shared weights, then the best of them trained, "
    "which the best so far is about. Without a penalty the reward is the quality itself."
)

_LEARNING_TEXT = (
    "How the controller learns: while the entropy falls it makes up its mind; while the "
    "advantages vary there is something that its critic cannot explain."
)

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="optuna-nis $version">
<link rel="icon" href="data:,">
<title>$title - embedding sizes</title>
<style>
:root { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --tint: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171a; --ink: #e3e6ea; --soft: #9aa4af; --line: #343a41; --tint: #1e2126; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.25rem 3rem; max-width: 68rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 1rem 0 0.5rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.5rem; }
dl { margin: 0; }
dl div { display: flex; gap: 1rem; padding: 0.3rem 0; border-bottom: 1px solid var(--line); }
dt { flex: 0 0 8.5rem; color: var(--soft); }
dd { margin: 0; }
.scroll { overflow-x: auto; max-height: 36rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.94rem; }
th, td { padding: 0.35rem 0.75rem 0.35rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: normal; }
td:first-child { overflow-wrap: anywhere; min-width: 9rem; }
th { position: sticky; top: 0; background: var(--paper); color: var(--soft); font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
pre { background: var(--tint); padding: 0.75rem 1rem; overflow-x: auto; border-radius: 6px; }
.figure { margin-top: 2rem; }
.figure p { color: var(--soft); margin: 0 0 0.25rem; }
.plot { width: 100%; }
.plot :is(.xtick, .ytick, .gtitle, .xtitle, .ytitle, .x2title, .y2title, .legend, .annotation)
  text, .plot text:is(.gtitle, .xtitle, .ytitle, .x2title, .y2title, .legendtext) {
  fill: var(--soft) !important; }
footer { margin-top: 3rem; color: var(--soft); font-size: 0.85rem; }
@media print {
  :root { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --tint: #f5f7f9; }
  body { max-width: none; padding: 0; }
  .scroll { overflow: visible; max-height: none; }
  th { position: static; }
  pre { overflow: visible; white-space: pre-wrap; }
  h1, h2, .figure p { break-after: avoid; }
  tr, dl div, li, .figure { break-inside: avoid; }
}
</style>
</head>
<body>
<h1>Embedding sizes: $title</h1>
<dl>
$summary
</dl>
$cautions
<h2>Retrained</h2>
$results
<h2>Sizes found</h2>
$allocation
<h2>Figures</h2>
<noscript><p>The figures need JavaScript; the tables above do not.</p></noscript>
$figures
<footer>Written by optuna-nis $version.</footer>
<script>$plotly</script>
<script type="application/json" id="figures">$data</script>
<script>
JSON.parse(document.getElementById("figures").textContent).forEach(function (figure, index) {
  Plotly.newPlot("figure-" + index, figure.data, figure.layout,
    { responsive: true, displaylogo: false });
});
</script>
</body>
</html>
""")
