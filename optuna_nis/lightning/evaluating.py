"""The metrics of a retrained model on the labelled rows of a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch

from optuna_nis.data.batches import Batch
from optuna_nis.data.coded import CodedColumn
from optuna_nis.data.files import TableFiles
from optuna_nis.data.keys import GROUP, LABEL, NO_GROUP, UNSEEN_TARGET, WEIGHT
from optuna_nis.data.labels import Label, check_rule
from optuna_nis.data.meaning import Meaning, integers_in
from optuna_nis.data.pace import Pace, Progress, no_progress
from optuna_nis.data.paths import Paths
from optuna_nis.data.reading import read_batches
from optuna_nis.data.row_columns import read_row_columns
from optuna_nis.data.scaling import Floats
from optuna_nis.data.store import ColumnStore
from optuna_nis.data.tally import Tally
from optuna_nis.lightning.parts import num_rows
from optuna_nis.lightning.training import evaluated
from optuna_nis.models.items import ItemsModule
from optuna_nis.models.metrics import auc_of_groups
from optuna_nis.serve.predictor import Predictor, check_predictor
from optuna_nis.study.uncertainty import auc_standard_error, share_standard_error


@dataclass(frozen=True)
class TableMetrics:
    """How good a model is on the rows of a table.

    Attributes:
        metrics: The metrics by their names for people, the first what the model is trained for.
        errors: Standard errors of some of them.
        rows: Number of rows with a label.
        positives: Those with a positive label, for ranking.
        unseen: Those with a target that training has never seen, for retrieval.
        groups: Number of groups, if there are some.
        mixed_groups: Those with both classes, of which GAUC is the mean, for ranking.
        tally: For each feature of which the model has rows, how many values of these rows were
            unknown, and how many rows had none, as :func:`predict_table` counts them.
    """

    metrics: dict[str, float]
    errors: dict[str, float]
    rows: int
    positives: int | None = None
    unseen: int | None = None
    groups: int | None = None
    mixed_groups: int | None = None
    tally: Tally = field(default_factory=Tally, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """In types that JSON knows: a metric that cannot be computed is None."""
        found = {n: None if math.isnan(each) else each for n, each in self.metrics.items()}
        return asdict(self) | {"metrics": found, "tally": self.tally.to_dict()}

    def __str__(self) -> str:
        lines = []
        for name, value in self.metrics.items():
            error = f", standard error {self.errors[name]:.2g}" if name in self.errors else ""
            shown = f"{value:.4f}"
            if math.isnan(value):
                what = "row has a group" if self.groups == 0 else "group has both classes"
                shown = f"unknown: no {what}"
            lines.append(f"{name} {shown}{error}")
        more = [f"{self.rows:,} rows"]
        for number, what in (
            (self.positives, "positive"),
            (self.unseen, "with targets unseen in training"),
        ):
            more += [] if number is None else [f"{number:,} of them {what}"]
        more += [] if self.groups is None else [f"{self.groups:,} groups"]
        if self.mixed_groups is not None:
            more.append(f"{self.mixed_groups:,} of them with both classes")
        return "\n".join([*lines, ", ".join(more), *str(self.tally).splitlines()])


@dataclass(frozen=True)
class _Labels:
    """What a table says of each row besides the features.

    Attributes:
        label: 0 and 1, or the class of the target.
        kept: The rows that have what they need.
        weight: Weights of the rows, or None.
        group: Groups of the rows, or None.
    """

    label: NDArray[Any]
    kept: NDArray[np.bool_]
    weight: Floats | None
    group: NDArray[np.int64] | None

    def of(self, rows: slice) -> tuple[NDArray[np.bool_], Batch]:
        """Which of some rows are kept, and these as tensors of a batch."""
        kept = self.kept[rows]
        columns = {LABEL: self.label, WEIGHT: self.weight, GROUP: self.group}
        return kept, {
            name: torch.from_numpy(np.ascontiguousarray(values[rows][kept]))
            for name, values in columns.items()
            if values is not None
        }


def evaluate_table(
    predictor: Predictor,
    path: Paths,
    *,
    label: str,
    weight: str | None = None,
    group: str | None = None,
    names: list[str] | None = None,
    separator: str | None = None,
    progress: Progress = no_progress,
) -> TableMetrics:
    r"""Measure a model on the labelled rows of a table, which are read some at a time.

    Labels, weights and groups mean what they mean in :class:`~optuna_nis.data.TableDataModule`;
    rows without label or weight are left out with a warning, those without group of the means over
    groups. Metrics are those of the test in :func:`retrain`. Another warning says of which
    features hardly a value is known.

    Args:
        predictor: The model.
        path: A file, several, a folder or a pattern, as in :func:`~optuna_nis.data.read_table`.
        label: Column of the label, or a rule such as ``"rating>=4"``.
        weight: Column of the weights of the rows.
        group: Column of the groups, users or queries, over which metrics are averaged too.
        names: Names of the columns of text files without a header.
        separator: What stands between the cells of text files, by default what their names say.
        progress: Called with a line of text every few seconds.

    Raises:
        FileNotFoundError: If there is no such table.
        TypeError: If there is no predictor, but a folder, say.
        ValueError: If the table cannot be read, a column is missing or holds something else than
            it should, nothing can be measured on its labels, or there are weights or groups for a
            model that has a feature of that name.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from optuna_nis import SearchSpace
        >>> from optuna_nis.models import reference_model
        >>> full = SearchSpace(data.embedding_specs(8)).full()
        >>> predictor = Predictor(reference_model(data.features)(full), full, data.features)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "new.csv")
        ...     _ = path.write_text("user,item,rating\n3,7,5\n4,123,1\n4,7,3\n")
        ...     found = evaluate_table(predictor, path, label="rating>=4")
        >>> found.rows, found.positives, list(found.metrics)
        (3, 1, ['ROC-AUC', 'LogLoss'])
    """
    check_predictor(predictor)
    _check_keys(predictor, weight, group)
    files = TableFiles(path, names=names, separator=separator)
    rule = Label.parse(label, files.names)
    check_rule(rule, predictor.features.task)
    columns = [name for name in (rule.column, weight, group) if name is not None]
    files.check_there([*predictor.features.needed, *columns])
    labels = _labels(predictor, files, rule, weight, group, progress)
    pace, tally = Pace(progress), Tally(predictor.num_rows)
    loader = _batches(predictor, files, labels, pace, tally)
    model = predictor.model
    found = evaluated(model, ((), (), loader), monitor="test_metric", accelerator="cpu")
    logged = {model.metric_name: "test_metric"} | model.more_metrics
    metrics = {name: found[key] for name, key in logged.items() if key in found}
    kept = labels.label[labels.kept]
    groups = None
    if labels.group is not None:
        groups = len(np.setdiff1d(labels.group[labels.kept], NO_GROUP))
    errors, tally = _errors(predictor, metrics, labels), predictor.check_tally(tally)
    if isinstance(model, ItemsModule):
        unseen = int((kept == UNSEEN_TARGET).sum())
        return TableMetrics(metrics, errors, len(kept), None, unseen, groups, tally=tally)
    mixed = None if groups is None else _num_mixed_groups(labels)
    return TableMetrics(metrics, errors, len(kept), int(kept.sum()), None, groups, mixed, tally)


def _num_mixed_groups(labels: _Labels) -> int:
    """Number of groups in which there is an area under the ROC curve."""
    assert labels.group is not None
    rows = labels.kept & (labels.group != NO_GROUP)
    label, group = (torch.from_numpy(each[rows]) for each in (labels.label, labels.group))
    weights = None if labels.weight is None else torch.from_numpy(labels.weight[rows])
    areas, _ = auc_of_groups(torch.zeros(len(label)), label, weights, group)
    return int(areas.isfinite().sum())


def _check_keys(predictor: Predictor, weight: str | None, group: str | None) -> None:
    for argument, key, given in (("weight", WEIGHT, weight), ("group", GROUP, group)):
        if given is not None and key in predictor.features.names:
            raise ValueError(
                f"`{argument}` is not for a model with a feature {key!r}, the key of the "
                f"{argument}s in a batch, got {given!r}. Train it with another name of the column."
            )


def _labels(
    predictor: Predictor,
    files: TableFiles,
    rule: Label,
    weight: str | None,
    group: str | None,
    progress: Progress,
) -> _Labels:
    """Read the columns that are no features, whole: they say what is wrong with them first."""
    features = predictor.features
    columns = [name for name in (rule.column, weight, group) if name is not None]
    store = ColumnStore([files], None, columns, progress=progress)
    types = {} if features.targets is None else {rule.column: features.targets.types}
    meaning = Meaning(files.name, files.is_text, features.na_values, types)
    found = read_row_columns(store, meaning, rule, features.task, weight=weight, group=group)
    kept, weights = found.kept, found.weight
    label: NDArray[Any]
    if isinstance(found.target, CodedColumn):
        if not (found.target.cells >= 0).any():
            raise ValueError(f"The {files.described} has no label: {rule.column!r} is empty.")
        assert features.targets is not None
        target = found.target
        if files.kind == "text":
            target = integers_in(target, features.targets)
        label = target.classes_of_values(features.targets)[target.cells]
        if (label[kept] == UNSEEN_TARGET).all():
            raise ValueError(
                f"`label` must be the column of the targets: none of the values of "
                f"{rule.column!r} in the {files.described} was a target in training."
            )
    else:
        label = found.target
    counted = label[kept] if weights is None else label[kept & (weights > 0)]
    if features.targets is None and len(np.unique(counted)) < 2:
        raise ValueError(
            f"The label {rule} must have both classes among the rows that count, got only "
            f"{counted[0]:g}."
            if len(counted)
            else f"The {files.described} has no row that counts."
        )
    return _Labels(label, kept, weights, found.groups)


def _batches(
    predictor: Predictor, files: TableFiles, labels: _Labels, pace: Pace, tally: Tally
) -> Iterator[Batch]:
    for frame, _ in read_batches(files, predictor.features, rows=1 << 14):
        kept, batch = labels.of(slice(pace.rows, pace.rows + len(frame)))
        pace.add(len(frame), "Evaluating")
        if kept.any():
            rows = frame[kept]
            encoded = predictor.features.encode_batches(rows, len(rows), check=False, tally=tally)
            for inputs in encoded:
                yield inputs | batch


def _errors(predictor: Predictor, metrics: dict[str, float], labels: _Labels) -> dict[str, float]:
    """Standard errors of the metrics that are areas under the ROC curve or means of shares."""
    label = torch.from_numpy(labels.label[labels.kept])
    weights = None if labels.weight is None else torch.from_numpy(labels.weight[labels.kept])
    name = predictor.model.metric_name
    if not isinstance(predictor.model, ItemsModule):
        positive = label > 0.5
        numbers = (num_rows(which, weights) for which in (positive, ~positive))
        return {name: auc_standard_error(metrics[name], *numbers)}
    rows = num_rows(torch.ones_like(label, dtype=torch.bool), weights)
    return {
        name: share_standard_error(value, rows)
        for name, value in metrics.items()
        if not name.endswith("by group")
    }
