"""What the command prints, where to, and what it says of errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import errno
import logging
import os
import time
from typing import Any
import warnings

import rich
from rich.console import Console
import typer

# Lightning draws its bars on this console too: what is printed goes above them, not into them.
rich.reconfigure(stderr=True)
_console = rich.get_console()

# Packages through which Optuna speaks to storages, and the errors that are told in a line.
_CLIENTS = ("sqlalchemy", "redis", "grpc")
# What follows in errors of SQLAlchemy is what the database was told, and where to read on.
_STATEMENT, _BACKGROUND = "\n[SQL:", "\n(Background on this error"
# Seconds in which torchrun ends the other processes when one has failed, and more.
_ENDS_ALL = 5.0
# A full disk, or a full share of it: what was written before is kept, as after an interruption.
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_EXPECTED = (ValueError, TypeError, RuntimeError, OSError, ImportError, KeyError)


@contextmanager
def errors(
    quiet: bool, begin: str, interrupted: str, reword: Callable[[str], str]
) -> Iterator[None]:
    """Say in a line what begins, and what goes wrong; what is in the study stays there.

    Args:
        quiet: Whether only warnings, errors and results are printed.
        begin: What begins, told before anything large is imported.
        interrupted: What has become of the work if it is interrupted.
        reword: Turns what an error says of arguments into what people have given.
    """
    if begin:
        progress(quiet)(begin)
    try:
        with _warnings():
            import optuna

            optuna.logging.set_verbosity(optuna.logging.WARNING if quiet else optuna.logging.INFO)
            optuna.logging.disable_default_handler()
            yield
    except BrokenPipeError:  # Nobody reads on.
        raise
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second.
        fail(f"Interrupted. {interrupted}", 130)
    except Exception as error:
        from optuna.exceptions import StorageInternalError

        package = type(error).__module__.partition(".")[0]
        if isinstance(error, StorageInternalError) or package in _CLIENTS:
            # Optuna says what it was about, the error before it what was wrong.
            why = str(error.__cause__ or error).partition(_STATEMENT)[0]
            fail(f"`--storage` cannot be used: {why.partition(_BACKGROUND)[0]}")
        if not isinstance(error, _EXPECTED):
            raise
        if isinstance(error, OSError) and error.errno in _FULL:
            where = "" if error.filename is None else f": {error.filename}"
            fail(f"{error.strerror}{where}. {interrupted}")
        fail(reword(str(error.args[0] if isinstance(error, KeyError) else error)))


class _Lines(logging.Handler):
    """Warnings of this package, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


@contextmanager
def _warnings() -> Iterator[None]:
    """Show warnings as a line for people, without where in the code they come from."""
    # Where `_logging` puts the loggers of this package, whose import would take a while.
    logger, handler = logging.getLogger("optuna.optuna_nis"), _Lines(logging.WARNING)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where, **how: warn(str(message))
            yield
    finally:
        logger.removeHandler(handler)


def is_other_process() -> bool:
    """Whether torchrun has started this process, and it is not the first, which says it all."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


def warn(text: str) -> None:
    tell(f"Warning: {text}", style="yellow")


def tell(text: str, *, style: str | None = None, whole: bool = False) -> None:
    """Print a line on the standard error."""
    _console.stderr = True  # Lightning's own bars set it to the standard output.
    _print(_console, text, style, whole)


class _Output(Console):
    def on_broken_pipe(self) -> None:
        # Rich would exit as an interruption does.
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def stdout() -> Console:
    """The standard output."""
    return _Output(emoji=False)


def result(text: str) -> None:
    """Print lines on the standard output."""
    _print(stdout(), text)


def _print(console: Console, text: str, style: str | None = None, whole: bool = False) -> None:
    """Print lines, broken between words where somebody looks; in files they stay lines.

    Args:
        console: Where to.
        text: The lines.
        style: Their style.
        whole: Whether they must not be broken, as a command that is copied.
    """
    soft_wrap = whole or not console.is_terminal
    # Names of columns may look like codes of emoji.
    console.print(
        text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=soft_wrap
    )


def silence_lightning() -> None:
    # Importing Lightning sets the level of its loggers.
    import lightning.pytorch  # noqa: F401

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def fail(message: str, code: int = 1) -> None:
    if is_other_process():
        # What all of them have to say, the first one says, whose end is theirs too.
        time.sleep(_ENDS_ALL)
    tell(message, style="bold red")
    raise typer.Exit(code)


def progress(quiet: bool) -> Any:
    if quiet:
        return lambda text: None
    return tell


def bars(quiet: bool) -> list[Any]:
    """A bar for the training at work, where someone looks at it."""
    if quiet or is_other_process() or not _console.is_terminal:
        return []
    from lightning.pytorch.callbacks import RichProgressBar

    class _Bar(RichProgressBar):
        """Counts epochs from one, as all lines of the command do."""

        def _get_train_description(self, current_epoch: int) -> str:
            most = self.trainer.max_epochs
            text = f"Epoch {current_epoch + 1}" + ("" if most is None else f"/{most}")
            return f"{text:{len(self.validation_description)}}"

    return [_Bar(console_kwargs={"stderr": True})]
