from __future__ import annotations

from collections.abc import Iterator
import importlib
import json
import math
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import optuna
import plotly.graph_objects as go
import pytest

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis._format import memory, size
from optuna_nis.controller.sampler import NISSampler, PolicyHistory, policy_history
from optuna_nis.show import figures as vis
from optuna_nis.show.figures._allocation import _allocation_info
from optuna_nis.show.figures._feature_budget import _feature_budget_info
from optuna_nis.show.figures._memory_quality import _memory_quality_info, _pareto_front
from optuna_nis.show.figures._points import Point, points_of
from optuna_nis.show.figures._policy import _draw_sizes, _policy_info, _sizes, policy_of
from optuna_nis.show.figures._reward_history import _reward_history_info
from optuna_nis.study import results as stored
from optuna_nis.study.moments import moments_of

PLOTS = [getattr(vis, name) for name in vis.__all__]


def strings(data: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts of a figure with the name of the field that they are in."""
    if isinstance(data, str):
        yield key, data
    elif isinstance(data, dict):
        for name, value in data.items():
            yield from strings(value, name)
    elif isinstance(data, list):
        for value in data:
            yield from strings(value, key)


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize(
    "options",
    [
        {"features": 1, "supernet": 1},
        {
            "features": 3,
            "supernet": 30,
            "validated": 4,
            "dropped": 3,
            "trained": 3,
            "results": True,
        },
        {"features": 3, "supernet": 30, "mode": "single", "excess": 1.5},
        {"features": 2, "supernet": 0, "trained": 3},
        {"features": 3, "supernet": 30, "trained": 2, "precisions": (32, 8, 2), "results": True},
        {"features": 3, "supernet": 30, "precisions": (4, 2), "mode": "single"},
    ],
)
def test_figures_are_valid(plot, options, make_study):
    figure = plot(make_study(**options))
    assert isinstance(figure, go.Figure)
    data = json.loads(figure.to_json())
    assert data["data"]
    assert data["layout"]["title"]["text"]


@pytest.mark.parametrize("plot", PLOTS)
def test_figures_of_many_features_stay_small(plot, make_study):
    study = make_study(200, supernet=6, mode="single")
    assert len(plot(study).to_json()) < 1_000_000


@pytest.mark.parametrize(
    "plot", [vis.plot_memory_vs_quality, vis.plot_reward_history, vis.plot_feature_budget]
)
def test_figures_of_many_trials_stay_small(plot, make_study, monkeypatch):
    study = make_study(1, supernet=1)
    monkeypatch.setattr(stored, "finished_trials", lambda _: study.trials * 6_000)
    empty = PolicyHistory()
    monkeypatch.setattr("optuna_nis.controller.sampler.policy_history", lambda *_, **__: empty)
    assert len(plot(study).to_json()) < 1_000_000


@pytest.mark.parametrize("plot", PLOTS)
def test_study_without_trials(plot, make_study):
    with pytest.raises(ValueError, match="no finished trial"):
        plot(make_study(supernet=0))


@pytest.mark.parametrize(
    "plot", [p for p in PLOTS if p not in (vis.plot_policy, vis.plot_learning)]
)
def test_study_of_something_else(plot):
    study = optuna.create_study(direction="maximize")
    study.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(ValueError, match="holds no search space"):
        plot(study)


@pytest.mark.parametrize("plot", PLOTS)
def test_names_are_shown_literally(plot, make_study):
    names = ["<b>bold</b>", "</script><script>x", "%{y}", "a&amp;b"]
    study = make_study(names, supernet=5, trained=2)
    stored.save_results(
        study, [stored.RetrainResult("x", "<i>%{y}</i>", "<u>AUC", (0.7,), (0,), 10_000_000)]
    )
    study.set_user_attr(stored.METRIC_ATTR, "<u>AUC")
    texts = list(strings(json.loads(plot(study).to_json())))
    for key, text in texts:
        for raw in ("<b>bold", "<script", "<u>", "<i>", "a&amp;b"):
            assert raw not in text.replace("a&amp;amp;b", "")
        if key == "hovertemplate":
            assert "%{y}</i>" not in text
    if plot in (vis.plot_allocation, vis.plot_feature_budget):
        assert any(text == "&lt;b&gt;bold&lt;/b&gt;" for _, text in texts)


def test_learning_is_drawn_from_what_was_noted():
    study = optuna.create_study(direction="maximize", sampler=NISSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_int("x", 0, 3), n_trials=30)
    entropy, mean, std, lag = vis.plot_learning(study).data
    moments = moments_of(study)
    assert list(entropy.x) == list(lag.x) == [8, 16, 24]
    assert entropy.y == pytest.approx([moment.entropy for moment in moments], rel=1e-4)
    assert mean.y == pytest.approx([moment.advantage_mean for moment in moments], rel=1e-4)
    assert std.y == pytest.approx([moment.advantage_std for moment in moments], rel=1e-4)
    assert list(lag.y) == [1, 1, 1]


def test_plotly_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.delitem(sys.modules, "optuna_nis.show.figures")
    with pytest.raises(ImportError, match=r"pip install 'optuna-nis\[viz\]'"):
        importlib.import_module("optuna_nis.show.figures")


def test_figures_have_no_background(make_study):
    template = vis.plot_allocation(make_study()).layout.template.layout
    assert template.paper_bgcolor == template.plot_bgcolor == "rgba(0, 0, 0, 0)"


ALLOCATION = Allocation(
    [
        TableAllocation("small", 10, 8, ()),
        TableAllocation("large", 100, 8, (Tier(20, 8), Tier(30, 2))),
        TableAllocation("whole", 5, 8, (Tier(5, 8),)),
    ]
)


def test_allocation_info():
    info = _allocation_info(ALLOCATION)
    assert [feature.name for feature in info.features] == ["large", "whole", "small"]
    assert info.nbytes == 4 * (20 * 8 + 30 * 2 + 8 * 8 + 40)
    assert info.full_nbytes == 4 * 115 * 8
    assert info.budget_nbytes is None
    large, whole, small = info.features
    assert [tuple(s) for s in large.segments] == [
        (0, 20, 8, 32, 4 * (160 + 64)),
        (20, 50, 2, 32, 4 * 60),
        (50, 100, 0, 0, 0),
    ]
    assert [s.width for s in whole.segments] == [8]
    assert [tuple(s) for s in small.segments] == [(0, 10, 0, 0, 0)]
    assert large.share == pytest.approx(284 / 324)


def test_allocation_bars_cover_every_row_once():
    removed, kept = vis.plot_allocation(ALLOCATION).data[:2]
    for feature in range(3):
        length = sum(x for bars in (removed, kept) for x, y in zip(bars.x, bars.y) if y == feature)
        assert length == pytest.approx(100)
    assert list(kept.text) == ["8", "2", "8"]
    assert list(kept.marker.pattern.shape) == ["", "", ""]


def test_allocation_shows_bits_beside_widths():
    tiers = (Tier(20, 8), Tier(30, 5, 4), Tier(40, 5, 2))
    allocation = Allocation([TableAllocation("user", 100, 8, tiers)])
    (feature,) = _allocation_info(allocation).features
    # The first rows that need the projection are codes, so it is in float16; the first tier pays.
    paid = [tiers[0].nbytes + 8 * 8 * 2, tiers[1].nbytes, tiers[2].nbytes, 0]
    assert [s.nbytes for s in feature.segments] == paid
    # Rows begin at whole bytes.
    assert 30 * 3 < paid[1] < 30 * 3 + 20
    assert feature.nbytes == allocation.nbytes() == sum(s.nbytes for s in feature.segments)
    figure = vis.plot_allocation(allocation)
    kept = figure.data[1]
    assert list(kept.text) == ["8", "5 x 4 bit", "5 x 2 bit"]
    shapes = list(kept.marker.pattern.shape)
    assert shapes[0] == ""
    assert len(set(shapes)) == 3
    legend = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert legend == ["Removed", "4 bit", "2 bit"]
    hovers = [details[3:] for details in kept.customdata]
    assert hovers[0] == ["width 8 of 8", "768 bytes"]
    assert hovers[1] == ["width 5 of 8 in 4 bits", size(paid[1])]
    assert memory(sum(paid), 100 * 8 * 4) in figure.layout.title.text


def test_allocation_of_nothing_but_removed_features():
    allocation = Allocation([TableAllocation("x", 10, 8, ())])
    info = _allocation_info(allocation)
    assert info.features[0].share == 0.0
    assert "0 bytes, 0 % of" in vis.plot_allocation(allocation).layout.title.text


def test_allocation_of_a_study_is_the_best_one(make_study):
    study = make_study()
    info = _allocation_info(study)
    assert info.nbytes == stored.best_allocation(study).nbytes()
    assert info.budget_nbytes == stored.space_of(study).budget_nbytes


def point(number: int, cost: int, quality: float) -> Point:
    return Point(number, quality, quality, 0.0, cost, "supernet", None, 0.0)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=30))
def test_pareto_front_is_what_nothing_dominates(pairs):
    points = [point(i, cost, quality) for i, (cost, quality) in enumerate(pairs)]
    front = {(p.nbytes, p.quality) for p in _pareto_front(points)}
    expected = {
        (c, q)
        for c, q in pairs
        if not any(d <= c and r >= q and (d, r) != (c, q) for d, r in pairs)
    }
    assert front == expected


def test_memory_quality_info_keeps_kinds_apart(make_study):
    study = make_study(supernet=20, validated=5, dropped=4, trained=3, results=True)
    info = _memory_quality_info(study)
    assert {kind: len(points) for kind, points in info.points.items()} == {
        "supernet": 20,
        "validated": 5,
        "dropped": 4,
        "trained": 3,
    }
    assert info.best.number == stored.best_trial(study).number
    assert [result.name for result in info.results] == ["nis", "uniform", "full"]
    space = stored.space_of(study)
    assert (info.budget_nbytes, info.full_nbytes) == (space.budget_nbytes, space.full_nbytes)


def test_memory_quality_keeps_the_front_of_a_long_study(make_study, monkeypatch):
    monkeypatch.setattr("optuna_nis.show.figures._memory_quality._MAX_POINTS", 5)
    study = make_study(supernet=200)
    info = _memory_quality_info(study)
    shown = {p.number for p in info.points["supernet"]}
    assert shown >= {p.number for p in info.fronts["supernet"]} | {info.best.number}
    assert len(shown) < 40
    every = [point for points in info.points.values() for point in points]
    assert set(_pareto_front(every)) == set(info.fronts["supernet"])


def test_memory_quality_names_both_metrics(make_study):
    study = make_study(supernet=5, results=True)
    assert vis.plot_memory_vs_quality(study).layout.yaxis.title.text == "ROC-AUC"
    study.set_user_attr(stored.METRIC_ATTR, "MRR")
    title = vis.plot_memory_vs_quality(study).layout.yaxis.title.text
    assert title == "MRR of trials, ROC-AUC of results"


def test_memory_quality_says_what_is_test_and_what_validation(make_study):
    study = make_study(supernet=5, dropped=2, trained=2, results=True)
    space, figure = stored.space_of(study), vis.plot_memory_vs_quality(study)
    names = [trace.name for trace in figure.data]
    assert "Trials, trained (validation)" in names
    assert "Trials, trained for a while (validation)" in names
    assert "NIS, retrained (test ROC-AUC, 2 seeds)" in names
    assert "Full, retrained (test ROC-AUC, 1 seed)" in names
    nis = next(trace for trace in figure.data if trace.name.startswith("NIS"))
    assert nis.y[0] == pytest.approx(0.775)
    assert nis.error_y.array[0] == pytest.approx(0.0070711)
    full = next(trace for trace in figure.data if trace.name.startswith("Full, retrained"))
    assert full.error_y.array is None  # How far one seed may be off is unknown.
    assert full.customdata[0][1:] == [
        f"{size(space.full_nbytes)}, 100 % of the full tables",
        "0.7600",
    ]
    assert full.x[0] == space.full_nbytes
    assert figure.layout.xaxis.title.text == "Memory of the embeddings"
    assert "10 kB" in figure.layout.xaxis.ticktext
    (line,) = figure.layout.shapes
    (text,) = figure.layout.annotations
    assert line.x0 == line.x1 == pytest.approx(10**text.x) == space.budget_nbytes
    assert text.text == f"budget {size(space.budget_nbytes)}"


def test_a_model_without_embeddings_has_a_place_on_the_axis(make_study):
    study = make_study(1, supernet=2)
    space = stored.space_of(study)
    nothing = dict.fromkeys(space.distributions(), 0)
    study.add_trial(
        optuna.create_trial(params=nothing, distributions=space.distributions(), value=0.5)
    )
    figure = vis.plot_memory_vs_quality(study)
    xs = [x for trace in figure.data for x in trace.x]
    assert min(xs) > 0
    assert all(math.isfinite(x) for x in xs)


def test_trials_of_other_programs(make_study):
    study = make_study(2, supernet=3)
    space = stored.space_of(study)
    full = space.params(space.full())
    study.add_trial(
        optuna.create_trial(params=full, distributions=space.distributions(), value=0.9)
    )
    study.add_trial(optuna.create_trial(value=0.95))
    info = _memory_quality_info(study)
    (other,) = info.points[None]
    assert (other.quality, other.nbytes) == (0.9, space.full_nbytes)
    assert info.best.number in {p.number for p in info.points["supernet"]}
    assert len(_feature_budget_info(study).trial_numbers) == 4


@pytest.mark.parametrize("precisions", [(32,), (32, 4, 2)])
def test_points_are_at_the_bytes_of_their_choices(make_study, precisions):
    study = make_study(supernet=20, precisions=precisions)
    space = stored.space_of(study)
    expected = [space.allocation(trial.params).nbytes() for trial in study.trials]
    assert [p.nbytes for p in points_of(study, space)] == expected
    old = make_study(supernet=20, precisions=precisions, old=True)
    assert points_of(old, space) == points_of(study, space)
    shares = _reward_history_info(old, None).mean_share
    np.testing.assert_allclose(shares, np.array(expected) / space.full_nbytes)


def test_reward_history_info(make_study):
    study = make_study(supernet=30, validated=3, dropped=2, trained=2, excess=1.5)
    info = _reward_history_info(study, None)
    values = [trial.value for trial in study.trials[:30]]
    assert [p.reward for p in info.points] == values
    trained = [trial.value for trial in study.trials[35:]]
    assert info.best_kind == "trained"
    assert info.best == tuple(zip((35, 36), np.maximum.accumulate(trained)))
    assert info.window == 2
    assert info.mean_reward[-1] == pytest.approx(np.mean(values[-2:]))
    assert {p.fidelity for p in info.others} == {"validated", "dropped", "trained"}
    assert len(info.others) == 7
    assert info.budget_share == pytest.approx(0.25, abs=0.001)
    assert len(info.entropy) == 37
    titles = [a.text for a in vis.plot_reward_history(study).layout.annotations]
    assert [title.split()[0] for title in titles] == ["Reward", "Memory", "Penalty", "Entropy"]


def test_reward_history_says_which_trials_are_which(make_study):
    study = make_study(supernet=9)
    assert _reward_history_info(study, None).best_kind == "supernet"
    best = [(p.number, p.reward) for p in _reward_history_info(study, None).points]
    assert _reward_history_info(study, None).best[-1][1] == max(reward for _, reward in best)
    legend = [t.name for t in vis.plot_reward_history(study).data if t.showlegend is not False]
    assert {"Reward, shared weights", "Best so far, shared weights"} <= set(legend)
    study.add_trials(make_study(supernet=0, trained=2).trials)
    legend = [t.name for t in vis.plot_reward_history(study).data if t.showlegend is not False]
    assert {"Reward, shared weights", "Reward, trained", "Best so far, trained"} <= set(legend)


def test_reward_history_says_what_groups_were_compared_by(make_study):
    study = make_study(supernet=2)
    (title, *_) = vis.plot_reward_history(study).layout.annotations
    assert title.text == "Reward (ROC-AUC, validation)"
    trial = study.trials[0]
    trial.user_attrs["reference"] = -0.0125
    study.add_trial(trial)
    figure = vis.plot_reward_history(study)
    assert figure.layout.annotations[0].text == "Reward (ROC-AUC, as on all validation data)"
    hovers = [details[2] for details in figure.data[0].customdata]
    assert ["-0.0125 for its examples" in text for text in hovers] == [False, False, True]


def test_reward_history_takes_a_history(make_study):
    history = PolicyHistory([3, 1, 5], {"x": (1,)}, {"x": np.ones((3, 1))}, [3.0, 2.0, 1.0])
    info = _reward_history_info(make_study(), history)
    assert info.entropy == ((3, 3.0), (3, 2.0), (5, 1.0))


def test_reward_history_without_a_policy(make_study, monkeypatch):
    name = "optuna_nis.controller.sampler.policy_history"
    monkeypatch.setattr(name, lambda *_, **__: PolicyHistory())
    figure = vis.plot_reward_history(make_study())
    assert [a.text.split()[0] for a in figure.layout.annotations] == ["Reward", "Memory"]


def test_policy_info_is_the_replayed_policy(make_study):
    study = make_study(2, supernet=20)
    space = stored.space_of(study)
    info = _policy_info(policy_of(study))
    expected = policy_history(study, space)
    assert list(info.trial_numbers) == expected.trial_numbers
    assert [parameter.name for parameter in info.parameters] == list(space.distributions())
    for parameter in info.parameters:
        np.testing.assert_allclose(parameter.probabilities.sum(axis=1), 1.0)
        widths = np.array([float(option) for option in parameter.options])
        np.testing.assert_allclose(parameter.summary, parameter.probabilities @ widths / 8)
    assert info.num_left_out == 0


def test_policy_menu_shows_the_options_of_one_parameter(make_study):
    study = make_study(["few", "many"], supernet=10, mode="single")
    figure = vis.plot_policy(study)
    heatmap, *areas = figure.data
    (menu,) = figure.layout.updatemenus
    assert [button.label for button in menu.buttons] == list(
        stored.space_of(study).distributions()
    )
    assert len(heatmap.z) == 2
    for button in menu.buttons:
        update, traces = button.args
        assert list(traces) == list(range(1, len(areas) + 1))
        lines = [y for y, shown in zip(update["y"], update["visible"]) if shown]
        np.testing.assert_allclose(np.sum(lines, axis=0), 100, atol=0.5)
    first = menu.buttons[0].args[0]
    assert [trace.name for trace in areas] == list(first["name"])


def test_policy_of_many_parameters_shows_those_that_changed(monkeypatch):
    changes = {"a": 0.1, "b": 0.0, "c": 0.3}
    history = PolicyHistory(
        [0, 2, 1],
        dict.fromkeys(changes, (1, 2)),
        {n: np.array([[0.5, 0.5], [0.5, 0.5], [0.5 + c, 0.5 - c]]) for n, c in changes.items()},
        [1.0, 1.0, 0.9],
    )
    info = _policy_info(history, max_parameters=2)
    assert [parameter.name for parameter in info.parameters] == ["a", "c"]
    assert info.num_left_out == 1
    # Trial 1 finished after trial 2: what is drawn is the last moment of either.
    assert info.trial_numbers == (0, 2)
    assert info.parameters[1].probabilities[-1].tolist() == [0.8, 0.2]
    assert len(_draw_sizes(info).data[0].y) == 2
    monkeypatch.setattr("optuna_nis.show.figures._policy._MAX_PARAMETERS", 2)
    title = vis.plot_policy(optuna.create_study(), history=history).layout.title.text
    assert "1 left out" in title


@pytest.mark.parametrize("largest", [np.inf, np.nan, 10**400, True])
def test_a_policy_over_what_are_no_sizes(largest):
    study = optuna.create_study()
    history = PolicyHistory(
        [0, 1], {"x": (1, largest)}, {"x": np.array([[0.5, 0.5], [0.2, 0.8]])}, [1.0, 0.9]
    )
    info = _policy_info(history)
    assert info.measure == "Probability of the likeliest choice, %"
    assert info.parameters[0].summary.tolist() == [0.5, 0.8]
    assert vis.plot_policy(study, history=history).data[0].z[0][-1] == 80


def test_a_policy_of_many_options_has_no_legend(make_study):
    assert vis.plot_policy(make_study(2)).layout.showlegend
    study = make_study(2, precisions=(32, 16, 8, 4, 2))
    assert max(map(len, stored.space_of(study).choices.values())) == 41
    figure = vis.plot_policy(study)
    assert not figure.layout.showlegend
    assert figure.data[-1].name == "8x32bit"


def test_policy_of_any_search_space():
    study = optuna.create_study(sampler=NISSampler(seed=0), direction="minimize")
    study.optimize(
        lambda trial: (
            trial.suggest_int("n", 1, 3)
            + (trial.suggest_categorical("pool", ["sum", "mean"]) == "sum")
        ),
        n_trials=15,
    )
    info = _policy_info(policy_of(study))
    assert {p.name: p.options for p in info.parameters} == {
        "n": ("1", "2", "3"),
        "pool": ("sum", "mean"),
    }
    assert info.measure.startswith("Probability")
    for parameter in info.parameters:
        np.testing.assert_allclose(parameter.summary, parameter.probabilities.max(axis=1))
    assert len(vis.plot_policy(study).data) == 4


def test_policy_of_a_parameter_with_one_option():
    history = PolicyHistory([0], {"x": (0,)}, {"x": np.ones((1, 1))}, [0.0])
    (_, area) = vis.plot_policy(optuna.create_study(), history=history).data
    assert (area.name, list(area.y)) == ("0", [100])


@pytest.mark.parametrize(
    ("choices", "sizes"),
    [
        ((0, 1, 4), [0, 0.25, 1]),
        (("0x0", "10x2", "20x4"), [0, 0.25, 1]),
        (("0", "1x8bit", "4x4bit", "8x8bit"), [0, 0.125, 0.25, 1]),
        (("0x0", "10x2x4bit", "10x4x8bit"), [0, 0.25, 1]),
        (("1", "2"), None),
        ((0,), None),
        ((-1, 2), None),
        ((True, False), None),
        (("sum", "mean"), None),
        ((None, 1), None),
    ],
)
def test_sizes_of_choices(choices, sizes):
    found = _sizes(choices)
    assert (None if found is None else found.tolist()) == sizes


def test_feature_budget_adds_up_to_the_memory(make_study):
    study = make_study(3, supernet=15, trained=2)
    info = _feature_budget_info(study)
    assert info.trial_numbers == tuple(range(15))
    assert info.other is None
    total = np.sum(list(info.features.values()), axis=0)
    costs = [trial.user_attrs["nbytes"] / info.budget_nbytes for trial in study.trials[:15]]
    np.testing.assert_allclose(total, costs)
    sums = [sum(values) for values in info.features.values()]
    assert sums == sorted(sums, reverse=True)


def test_feature_budget_puts_small_features_together(make_study):
    study = make_study(25, supernet=4)
    info = _feature_budget_info(study)
    assert len(info.features) == 10
    assert info.num_other == 15
    total = np.sum([*info.features.values(), info.other], axis=0)
    costs = [trial.user_attrs["nbytes"] / info.budget_nbytes for trial in study.trials]
    np.testing.assert_allclose(total, costs)
    names = [trace.name for trace in vis.plot_feature_budget(study).data]
    assert names[-2:] == ["15 other features", "Budget"]


def test_feature_budget_of_foreign_trials_only(make_study):
    study = make_study(supernet=0)
    study.add_trial(optuna.create_trial(value=0.5))
    with pytest.raises(ValueError, match="no finished trial of its search space"):
        vis.plot_feature_budget(study)


def test_bars_are_as_thick_as_a_row_whatever_was_removed():
    tables = [TableAllocation(f"f{i}", 100, 8, (Tier(100, 8),)) for i in range(9)]
    tables += [TableAllocation("gone", 100, 8, ())]
    figure = vis.plot_allocation(Allocation(tables))
    assert all(trace.width == 0.75 for trace in figure.data)


@pytest.mark.parametrize("plot", [vis.plot_allocation, vis.plot_feature_budget])
def test_features_with_long_names_are_told_apart(plot, make_study):
    names = [f"feature_{'a' * 40}_{number}_{'b' * 30}" for number in (1, 2)]
    figure = plot(make_study(names, supernet=20, trained=1))
    shown = {text for _, text in strings(json.loads(figure.to_json())) if "…" in text}
    assert any(text.endswith(" (1)") for text in shown)
    assert any(text.endswith(" (2)") for text in shown)
