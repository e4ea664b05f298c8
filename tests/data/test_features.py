from __future__ import annotations

from datetime import date, time, timedelta
from decimal import Decimal
import json
from typing import Any
from uuid import UUID
import warnings

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch

from optuna_nis import EmbeddingSpec
from optuna_nis.data import UNSEEN_TARGET, Features, Vocabulary
from optuna_nis.data.bags import BagKeep
from optuna_nis.data.tally import Tally
from optuna_nis.space.spec import replace_precisions

FRAME = pd.DataFrame(
    {
        "user": [7, 7, 8, 9],
        "city": ["Rome", None, "Oslo", "Rome"],
        "genres": ["Drama|War", "War", None, "War | Noir||"],
    }
)


def fitted(**options: object) -> Features:
    return Features.fit(FRAME, task="ranking", separators={"genres": "|"}, **options)


def test_encode_gives_one_tensor_per_feature() -> None:
    batch = fitted().encode(FRAME.assign(other=1))

    assert list(batch) == ["user", "city", "genres"]
    assert batch["user"].tolist() == [0, 0, 1, 2]
    assert batch["city"].tolist() == [0, 2, 1, 0]
    assert batch["genres"].tolist() == [[1, 0], [0, 3], [3, 3], [0, 2]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_unknown_and_missing_values_are_out_of_vocabulary() -> None:
    features = fitted()

    batch = features.encode(
        pd.DataFrame({"user": [1, None], "city": ["Lima", None], "genres": ["Lima|War", None]})
    )

    assert batch["user"].tolist() == [3, 3]
    assert batch["city"].tolist() == [2, 2]
    assert batch["genres"].tolist() == [[3, 0], [3, 3]]


def test_no_rows_are_encoded() -> None:
    batch = fitted().encode(FRAME.iloc[:0])

    assert {name: tuple(each.shape) for name, each in batch.items()} == {
        "user": (0,),
        "city": (0,),
        "genres": (0, 1),
    }


def test_all_missing_columns_are_encoded() -> None:
    new = pd.DataFrame({"user": [np.nan], "city": [np.nan], "genres": [np.nan]})

    assert [each.reshape(-1).tolist() for each in fitted().encode(new).values()] == [[3], [2], [3]]


def test_bags_of_lists_of_any_type() -> None:
    frame = pd.DataFrame({"seen": [[1, 2], (2,), np.array([2, 3]), [], None]})
    features = Features.fit(frame, task="ranking", separators={"seen": None})

    assert features.vocabularies["seen"].values == (2, 1, 3)
    assert features.encode(frame)["seen"].tolist() == [[1, 0], [0, 3], [0, 2], [3, 3], [3, 3]]


@pytest.mark.parametrize(
    ("seen", "new"),
    [
        ([[1, 2], [30]], [["1", "2"], ["30"]]),
        ([[1.5, 2.0], [30.0]], [["1.5", "2"], ["30.0"]]),
        ([[1, 0], [1]], [["true", "False"], ["1"]]),
        ([[True, False], [True]], [["1", "0"], ["true"]]),
    ],
)
def test_texts_in_lists_are_the_numbers_that_they_spell(seen: list[Any], new: list[Any]) -> None:
    frame = pd.DataFrame({"seen": seen})
    features = Features.fit(frame, task="ranking", separators={"seen": None})
    found = features.encode(pd.DataFrame({"seen": new}))["seen"]
    assert torch.equal(found, features.encode(frame)["seen"])


@pytest.mark.parametrize("separator", ["|", None])
@pytest.mark.parametrize(
    ("texts", "lists"),
    [
        (["1|2", "2|30|2"], [[1, 2], [2, 30, 2]]),
        (["1|2", "2|30|2"], [np.array([1.0, 2]), [np.int64(2), np.float32(30), 2]]),
        (["1.5|2", "2"], [[1.5, 2.0], [Decimal(2)]]),
        (["2013-01-01|2013-01-02"], [np.array(["2013-01-01", "2013-01-02"], "datetime64[ns]")]),
    ],
)
def test_numbers_and_times_in_lists_are_the_texts_of_bags(
    separator: str | None, texts: list[str], lists: list[Any]
) -> None:
    bags = [text.split("|") if separator is None else text for text in texts]
    frame = pd.DataFrame({"seen": pd.Series([*bags, None], dtype=object)})
    features = Features.fit(frame, task="ranking", separators={"seen": separator})
    new = pd.DataFrame({"seen": pd.Series([*lists, [None]], dtype=object)})

    tally = Tally()
    (batch,) = features.encode_batches(new, 10, tally=tally)

    assert batch["seen"].tolist() == features.encode(frame)["seen"].tolist()
    assert tally.unknown["seen"] == 0
    assert torch.equal(features.encode(new)["seen"], batch["seen"])


def test_bags_of_dates_in_arrays() -> None:
    days = np.array(["2013-01-01", "2013-01-02"], dtype="datetime64[ns]")
    frame = pd.DataFrame({"days": [days, days[:1]]})

    features = Features.fit(frame, task="ranking", separators={"days": None})

    assert features.vocabularies["days"].values[0] == pd.Timestamp("2013-01-01")


@pytest.mark.parametrize(
    ("items", "missing"),
    [
        (["a", "b"], None),
        (["a", "b"], ""),
        ([1.5, 2.5], np.float32(np.nan)),
        ([1, 2], pd.NA),
        ([pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-02")], pd.NaT),
    ],
)
@pytest.mark.parametrize("keep", ["last", "first"])
def test_what_is_missing_in_a_bag_is_no_item(
    items: list[Any], missing: Any, keep: BagKeep
) -> None:
    one, other = items
    bags: list[Any] = [[missing, one, missing, other, missing], [one], [missing], np.array(items)]
    if missing is pd.NaT:
        # As pandas reads lists of times from Parquet.
        bags[0] = pd.Series(bags[0]).to_numpy("datetime64[ns]")
    frame = pd.DataFrame({"seen": pd.Series(bags, dtype=object)})
    features = Features.fit(
        frame, task="ranking", separators={"seen": None}, max_bag_length=2, bag_keep=keep
    )

    assert features.encode(frame)["seen"].tolist() == [[0, 1], [0, 2], [2, 2], [0, 1]]


@pytest.mark.parametrize(
    ("keep", "ids", "values"),
    [
        ("first", [[1], [0], [2], [0]], ("War", "Drama")),
        ("last", [[0], [0], [2], [1]], ("War", "Noir")),
    ],
)
def test_bags_are_cut(keep: str, ids: list[list[int]], values: tuple[str, ...]) -> None:
    features = fitted(max_bag_length=1, bag_keep=keep)

    assert features.encode(FRAME)["genres"].tolist() == ids
    assert features.vocabularies["genres"].values == values


def test_bags_keep_the_latest() -> None:
    frame = pd.DataFrame({"seen": ["a|b|c", "d", "d|c"], "list": [[1, 2, 3], [4], [4, 3]]})
    features = Features.fit(
        frame, task="ranking", separators={"seen": "|", "list": None}, max_bag_length=2
    )

    batch = features.encode(frame)

    for name, kept in (("seen", ["b", "c", "d", None, "d", "c"]), ("list", [2, 3, 4, None, 4, 3])):
        assert features.vocabularies[name].decode(batch[name].flatten().tolist()) == kept


def test_features_of_version_1_kept_the_first_values() -> None:
    features = fitted(max_bag_length=1, bag_keep="first")
    old = features.to_dict() | {"version": 1}
    del old["bag_keep"], old["na_values"]

    again = Features.from_json(json.dumps(old))

    assert again == features
    assert again.encode(FRAME)["genres"].tolist() == [[1], [0], [2], [0]]


def test_an_id_of_another_kind_among_known_ones_is_unknown() -> None:
    when = pd.Timestamp("2024-01-31")
    features = Features.fit(
        pd.DataFrame(
            {
                "number": [11, 12, 13],
                "yes": [True, False, True],
                "time": [when, when, pd.Timestamp("2024-02-01 10:00")],
                "day": [date(2024, 1, 31), date(2024, 1, 31), date(2024, 2, 1)],
                "decimal": [Decimal("1.10"), Decimal("1.10"), Decimal("2")],
            }
        ),
        task="ranking",
    )
    new = pd.DataFrame(
        {
            "number": ["11", "guest", "12.0"],
            "yes": ["true", "guest", "False"],
            "time": ["2024-01-31", "guest", "2024-02-01T10:00:00"],
            "day": ["2024-01-31", "guest", "2024-02-01"],
            "decimal": ["1.1", "guest", "2.00"],
        }
    )

    assert [ids.tolist() for ids in features.encode(new).values()] == [
        *([0, 3, 1], [0, 2, 1], [0, 2, 1], [0, 2, 1], [0, 2, 1])
    ]
    mixed = pd.DataFrame({"number": [11, "guest", 12.0]}).assign(**new[["yes", "time"]])
    assert features.encode(new.assign(**mixed))["number"].tolist() == [0, 3, 1]
    midnights = new.assign(day=pd.to_datetime(["2024-01-31", None, "2024-02-01"]))
    assert features.encode(midnights)["day"].tolist() == [0, 2, 1]


def test_batches_are_those_of_the_whole_frame() -> None:
    features = fitted()
    new = pd.DataFrame({"user": ["7", "8", "guest"], "city": ["Oslo", "Rome", None], "genres": ""})

    batches = list(features.encode_batches(new, 1))

    assert [batch["user"].item() for batch in batches] == [0, 1, 3]
    for name, ids in features.encode(new).items():
        assert torch.equal(torch.cat([batch[name] for batch in batches]), ids)
    with pytest.raises(ValueError, match="'user' must be of the type seen in training"):
        next(features.encode_batches(new.assign(user="guest"), 1))


def test_batches_of_lists_are_those_of_the_whole_frame() -> None:
    frame = pd.DataFrame({"seen": [[1, 2], [2]]})
    features = Features.fit(frame, task="ranking", separators={"seen": None})
    new = pd.DataFrame({"seen": [["guest"], ["2", 1], ["1"], [], None]})

    batches = list(features.encode_batches(new, 1))

    assert [batch["seen"].tolist() for batch in batches] == [[[2]], [[0, 1]], [[1]], [[2]], [[2]]]
    with pytest.raises(
        ValueError, match=r"'seen' must be of the type .* got text such as 'guest'"
    ):
        next(features.encode_batches(new.iloc[:1], 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["Lima"] * 3, "'user' .* numbers such as 7, got text such as 'Lima'"),
        ([date(2024, 1, 1)] * 3, "'user' .* numbers such as 7, got times"),
        ([b"7"] * 3, "'user' .* numbers such as 7, got bytes"),
    ],
)
def test_a_whole_column_of_another_kind_is_refused(values: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted().encode(FRAME.iloc[:3].assign(user=values))


def test_cut_features_forget_ids_but_those_of_bags() -> None:
    features = fitted()

    cut = features.cut({"user": 1, "city": 0, "genres": 0})

    assert cut.vocabularies["user"].values == (7,)
    assert cut.vocabularies["city"].values == ("Rome",)
    assert cut.vocabularies["genres"] == features.vocabularies["genres"]
    assert cut.encode(FRAME)["user"].tolist() == [0, 0, 1, 1]
    assert Features.from_json(cut.to_json()) == cut


def test_continuous_columns_are_refused() -> None:
    values = np.random.default_rng(0).normal(size=200)
    options = {"task": "ranking", "separators": {"bag": None}}
    others = pd.DataFrame({"id": range(200), "bag": [[1]] * 199 + [[2]]})

    for frame in (others.assign(x=values), others.assign(bag=[[value] for value in values])):
        with pytest.raises(
            ValueError,
            match=r"'(x|bag)' is continuous: its 200 values .*`--numeric (x|bag)`, or",
        ):
            Features.fit(frame, **options)
    decimals = [Decimal(each) / 7 for each in range(200)]
    with pytest.raises(ValueError, match="'x' is continuous"):
        Features.fit(others.assign(x=decimals), **options)
    few = others.assign(x=values.round(1), whole=np.arange(200.0))
    assert len(Features.fit(few, **options).vocabularies["whole"]) == 200


def test_markers_are_no_values_of_bags() -> None:
    frame = pd.DataFrame({"a": ["x|NA", "y", "NA"], "b": [[1, -1], [2], [-1]]})

    features = Features.fit(
        frame, task="ranking", separators={"a": "|", "b": None}, na_values=["NA", "-1"]
    )

    assert features.vocabularies["a"].values == ("x", "y")
    assert features.vocabularies["b"].values == (1, 2)
    assert features.encode(frame)["b"].tolist() == [[0], [1], [2]]


@pytest.mark.parametrize(("keep", "kept"), [("last", [8, 9]), ("first", [7, 8])])
def test_bags_are_cut_without_markers(keep: BagKeep, kept: list[int]) -> None:
    lists = [[-1, 7, -1.0, 8, 9, -1], [-1, 7]]
    frame = pd.DataFrame({"list": lists, "text": ["NA|7|-1|8|9|NA", "-1|7"]})

    features = Features.fit(
        frame,
        task="ranking",
        separators={"list": None, "text": "|"},
        max_bag_length=2,
        bag_keep=keep,
        na_values=["-1", "NA"],
    )

    ids = features.encode(frame)
    for name, kind in (("list", int), ("text", str)):
        decode = features.vocabularies[name].decode
        assert decode(ids[name][0].tolist()) == [*map(kind, kept)]
        assert decode(ids[name][1].tolist()) == [kind(7), None]


@pytest.mark.parametrize(
    ("marker", "cells", "new", "ids"),
    [
        # Yes and no are none, as NumPy has them too.
        ("1", [[True, False], [True]], [np.array([True, False]), [True]], [[0, 1], [0, 2]]),
        (
            "2020-01-01",
            [[date(2021, 1, 1), date(2020, 1, 1)], [date(2022, 1, 1)]],
            [[date(2021, 1, 1), pd.Timestamp("2020-01-01"), date(2020, 1, 1)]],
            [[0]],
        ),
        # However new rows spell them.
        ("-1", [[1, -1], [2]], [["2", "-1.0", " -1"], [-1.0]], [[1], [2]]),
        ("-1", [["5", "-1"], ["7"]], [[7, -1, -1]], [[1]]),
    ],
)
def test_markers_of_every_kind_are_no_items(
    marker: str, cells: Any, new: Any, ids: list[list[int]]
) -> None:
    features = Features.fit(
        pd.DataFrame({"x": cells}),
        task="ranking",
        separators={"x": None},
        max_bag_length=2,
        na_values=[marker],
    )

    assert features.encode(pd.DataFrame({"x": pd.Series(new)}))["x"].tolist() == ids


def test_bags_read_as_numbers_are_text() -> None:
    frame = pd.DataFrame({"seen": ["1|2", "2", "3"]})
    features = Features.fit(frame, task="ranking", separators={"seen": "|"})

    ids = features.encode(pd.DataFrame({"seen": [1.0, 2.0, 3.0, 2.5, None]}))["seen"]

    assert ids.reshape(-1).tolist() == [1, 0, 2, 3, 3]


def test_max_vocabulary() -> None:
    features = fitted(max_vocabulary=1)

    assert {name: each.values for name, each in features.vocabularies.items()} == {
        "user": (7,),
        "city": ("Rome",),
        "genres": ("War",),
    }


def test_embedding_specs() -> None:
    specs = fitted().embedding_specs(8)

    assert [(spec.name, spec.num_embeddings, spec.embedding_dim) for spec in specs] == [
        ("user", 3, 8),
        ("city", 2, 8),
        ("genres", 3, 8),
    ]
    assert {spec.precisions for spec in specs} == {(32,)}
    packed = fitted().embedding_specs(8, (2, 8))
    assert {spec.precisions for spec in packed} == {(8, 2)}
    assert [replace_precisions(spec, (32,)) for spec in packed] == specs


def test_properties() -> None:
    features = fitted()

    assert features.names == ("user", "city", "genres")
    assert features.bags == {"genres"}
    assert features.text == {"city", "genres"}


def test_targets() -> None:
    features = Features.fit(FRAME[["user"]], task="retrieval", targets=pd.Series(list("abbb")))

    assert features.num_classes == 2
    labels = features.encode_targets(pd.Series(["a", "b", "z"]))
    assert labels.tolist() == [1, 0, UNSEEN_TARGET]
    loss = torch.nn.functional.cross_entropy(torch.zeros(3, 2), labels)
    assert loss.item() == pytest.approx(np.log(2))


def test_counts_of_targets_fall_in_the_order_of_the_classes() -> None:
    features = Features.fit(FRAME[["user"]], task="retrieval", targets=pd.Series(list("abbb")))

    for each in (features, Features.from_json(features.to_json())):
        assert each.target_counts is not None
        assert each.target_counts.tolist() == [3, 1]
    assert fitted().target_counts is None


def test_embedding_specs_are_made_from_the_counts() -> None:
    users = pd.DataFrame({"user": np.repeat(np.arange(100), [50] * 10 + [1] * 90)})
    features = Features.fit(users, task="ranking")

    (spec,) = features.embedding_specs(8)

    counts = features.vocabularies["user"].counts
    assert spec == EmbeddingSpec.from_counts("user", counts, 8)
    assert spec != EmbeddingSpec("user", 100, 8)


LABELS = st.lists(st.one_of(st.none(), st.sampled_from("abc")), min_size=4, max_size=4)


@given(LABELS, st.lists(st.lists(st.sampled_from("xyz"), max_size=4), min_size=4, max_size=4))
def test_json_round_trip(city: list[str | None], bags: list[list[str]]) -> None:
    frame = pd.DataFrame({"id": [1, 2, 3, 4], "city": [*city[:2], "a", "b"]})
    frame["bag"] = ["|".join(bag) for bag in bags[:3]] + ["x|y"]
    features = Features.fit(
        frame,
        task="retrieval",
        separators={"bag": "|"},
        max_bag_length=3,
        targets=pd.Series([1, 2, 2, 1]),
    )

    again = Features.from_json(features.to_json())

    assert again == features
    assert again.separators == {"bag": "|"}
    for name, ids in again.encode(frame).items():
        assert torch.equal(ids, features.encode(frame)[name])


@pytest.mark.parametrize(
    ("column", "new", "message"),
    [
        ("city", [12, 13], "'city' must be of the type seen in training, text such as 'Rome', "),
        ("user", ["7", "8"], "'user' must be of the type seen in training, numbers such as 7, "),
    ],
)
def test_columns_of_another_type_are_refused(column: str, new: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"{message}.*`read_table\(path, like=features\)` reads"):
        fitted().encode(FRAME.iloc[:2].assign(**{column: new}))


def test_encode_names_missing_columns() -> None:
    with pytest.raises(ValueError, match="no column 'user', 'genres'; it has 'city'"):
        fitted().encode(FRAME[["city"]])


def test_encode_takes_frames_only() -> None:
    with pytest.raises(TypeError, match="`frame` must be a pandas DataFrame, got dict"):
        fitted().encode({"user": [1]})


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"city": [None, None]}, "'city' is empty: all 2 values are missing. Leave it out"),
        ({"bag": [None, " | "]}, "'bag' is empty: all 2 bags are empty. Leave it out"),
        ({"city": ["a", "a"]}, "'city' is constant: .* are 'a'. Leave it out"),
        ({"bag": ["a", "a|a"]}, "'bag' is constant"),
        ({"label": ["a", "b"]}, "must not name a feature 'label'"),
        ({}, "`features` must name at least one column"),
    ],
)
def test_fit_refuses_useless_columns(frame: dict[str, list[object]], message: str) -> None:
    separators = {"bag": "|"} if "bag" in frame else {}
    with pytest.raises(ValueError, match=message):
        Features.fit(pd.DataFrame(frame), task="ranking", separators=separators)


