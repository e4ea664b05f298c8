from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pandas as pd
import pytest
import torch

from optuna_nis.datasets import UNSEEN_TARGET, Features, Vocabulary

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


def test_bags_of_dates_in_arrays() -> None:
    days = np.array(["2013-01-01", "2013-01-02"], dtype="datetime64[ns]")
    frame = pd.DataFrame({"days": [days, days[:1]]})

    features = Features.fit(frame, task="ranking", separators={"days": None})

    assert features.vocabularies["days"].values[0] == pd.Timestamp("2013-01-01")


def test_missing_values_in_a_bag_are_padding() -> None:
    frame = pd.DataFrame({"seen": [["a", None, "b"], ["a"]]})
    features = Features.fit(frame, task="ranking", separators={"seen": None})

    assert features.encode(frame)["seen"].tolist() == [[0, 2, 1], [0, 2, 2]]


def test_bags_are_cut() -> None:
    features = fitted(max_bag_length=1)

    assert features.encode(FRAME)["genres"].tolist() == [[1], [0], [2], [0]]
    assert set(features.vocabularies["genres"].values) == {"War", "Drama"}


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
        ("user", ["7", "8"], "'user' must be of the type seen in training, no text such as 7, "),
    ],
)
def test_columns_of_another_type_are_refused(column: str, new: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
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


CITY = Vocabulary(["a", "b"], [1, 1])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "regression"}, ValueError, '`task` must be "ranking" or "retrieval"'),
        ({"task": "retrieval"}, ValueError, "`targets` must be a vocabulary"),
        ({"targets": CITY}, ValueError, "`targets` must be a vocabulary"),
        ({"separators": {"tags": "|"}}, ValueError, "`bags` names 'tags', which is not a feature"),
        ({"separators": {"city": ""}}, ValueError, r"`bags\['city'\]` must be the text between"),
        ({"max_bag_length": 0}, ValueError, "`max_bag_length` must be at least 1"),
        ({"max_bag_length": 1.5}, TypeError, "`max_bag_length` must be an int"),
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
