from __future__ import annotations

from dataclasses import replace
import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from optuna_nis.data import (
    UNSEEN_TARGET,
    EmbeddingDataModule,
    Source,
    batches,
    split_rows,
)
from optuna_nis.data.batches import Batches, default_batch_size
from optuna_nis.data.splits import thin as thinned


class Synthetic(EmbeddingDataModule):
    """Rows of which each has an id of its own, beside a few cities and a bag."""

    def __init__(self, *, num_rows: int = 200, task: Any = "ranking", **options: Any) -> None:
        super().__init__(task, separators={"tags": None}, **options)
        self.num_rows = num_rows
        self.loads = 0

    def load(self) -> Source:
        self.loads += 1
        rng = np.random.default_rng(0)
        row = np.arange(self.num_rows)
        frame = pd.DataFrame({"row": row, "city": rng.choice(list("abcde"), self.num_rows)})
        frame["tags"] = [list(rng.integers(0, 5, rng.integers(0, 4))) for _ in row]
        if self.task == "ranking":
            return Source(frame, pd.Series(row % 2))
        return Source(frame, pd.Series(rng.choice(list("xyz"), self.num_rows)))


@given(
    st.integers(10, 300),
    st.sampled_from(["random", "chronological"]),
    st.integers(0, 5),
)
def test_parts_are_disjoint_and_complete(num_rows: int, split: Any, seed: int) -> None:
    parts = split_rows(num_rows, split=split, seed=seed)

    assert sorted(np.concatenate(parts).tolist()) == list(range(num_rows))
    assert len(parts.validation) == len(parts.test) == num_rows // 10


def test_random_parts_are_fixed_by_the_seed() -> None:
    first, again, other = (split_rows(100, split="random", seed=seed) for seed in (1, 1, 2))

    assert all((a == b).all() for a, b in zip(first, again))
    assert set(first.test.tolist()) != set(other.test.tolist())


def test_chronological_parts_follow_time() -> None:
    order = np.random.default_rng(0).permutation(100)

    parts = split_rows(100, split="chronological", seed=0, order=order)

    assert order[parts.train].max() < order[parts.validation].min()
    assert order[parts.validation].max() < order[parts.test].min()
    assert (np.diff(order[parts.validation]) < 0).any()


def _sorted_times(parts: Any, order: Any) -> list[set[int]]:
    return [set(order[part].tolist()) for part in parts]


@given(st.lists(st.integers(1, 30), min_size=3, max_size=12).filter(lambda n: sum(n) >= 10))
def test_rows_of_one_time_stay_together(sizes: list[int]) -> None:
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    num_rows, ends = len(order), np.cumsum(sizes)[:-1]

    parts = split_rows(num_rows, split="chronological", seed=0, order=order)

    train, validation, test = _sorted_times(parts, order)
    assert max(train) < min(validation)
    assert max(validation) < min(test)
    tenth = num_rows // 10
    cuts = np.array([len(parts.train), len(parts.train) + len(parts.validation)])
    wanted = np.array([num_rows - 2 * tenth, num_rows - tenth])
    off = min(
        np.abs(np.array([a, b]) - wanted).sum() for i, a in enumerate(ends) for b in ends[i + 1 :]
    )
    assert np.abs(cuts - wanted).sum() == off


def test_too_few_times_are_refused() -> None:
    with pytest.raises(
        ValueError, match="at least three different times for its three parts, got 2"
    ):
        split_rows(20, split="chronological", seed=0, order=np.repeat([9, 3], 10))


def test_chronological_parts_without_time_follow_the_rows() -> None:
    assert split_rows(50, split="chronological", seed=0).test.tolist() == [45, 46, 47, 48, 49]


@given(st.lists(st.integers(1, 6), min_size=10, max_size=20).filter(lambda n: max(n) > 2))
def test_the_last_row_of_each_group_is_for_the_test(sizes: list[int]) -> None:
    rng = np.random.default_rng(len(sizes))
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    order = rng.permutation(len(group))

    parts = split_rows(len(group), split="leave-one-out", seed=0, order=order, group=group)

    assert sorted(np.concatenate(parts).tolist()) == list(range(len(group)))
    assert sorted(group[parts.test]) == [g for g, size in enumerate(sizes) if size > 1]
    for each, size in enumerate(sizes):
        train, validation, test = (order[part[group[part] == each]] for part in parts)
        assert len(train) == (size - 2 if size > 1 else 1)
        if size > 1:
            assert train.max(initial=-1) < validation.item() < test.item()


