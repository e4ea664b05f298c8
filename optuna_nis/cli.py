"""The command ``optuna-nis``: search, retrain, report, predict, export."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
import json
from pathlib import Path
import shlex
from time import sleep
from typing import TYPE_CHECKING, Annotated, Any

try:
    from rich.console import Console
    import typer
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The command optuna-nis needs the package `{error.name}`, which is not installed: "
        'pip install "optuna-nis[cli]"'
    ) from error

from optuna_nis import __version__
from optuna_nis._checks import check_file, check_folder
from optuna_nis._cli_console import bars, errors, progress, result, silence_lightning, tell, warn
from optuna_nis._format import size

# Whoever asks for help does not wait for Optuna, and whoever searches is told what is loaded.
if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

    from optuna_nis.space.allocation import Allocation

app = typer.Typer(
    help="""Find the size of every embedding table under a memory budget.

    Three steps: *search* scores choices with a supernet and writes them into an Optuna study,
    *retrain* trains the best one from scratch and compares it with uniform sizes at the same
    memory, *report* shows what was found. They meet in the study: give each the same --storage
    and --study-name.
    """,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
# Of a 32-bit float.
_BYTES_PER_PARAMETER = 4

_STORAGE, _STUDY_NAME = "sqlite:///optuna-nis.db", "optuna-nis"

Storage = Annotated[
    str,
    typer.Option(
        help="Where the study is kept: sqlite:///FILE, postgresql://..., mysql://..., a file "
        "named *.journal or redis://... for Optuna's journal, grpc://HOST:PORT for its proxy."
    ),
]
StudyName = Annotated[str, typer.Option(help="Name of the study.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only warnings, errors and results.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"optuna-nis {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def search(
    dataset: Annotated[
        str | None,
        typer.Option(
            help="A data set by name: flights, movielens-small, or, with --data-dir, movielens-1m "
            "or amazon-video-games."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the files of a data set that does not come with a package."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Your own table: a CSV, TSV or Parquet file.")
    ] = None,
    task: Annotated[
        str, typer.Option(help="ranking (a yes-or-no label) or retrieval (one of many items).")
    ] = "ranking",
    label: Annotated[str | None, typer.Option(help="Label column of the table.")] = None,
    features: Annotated[
        str,
        typer.Option(
            help="Feature columns of the table, separated by commas; of a data set by default all."
        ),
    ] = "",
    bags: Annotated[
        list[str] | None,
        typer.Option(
            help="A column with several values in a cell and what stands between them, such as "
            "genres:'|', quoted against the shell; only the column, such as history, if its cells "
            "are lists (Parquet). The separator comes after the last colon, so columns may have "
            "colons. Can be given more than once."
        ),
    ] = None,
    max_bag_length: Annotated[
        int | None,
        typer.Option(min=1, help="Values kept of such a cell.", show_default="50"),
    ] = None,
    bag_keep: Annotated[
        str | None,
        typer.Option(
            help="Which values of a longer cell are kept: last, the latest of a history that "
            "grows at its end, or first.",
            show_default="last; of a data set what suits it",
        ),
    ] = None,
    na_values: Annotated[
        str,
        typer.Option(
            help="Texts in the table that stand for a missing value, separated by commas, such as "
            "NA,null. Without, only the empty cell is missing and NA is an id."
        ),
    ] = "",
    time: Annotated[
        str | None, typer.Option(help="Time column of the table: test on the latest rows.")
    ] = None,
    time_format: Annotated[
        str | None,
        typer.Option(
            help="How its dates are written, such as '%d/%m/%Y'.", show_default="ISO 8601"
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="random, chronological or, for sequences of users, leave-one-out.",
            show_default="what suits the data",
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(help="Embedding memory: 25% of the full tables, 64MB, or 50000 parameters."),
    ] = "25%",
    mode: Annotated[
        str,
        typer.Option(
            help="multi: frequent ids get wider rows; single: one width for each feature."
        ),
    ] = "multi",
    embedding_dim: Annotated[
        int | None,
        typer.Option(
            help="Largest width considered.", show_default="32 for ranking, 64 for retrieval"
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Epochs of the supernet.",
            show_default="4 for ranking, 6 for retrieval, more if it learns more slowly",
        ),
    ] = None,
    updates: Annotated[int, typer.Option(min=1, help="Updates of the controller.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    max_rows: Annotated[
        int | None, typer.Option(min=10, help="Use only about so many rows.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows in a training batch.", show_default="4096, fewer of small data"
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of Adam.", show_default="0.002 for ranking, 0.006 for retrieval"
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(help="Probability of dropout after each layer of the MLP.", show_default="0"),
    ] = None,
    shard: Annotated[
        str,
        typer.Option(help="Train on a part of the training rows only: 0/2 and 1/2 are halves."),
    ] = "0/1",
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what is needed to go on after an interruption, empty in the end.",
            show_default="FILE.checkpoints beside a study in a file, optuna-nis.checkpoints",
        ),
    ] = None,
    storage: Storage = _STORAGE,
    study_name: StudyName = _STUDY_NAME,
    quiet: Quiet = False,
) -> None:
    """Search embedding sizes, into a study. Started again, it goes on where it was interrupted.

    Started several times at once, on one machine or on several, with the same storage and study
    name, the searches learn from each other's trials.

    The search sees training and validation data only; a test part is kept for *retrain*.

    Examples:
        optuna-nis search --dataset flights --budget 25%

        optuna-nis search --table clicks.csv --label clicked --features user,item
    """
    with errors(
        quiet,
        f"Searching the sizes for {dataset or table or 'data'}: loading torch and Lightning.",
        "Finished trials are kept; the same command goes on.",
    ):
        silence_lightning()
        import optuna

        from optuna_nis.lightning import DataConfig
        from optuna_nis.lightning import search as run_search

        data = DataConfig(
            dataset=dataset,
            data_dir=None if data_dir is None else str(data_dir.resolve()),
            table=None if table is None else str(table.resolve()),
            task=task,  # type: ignore[arg-type]
            label=label,
            features=_names(features),
            bags=_bags(bags or (), table),
            time=time,
            time_format=time_format,
            na_values=_names(na_values),
            max_bag_length=max_bag_length,
            bag_keep=bag_keep,  # type: ignore[arg-type]
            split=split,  # type: ignore[arg-type]
            max_rows=max_rows,
            batch_size=batch_size,
        )
        options = {"learning_rate": learning_rate, "dropout": dropout}
        study = optuna.create_study(
            storage=_storage(storage),
            study_name=study_name,
            direction="maximize",
            load_if_exists=True,
        )
        best = run_search(
            study,
            data,
            budget=_budget(budget),
            mode=mode,  # type: ignore[arg-type]
            embedding_dim=embedding_dim,
            epochs=epochs,
            num_updates=updates,
            seed=seed,
            callbacks=bars(quiet),
            dashboard=_dashboard(),
            progress=progress(quiet),
            checkpoint_dir=_checkpoint_dir(storage) if checkpoint_dir is None else checkpoint_dir,
            shard=_shard(shard),
            **{name: value for name, value in options.items() if value is not None},
        )
        result(str(best))
        result(_score(study, best))
        _next(quiet, "retrain --output model", storage, study_name)


@app.command()
def retrain(
    seeds: Annotated[
        str, typer.Option(help="Seeds of the trainings, separated by commas.")
    ] = "0,1,2",
    output: Annotated[
        Path | None, typer.Option(help="Folder for the trained model, for predict.")
    ] = None,
    max_epochs: Annotated[int, typer.Option(min=1, help="Most epochs of a training.")] = 30,
    patience: Annotated[
        int, typer.Option(min=1, help="Epochs without improvement after which to stop.")
    ] = 3,
    storage: Storage = _STORAGE,
    study_name: StudyName = _STUDY_NAME,
    quiet: Quiet = False,
) -> None:
    """Train the best sizes from scratch, uniform ones and the full tables; test each once.

    The model's learning rate and dropout are those of the search.
    """
    with errors(
        quiet,
        f"Retraining the best sizes of {study_name}: loading torch and Lightning.",
        "Finished trainings are kept; the same command goes on with the others.",
    ):
        silence_lightning()
        from optuna_nis.lightning import retrain as run_retrain
        from optuna_nis.show.report import format_table

        study = _load(storage, study_name)
        results = run_retrain(
            study,
            seeds=_seeds(seeds),
            output=None if output is None else str(output),
            max_epochs=max_epochs,
            patience=patience,
            callbacks=bars(quiet),
            progress=progress(quiet),
        )
        if (dashboard := _dashboard()) is not None:
            dashboard.finish(study)
        Console().print(format_table(results))
        _next(quiet, "report", storage, study_name)


@app.command()
def report(
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what is known as one JSON object, last.")
    ] = False,
    storage: Storage = _STORAGE,
    study_name: StudyName = _STUDY_NAME,
    quiet: Quiet = False,
) -> None:
    """Print the results and write one self-contained HTML page with figures."""
    with errors(quiet):
        from optuna_nis.show.report import format_table, write_report
        from optuna_nis.study.results import best_allocation, cautions_of, results_of, summary_of

        study = _load(storage, study_name)
        check_file("--output", output)
        write_report(study, output)
        for line in cautions_of(study):
            warn(line)
        results = results_of(study)
        if results:
            Console().print(format_table(results))
        else:
            print("Nothing has been retrained yet.")
            _next(quiet, "retrain --output model", storage, study_name)
        result(str(best_allocation(study)))
        print(f"report: {output}")
        if as_json:
            print(json.dumps(summary_of(study)))


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Go on until interrupted.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds between looks with --watch.")
    ] = 2.0,
    storage: Storage = _STORAGE,
    study_name: StudyName = _STUDY_NAME,
) -> None:
    """Print the state of a study: its trials, its policy, its best sizes, its speed."""
    with errors(quiet=True):
        from rich.live import Live

        from optuna_nis.controller.sampler import NISSampler
        from optuna_nis.show.status import render, space_of, status_of

        study = _load(storage, study_name)
        sampler = NISSampler(budget=space_of(study))
        if not watch:
            Console().print(render(status_of(study, sampler)))
            return
        with suppress(KeyboardInterrupt), Live(console=Console(), auto_refresh=False) as live:
            while True:
                live.update(render(status_of(study, sampler)), refresh=True)
                sleep(interval)


@app.command()
def predict(
    model: Annotated[Path, typer.Option(help="Folder written by retrain --output, or export.")],
    table: Annotated[Path, typer.Option(help="New rows: a CSV, TSV or Parquet file.")],
    output: Annotated[Path, typer.Option(help="The CSV file to write.")],
    quiet: Quiet = False,
) -> None:
    """Predict for new rows with a retrained model: unknown ids are fine."""
    with errors(quiet, f"Predicting for {table}: loading torch and Lightning."):
        check_file("--output", output)
        silence_lightning()
        import pandas as pd

        from optuna_nis.data import read_table
        from optuna_nis.lightning import Predictor

        predictor = Predictor.load(model)
        found = predictor.predict(read_table(table, like=predictor.features))
        columns = ["prediction"]
        if found.ndim == 2:
            columns = [f"top_{place}" for place in range(1, found.shape[1] + 1)]
        output.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(found, columns=columns).to_csv(output, index=False)
        print(f"{len(found):,} predictions: {output}")


@app.command()
def export(
    model: Annotated[Path, typer.Option(help="Folder written by retrain --output.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="dense (plain layers of torch), int8 or fp16 (fewer bits), each a folder that "
            "predict reads; onnx, torch-export; torchrec.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    quiet: Quiet = False,
) -> None:
    """Write a retrained model for serving, with the vocabularies beside it."""
    with errors(quiet, f"Exporting {model}: loading torch and Lightning."):
        check_folder("--output", output)
        silence_lightning()
        from optuna_nis.lightning import export_model

        print(export_model(model, form, output))


def main() -> None:
    """Run the command."""
    app()


def _score(study: Study, best: Allocation) -> str:
    from optuna_nis.study.results import (
        QUALITY_ATTR,
        best_trial,
        metric_of,
        number_of,
        space_of,
        value_of,
    )

    trial = best_trial(study)
    quality = number_of(trial, QUALITY_ATTR, value_of(trial))
    number, full = best.num_parameters, space_of(study).full_parameters
    return (
        f"Validation {metric_of(study)} {quality:.4f} with {number:,} parameters, "
        f"{best.num_projection_parameters:,} of them in projections: "
        f"{size(_BYTES_PER_PARAMETER * number)}, {100 * number / full:.3g} % of the full tables"
    )


def _next(quiet: bool, command: str, storage: str, study_name: str) -> None:
    """Say which command comes next."""
    options = ""
    if storage != _STORAGE:
        # An address may hold a password.
        options += f" --storage {'...' if '@' in storage else shlex.quote(storage)}"
    if study_name != _STUDY_NAME:
        options += f" --study-name {shlex.quote(study_name)}"
    if not quiet:
        tell(f"Next: optuna-nis {command}{options}", whole=True)


def _dashboard() -> Any:
    """Figures for Optuna Dashboard, where that is installed."""
    with suppress(ImportError):
        from optuna_nis.show.dashboard import DashboardCallback

        return DashboardCallback()
    return None


def _storage(storage: str) -> BaseStorage:
    if "://" not in storage and not storage.endswith(".journal"):
        raise ValueError(
            f"`--storage` must be a URL such as sqlite:///study.db or a *.journal file, got "
            f"{storage!r}."
        )
    from optuna_nis.study.storages import open_storage

    return open_storage(storage)


def _checkpoint_dir(storage: str) -> Path:
    """Beside the file of the study, if it is in one."""
    return Path(f"{_file_of(storage) or 'optuna-nis'}.checkpoints")


def _file_of(storage: str) -> str | None:
    """The file that a storage is in, if it is in one."""
    if storage.startswith("sqlite"):
        import sqlalchemy

        return sqlalchemy.make_url(storage).database
    return storage if storage.endswith(".journal") else None


def _load(storage: str, study_name: str) -> Study:
    import optuna

    file = _file_of(storage)
    # Opening it would make it.
    if file and not file.startswith((":memory:", "file:")) and not Path(file).exists():
        raise ValueError(f"`--storage` {storage!r}: there is no file {file}; search first.")
    try:
        return optuna.load_study(study_name=study_name, storage=_storage(storage))
    except KeyError as error:
        raise ValueError(
            f"`--study-name` {study_name!r} is not in the storage {storage!r}; search first."
        ) from error


def _budget(text: str) -> int | float | str:
    """A plain number is one of parameters, or a fraction if it has a decimal point."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _bags(texts: Sequence[str], table: Path | None) -> dict[str, str | None]:
    """For every bag its separator, or None if its cells are lists."""
    if not texts:
        return {}
    from optuna_nis.data import column_names

    columns = [] if table is None else column_names(table)
    return dict(_bag(text, columns) for text in texts)


def _bag(text: str, columns: Sequence[str]) -> tuple[str, str | None]:
    if text in columns or (text and ":" not in text):
        return text, None
    splits = [
        (text[:place], text[place + 1 :])
        for place, letter in enumerate(text)
        if letter == ":" and 0 < place < len(text) - 1
    ]
    if not splits:
        raise ValueError(
            f"`--bags` must be COLUMN:SEPARATOR such as genres:'|', or COLUMN for lists, got "
            f"{text!r}."
        )
    # The separator may be a colon itself, and names of columns may have some.
    known = [split for split in splits if split[0] in columns]
    return (known or splits)[-1]


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise ValueError(f"`--shard` must be INDEX/COUNT such as 0/2, got {text!r}.")
    return int(index), int(count)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"`--seeds` must be numbers such as 0,1,2, got {text!r}.") from None


if __name__ == "__main__":
    main()