def test_a_count_that_no_value_has() -> None:
    frame = pd.DataFrame({"shop": ["a", "a", "b", "c"]})
    with pytest.raises(
        ValueError, match=r"`min_count` of 3 leaves nothing of the column 'shop', "
    ):
        Features.fit(frame, task="ranking", min_count=3)
    assert len(Features.fit(frame, task="ranking", min_count=2).vocabularies["shop"]) == 1


def test_one_value_beside_missing_ones_is_no_constant() -> None:
    features = Features.fit(
        pd.DataFrame({"city": ["a", None], "bag": ["a", None]}),
        task="ranking",
        separators={"bag": "|"},
    )

    assert [len(each) for each in features.vocabularies.values()] == [1, 1]


def test_bags_without_separator_must_be_lists() -> None:
    with pytest.raises(ValueError, match=r"`bags\['seen'\]` .* got None for 'a\|b'"):
        Features.fit(
            pd.DataFrame({"seen": ["a|b", "c"]}), task="ranking", separators={"seen": None}
        )


def test_bags_that_were_lists_must_be_lists_in_new_rows() -> None:
    frame = pd.DataFrame({"seen": [["a", "b"], ["c"]]})
    features = Features.fit(frame, task="ranking", separators={"seen": None})
    new = pd.DataFrame({"seen": ["a|b", "c"]})
    message = r"'seen' must be lists, as in training, got 'a\|b'\..* such as Parquet; in Python"
    with pytest.raises(ValueError, match=message) as error:
        features.encode(new)
    assert "`bags" not in str(error.value)
    split = new.assign(seen=new["seen"].str.split("|"))
    assert torch.equal(features.encode(split)["seen"], features.encode(frame)["seen"])