@pytest.mark.parametrize("sizes", [[1] * 12, [2] * 6])
def test_groups_that_leave_a_part_empty_are_refused(sizes: list[int]) -> None:
    group = np.repeat(np.arange(len(sizes)), sizes)

    with pytest.raises(ValueError, match="no group has three rows"):
        split_rows(len(group), split="leave-one-out", seed=0, group=group)


def test_data_without_groups_cannot_leave_one_out() -> None:
    with pytest.raises(ValueError, match="takes the last rows of groups such as users"):
        Synthetic(split="leave-one-out").setup("fit")


def test_vocabularies_come_from_training_alone() -> None:
    data = Synthetic(batch_size=160)
    data.setup("test")

    train = next(iter(data.train_dataloader()))
    unknown = data.vocabularies["row"].num_embeddings

    assert unknown == data.sizes["train"] == 160
    assert sorted(train["row"].tolist()) == list(range(160))
    for loader in (data.val_dataloader(), data.test_dataloader()):
        rows = torch.cat([batch["row"] for batch in loader])
        assert rows.tolist() == [unknown] * 20


def test_batches_hold_all_features_and_the_label() -> None:
    data = Synthetic(batch_size=32)
    data.setup("fit")

    batch = next(iter(data.train_dataloader()))

    assert {name: tuple(each.shape) for name, each in batch.items()} == {
        "row": (32,),
        "city": (32,),
        "tags": (32, 3),
        "label": (32,),
    }
    assert batch["label"].dtype == torch.float32
    assert batch["tags"].max() == data.vocabularies["tags"].num_embeddings
    assert data.bags == {"tags"}
    assert [spec.name for spec in data.embedding_specs(4)] == ["row", "city", "tags"]


def test_features_can_be_chosen() -> None:
    data = Synthetic(features=["tags", "row"])
    data.setup("fit")

    assert list(next(iter(data.train_dataloader()))) == ["tags", "row", "label"]
    with pytest.raises(ValueError, match="`bags` names 'tags', which is not a feature"):
        Synthetic(features=["row"])


@pytest.mark.parametrize("split", ["random", "chronological"])
def test_max_rows_thins_every_part(split: Any) -> None:
    whole = Synthetic(split=split)
    thin, again, other = (Synthetic(split=split, max_rows=50, seed=s) for s in (0, 0, 1))
    for each in (whole, thin, again, other):
        each.setup("test")

    assert thin.sizes == {"train": 40, "validation": 5, "test": 5}
    assert set(thin.vocabularies["row"].values) < set(whole.vocabularies["row"].values)
    assert thin.features == again.features != other.features
    assert len(next(iter(thin.test_dataloader()))["row"]) == 5


def test_a_part_of_a_sample_is_a_share_of_the_part() -> None:
    parts = split_rows(300, split="random", seed=0)
    few = thinned(parts, 50, 0)
    assert [len(rows) for rows in few] == [40, 5, 5]
    for some, rows in zip(few, parts):
        assert len(np.intersect1d(some, rows)) == len(some)
    assert thinned(parts, None, 0) is thinned(parts, 300, 0) is parts


@pytest.mark.parametrize("task", ["ranking", "retrieval"])
def test_a_sample_of_the_rows_has_the_ids_of_all(task: Any) -> None:
    def data(num_rows: int = 300, **more: Any) -> Synthetic:
        return Synthetic(task=task, num_rows=num_rows, **{"max_rows": 200, **more})

    sample, whole = data(sample_rows=50), data()
    assert sample.sizes == data(max_rows=50).sizes == {"train": 40, "validation": 5, "test": 5}
    assert sample.features == whole.features
    sample.batch_size = whole.batch_size = 8
    few, rows = (
        set(torch.cat([batch["row"] for batch in each.train_dataloader()]).tolist())
        for each in (sample, whole)
    )
    assert len(few) == 40
    assert few < rows
    # Not all rows are used, but others would be others.
    assert sample.source_digest == whole.source_digest != data(num_rows=299).source_digest
    turned = data()
    source = turned.load()
    turned.load = lambda: replace(source, target=source.target[::-1])  # type: ignore[method-assign]
    assert turned.source_digest != whole.source_digest


