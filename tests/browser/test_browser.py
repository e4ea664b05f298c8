"""What a person sees: the dashboard and the report in a real browser."""

from __future__ import annotations

from pathlib import Path

from pypdf import PdfReader
import pytest

from optuna_nis._format import size
from optuna_nis.show.dashboard import publish
from optuna_nis.show.report import write_report
from optuna_nis.study import results

# What Plotly has drawn: one item for each figure, its height and its marks.
_DRAWN = """elements => elements.map(element => ({
    id: element.id,
    card: element.getBoundingClientRect().height,
    height: element.querySelector(".main-svg").getBoundingClientRect().height,
    marks: element.querySelectorAll(".trace, .bars, .hm").length,
    title: element.querySelector(".gtitle").textContent,
    outside: [...element.querySelectorAll(".gtitle, .legend, .xtitle")].filter(part => {
        const [a, b] = [part.getBoundingClientRect(), element.getBoundingClientRect()];
        return a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1;
    }).length,
}))"""


def test_the_figures_are_in_the_dashboard(page, dashboard, study):
    page.goto(dashboard)
    ids = publish(study)
    assert len(ids) >= 5
    for name in ids:
        page.wait_for_selector(f'[id="user-defined-plot:{name}"] .main-svg')
    drawn = page.eval_on_selector_all('[id^="user-defined-plot:"]', _DRAWN)
    assert sorted(d["id"] for d in drawn) == [f"user-defined-plot:{name}" for name in ids]
    for figure in drawn:
        assert figure["marks"] > 0, figure
        assert figure["height"] <= figure["card"] == 450, figure
        assert figure["outside"] == 0, figure
        assert figure["title"], figure


def test_the_other_pages_of_the_dashboard(page, dashboard, study):
    page.goto(f"{dashboard}/note")
    page.wait_for_selector("text=Embedding sizes")
    rows = page.locator("table tr").all_inner_texts()
    best = results.best_allocation(study)
    assert len(rows) == 1 + len(best)
    for name, table in best.items():
        assert any(name in row and size(table.nbytes()) in row for row in rows)
    page.goto(f"{dashboard}/trials")
    page.wait_for_selector("text=Trial 0")
    page.goto(f"{dashboard}/analytics")
    page.wait_for_selector(".main-svg")
    page.goto(dashboard)
    page.wait_for_selector("text=reward (ROC-AUC)")


# What the dashboard's own history has drawn: names of its traces and their values.
_HISTORY = """() => [...document.querySelectorAll(".js-plotly-plot")]
    .flatMap(plot => [...(plot.data ?? [])])
    .filter(trace => / of clicks$/.test(trace.name ?? ""))
    .map(trace => [trace.name.replace(" of clicks", ""), [...trace.y]])"""


@pytest.mark.parametrize("page", ["light"], indirect=True)
def test_the_best_in_the_history_is_one_that_was_trained(page, dashboard, study):
    page.goto(dashboard)
    page.wait_for_function(f"() => ({_HISTORY})().length > 1")
    drawn = dict(page.evaluate(_HISTORY))
    trained = [trial.value for trial in study.trials if results.is_trained(trial)]
    assert set(drawn["Best Value"]) <= set(trained)
    assert drawn["Best Value"][-1] == study.best_value == max(trained)
    page.wait_for_selector(f"text=Best Trial (number={study.best_trial.number})")


@pytest.mark.parametrize("page", ["light"], indirect=True)
def test_nothing_is_best_before_anything_was_trained(page, served, make_study):
    study = make_study(supernet=30, validated=4)
    publish(study)
    with served(study) as address:
        page.goto(address)
        page.wait_for_selector('[id="user-defined-plot:nis-1-allocation"] .main-svg')
        page.get_by_text("Best Trials", exact=True).wait_for()
        assert page.get_by_text("Best Trial (").count() == 0
        page.goto(f"{address}/trials")
        page.wait_for_selector("text=Trial 0")


@pytest.mark.parametrize("page", ["light"], indirect=True)
def test_a_figure_changes_in_a_page_that_is_open(page, dashboard, study):
    page.goto(dashboard)
    plot = '[id="user-defined-plot:nis-4-reward-history"]'
    count = f"() => (document.querySelector('{plot}')?.data ?? [{{x: []}}])[0].x.length"
    page.wait_for_function(f"({count})() > 0")
    before = page.evaluate(count)
    study.add_trials([t for t in study.trials if t.user_attrs["fidelity"] == "supernet"][:3])
    publish(study)
    # The page asks the server again every few seconds.
    page.wait_for_function(f"({count})() == {before + 3}")


def test_the_report_works_offline(page, study, tmp_path: Path):
    path = write_report(study, tmp_path / "report.html")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.context.set_offline(True)
    page.goto(path.as_uri())
    page.wait_for_function(
        "[...document.querySelectorAll('div.plot')].every(plot => plot.querySelector('.main-svg'))"
    )
    drawn = page.eval_on_selector_all("div.plot", _DRAWN)
    assert len(drawn) >= 5
    assert all(figure["marks"] > 0 and figure["outside"] == 0 for figure in drawn), drawn
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0


@pytest.mark.parametrize("page", ["dark"], indirect=True)
def test_a_printed_report_holds_all_of_it(page, make_study, tmp_path: Path):
    names = [f"C{number}" for number in range(1, 27)]
    study = make_study(names, supernet=3, results=True)
    page.goto(write_report(study, tmp_path / "report.html").as_uri())
    page.wait_for_function("document.querySelectorAll('div.plot .main-svg').length > 0")
    page.pdf(path=tmp_path / "report.pdf")

    printed = " ".join(
        " ".join(sheet.extract_text().split())
        for sheet in PdfReader(tmp_path / "report.pdf").pages
    )
    for name, table in results.best_allocation(study).items():
        kept = " + ".join(f"{t.num_embeddings:,} x {t.embedding_dim}" for t in table.tiers)
        row = f"{name} {table.num_embeddings:,} x {table.embedding_dim} {kept or 'removed'}"
        assert f"{row} {size(table.nbytes())}" in printed
    for result in results.results_of(study):
        assert f"{result.label} {result.mean:.4f}" in printed
