"""Loggers that Optuna's settings hold for."""

from __future__ import annotations

import logging

import optuna


def get_logger(name: str) -> logging.Logger:
    """A logger of this package below Optuna's own.

    It has the handler and the verbosity of Optuna (:func:`optuna.logging.set_verbosity`); outside
    of its name, information would be shown to nobody.

    Args:
        name: Name of the module.

    Example:
        >>> get_logger("optuna_nis.space.space").name
        'optuna.optuna_nis.space.space'
    """
    return optuna.logging.get_logger(f"optuna.{name}")
