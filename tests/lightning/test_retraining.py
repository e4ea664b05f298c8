"""A retraining: of the ids that were searched, and on from where it was interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest

from optuna_nis.data import Features
from optuna_nis.data.of_study import searched_features
from optuna_nis.lightning import (
    DataConfig,
    Predictor,
    SearchPlan,
    retrain,
    retraining,
    search,
    searching,
    trainings,
)
from optuna_nis.study.attributes import read_text
from optuna_nis.study.keys import TRAINING_KEY, VOCABULARY_ATTR
from optuna_nis.study.results import (
    DATA_ATTR,
    RESULTS_ATTR,
    best_allocation,
    finalist_allocations,
    parts_of,
    results_of,
    space_of,
    summary_of,
)
from optuna_nis.study.retrained import search_cost_ratio
from optuna_nis.study.searches import searches_of

FAST: dict[str, Any] = {
    "budget": 0.5,
    "embedding_dim": 4,
    "epochs": 1,
    "num_updates": 2,
    "plan": SearchPlan(shortlist_epochs=(1,)),
}


def _rows(num_rows: int = 400, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    user = (rng.random(num_rows) ** 2 * 20).astype(int)
    item = rng.integers(0, 8, num_rows)
    clicked = (rng.random(num_rows) < 0.15 + 0.7 * (item % 2)).astype(int)
    return pd.DataFrame({"user": user, "item": item, "clicked": clicked})


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[optuna.Study, Path]:
    path = tmp_path_factory.mktemp("table") / "log.csv"
    _rows().to_csv(path, index=False)
    study = optuna.create_study(direction="maximize", study_name="clicks")
    search(study, DataConfig(table=str(path), label="clicked", features=("user", "item")), **FAST)
    return study, path


@pytest.fixture
def table(searched: tuple[optuna.Study, Path]) -> Path:
    """The file of the table, as it was at the search."""
    _rows().to_csv(searched[1], index=False)
    return searched[1]


@pytest.fixture
def study(searched: tuple[optuna.Study, Path], table: Path) -> optuna.Study:
    """A copy of the searched study."""
    storage = optuna.storages.InMemoryStorage()
    optuna.copy_study(
        from_study_name="clicks", from_storage=searched[0]._storage, to_storage=storage
    )
    return optuna.load_study(study_name="clicks", storage=storage)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the trainings that were run, one after the other."""
    seeds: list[int] = []
    train = trainings.train

    def counted(*args: Any, **options: Any) -> Any:
        done = train(*args, **options)
        seeds.append(options["seed"])
        return done

    monkeypatch.setattr(trainings, "train", counted)
    return seeds


def _without_vocabulary(study: optuna.Study) -> optuna.Study:
    """As an earlier version left it."""
    old = optuna.create_study(direction="maximize", study_name="old")
    for key, value in study.user_attrs.items():
        if key != VOCABULARY_ATTR:
            old.set_user_attr(key, value)
    old.add_trials(study.trials)
    return old


def _is_of(features: Features, searched: Features | None) -> bool:
    """Whether a model has the ids that were searched, which may lack those without a row."""
    assert searched is not None
    known = searched.vocabularies
    return all(
        each.values == known[name].values[: len(each)]
        for name, each in features.vocabularies.items()
    )