CITY = Vocabulary(["a", "b"], [1, 1])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "regression"}, ValueError, '`task` must be "ranking" or "retrieval"'),
        ({"task": "retrieval"}, ValueError, "`targets` must be a vocabulary"),
        ({"targets": CITY}, ValueError, "`targets` must be a vocabulary"),
        ({"separators": {"tags": "|"}}, ValueError, "`bags` names 'tags', which is not a feature"),
        ({"separators": {"city": ""}}, ValueError, r"`bags\['city'\]` must be the text between"),
        ({"max_bag_length": 0}, ValueError, "`max_bag_length` must be an integer of at least 1"),
        ({"max_bag_length": 1.5}, ValueError, "`max_bag_length` must be an integer"),
        ({"bag_keep": "middle"}, ValueError, '`bag_keep` must be "last" or "first"'),
        ({"na_values": "NA"}, ValueError, "`na_values` must be a list of texts, got 'NA'"),
        ({"na_values": [-1]}, ValueError, "`na_values` must be a list of texts"),
    ],
)
def test_constructor_checks(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Features(**{"task": "ranking", "vocabularies": {"city": CITY}, **options})


def test_num_classes_is_for_retrieval() -> None:
    with pytest.raises(ValueError, match='`num_classes` is for the task "retrieval"'):
        _ = fitted().num_classes


@pytest.mark.parametrize("text", ["[]", "{}", '{"version": 2}', '{"version": 1, "targets": 1}'])
def test_malformed_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"[Ff]eatures"):
        Features.from_json(text)


