"""Benchmarks print their figures and nothing else."""

from __future__ import annotations

import logging
import warnings

import optuna


def quiet() -> None:
    """Silence what Optuna and Lightning tell of their work."""
    warnings.filterwarnings("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