def test_new_ids_are_unknown_and_counted(
    study: optuna.Study, table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = searched_features(study)
    new = pd.DataFrame({"user": np.repeat(range(900, 920), 5), "item": 1, "clicked": [0, 1] * 50})
    pd.concat([_rows(), new]).to_csv(table, index=False)

    results = retrain(study, seeds=[0], max_epochs=1, output=str(tmp_path))

    assert [result.name for result in results] == ["nis", "uniform", "full"]
    model = Predictor.load(tmp_path)
    assert _is_of(model.features, before)
    users = [905, 12345, 3]
    one, other, known = before.vocabularies["user"].encode(users)
    assert one == other != known
    # Whether a user matters is the search's to say.
    one, other, _ = model.predict(pd.DataFrame({"user": users, "item": 1}))
    assert one == other
    (line,) = [line for line in caplog.messages if "were not there at the search" in line]
    counted = int(line.split("'user' in ")[1].split(" of ")[0])
    config = DataConfig(table=str(table), label="clicked", features=("user", "item"))
    fresh = config.datamodule(withhold_test=True).vocabularies["user"]
    new_ids = zip(fresh.values, fresh.counts, strict=True)
    assert counted == sum(count for user, count in new_ids if int(user) >= 900) > 60  # type: ignore[call-overload]
    assert "of 400 training rows" in line
    assert any("500 rows, at the search it had 400" in line for line in caplog.messages)


def test_ids_that_are_gone_keep_their_place(
    study: optuna.Study, table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = searched_features(study)
    assert before is not None
    common = before.vocabularies["user"].values[0]
    rows = _rows()
    rows[rows["user"] != common].to_csv(table, index=False)

    retrain(study, seeds=[0], max_epochs=1, output=str(tmp_path))

    assert _is_of(Predictor.load(tmp_path).features, before)
    assert not any("were not there" in line for line in caplog.messages)


def test_the_same_table_says_nothing_of_changes(
    study: optuna.Study, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str] = []
    retrain(study, seeds=[0], max_epochs=1, progress=lines.append)
    assert "Reading " in lines[0]
    assert "400 rows: 320 for training, 40 for validation, 40 for the test" in lines[1]
    assert "user: 20 ids" in lines[1]
    assert not any("at the search" in line for line in [*lines, *caplog.messages])


def test_a_training_that_is_cut_short_is_not_what_a_search_is_compared_with(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    retrain(study, seeds=[0], max_epochs=1)
    assert search_cost_ratio(study) is None
    fit = trainings.train

    def ended(*args: Any, **options: Any) -> Any:
        return replace(fit(*args, **options), ended=True)

    monkeypatch.setattr(trainings, "train", ended)
    retrain(study, seeds=[1], max_epochs=1)
    assert (search_cost_ratio(study) or 0) > 0


@pytest.mark.parametrize("rows", ["search_rows", "max_rows"])
def test_a_sample_to_search_on_and_everything_to_retrain_on(
    table: Path, rows: str, caplog: pytest.LogCaptureFixture
) -> None:
    _rows().assign(user=np.arange(400) // 8).to_csv(table, index=False)
    study = optuna.create_study(direction="maximize", study_name=rows)
    data = DataConfig(table=str(table), label="clicked", features=("user", "item"))
    whole = data.datamodule(withhold_test=False)
    search(study, replace(data, **{rows: 100}), **FAST)
    assert parts_of(study)["train"].rows == 80
    sample = 100 if rows == "max_rows" else None
    found = searched_features(study)
    assert found is not None
    # Its own, or those of everything that will be trained on.
    assert (found == whole.features) == (sample is None)

    results = retrain(study, seeds=[0], max_epochs=1, max_rows="all" if sample else None)

    assert {result.train_rows for result in results} == {320}
    parts = {name: part.rows for name, part in parts_of(study).items()}
    assert parts == {"train": 320, "validation": 40, "test": 40, "search": 80}
    unknown = [line for line in caplog.messages if "They count as unknown: 'user' in " in line]
    assert len(unknown) == (1 if sample else 0)
    assert all("Search with `search_rows` in place of `max_rows`" in line for line in unknown)
    # That other rows are trained on is no change of the table; this is one.
    assert "parts are drawn anew" not in caplog.text
    _rows()[::-1].assign(user=np.arange(400) // 8).to_csv(table, index=False)
    retraining.read_data(study, data, withhold_test=False, progress=print)
    assert "has other rows than at the search, or in another order: parts are" in caplog.text


def test_how_many_rows_to_retrain_on(study: optuna.Study) -> None:
    with pytest.raises(ValueError, match=r'`max_rows` must be "all" or a number of rows, got \'x'):
        retrain(study, max_rows="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`max_rows` must be an integer of at least 10, got 9"):
        retrain(study, max_rows=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "group", "group": "user"}, "groups at random, and groups of the test may be"),
        ({"time": "t"}, "by time. Unless what is new is later than all that was there, rows of"),
        ({"split": "leave-one-out", "group": "user"}, "Unless what is new of a group is later"),
    ],
)
def test_what_a_test_may_share_with_the_search_where_rows_have_come(
    options: dict[str, Any], message: str, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = _rows().assign(t=range(400))
    frame.to_csv(table, index=False)
    study = optuna.create_study(direction="maximize")
    data = DataConfig(table=str(table), label="clicked", features=("user", "item"), **options)
    search(study, data, **FAST)
    pd.concat([frame, frame[:40]]).to_csv(table, index=False)
    caplog.clear()
    retraining.read_data(study, data, withhold_test=False, progress=print)
    (line,) = [each for each in caplog.messages if "drawn anew" in each]
    assert message in line
    assert "of the test may be among those that the search has trained or validated on" in line


def test_rows_in_another_order_are_other_parts(
    study: optuna.Study, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _rows()[::-1].to_csv(table, index=False)
    data = DataConfig.from_json(study.user_attrs[DATA_ATTR])

    for withhold_test in (False, True):
        retraining.read_data(study, data, withhold_test=withhold_test, progress=print)

    assert [line.split(": ")[0] for line in caplog.messages] == [
        f"{table} has other rows than at the search, or in another order"
    ]
    assert "rows of the test may be among those" in caplog.text


def test_a_later_search_goes_by_the_vocabulary_of_the_first(
    study: optuna.Study, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = read_text(study, VOCABULARY_ATTR)
    pd.concat([_rows(), _rows().assign(user=77)]).to_csv(table, index=False)
    data = DataConfig.from_json(study.user_attrs[DATA_ATTR])
    # As if no search had come to its end.
    again = optuna.create_study(direction="maximize", study_name="again")
    for key, value in study.user_attrs.items():
        if not key.startswith("nis:search:"):
            again.set_user_attr(key, value)
    for key, value in study._storage.get_study_system_attrs(study._study_id).items():
        again._storage.set_study_system_attr(again._study_id, key, value)
    again.add_trials([t for t in study.trials if t.user_attrs["fidelity"] == "supernet"])
    search(again, data, **FAST)
    assert read_text(again, VOCABULARY_ATTR) == text
    assert any("'user' in " in line for line in caplog.messages)
    assert not any("may be among those" in line for line in caplog.messages)


def test_a_study_without_vocabulary_is_refused_where_ids_changed(
    study: optuna.Study, table: Path
) -> None:
    old = _without_vocabulary(study)
    assert retrain(old, seeds=[0], max_epochs=1)[0].name == "nis"
    rows = _rows()
    for changed, sizes in (
        (pd.concat([rows, rows.assign(user=rows["user"] + 100)]), r"user 20 \(now 4\d\)"),
        (rows[rows["user"] > 2], r"user 20 \(now 17\)"),
    ):
        changed.to_csv(table, index=False)
        with pytest.raises(
            ValueError, match=f"log.csv has changed since .*: distinct ids of {sizes}"
        ):
            retrain(old, seeds=[0], max_epochs=1)


def test_the_vocabulary_is_kept_before_anything_is_trained(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "quiet_trainer", interrupted)
    study = optuna.create_study(direction="maximize")
    data = DataConfig(table=str(table), label="clicked", features=("user", "item"))
    with pytest.raises(KeyboardInterrupt):
        search(study, data, **FAST)
    found = searched_features(study)
    assert found is not None
    assert found == data.datamodule(withhold_test=True).features


def test_an_interrupted_retraining_goes_on(
    study: optuna.Study, tmp_path: Path, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"seeds": [0, 1], "max_epochs": 1}
    expected = retrain(_copy(study), output=str(tmp_path / "whole"), **options)
    total = len(trained)
    assert total >= 8
    trained.clear()
    train = trainings.train
    options["checkpoint_dir"] = tmp_path / "kept"
    # Among the contenders, then in the second seed.
    for stop in (2, 7):

        def interrupted(*args: Any, stop: int = stop, **more: Any) -> Any:
            if len(trained) == stop - 1:
                raise KeyboardInterrupt
            return train(*args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(trainings, "train", interrupted)
            with pytest.raises(KeyboardInterrupt):
                retrain(study, output=str(tmp_path / "model"), **options)
        # As soon as there is a model of the found sizes, one can predict with it.
        assert (tmp_path / "model").exists() == (stop == 7)
        assert RESULTS_ATTR not in study.user_attrs
    first = Predictor.load(tmp_path / "model")
    assert first.allocation in finalist_allocations(study).values()
    assert np.isfinite(first.predict(_rows())).all()
    lines: list[str] = []
    found = retrain(study, output=str(tmp_path / "model"), progress=lines.append, **options)

    assert len(trained) == total
    assert sum("finished before" in line for line in lines) == 6
    assert not any("trained once more" in line for line in lines)
    assert found.verdict == expected.verdict
    assert _figures(found) == _figures(expected) == _figures(results_of(study))
    one, other = (Predictor.load(tmp_path / name).predict(_rows()) for name in ("model", "whole"))
    np.testing.assert_array_equal(one, other)
    taken = found.best and found.best.allocation
    assert Predictor.load(tmp_path / "model").allocation == taken


def _copy(study: optuna.Study) -> optuna.Study:
    storage = optuna.storages.InMemoryStorage()
    optuna.copy_study(from_study_name="clicks", from_storage=study._storage, to_storage=storage)
    return optuna.load_study(study_name="clicks", storage=storage)


def _figures(results: list[Any]) -> list[dict[str, Any]]:
    """All but the times."""
    return [
        {key: value for key, value in result.to_dict().items() if key != "seconds"}
        for result in results
    ]


def test_trainings_are_not_run_twice(
    study: optuna.Study, tmp_path: Path, trained: list[int]
) -> None:
    def run(seeds: list[int], output: Path | None = None) -> list[int]:
        trained.clear()
        retrain(study, seeds=seeds, max_epochs=1, output=None if output is None else str(output))
        return list(trained)

    first = run([0])
    # Uniform, mixed and full sizes beside three finalists; the same is trained once.
    assert len(finalist_allocations(study)) == 3
    assert first == [0] * 6
    assert run([0]) == []
    more = run([0, 1])
    assert set(more) == {1}
    assert 3 <= len(more) <= 6
    # A model that is not in the folder is trained for its weights, once.
    assert run([0], tmp_path / "model") == [0]
    assert run([0], tmp_path / "model") == []
    (tmp_path / "model" / "weights.pt").unlink()
    assert run([0], tmp_path / "model") == [0]


def test_only_trainings_of_the_same_kind_are_used_again(study: optuna.Study, table: Path) -> None:
    space = space_of(study)

    def key(sizes: Any = None, seed: int = 0, batch_size: int = 64, **more: Any) -> str:
        data = DataConfig.from_json(study.user_attrs[DATA_ATTR]).datamodule(withhold_test=False)
        data.batch_size = batch_size
        settings: dict[str, Any] = {"options": {}, "max_epochs": 3, "patience": 1} | more
        options = settings.pop("options")
        known: list[trainings.Comparison] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retraining, "read_data", lambda *_, **__: data)
            patch.setattr(retraining, "compare", lambda _, how, *__: known.append(how) or [])
            retrain(study, **settings, **options)
        ran = trainings.Trainings(study, known[0], largest=0)
        return ran._key(sizes or space.full(), seed)

    assert key() == key()
    keys = {
        key(),
        key(best_allocation(study)),
        key(seed=1),
        key(batch_size=32),
        key(max_epochs=4),
        key(patience=2),
        key(options={"dropout": 0.1}),
    }
    _rows().assign(clicked=1 - _rows()["clicked"]).to_csv(table, index=False)
    assert len(keys | {key()}) == 8


def test_what_a_training_was_like_is_said(study: optuna.Study, trained: list[int]) -> None:
    lines: list[str] = []
    retrain(study, seeds=[0], max_epochs=2, patience=1, progress=lines.append)
    assert lines[2] == "6 sizes to train from scratch with seed 0."
    assert "NIS, finalist 1, seed 0: " in lines[3]
    assert "left for 5 trainings" in lines[4]
    nis = results_of(study)[0]
    assert (nis.epochs, nis.steps, nis.decays, nis.stopped) == ((2,), (10,), (0,), (False,))
    assert nis.learning_rate == 5e-3
    assert f"validation ROC-AUC {nis.val_values[0]:.4f} in epoch " in lines[4]
    assert " of 2, 10 steps, " in lines[4]
    assert "left" not in lines[-1]
    assert set(parts_of(study)) == {"train", "validation", "test"}
    assert parts_of(study)["test"].rows == 40


def test_trainings_cut_short_and_small_parts_are_told(
    study: optuna.Study, caplog: pytest.LogCaptureFixture
) -> None:
    retrain(study, seeds=[0], max_epochs=1)
    cut = "ended at the most epochs allowed, 1, and not by themselves: NIS (1 of 1)"
    small = "The validation part is small, 40 rows"
    for told in (caplog.messages, summary_of(study)["warnings"]):
        assert any(cut in line for line in told)
        assert any(small in line for line in told)


def test_a_model_that_has_not_learned_is_told(
    table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(1)
    _rows().assign(clicked=rng.integers(0, 2, 400)).to_csv(table, index=False)
    study = optuna.create_study(direction="maximize")
    data = DataConfig(table=str(table), label="clicked", features=("user", "item"))
    search(study, data, **FAST)
    assert any("Nothing shows that the model has learned" in line for line in caplog.messages)


def test_options_that_a_finished_search_ignores_are_told(
    study: optuna.Study, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataConfig.from_json(study.user_attrs[DATA_ATTR])
    search(study, data, **FAST)
    assert not any("ignored" in line for line in caplog.messages)
    search(study, data, **(FAST | {"epochs": 8}), seed=3)
    (line,) = [line for line in caplog.messages if "ignored" in line]
    assert "with seed 0 (now 3), epochs 1 (now 8)" in line
    assert "another study name" in line
    assert len(searches_of(study)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [0, 0]}, r"`seeds` must hold each seed once, got \[0, 0\]"),
        ({"seeds": [-1]}, "`seeds` must be an integer between 0 and "),
        ({"max_epochs": 0}, "`max_epochs` must be an integer of at least 1, got 0"),
        ({"patience": 0}, "`patience` must be an integer of at least 1, got 0"),
        ({"output": __file__}, "`output` must be a folder to write, got the file"),
    ],
)
def test_bad_options_are_told_before_the_data_are_read(
    study: optuna.Study, options: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining, "read_data", None)
    with pytest.raises(ValueError, match=message):
        retrain(study, **options)


def test_what_others_wrote_in_place_of_a_training_is_refused(study: optuna.Study) -> None:
    retrain(study, seeds=[0], max_epochs=1)
    for key in study._storage.get_study_system_attrs(study._study_id):
        if key.startswith(TRAINING_KEY):
            study._storage.set_study_system_attr(study._study_id, key, {"value": 1})
    with pytest.raises(ValueError, match=r"must hold what a training came to, got .*value"):
        retrain(study, seeds=[0], max_epochs=1)
