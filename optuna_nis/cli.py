"""The command ``optuna-nis``: search, retrain, report, predict, evaluate and others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from inspect import Parameter, Signature, signature
import json
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

try:
    import rich  # noqa: F401
    import typer
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The command optuna-nis needs the package `{error.name}`, which is not installed: "
        'pip install "optuna-nis[cli]"'
    ) from error

from optuna_nis import __version__
from optuna_nis._checks import check_folder, check_table_file
from optuna_nis._cli_console import (
    bars,
    errors,
    is_other_process,
    progress,
    result,
    silence_lightning,
    stdout,
    tell,
    warn,
)
from optuna_nis._cli_options import (
    SHARD_TABLES_ABOVE,
    DataOptions,
    Model,
    NewRows,
    Quiet,
    SearchOptions,
    StudyOptions,
    flat,
    grouped,
    in_options,
)
from optuna_nis._cli_values import listed, numbers, rows_of

if TYPE_CHECKING:
    from optuna import Study

app = typer.Typer(
    help="""Find the size of every embedding table under a memory budget.

    Three steps: *search* scores choices with a supernet and writes them into an Optuna study,
    *retrain* trains the best ones from scratch beside uniform sizes at the same memory and says
    which to take, *report* shows what was found. They meet in the study: give each the same
    --storage and --study-name.
    """,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

_Run = Callable[..., None]


def _command(
    begin: str = "", interrupted: str = "Start the same command again."
) -> Callable[[_Run], _Run]:
    """Make a function a command, whose errors are a line each.

    Args:
        begin: What begins, told before anything large is imported; arguments in braces.
        interrupted: What has become of the work if it is interrupted.
    """

    def add(run: _Run) -> _Run:
        arguments = signature(run, eval_str=True).parameters.values()

        @wraps(run)
        def called(context: typer.Context, **given: Any) -> None:
            values = grouped(arguments, given)
            with errors(
                values.get("quiet", True) or is_other_process(),
                begin.format(**values),
                interrupted,
                lambda text: in_options(text, context),
            ):
                run(**values)

        # Typer makes the options of these.
        options = [
            Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *flat(arguments),
        ]
        called.__annotations__ = {option.name: option.annotation for option in options}
        called.__signature__ = Signature(options)  # type: ignore[attr-defined]
        app.command()(called)
        return run

    return add


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"optuna-nis {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Print the version."
    ),
) -> None:
    pass


@_command(
    "Searching the sizes for {data.name}: loading torch and Lightning.",
    "Finished trials are kept; the same command goes on.",
)
def search(
    *, data: DataOptions, how: SearchOptions, where: StudyOptions, quiet: Quiet = False
) -> None:
    """Search embedding sizes, into a study. Started again, it goes on where it was interrupted.

    Started several times at once, on one machine or on several, with the same storage and study
    name, the searches learn from each other's trials.

    The search sees training and validation data only; a test part is kept for *retrain*. Started
    by torchrun, all its processes search together.

    Examples:
        optuna-nis search --dataset flights --budget 25%

        optuna-nis search --table clicks.csv --label clicked --features user,item

        torchrun --nproc-per-node 2 --no-python optuna-nis search --dataset flights
    """
    data.check_files()
    silence_lightning()
    from optuna_nis.lightning import search as run_search
    from optuna_nis.lightning.processes import joined_by_torchrun
    from optuna_nis.models.reference import check_model
    from optuna_nis.study.results import score_line

    options = how.arguments()
    check_model(data.task, how.model)
    config = data.config()
    options.setdefault("checkpoint_dir", where.checkpoint_dir)
    options.setdefault("cache_dir", where.cache_dir)
    together = joined_by_torchrun()
    study = _of_first(where.create)
    best = run_search(
        study,
        config,
        **options,
        trainer_options=together,
        callbacks=bars(quiet),
        dashboard=_dashboard(),
        progress=progress(quiet),
    )
    if is_other_process():
        return
    result(str(best))
    result(score_line(study))
    _next(quiet, "retrain --output model", where)


@_command(
    "Retraining the best sizes of {where.study_name}: loading torch and Lightning.",
    "Finished trainings are kept; the same command goes on with the others.",
)
def retrain(
    *,
    seeds: str = typer.Option("0,1,2", help="Seeds of the trainings, separated by commas."),
    output: Path | None = typer.Option(None, help="Folder for the trained model, for predict."),
    max_epochs: int | None = typer.Option(
        None, min=1, help="Most epochs of a training; by default as many as it takes."
    ),
    patience: int = typer.Option(
        2,
        min=1,
        help="Validations without improvement that it waits.",
    ),
    max_rows: str | None = typer.Option(
        None,
        help="Train on about so many rows, or on all.",
        show_default="as many as the search had; all with --search-rows",
    ),
    shard_tables_above: int | None = SHARD_TABLES_ABOVE,
    where: StudyOptions,
    quiet: Quiet = False,
) -> None:
    """Train the best sizes from scratch and what else one would try, and say which to take.

    The search leaves up to three finalists; beside them are uniform sizes, mixed dimensions and
    the full tables. Validation decides; then each is tested once, and *--output* has the model of
    the sizes to take, until then one of the found sizes. The model, its learning rate and its
    dropout are those of the search. Started by torchrun, all its processes train together.
    """
    silence_lightning()
    from optuna_nis.lightning import retrain as run_retrain
    from optuna_nis.lightning.processes import joined_by_torchrun
    from optuna_nis.show.results_table import format_metrics, format_table

    together = joined_by_torchrun()
    study = _of_first(where.load)
    results = run_retrain(
        study,
        seeds=numbers("seeds", seeds),
        output=None if output is None else str(output),
        max_epochs=max_epochs,
        patience=patience,
        max_rows=rows_of(max_rows),
        checkpoint_dir=where.checkpoint_dir,
        cache_dir=where.cache_dir,
        trainer_options=together,
        shard_tables_above=shard_tables_above,
        callbacks=bars(quiet),
        progress=progress(quiet),
    )
    if is_other_process():
        return
    if (dashboard := _dashboard()) is not None:
        dashboard.finish(study)
    stdout().print(format_table(results))
    if (more := format_metrics(results)) is not None:
        stdout().print(more)
    result(results.verdict)
    _next(quiet, "report", where)


@_command()
def report(
    *,
    output: Path = typer.Option(Path("report.html"), help="The HTML file to write."),
    as_json: bool = typer.Option(
        False, "--json", help="Print what is known as one JSON object, last."
    ),
    where: StudyOptions,
    quiet: Quiet = False,
) -> None:
    """Print the results and write one self-contained HTML page with figures."""
    from optuna_nis.show.report import check_page, write_report
    from optuna_nis.show.results_table import format_metrics, format_table
    from optuna_nis.study.keys import DATA_ATTR
    from optuna_nis.study.results import best_allocation, cautions_of, results_of, summary_of

    study = where.load()
    check_page("output", output)
    write_report(study, output)
    for line in cautions_of(study):
        warn(line)
    results = results_of(study)
    if results:
        stdout().print(format_table(results))
        if (more := format_metrics(results)) is not None:
            stdout().print(more)
        if results.verdict:
            result(results.verdict)
    else:
        print("Nothing has been retrained yet.")
        if DATA_ATTR in study.user_attrs:
            _next(quiet, "retrain --output model", where)
    result(str(best_allocation(study)))
    print(f"report: {output}")
    if as_json:
        print(json.dumps(summary_of(study)))


@_command()
def status(
    *,
    watch: bool = typer.Option(False, "--watch", help="Go on until interrupted."),
    interval: float = typer.Option(2.0, min=0.1, help="Seconds between looks with --watch."),
    where: StudyOptions,
) -> None:
    """Print the state of a study: its trials, its policy, its best sizes, its speed."""
    from rich.live import Live

    from optuna_nis.show.status import render, sampler_of, space_of, status_of

    study = where.load()
    sampler = None if space_of(study) is None else sampler_of(study)
    if not watch:
        stdout().print(render(status_of(study, sampler)))
        return
    with suppress(KeyboardInterrupt), Live(console=stdout(), auto_refresh=False) as live:
        while True:
            live.update(render(status_of(study, sampler)), refresh=True)
            sleep(interval)


@_command("Predicting for {rows.name}: loading torch and Lightning.")
def predict(
    *,
    model: Model,
    rows: NewRows,
    output: Path = typer.Option(
        ..., help="The file to write, which ends in .csv, .csv.gz or .parquet."
    ),
    keep: list[str] | None = typer.Option(
        None,
        help="Columns of the table to write before the predictions, separated by commas; "
        "patterns such as '*' in quotes.",
    ),
    quiet: Quiet = False,
) -> None:
    """Predict for new rows with a retrained model: unknown ids are fine.

    Rows are read and written some at a time, so that tables may be of any size.
    """
    check_table_file("output", output)
    rows.check_files()
    silence_lightning()
    from optuna_nis.serve.predictions import predict_table
    from optuna_nis.serve.predictor import Predictor

    predictor = Predictor.load(model)
    found = predict_table(
        predictor,
        output=output,
        keep=listed(keep),
        progress=progress(quiet),
        **rows.arguments(),
    )
    if str(found.tally):
        print(found.tally)
    print(f"{found.rows:,} predictions: {output}")


@_command("Evaluating on {rows.name}: loading torch and Lightning.")
def evaluate(
    *,
    model: Model,
    rows: NewRows,
    label: str = typer.Option(
        ..., help="Label column of the table, or a rule in quotes such as 'rating>=4'."
    ),
    weight: str | None = typer.Option(None, help="Column of the weights of the rows."),
    group: str | None = typer.Option(
        None, help="Column of the user or query of a row, to average metrics over."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead."),
    quiet: Quiet = False,
) -> None:
    """Measure a retrained model on labelled rows: the metrics that retrain tells of its test."""
    rows.check_files()
    silence_lightning()
    from optuna_nis.lightning.evaluating import evaluate_table
    from optuna_nis.serve.predictor import Predictor

    found = evaluate_table(
        Predictor.load(model),
        label=label,
        weight=weight,
        group=group,
        progress=progress(quiet),
        **rows.arguments(),
    )
    print(json.dumps(found.to_dict())) if as_json else result(str(found))


@_command("Exporting {model}: loading torch and Lightning.")
def export(
    *,
    model: Path = typer.Option(..., help="Folder written by retrain --output."),
    form: str = typer.Option(
        ...,
        "--format",
        help="packed (tables as they were budgeted), dense (plain layers of torch), int8 or fp16 "
        "(fewer bits after training), each a folder that predict reads; onnx, torch-export; "
        "torchrec.",
    ),
    output: Path = typer.Option(..., help="The folder to write."),
    quiet: Quiet = False,
) -> None:
    """Write a retrained model for serving, with the vocabularies beside it."""
    check_folder("output", output)
    silence_lightning()
    from optuna_nis.serve.export import export_model

    print(export_model(model, form, output))


def main() -> None:
    """Run the command."""
    app()


def _of_first(open_study: Callable[[], Study]) -> Study:
    """The study in the first process that torchrun has started; the others get a copy of it."""
    if is_other_process():
        import optuna

        return optuna.create_study()
    return open_study()


def _next(quiet: bool, command: str, where: StudyOptions) -> None:
    """Say which command comes next."""
    if not quiet:
        tell(f"Next: optuna-nis {command}{where}", whole=True)


def _dashboard() -> Any:
    """Figures for Optuna Dashboard, where that is installed."""
    with suppress(ImportError):
        from optuna_nis.show.dashboard import DashboardCallback

        return DashboardCallback()
    return None


if __name__ == "__main__":
    main()