@pytest.mark.parametrize("values", [[1.1, 2, 3.7], ["1.10", "2", "3.70"]])
def test_decimals_are_the_numbers_or_texts_that_training_has_seen(values: list[object]) -> None:
    features = Features.fit(pd.DataFrame({"x": values}), task="ranking")
    decimals = [Decimal("3.70"), None, Decimal("1.10"), Decimal(2), Decimal("9.9")]
    found = features.encode(pd.DataFrame({"x": pd.Series(decimals, dtype=object)}))["x"]
    same = [values[2], None, values[0], values[1], type(values[0])("9.9")]
    assert found.tolist() == features.encode(pd.DataFrame({"x": same}))["x"].tolist()
    assert len(set(found.tolist())) == 4


def test_numbers_may_be_decimals_of_arrow() -> None:
    numbers = pyarrow.array([Decimal("1.5"), None, Decimal("2.25")], pyarrow.decimal128(10, 2))
    frame = pd.DataFrame(
        {"a": [1, 2, 1], "x": pd.Series(numbers, dtype=pd.ArrowDtype(numbers.type))}
    )
    plain = frame.assign(x=[1.5, None, 2.25])
    found, expected = (
        Features.fit(each, task="ranking", numeric=["x"]).encode(each) for each in (frame, plain)
    )
    assert torch.equal(found["numeric"], expected["numeric"])