@pytest.mark.parametrize(
    ("most", "rows"), [(None, 20), (100, 20), (20, 20), (19, 19), (6, 6), (1, 1)]
)
def test_at_most_so_many_rows_are_validated_on(most: int | None, rows: int) -> None:
    def seen(each: Synthetic) -> list[int]:
        found: list[int] = torch.cat([batch["row"] for batch in each.val_dataloader()]).tolist()
        return found

    data, whole = Synthetic(), Synthetic()
    data.max_validation_rows = most
    assert len(seen(data)) == rows
    assert seen(data) == seen(data)
    assert set(seen(data)) <= set(seen(whole))
    for wrong in (0, -1, 2.5):
        data.max_validation_rows = wrong  # type: ignore[assignment]
        with pytest.raises(ValueError, match="`max_validation_rows` must be an integer of at lea"):
            data.val_dataloader()
    # The data are the same.
    assert data.sizes == whole.sizes
    assert data.fingerprint("validation") == whole.fingerprint("validation")


def test_the_summary_says_rows_ids_and_what_validation_has_unseen() -> None:
    data = Synthetic()

    assert data.unseen_shares() == {"row": 1.0, "city": 0.0, "tags": 0.0}
    assert data.summary().splitlines() == [
        "200 rows: 160 for training, 20 for validation, 20 for the test",
        "row: 160 ids, 100.0% of validation's unseen in training",
        "city: 5 ids",
        "tags: 5 ids in bags",
    ]


def test_the_summary_of_retrieval_counts_targets() -> None:
    data = Targets([*"ab" * 8, "a", "new", "newer", "b"], "retrieval")
    data.setup("fit")

    assert data.unseen_shares() == {"row": 1.0, "label": 0.5}
    assert data.summary().endswith("label: 2 targets, 50.0% of validation's unseen in training")


class Column(EmbeddingDataModule):
    def __init__(self, values: Any) -> None:
        super().__init__("ranking")
        self.values = values

    def load(self) -> Source:
        frame = pd.DataFrame({"x": self.values, "few": np.arange(len(self.values)) % 7})
        return Source(frame, pd.Series(np.arange(len(frame)) % 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            np.arange(2000),
            "'x' has 1,600 different values in 1,600 cells .*; 100% of validation's",
        ),
        (
            np.arange(2000) % 150 / 4,
            "'x' holds 150 numbers with fractions, .*; 0% of validation's",
        ),
    ],
)
def test_columns_that_are_hardly_categorical_are_told(values: Any, message: str) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        Column(values).setup("fit")

    assert len(caught) == 1


@pytest.mark.filterwarnings("error")
def test_ids_that_come_again_are_not_told() -> None:
    Column(np.random.default_rng(0).integers(0, 2000, 2000)).setup("fit")


def test_missing_values_are_not_unseen() -> None:
    known = pd.DataFrame({"a": ["x", "y"] * 4, "b": ["x|y", "z"] * 4})
    new = pd.DataFrame({"a": ["x", None, "q", None], "b": ["x|q|q|z", None, "", "x"]})
    frame = pd.concat([known, new, new], ignore_index=True)
    data = Rows(frame, [0, 1] * 8, separators={"b": "|"}, parts=[0] * 8 + [1] * 4 + [2] * 4)

    assert data.unseen_shares() == {"a": 0.5, "b": 0.4}


def test_more_than_all_rows_are_all_rows() -> None:
    data, whole = Synthetic(max_rows=1000), Synthetic()
    for each in (data, whole):
        each.setup("fit")

    assert data.features == whole.features


def test_labels_stay_with_their_rows() -> None:
    data = Synthetic()
    data.setup("fit")

    batch = next(iter(data.train_dataloader()))

    rows = data.vocabularies["row"].decode(batch["row"].tolist())
    assert batch["label"].tolist() == [row % 2 for row in rows]


def epochs(data: EmbeddingDataModule, number: int) -> list[list[int]]:
    loader = data.train_dataloader()
    return [torch.cat([batch["row"] for batch in loader]).tolist() for _ in range(number)]


def test_epochs_are_shuffled_anew_and_reproducible() -> None:
    data, again = Synthetic(batch_size=16), Synthetic(batch_size=16)
    other = Synthetic(batch_size=16, shuffle_seed=1)
    for each in (data, again, other):
        each.setup("fit")

    first, second = epochs(data, 2)

    assert first != second
    assert sorted(first) == sorted(second) == list(range(160))
    assert epochs(again, 2) == [first, second]
    assert epochs(other, 1) != [first]
    assert other.vocabularies == data.vocabularies


