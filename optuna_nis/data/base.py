"""The data module that all data sets are: what was read, in three parts, for a trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import hashlib

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader

from optuna_nis._checks import check_integer
from optuna_nis.data.bags import BagKeep, check_bags
from optuna_nis.data.batches import Batch, default_batch_size
from optuna_nis.data.coded import CodedColumn, code_columns
from optuna_nis.data.encoding import Encoder
from optuna_nis.data.features import Features
from optuna_nis.data.keeping import fingerprint
from optuna_nis.data.keys import LABEL, Task, check_names, check_share, check_task, sharing
from optuna_nis.data.lightning_base import LightningDataModule
from optuna_nis.data.parts import DiskPart, MemoryPart, Part
from optuna_nis.data.source import (
    CodedSource,
    Source,
    check_fitted,
    known_targets,
    warn_of_rare_ids,
    warn_of_strangers,
)
from optuna_nis.data.splits import MIN_ROWS, Parts, Split, check_split, split_rows, thin
from optuna_nis.data.summary import summary
from optuna_nis.data.vocabulary import Vocabulary
from optuna_nis.data.windows import WindowLoader
from optuna_nis.space.spec import EmbeddingSpec, Oov, check_oov

# Validation of more rows costs time and tells no more: its standard error is below .0005.
_VALIDATED = 1 << 20


class EmbeddingDataModule(LightningDataModule):
    """Base of the data sets: categorical features, held in memory as tensors.

    A batch is a dictionary: under the name of every feature ids of shape ``(batch,)``, or
    ``(batch, length)`` for bags, padded with the feature's ``num_embeddings``; under ``"label"``
    floats 0 and 1 (ranking) or the class of the target (retrieval). Validation and test rows
    whose target was never seen in training have the label ``UNSEEN_TARGET``: they count as
    misses. Where the data have them, also ``"numeric"``, floats of shape
    ``(batch, num_numeric)``, ``"weight"``, the weights of the rows, and ``"group"``, ids of their
    groups, both of shape ``(batch,)``.

    The three parts are disjoint, see :func:`split_rows`. Vocabularies come from the training part
    alone. Whoever asks for them, for batches or for anything else that the training and
    validation part tell, has the data read; ``setup("fit")`` does it beforehand. The test part is
    made by ``setup("test")``, which :meth:`Trainer.test <lightning.pytorch.Trainer.test>` calls,
    and by nothing else.

    A subclass implements :meth:`load`.

    Args:
        task: ``"ranking"`` or ``"retrieval"``.
        features: Names of the features, by default all columns that :meth:`load` gives.
        separators: For every feature that is a bag, the text between its values, or :obj:`None`
            if its cells are lists.
        split: ``"random"``, ``"chronological"``, ``"leave-one-out"`` or ``"given"``.
        batch_size: Rows in a training batch; by default 4,096, halved until an epoch has 50
            steps, and at least 64. The last rows of an epoch that do not fill one are left out.
        eval_batch_size: Rows in a validation or test batch.
        seed: Seed of the split. Keep it from the search to the final test: another seed would
            move rows that were searched on into the test.
        shuffle_seed: Seed of the order of training rows, by default ``seed``.
        max_rows: Use only about so many rows, drawn with ``seed`` from every part in proportion.
        sample_rows: Of these have only about so many in the parts, drawn in the same way; but
            vocabularies and scales are of all training rows.
        max_vocabulary: Keep only so many of the most frequent values of every feature.
        max_bag_length: Values kept of a bag.
        bag_keep: Which values of a longer bag are kept: the ``"last"`` ones, the latest of a
            history that grows at its end, or the ``"first"``.
        withhold_test: Drop the test part for good, as a search should: ``setup("test")`` fails.
        fitted: Features with the vocabularies to use in place of those of the training part, such
            as were searched on an earlier state of the data. Training rows whose target is not
            among theirs are left out. :attr:`num_unknown` says how much is new.
        numeric: Names of the numeric columns: inputs of the model as they are, scaled as
            :class:`~optuna_nis.data.scaling.Scaling` says.
        min_count: Values of a feature with fewer occurrences in training are out of vocabulary.
        share: For features with the same kind of values as another one, such as a history of items
            beside an item, that one: both have one vocabulary and one table, its own.
        oov: Unless ``"zero"``, values that are new or too rare have ids of their own, which a
            space with the same ``oov`` lets share rows: :meth:`Features.fit`.
        max_bytes: Tensors of all rows are held in memory up to so many bytes. Beyond, rows that
            are on disk, as those of a table with a ``cache_dir``, stay there: training reads them
            in windows (:class:`~optuna_nis.data.windows.WindowLoader`), a million is validated on.
        num_workers: Processes that read ahead of a training on rows that are on disk.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        task: Task,
        *,
        features: Sequence[str] | None = None,
        separators: Mapping[str, str | None] | None = None,
        split: Split = "random",
        batch_size: int | None = None,
        eval_batch_size: int = 16384,
        seed: int = 0,
        shuffle_seed: int | None = None,
        max_rows: int | None = None,
        sample_rows: int | None = None,
        max_vocabulary: int | None = None,
        max_bag_length: int = 50,
        bag_keep: BagKeep = "last",
        withhold_test: bool = False,
        fitted: Features | None = None,
        numeric: Sequence[str] = (),
        min_count: int = 1,
        share: Mapping[str, str] | None = None,
        oov: Oov = "zero",
        max_bytes: int = 2 << 30,
        num_workers: int = 1,
    ) -> None:
        super().__init__()
        check_task(task)
        check_split(split)
        if isinstance(numeric, str):
            raise ValueError(f"`numeric` must be a list of columns, got the text {numeric!r}.")
        if features is not None:
            check_names(features, numeric)
        check_bags(separators or {}, max_bag_length, bag_keep, features)
        shuffle_seed = seed if shuffle_seed is None else shuffle_seed
        for name, value, least in (
            ("eval_batch_size", eval_batch_size, 1),
            ("seed", seed, 0),
            ("shuffle_seed", shuffle_seed, 0),
            ("max_rows", MIN_ROWS if max_rows is None else max_rows, MIN_ROWS),
            ("sample_rows", MIN_ROWS if sample_rows is None else sample_rows, MIN_ROWS),
            ("max_vocabulary", 1 if max_vocabulary is None else max_vocabulary, 1),
            ("min_count", min_count, 1),
            ("max_bytes", max_bytes, 0),
            ("num_workers", num_workers, 0),
        ):
            check_integer(name, value, least)
        self.task: Task = task
        self.split: Split = split
        self._batch_size: int | None = None
        if batch_size is not None:
            self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.shuffle_seed = shuffle_seed
        self.max_rows = max_rows
        self.sample_rows = sample_rows
        self.max_vocabulary = max_vocabulary
        self.min_count = min_count
        self.share = sharing(share)
        self.oov = check_oov(oov)
        self.max_bytes = max_bytes
        self.num_workers = num_workers
        self.max_bag_length = max_bag_length
        self.bag_keep: BagKeep = bag_keep
        self.shard = (0, 1)
        #: Most rows to validate on, a random sample that stays the same; None takes all.
        self.max_validation_rows: int | None = None
        self._names = None if features is None else list(features)
        self._numeric = tuple(numeric)
        self._separators = dict(separators or {})
        self._na_values: tuple[str, ...] = ()
        self._withhold_test = withhold_test
        self._fitted = fitted
        self._num_unknown: dict[str, int] = {}
        self._features: Features | None = None
        self._parts: dict[str, Part] = {}
        self._make_test: Callable[[], Part] | None = None
        self._sizes: dict[str, int] = {}
        self._validated = 0
        self._unseen: dict[str, float] = {}
        self._source_digest = ""
        # Of parts, which stay as they are: they may be many rows on disk.
        self._fingerprints: dict[tuple[str, ...], str] = {}

    def load(self) -> Source:
        """Read all rows."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Make the training and validation part and, for the stage ``"test"``, the test part.

        Costs nothing the second time.

        Args:
            stage: ``"fit"``, ``"validate"`` or ``"test"``; :obj:`None` is ``"fit"``.

        Raises:
            RuntimeError: If the stage is ``"test"`` and the test part is withheld.
            ValueError: If the data cannot be used.
        """
        if stage == "test" and self._withhold_test:
            raise RuntimeError(
                "This data module withholds its test part (`withhold_test=True`), so that a "
                "search cannot reach it. Make another one for the final test."
            )
        if self._features is None:
            self._setup_fit()
        if stage == "test" and self._make_test is not None:
            self._parts["test"] = self._make_test()
            self._make_test = None

    def _source(self) -> CodedSource:
        """All rows, coded."""
        source = self.load()
        names = list(source.frame.columns) if self._names is None else self._names
        names = [name for name in names if name not in self._numeric]
        self._check_columns(names)
        bags = (self._separators, self.max_bag_length, self.bag_keep)
        columns = code_columns(source.frame[names], *bags, self._na_values)
        return source.coded(columns, self.task, self._numeric)

    def _check_columns(self, names: list[str]) -> None:
        """Check the names of the features, and that they are those of ``fitted``."""
        check_names(tuple(map(str, names)), self._numeric)
        check_bags(self._separators, self.max_bag_length, self.bag_keep, tuple(map(str, names)))
        check_share(self.share, tuple(names))
        if (fitted := self._fitted) is not None:
            check_fitted(fitted, self.task, names, self._separators, self._numeric, self.share)

    def _setup_fit(self) -> None:
        source = self._source()
        by = {name: source.split_by(name) for name in ("order", "group", "part")}
        parts = split_rows(len(source), split=self.split, seed=self.seed, **by)
        parts = thin(parts, self.max_rows, self.seed)
        counted = parts.train
        parts = thin(parts, self.sample_rows, self.seed)
        if source.rows is not None:
            counted = source.rows[counted]
            parts = Parts(*(source.rows[part] for part in parts))
        share = sum(map(len, parts)) / len(source)
        streamed = source.is_on_disk and share * source.nbytes > self.max_bytes
        if streamed:
            # Neighbours are read together.
            parts = parts._replace(train=np.sort(parts.train), test=np.sort(parts.test))
        train = source.take(parts.train)
        if self._fitted is not None and isinstance(train.target, CodedColumn):
            kept = known_targets(self._fitted, train.target)
            self._num_unknown[LABEL] = len(train) - len(kept)
            train, parts = train.take(kept), parts._replace(train=parts.train[kept])
        known = train if len(counted) == len(parts.train) else source.take(counted)
        features = self._fitted or Features.fit(
            known.columns,
            task=self.task,
            separators=self._separators,
            max_bag_length=self.max_bag_length,
            max_vocabulary=self.max_vocabulary,
            min_count=self.min_count,
            oov=self.oov,
            targets=known.target if isinstance(known.target, CodedColumn) else None,
            bag_keep=self.bag_keep,
            na_values=self._na_values,
            numeric=known.numbers,
            share=self.share,
        )
        encoder = Encoder(features, source)
        validation, test = (
            source.take(rows[:_VALIDATED] if streamed and name == "validation" else rows)
            for name, rows in zip(("validation", "test"), (parts.validation, parts.test))
        )
        encoder.check_targets(training=train, validation=validation, test=test)
        self._validated = len(validation)
        self._parts = {"validation": MemoryPart(encoder.batch(validation))}
        if streamed:
            self._parts["train"] = DiskPart(source, parts.train, encoder, self.num_workers)
        else:
            self._parts["train"] = MemoryPart(encoder.batch(train))
        if self._fitted is not None:
            self._num_unknown |= encoder.num_unknown(train, self.min_count)
        if not self._withhold_test:
            self._make_test = lambda: (
                DiskPart(source, parts.test, encoder, self.num_workers)
                if streamed
                else MemoryPart(encoder.batch(test))
            )
        self._sizes = {name: len(rows) for name, rows in parts._asdict().items()}
        self._unseen = encoder.unseen_shares(validation)
        self._source_digest = source.digest
        # Last: a module whose data cannot be used says so again when it is asked again.
        self._features = features
        if self.split == "given":
            warn_of_strangers(validation=self._unseen, test=encoder.unseen_shares(test))
        for name, vocabulary in features.vocabularies.items():
            warn_of_rare_ids(vocabulary, name, self._unseen[name])

    @property
    def withhold_test(self) -> bool:
        """Whether the test part is dropped."""
        return self._withhold_test

    @property
    def features(self) -> Features:
        """The features with their vocabularies, which is what new rows are encoded with."""
        self.setup("fit")
        assert self._features is not None
        return self._features

    @property
    def vocabularies(self) -> dict[str, Vocabulary]:
        """The vocabulary of every feature."""
        return dict(self.features.vocabularies)

    @property
    def bags(self) -> frozenset[str]:
        """Names of the features of which a row has several values."""
        return frozenset(self._separators)

    @property
    def num_classes(self) -> int:
        """Number of targets to choose from, for retrieval."""
        return self.features.num_classes

    @property
    def sizes(self) -> dict[str, int]:
        """Number of rows of every part: ``"train"``, ``"validation"`` and ``"test"``."""
        self.setup("fit")
        return dict(self._sizes)

    @property
    def batch_size(self) -> int:
        """Rows in a training batch; unless it was given, what suits the number of training rows.

        Raises:
            ValueError: If it is set to something else than a positive integer.
        """
        return self._batch_size or default_batch_size(self.sizes["train"])

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        check_integer("batch_size", batch_size, 1)
        self._batch_size = batch_size

    def unseen_shares(self) -> dict[str, float]:
        """For every feature the share of validation's values that training has never seen.

        Missing ones do not count. For retrieval, ``"label"`` is the share of unseen targets.
        """
        self.setup("fit")
        return dict(self._unseen)

    def summary(self) -> str:
        """What was read, for people: rows of every part, distinct ids of every feature.

        Example:
            >>> from optuna_nis.data import load_dataset
            >>> data = load_dataset("movielens-small", max_rows=1000)
            >>> print(data.summary())
            1,000 rows: 800 for training, 100 for validation, 100 for the test
            user: 321 ids, 20.0% of validation's unseen in training
            item: 653 ids, 69.0% of validation's unseen in training
            genres: 20 ids in bags
        """
        return summary(self.features, self.sizes, self.unseen_shares(), self._validated)

    @property
    def num_unknown(self) -> dict[str, int]:
        """Training rows with values that the features of ``fitted`` do not know.

        For every feature, and for retrieval under ``"label"`` the rows left out for their target.
        Empty without ``fitted``: vocabularies made from the training part know all of it.
        """
        self.setup("fit")
        return dict(self._num_unknown)

    def fingerprint(self, *parts: str) -> str:
        """A text that is another one as soon as anything in the data is.

        Args:
            *parts: Which of ``"train"``, ``"validation"`` and ``"test"``, as far as their ids and
                labels go; by default all, and the features.

        Raises:
            RuntimeError: If the test part is among them and withheld.
        """
        self.setup("fit" if parts and "test" not in parts else "test")
        named = tuple(sorted(parts))
        if named not in self._fingerprints:
            features = b"" if parts else fingerprint(self.features)
            digest = hashlib.blake2b(features, digest_size=16)
            for part in named or sorted(self._parts):
                self._parts[part].update(digest, part)
            self._fingerprints[named] = digest.hexdigest()
        return self._fingerprints[named]

    @property
    def source_digest(self) -> str:
        """A text that is another one where the rows, or their order, are, used or not."""
        self.setup("fit")
        return self._source_digest

    def embedding_specs(
        self, embedding_dim: int, precisions: Sequence[int] = (32,)
    ) -> list[EmbeddingSpec]:
        """The largest table of every feature, as :meth:`Features.embedding_specs` cuts it."""
        return self.features.embedding_specs(embedding_dim, precisions)

    @property
    def shard(self) -> tuple[int, int]:
        """Which part of the training rows to train on: ``(index, count)``, index from 0.

        Vocabularies are those of all training rows.

        Raises:
            ValueError: If it is set to something else.
        """
        return self._shard

    @shard.setter
    def shard(self, shard: tuple[int, int]) -> None:
        index, count = shard
        check_integer("shard", count, 1)
        check_integer("shard", index, 0)
        if index >= count:
            raise ValueError(
                f"`shard` must be (index, count) with an index below the count, got {shard!r}."
            )
        self._shard = (index, count)

    def encode(self, frame: pd.DataFrame) -> Batch:
        """Turn new rows into a batch without labels, as :meth:`Features.encode` does."""
        return self.features.encode(frame)

    def train_dataloader(self) -> DataLoader[Batch] | WindowLoader:
        """Shuffled batches of the :attr:`shard`, the same for the same ``shuffle_seed`` and epoch.

        A training resumed in mid-epoch goes on there; of a process group each has its share.

        Raises:
            ValueError: If the shard has no row.
        """
        self.setup("fit")
        if self._shard[0] >= (rows := self.sizes["train"]):
            raise ValueError(
                f"`shard` must have rows to train on, got {self._shard} of {rows:,} training rows."
            )
        return self._parts["train"].loader(self.batch_size, self.shuffle_seed, self._shard)

    def val_dataloader(self) -> DataLoader[Batch] | WindowLoader:
        """The validation part, in a random order that stays the same."""
        self.setup("fit")
        if (most := self.max_validation_rows) is not None:
            check_integer("max_validation_rows", most, 1)
        return self._parts["validation"].loader(self.eval_batch_size, None, most=most)

    def test_dataloader(self) -> DataLoader[Batch] | WindowLoader:
        """The test part.

        Raises:
            RuntimeError: Unless ``setup("test")`` has been called.
        """
        if "test" not in self._parts:
            raise RuntimeError(
                'The test part is not there: only `setup("test")`, which `Trainer.test` calls, '
                "makes it."
            )
        return self._parts["test"].loader(self.eval_batch_size, None)