def test_what_has_no_form_in_text_files_is_the_text_that_it_has_from_others() -> None:
    values = [time(9, 30), timedelta(hours=1), UUID(int=1)]
    texts = ["09:30:00", "0 days 01:00:00", str(UUID(int=1))]
    for value, text in zip(values, texts):
        seen = Features.fit(pd.DataFrame({"x": [text, "other"]}), task="ranking")
        assert seen.encode(pd.DataFrame({"x": [value, None]}))["x"].tolist() == [
            seen.vocabularies["x"].values.index(text),
            2,
        ]
        bags = Features.fit(
            pd.DataFrame({"x": [[text], ["other"]]}), task="ranking", separators={"x": None}
        )
        found = bags.encode(pd.DataFrame({"x": [[value], []]}))["x"].tolist()
        assert found == [[bags.vocabularies["x"].values.index(text)], [2]]


@pytest.mark.parametrize("bag", [False, True])
def test_ids_that_pandas_has_rounded_are_told(bag: bool) -> None:
    users = [2**60 + 1, 2**60 + 2, 5]
    cells = [[user] for user in users] if bag else users
    separators = {"user": None} if bag else None
    features = Features.fit(pd.DataFrame({"user": cells}), task="ranking", separators=separators)
    floats = [[float(user)] for user in users] if bag else [*map(float, users[:2]), None]
    with pytest.warns(UserWarning, match=r"`frame`: the column 'user' .* above 2\*\*53 as floats"):
        features.encode(pd.DataFrame({"user": floats}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features.encode(pd.DataFrame({"user": cells}))
        features.encode(pd.DataFrame({"user": [[5.0]] if bag else [5.0, None]}))