def test_a_resumed_training_goes_on_with_the_order_of_its_epoch() -> None:
    data = Synthetic(batch_size=16)
    data.setup("fit")
    _, second = epochs(data, 2)

    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)

    assert torch.cat([batch["row"] for batch in loader]).tolist() == second


@pytest.mark.parametrize(("batch_size", "batches", "rows"), [(64, 2, 128), (500, 1, 160)])
def test_rows_that_fill_no_batch_are_left_out(batch_size: int, batches: int, rows: int) -> None:
    data = Synthetic(batch_size=batch_size)
    data.setup("fit")

    loader = data.train_dataloader()

    assert len(loader) == len(list(loader)) == batches
    assert sum(len(batch["row"]) for batch in loader) == rows


def test_a_training_goes_on_in_the_middle_of_an_epoch() -> None:
    data = Synthetic(batch_size=32)
    data.setup()

    def batches(loader: Any, count: int) -> list[list[int]]:
        return [batch["row"].tolist() for batch, _ in zip(loader, range(count))]

    whole = data.train_dataloader()
    first, second = batches(whole, 9), batches(whole, 9)
    assert len(first) == len(second) == 5
    stopped = data.train_dataloader()
    batches(stopped, 9)
    epoch = iter(stopped)
    assert [next(epoch)["row"].tolist() for _ in range(2)] == second[:2]
    resumed = data.train_dataloader()
    resumed.sampler.set_epoch(1)
    resumed.load_state_dict(stopped.state_dict())
    assert batches(resumed, 9) == second[2:]
    # What was given of one epoch says nothing about the next.
    ended = data.train_dataloader()
    ended.load_state_dict(whole.state_dict())
    ended.sampler.set_epoch(2)
    assert len(batches(ended, 9)) == 5


def test_shards_are_disjoint_and_know_all_ids() -> None:
    seen = []
    for index in range(3):
        data = Synthetic(batch_size=4)
        data.shard = (index, 3)
        data.setup()
        assert len(data.vocabularies["row"]) == 160
        assert sum(len(batch["row"]) for batch in data.val_dataloader()) == 20
        seen.append({row for batch in data.train_dataloader() for row in batch["row"].tolist()})
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]
    assert min(map(len, seen)) >= 52
    for wrong in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="`shard` must be"):
            data.shard = wrong
    data.shard = (160, 500)
    with pytest.raises(
        ValueError, match=r"`shard` must have rows .* got \(160, 500\) of 160 train"
    ):
        data.train_dataloader()


@given(st.lists(st.integers(1, 60), min_size=3, max_size=30), st.integers(0, 99))
def test_parts_of_whole_groups_are_as_near_to_their_shares_as_can_be(
    sizes: list[int], seed: int
) -> None:
    sizes += [1] * max(10 - sum(sizes), 0)
    group = np.arange(len(sizes)).repeat(sizes)
    parts = split_rows(len(group), split="group", seed=seed, group=group)
    assert sorted(np.concatenate(parts)) == list(range(len(group)))
    owners = [set(group[rows].tolist()) for rows in parts]
    assert all(owners)
    assert sum(map(len, owners)) == len(sizes)
    # As they are drawn, no other number of them would be nearer.
    drawn = np.random.default_rng(seed).permutation(len(sizes))
    rows = np.cumsum(np.array(sizes)[drawn])
    off = [abs(rows[number - 1] / len(group) - 0.8) for number in range(1, len(sizes) - 1)]
    assert abs(len(parts.train) / len(group) - 0.8) == pytest.approx(min(off))


def test_equal_groups_are_divided_exactly() -> None:
    group = np.arange(1000) // 100
    parts = split_rows(1000, split="group", seed=0, group=group)
    assert [len(part) for part in parts] == [800, 100, 100]


def test_validation_is_complete_and_stays_in_order() -> None:
    data = Synthetic(eval_batch_size=8)
    data.setup("fit")
    loader = data.val_dataloader()

    first, second = ([batch["label"].tolist() for batch in loader] for _ in range(2))

    assert [len(batch) for batch in first] == [8, 8, 4]
    assert first == second


def test_the_test_part_wants_setup_test() -> None:
    data = Synthetic()
    for stage in ("fit", "validate", None):
        data.setup(stage)

    with pytest.raises(RuntimeError, match=r'only `setup\("test"\)`'):
        data.test_dataloader()

    data.setup("test")
    assert sum(len(batch["row"]) for batch in data.test_dataloader()) == data.sizes["test"] == 20


