"""What the package tells is told as what Optuna tells."""

from __future__ import annotations

from importlib import import_module
import logging
import pkgutil

import pytest

import optuna_nis

MODULES = [
    module.name
    for module in pkgutil.walk_packages(optuna_nis.__path__, "optuna_nis.")
    if not module.ispkg
]


@pytest.mark.parametrize("name", MODULES)
def test_loggers_are_below_that_of_optuna(name: str) -> None:
    """Others show no information, and know no verbosity."""
    module = pytest.importorskip(name)
    logger = getattr(module, "_logger", None)
    if logger is not None:
        assert isinstance(logger, logging.Logger)
        assert logger.name == f"optuna.{name}"


def test_there_are_some() -> None:
    names = ("optuna_nis.controller.sampler", "optuna_nis.lightning.callback")
    assert all(hasattr(import_module(name), "_logger") for name in names)
