"""The page on the command, from what ``--help`` says."""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys


def write(folder: Path) -> None:
    """Write ``command.md``."""
    options = ("--name", "optuna-nis", "--title", "The command")
    page = subprocess.run(
        [sys.executable, "-m", "typer", "optuna_nis.cli", "utils", "docs", *options],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # Markdown takes indented lines for code only after an empty one.
    page = page.replace("Examples:\n", "Examples:\n\n")
    (folder / "command.md").write_text(page, encoding="utf-8")