def test_a_withheld_test_part_is_gone() -> None:
    data = Synthetic(withhold_test=True)
    data.setup("fit")

    assert data.withhold_test
    with pytest.raises(RuntimeError, match="withholds its test part"):
        data.setup("test")
    with pytest.raises(RuntimeError, match=r'only `setup\("test"\)`'):
        data.test_dataloader()
    held = set(data.vocabularies["row"].values)
    assert len(held) == 160


def test_withholding_changes_no_other_part() -> None:
    data, whole = Synthetic(withhold_test=True), Synthetic()
    for each in (data, whole):
        each.setup("fit")

    assert data.features == whole.features
    assert epochs(data, 1) == epochs(whole, 1)


def test_setup_loads_once() -> None:
    data = Synthetic()
    for stage in ("fit", "fit", "validate", "test", "test", "fit"):
        data.setup(stage)

    assert data.loads == 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda data: data.features,
        lambda data: data.vocabularies,
        lambda data: data.sizes,
        lambda data: data.batch_size,
        lambda data: data.num_unknown,
        lambda data: data.unseen_shares(),
        lambda data: data.summary(),
        lambda data: data.embedding_specs(8),
        lambda data: data.encode(data.load().frame),
        lambda data: data.fingerprint("train", "validation"),
        lambda data: list(data.train_dataloader()),
        lambda data: list(data.val_dataloader()),
    ],
)
def test_what_is_asked_for_is_there_without_setup(ask: Any) -> None:
    data, ready = Synthetic(withhold_test=True), Synthetic()
    ready.setup("fit")

    assert str(ask(data)) == str(ask(ready))

    for each in (data, ready):
        with pytest.raises(RuntimeError, match=r'only `setup\("test"\)`'):
            each.test_dataloader()


class Renamed(Synthetic):
    def load(self) -> Source:
        source = super().load()
        return Source(source.frame.assign(row=source.frame["row"] + 1000), source.target)


def test_data_that_cannot_be_used_say_so_whenever_they_are_asked() -> None:
    data = Renamed(fitted=Synthetic().features)

    for _ in range(2):
        with pytest.raises(ValueError, match="'row' must have values known from before"):
            _ = data.features


@pytest.mark.parametrize(
    ("rows", "size"), [(250_000, 4096), (204_800, 4096), (204_799, 2048), (6_399, 64), (10, 64)]
)
def test_small_data_have_small_batches(rows: int, size: int) -> None:
    assert default_batch_size(rows) == size


def test_a_batch_size_that_is_given_stays() -> None:
    data = Synthetic(batch_size=100)
    assert data.batch_size == len(next(iter(data.train_dataloader()))["label"]) == 100

    data.batch_size = 50
    assert len(next(iter(data.train_dataloader()))["label"]) == 50
    assert Synthetic().batch_size == 64
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1, got 0"):
        data.batch_size = 0


def test_retrieval_targets_are_classes() -> None:
    data = Synthetic(task="retrieval")
    data.setup("fit")

    label = next(iter(data.train_dataloader()))["label"]

    assert label.dtype == torch.int64
    assert data.num_classes == 3
    assert torch.bincount(label).tolist() == sorted(torch.bincount(label).tolist(), reverse=True)


class Targets(EmbeddingDataModule):
    def __init__(self, targets: list[Any], task: Any) -> None:
        super().__init__(task, split="chronological")
        self.targets = targets

    def load(self) -> Source:
        return Source(pd.DataFrame({"row": range(len(self.targets))}), pd.Series(self.targets))


def test_unseen_targets_are_kept_as_misses() -> None:
    data = Targets([*"ab" * 8, "a", "new", "newer", "b"], "retrieval")
    data.setup("test")

    validation = next(iter(data.val_dataloader()))["label"].tolist()
    test = next(iter(data.test_dataloader()))["label"].tolist()

    assert sorted(validation) == [UNSEEN_TARGET, 0]
    assert test == [UNSEEN_TARGET, 1]
    assert data.num_classes == 2


