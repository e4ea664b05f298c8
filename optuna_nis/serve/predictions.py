"""Predictions for the rows of a table of any size, written as they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow

from optuna_nis._checks import check_table_file
from optuna_nis.data.files import TableFiles
from optuna_nis.data.pace import Pace, Progress, no_progress
from optuna_nis.data.paths import Paths
from optuna_nis.data.patterns import select_columns
from optuna_nis.data.reading import read_batches
from optuna_nis.data.tally import Tally
from optuna_nis.serve.predictor import Predictor, check_predictor
from optuna_nis.serve.writing import writing


@dataclass(frozen=True)
class TablePredictions:
    """What was predicted for a table.

    Attributes:
        rows: The number of rows.
        tally: For each feature of which the model has rows, how many values were unknown, and
            how many rows had none. Values for which the model has no row are unknown too.
    """

    rows: int
    tally: Tally


def predict_table(
    predictor: Predictor,
    path: Paths,
    output: str | Path,
    *,
    keep: Sequence[str] = (),
    names: Sequence[str] | None = None,
    separator: str | None = None,
    progress: Progress = no_progress,
) -> TablePredictions:
    r"""Predict for the rows of a table, some at a time, and write them into a file.

    The file takes the place of an earlier one when it is whole. The predictions are one column,
    ``prediction``, for ranking, and the targets ``top_1``, ``top_2`` and so on for retrieval. A
    warning says of which features hardly a value is known.

    Args:
        predictor: The model.
        path: A file, several, a folder or a pattern, as in :func:`~optuna_nis.data.read_table`.
        output: The file, named ``.csv``, ``.csv.gz`` or ``.parquet``.
        keep: Columns of the table, or patterns of them, to write before the predictions.
        names: Names of the columns of text files without a header.
        separator: What stands between the cells of text files, by default what their names say.
        progress: Called with a line of text every few seconds.

    Returns:
        The number of rows, and how many of their values the model does not know.

    Raises:
        FileNotFoundError: If there is no such table.
        TypeError: If there is no predictor, but a folder, say.
        ValueError: If the table cannot be read, a column is missing or of another type than in
            training, or the output cannot be written.

    Example:
        >>> import tempfile
        >>> from optuna_nis import SearchSpace
        >>> from optuna_nis.models import reference_model
        >>> full = SearchSpace(data.embedding_specs(8)).full()
        >>> model = reference_model(data.features)(full)  # to be trained
        >>> predictor = Predictor(model, full, data.features)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "new.csv").write_text("user,item\n3,7\n4,123\n")
        ...     output = Path(folder, "found.csv")
        ...     found = predict_table(predictor, f"{folder}/new.csv", output, keep=["item"])
        ...     found.rows, output.read_text().split()[0]
        (2, 'item,prediction')
        >>> print(found.tally)
        unknown: user 1 of 2 values (50.0%), item 1 of 2 values (50.0%)
    """
    check_predictor(predictor)
    output = Path(output)
    check_table_file("output", output)
    files = TableFiles(path, names=names, separator=separator)
    if output.resolve() in [file.resolve() for file in files.files]:
        raise ValueError(f"`output` must not be a file of the table, got {str(output)!r}.")
    kept = select_columns(keep, files.names, argument="keep")
    files.check_there([*predictor.features.needed, *kept])
    predicted = predictor.columns
    if taken := [name for name in kept if name in predicted]:
        raise ValueError(
            f"`keep` must not have the column {taken[0]!r}, the name of a prediction; rename it."
        )
    if output.suffix != ".parquet":
        for field in files.schema(kept):
            if pyarrow.types.is_nested(field.type):
                raise ValueError(
                    f"`output` must end in .parquet to keep the lists of {field.name!r}, got "
                    f"{str(output)!r}."
                )
    pace, kind, tally = Pace(progress), predictor.column_type, Tally(predictor.num_rows)
    with writing(output) as write:
        for frame, others in read_batches(files, predictor.features, more=kept):
            found = predictor.predict(frame, check=False, tally=tally)
            columns = dict(zip(kept, others.columns))
            for name, values in zip(predicted, found.reshape(len(found), -1).T):
                # Targets of several types are text.
                is_text = pyarrow.types.is_string(kind)
                columns[name] = pyarrow.array(map(str, values) if is_text else values, kind)
            write(pyarrow.table(columns))
            pace.add(len(frame), "Predicting")
    return TablePredictions(pace.rows, predictor.check_tally(tally))
