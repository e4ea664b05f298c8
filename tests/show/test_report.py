from __future__ import annotations

from html.parser import HTMLParser
import io
import json
import re

from hypothesis import given
from hypothesis import strategies as st
import optuna
import pytest
from rich.console import Console

from optuna_nis._format import memory, percent, size
from optuna_nis.controller.sampler import PolicyHistory
from optuna_nis.show.dashboard import _note
from optuna_nis.show.figures import plot_memory_vs_quality
from optuna_nis.show.report import _script_json, write_report
from optuna_nis.show.status import render, status_of
from optuna_nis.study import results as stored
from optuna_nis.study.cautions import Part, save_parts
from optuna_nis.study.keys import DATA_ATTR, MONITOR_MODE_ATTR
from optuna_nis.study.retrained import Results, save_results
from optuna_nis.study.searches import finish, join


class Page(HTMLParser):
    """What a browser would find in a report."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data):
        inside = self.tags[-1] if self.tags else ""
        if inside == "script" and self.cdata_elem:
            self.scripts.append(data)
        elif inside == "style" and self.cdata_elem:
            self.styles.append(data)
        else:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())

    @property
    def figures(self) -> list[dict]:
        return json.loads(self.scripts[1])


@pytest.fixture
def page(tmp_path, monkeypatch):
    # The real script takes long to parse and is looked at once below.
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly */")

    def write(study):
        path = write_report(study, tmp_path / "new" / "report.html")
        return Page(path.read_text(encoding="utf-8"))

    return write


def test_a_report_tells_what_was_dropped_from_what_was_trained_to_the_end(page, make_study):
    found = page(make_study(supernet=10, dropped=4, trained=2))
    names = {
        trace.get("name"): len(trace["x"]) for each in found.figures for trace in each["data"]
    }
    assert names["Trials, trained for a while (validation)"] == 4
    assert names["Trials, trained (validation)"] == 2
    # The best so far is about the latter alone.
    assert names["Best so far, trained"] == 2


def test_the_time_of_several_searches_is_told_as_that(page, make_study):
    study = make_study(supernet=10, trained=2, results=True)
    study.set_user_attr(stored.SEARCH_SECONDS_ATTR, 30.0)
    study.set_user_attr(stored.PLAIN_SECONDS_ATTR, 20.0)
    for name in ("one", "two"):
        finish(study, join(study, name, seed=0), 15.0)
    assert (
        "All 2 searches, one after the other, took 1.5 times as long as one plain training."
        in page(study).words
    )


def test_other_sizes_that_are_to_be_taken_are_told(page, make_study):
    study = make_study(supernet=10, trained=2, results=True)
    assert "Sizes to take" not in page(study).words
    known = stored.results_of(study)
    uniform = next(result for result in known if result.name == "uniform")
    save_results(study, Results(known, "Uniform is better.", "uniform"))
    full = stored.space_of(study).full_nbytes
    assert f"Sizes to take{uniform.label}, {memory(uniform.nbytes, full)}" in page(study).words


def test_report_holds_results_sizes_and_figures(page, make_study):
    study = make_study(supernet=10, trained=2, results=True)
    study.set_user_attr(stored.SEARCH_SECONDS_ATTR, 30.0)
    study.set_user_attr(stored.PLAIN_SECONDS_ATTR, 20.0)
    study.set_user_attr(
        stored.DATA_ATTR, json.dumps({"table": "/home/me/clicks.csv", "task": "ranking"})
    )
    found = page(study)
    space, best = stored.space_of(study), stored.best_allocation(study)
    for text in (
        "flights",
        "clicks.csv",
        "ranking",
        f"Budget{memory(space.budget_nbytes, space.full_nbytes)}",
        f"Sizes found{memory(best.nbytes(), space.full_nbytes)} ({best.num_parameters:,} param",
        f"number {stored.best_trial(study).number},",
        "Test ROC-AUC",
        "0.7750 ± 0.0071",
        "+3.33 %",
        "3.33 % better than uniform",
        "The search took 1.5 times as long as one plain training.",
    ):
        assert text in found.words
    assert "/home/me" not in found.words
    for table in best.values():
        assert table.name in found.words
        assert size(table.nbytes()) in found.words
    assert "Precisions" not in found.words
    assert len(found.figures) == 6
    assert found.tags.count("section") == 6
    titles = [figure["layout"]["title"]["text"] for figure in found.figures]
    assert titles[-2:] == ["Policy over the trials", "How the policy learns"]


def test_a_report_of_a_search_of_precisions(page, make_study):
    study = make_study(supernet=10, trained=3, results=True, precisions=(32, 8, 4, 2))
    found = page(study)
    assert "Precisions32, 8, 4 or 2 bits a number" in found.words
    assert re.search(r"[\d,]+ x \d in [248] bits", found.words)
    nis = stored.results_of(study)[0]
    best = stored.best_allocation(study)
    assert nis.nbytes == best.nbytes() < 4 * best.num_parameters
    share = percent(nis.nbytes / stored.space_of(study).full_nbytes)
    assert f"{size(nis.nbytes)}{share}+3.33 %" in found.words.replace(" kB ", " kB").replace(
        "bytes ", "bytes"
    )


def test_a_report_of_a_study_of_an_earlier_release(page, make_study):
    study = make_study(supernet=10, trained=2, results=True, old=True)
    assert page(study).words == page(make_study(supernet=10, trained=2, results=True)).words


def test_report_tells_the_memory_in_output_tables(page, make_study):
    study = make_study()
    assert "in output tables" not in page(study).words
    study.set_user_attr(stored.OUTPUTS_ATTR, ["f0"])
    number = stored.best_allocation(study)["f0"].num_parameters
    assert f" of them in projections, {number:,} in output tables); " in page(study).words
    study.set_user_attr(stored.OUTPUTS_ATTR, "f0")
    with pytest.raises(ValueError, match="must be a list of names"):
        page(study)


def test_report_needs_no_network(tmp_path, make_study):
    from plotly.offline import get_plotlyjs

    text = write_report(make_study(supernet=2), tmp_path / "report.html").read_text("utf-8")
    assert text.count(get_plotlyjs()) == 1
    found = Page(text)
    assert found.links == ["data:,"]
    assert len(found.scripts) == 3
    (style,) = found.styles
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_report_without_retraining_says_what_is_next(page, make_study):
    study = make_study(name="my study; rm -rf")
    found = page(study)
    assert "Nothing has been retrained yet" in found.words
    assert "does not say which data it is about" in found.words
    assert "optuna-nis retrain" not in found.words
    study.set_user_attr(DATA_ATTR, "{}")
    found = page(study)
    assert "optuna-nis retrain --study-name 'my study; rm -rf'" in found.words


def test_report_of_sizes_worse_than_uniform(page, make_study):
    study = make_study(supernet=2)
    stored.save_results(
        study,
        [
            stored.RetrainResult("nis", "NIS", "ROC-AUC", (0.6,), (0,), 10),
            stored.RetrainResult("uniform", "Uniform", "ROC-AUC", (0.8,), (0,), 10),
        ],
    )
    assert "25 % worse than uniform" in page(study).words


def test_report_of_a_single_result(page, make_study):
    study = make_study(supernet=2)
    stored.save_results(study, [stored.RetrainResult("nis", "NIS", "ROC-AUC", (0.6,), (0,), 10)])
    found = page(study)
    assert "0.6000" in found.words
    assert "than uniform" not in found.words
    assert "times as long" not in found.words


def test_report_says_what_to_mind(page, make_study):
    study = make_study(supernet=2, results=True)
    assert "What to mind" not in page(study).words
    part = Part(20, 9, "ROC-AUC", 0.5, 0.13)
    stored.save_parts(study, {"train": Part(1_600), "test": part})
    found = page(study)
    assert "1,600 (train), 20 (test)" in found.words
    assert "What to mind" in found.words
    assert "the standard error of its ROC-AUC is 0.13" in found.words
    assert found.tags.count("li") == len(stored.cautions_of(study)) == 2


def test_names_cannot_break_out(page, make_study):
    evil = '</script><script>alert("x")</script>'
    study = make_study([evil, "<b>x</b>", "'\"&"], supernet=3, name=evil, results=True)
    plain = page(make_study(3, supernet=3, results=True))
    found = page(study)
    assert found.tags == plain.tags
    assert found.words.count(evil) == 4
    assert "<b>x</b>" in found.words
    assert len(found.figures) == len(plain.figures)


def test_report_without_a_policy(page, make_study, monkeypatch):
    name = "optuna_nis.controller.sampler.policy_history"
    monkeypatch.setattr(name, lambda *_, **__: PolicyHistory())
    assert len(page(make_study()).figures) == 4


def test_report_of_an_unfinished_study(tmp_path, make_study):
    path = tmp_path / "report.html"
    with pytest.raises(ValueError, match="no finished trial"):
        write_report(make_study(supernet=0), path)
    study = optuna.create_study(direction="maximize")
    study.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(ValueError, match="holds no search space"):
        write_report(study, path)
    assert not path.exists()


def test_a_file_that_cannot_be_written_is_told_first(tmp_path, make_study):
    with pytest.raises(ValueError, match="`path` must be a file to write, got the folder"):
        write_report(make_study(), tmp_path)


def test_report_survives_odd_data_descriptions(page, make_study):
    study = make_study()
    study.set_user_attr(stored.DATA_ATTR, "no JSON")
    study.set_user_attr(stored.DATASET_ATTR, "my data")
    assert "my data" in page(study).words


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_script_json_is_json_without_markup(data):
    text = _script_json(data)
    assert json.loads(text) == data
    assert not set("<>&") & set(text)


def test_the_verdict_and_how_trainings_ended(page, make_study):
    study = make_study(supernet=2)
    nis = stored.RetrainResult(
        "nis", "NIS", "ROC-AUC", (0.6, 0.7), (0, 1), 10, epochs=(7, 30), stopped=(True, False),
        steps=(700, 3_000), decays=(1, 1), learning_rate=2e-3, train_rows=80_000,
    )  # fmt: skip
    stored.save_results(study, [nis])
    save_parts(study, {"train": Part(80_000), "search": Part(8_000)})
    words = page(study).words
    assert "700 to 3,000" in words
    assert "trained from scratch on 80,000 rows and tested" in words
    assert "80,000 (train)" in words
    assert "8,000 training rows" in words
    verdict = "The found sizes are best: validation <AUC> 0.7 against 0.6."
    stored.save_results(study, stored.Results([nis], verdict, "nis"))
    found = page(study)
    assert verdict in found.words
    ending = found.words.split("Ended by itself", 1)[1]
    assert "NIS700 to 3,0007 to 3010.0021 of 2" in ending.replace(" ", "").replace(
        "to", " to "
    ).replace("of", " of ")


def test_results_of_earlier_versions_have_no_endings(page, make_study):
    assert "Ended by itself" not in page(make_study(supernet=2, results=True)).words


def test_other_metrics(page, make_study):
    study = make_study(supernet=2, results=True)
    assert "Other metrics" not in page(study).words
    more = {"LogLoss": (0.31, 0.33), "<GAUC>": (0.7, 0.72)}
    nis = stored.RetrainResult("nis", "NIS", "ROC-AUC", (0.6, 0.7), (0, 1), 10, metrics=more)
    stored.save_results(study, [nis])
    words = page(study).words.replace(" ", "")
    assert "nothingwasdecided:MetricNISLogLoss0.3200±0.0141<GAUC>0.7100" in words


def test_smaller_values_of_a_loss_are_better_everywhere(page, make_study):
    study = make_study(trained=3)
    study.set_user_attr(stored.METRIC_ATTR, "val_loss")
    study.set_user_attr(MONITOR_MODE_ATTR, "min")
    nis = stored.RetrainResult("nis", "NIS", "test_loss", (0.4,), (0,), 1000)
    uniform = stored.RetrainResult("uniform", "Uniform 4", "test_loss", (0.5,), (0,), 1000)
    stored.save_results(study, [nis, uniform])
    text = page(study).words
    assert "The sizes found are 20 % better than uniform ones" in text
    assert "+20.00 %" in text
    best = stored.best_trial(study)
    value = -stored.quality_of(best)
    assert f"number {best.number}, val_loss {value:.4f}" in text
    assert stored.summary_of(study)["best"]["value"] == value
    assert f"Validation val_loss {value:.4f} with" in stored.score_line(study)
    assert f" {value:.4f}, " in _note(study, stored.best_allocation(study))
    figure = plot_memory_vs_quality(study)
    (shown,) = [trace for trace in figure.data if trace.name == "Best trial"]
    assert shown.y[0] == pytest.approx(value, rel=1e-4)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(status_of(study)))
    assert f"{value:.5g}" in console.export_text()


def test_a_report_replaces_pages_alone(tmp_path, make_study):
    study, path = make_study(), tmp_path / "report.html"
    for content in (b"", b"<!DOCTYPE html><p>old"):
        path.write_bytes(content)
        write_report(study, path)
        assert b"<h1" in path.read_bytes()
    path = tmp_path / "study.db"
    path.write_bytes(b"SQLite format 3\0")
    with pytest.raises(ValueError, match=r"`path` must be a new file or an HTML page .*study.db'"):
        write_report(study, path)
    assert path.read_bytes() == b"SQLite format 3\0"