@pytest.mark.parametrize(
    ("targets", "task", "message"),
    [
        ([0] * 16 + [0, 1] * 2, "ranking", "only 0 in the 16 rows of the training part"),
        ([0, 1] * 8 + [1, 1, 0, 1], "ranking", "only 1 in the 2 rows of the validation part"),
        ([0, 1] * 9 + [1, 1], "ranking", "only 1 in the 2 rows of the test part"),
        (["a"] * 16 + ["b"] * 4, "retrieval", "at least two values, got only 'a'"),
        (["a", "b"] * 8 + ["c"] * 4, "retrieval", "all are unseen in training"),
        ([0, 1] * 4, "ranking", "at least 10 rows for its three parts, got 8"),
    ],
)
def test_useless_labels_are_refused(targets: list[Any], task: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Targets(targets, task).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "sorting"}, '`task` must be "ranking"'),
        ({"split": "sorted"}, '`split` must be one of "random", "chronological", "leave-one-out"'),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1, got 0"),
        ({"eval_batch_size": 2.5}, "`eval_batch_size` must be an integer"),
        ({"seed": -1}, "`seed` must be an integer of at least 0, got -1"),
        ({"shuffle_seed": True}, "`shuffle_seed` must be an integer"),
        ({"max_rows": 9}, "`max_rows` must be an integer of at least 10, got 9"),
        ({"sample_rows": 9}, "`sample_rows` must be an integer of at least 10, got 9"),
        ({"bag_keep": "none"}, '`bag_keep` must be "last" or "first"'),
        ({"max_vocabulary": 0}, "`max_vocabulary` must be an integer of at least 1"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Synthetic(**options)


def test_split_rows_checks_the_split() -> None:
    with pytest.raises(ValueError, match="`split` must be one of"):
        split_rows(20, split="stratified", seed=0)  # type: ignore[arg-type]


class Counter(LightningModule):
    """Sees rows and learns nothing from them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[Tensor]] = {"train": [], "validation": [], "test": []}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen["train"].append(batch["row"])
        return (self.weight * batch["label"]).sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.seen["validation"].append(batch["row"])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.seen["test"].append(batch["row"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def test_trainer_runs_fit_and_test() -> None:
    data, model = Synthetic(batch_size=16), Counter()
    trainer = make_trainer(max_epochs=2)

    trainer.fit(model, data)
    assert model.seen["test"] == []
    trainer.test(model, data, verbose=False)

    assert torch.cat(model.seen["train"]).bincount().tolist() == [2] * 160
    assert len(torch.cat(model.seen["validation"])) == 2 * 20
    assert len(torch.cat(model.seen["test"])) == 20


def test_trainer_cannot_test_on_a_withheld_part() -> None:
    with pytest.raises(RuntimeError, match="withholds its test part"):
        make_trainer().test(Counter(), Synthetic(withhold_test=True), verbose=False)


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_trainer_can_overfit_batches() -> None:
    model = Counter()

    make_trainer(max_epochs=1, overfit_batches=2).fit(model, Synthetic(batch_size=16))

    assert all(rows.dim() == 1 for rows in model.seen["train"])


@pytest.mark.filterwarnings("ignore:The column 'row' has")
def test_an_epoch_is_cheap() -> None:
    data = Synthetic(num_rows=50_000, batch_size=1024)
    data.setup("fit")
    start = time.perf_counter()

    for _ in data.train_dataloader():
        pass

    assert time.perf_counter() - start < 1.0


class Rows(EmbeddingDataModule):
    """Rows in their order, as given."""

    def __init__(
        self,
        frame: pd.DataFrame,
        target: Any,
        task: Any = "ranking",
        parts: list[int] | None = None,
        **more: Any,
    ):
        super().__init__(task, split="given" if parts else "chronological", **more)
        self.source = Source(frame, pd.Series(target), part=np.array(parts) if parts else None)

    def load(self) -> Source:
        return self.source


def _visits(users: list[Any]) -> pd.DataFrame:
    return pd.DataFrame({"user": users, "tags": [["a", "b"] if i % 2 else [] for i in users]})


def test_vocabularies_fitted_before_are_kept() -> None:
    bags = {"separators": {"tags": None}}
    before = Rows(_visits([1, 2, 3, 4, 5] * 8), [0, 1] * 20, **bags)
    before.setup("fit")
    assert before.num_unknown == {}
    frame = _visits([9, 5, 9, 4, 1] * 8)
    frame.at[0, "tags"] = ["a", "new", "new"]

    after = Rows(frame, [0, 1] * 20, fitted=before.features, **bags)
    after.setup("test")

    assert after.features == before.features
    batch = next(iter(after.val_dataloader()))
    assert set(batch["user"].tolist()) == {5, 3, 0}  # 9 is unknown, 4 and 1 keep their places.
    assert after.num_unknown == {"user": 13, "tags": 1}
    assert after.embedding_specs(4) == before.embedding_specs(4)


def test_training_rows_of_unknown_targets_are_left_out() -> None:
    frame = _visits([1, 2] * 10)[["user"]]
    before = Rows(frame, list("ab") * 10, "retrieval")
    before.setup("fit")

    after = Rows(frame, list("abca") * 5, "retrieval", fitted=before.features)
    after.setup("fit")

    assert after.num_unknown == {"user": 0, "label": 4}
    assert after.sizes == {"train": 12, "validation": 2, "test": 2}
    batch = next(iter(after.train_dataloader()))
    assert set(batch["label"].tolist()) == {0, 1}
    with pytest.raises(ValueError, match="The label must have values known from before"):
        Rows(frame, list("xy") * 10, "retrieval", fitted=before.features).setup("fit")


def test_another_table_than_was_fitted_is_refused() -> None:
    data = Synthetic()
    data.setup("fit")
    frame = _visits([1, 2, 3] * 10)
    for message, other in (
        ("the task 'retrieval', got 'ranking'", Synthetic(task="retrieval", fitted=data.features)),
        (
            r"the features \['user'\], got \['row', 'city', 'tags'\]",
            Rows(frame[["user"]], [0, 1] * 15, fitted=data.features),
        ),
        (
            r"the separators \{\}, got \{'tags': None\}",
            Rows(data.load().frame, [0, 1] * 100, fitted=data.features),
        ),
    ):
        with pytest.raises(ValueError, match=f"`fitted` must be of {message}"):
            other.setup("fit")


def test_a_column_with_no_id_in_common_is_refused() -> None:
    before = Rows(_visits([1, 2, 3] * 10)[["user"]], [0, 1] * 15)
    before.setup("fit")
    other = Rows(_visits([7, 8, 9] * 10)[["user"]], [0, 1] * 15, fitted=before.features)
    with pytest.raises(ValueError, match="'user' must have values known from before"):
        other.setup("fit")


def test_a_fingerprint_tells_data_apart() -> None:
    frame = _visits([1, 2, 3, 4, 5] * 8)[["user"]]
    labels = [0, 1] * 20

    def fingerprint(frame: pd.DataFrame, labels: list[int]) -> str:
        return Rows(frame, labels).fingerprint()

    assert fingerprint(frame, labels) == fingerprint(frame.copy(), labels)
    others = [(frame + 10, labels), (frame, labels[:-2] + [1, 0]), (frame[:-1], labels[:-1])]
    found = {fingerprint(*other) for other in [(frame, labels), *others]}
    assert len(found) == 4
    withheld = Rows(frame, labels, withhold_test=True)
    with pytest.raises(RuntimeError, match="withholds its test part"):
        withheld.fingerprint()
    seen = withheld.fingerprint("train", "validation")
    assert Rows(frame, labels).fingerprint("train", "validation") == seen not in found
    assert Rows(frame, labels, seed=1).fingerprint("train", "validation") != seen


@pytest.mark.parametrize(("rows", "world"), [(1000, 2), (1000, 3), (1001, 2), (70, 4)])
def test_processes_share_batches(rows: int, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {seed: [batch.tolist() for batch in Batches(rows, 32, seed)] for seed in (None, 0)}
    dealt: dict[int | None, list[list[list[int]]]] = {None: [], 0: []}
    for rank in range(world):
        monkeypatch.setattr(batches, "_rank_and_world", lambda rank=rank: (rank, world))
        for seed, own in dealt.items():
            sampler = Batches(rows, 32, seed)
            own.append([batch.tolist() for batch in sampler])
            assert len(own[-1]) == len(sampler)
            sampler.is_whole = True
            sampler.set_epoch(0)
            assert [batch.tolist() for batch in sampler] == alone[seed]
    # In training each batch is of one process, and all have as many of them.
    given = [batch for own in dealt[0] for batch in own]
    assert len({len(own) for own in dealt[0]}) == 1
    if rows // 32 >= world:
        assert sorted(given) == sorted(alone[0][: rows // 32 // world * world])
    # What is validated are all rows, and few of them twice.
    seen = [row for own in dealt[None] for batch in own for row in batch]
    assert set(seen) == set(range(rows))
    assert len(seen) - rows < world
