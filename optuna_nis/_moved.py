"""Modules under the names that they had in earlier releases, with a warning."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
import sys
from types import ModuleType
import warnings

# Those that were public, and those that pickles of public classes name. What is beneath one of
# them is beneath what it has become.
MOVED = {
    "allocation": "space.allocation",
    "baselines": "strategy.baselines",
    "budget": "space",
    "cautions": "study.cautions",
    "dashboard": "show.dashboard",
    "datasets": "data",
    "export": "serve",
    "lightning.data_config": "data.config",
    "lightning.modules": "models",
    "lightning.predictor": "serve.predictor",
    "moments": "study.moments",
    "nn.softmax": "models.softmax",
    "policy": "controller.policy",
    "recording": "study.recording",
    "replay": "controller.replay",
    "report": "show.report",
    "results": "study.results",
    "reward": "strategy.reward",
    "sampler": "controller.sampler",
    "searches": "study.searches",
    "status": "show.status",
    "storages": "study.storages",
    "uncertainty": "study.uncertainty",
    "visualization": "show.figures",
}


class _MovedModules(MetaPathFinder, Loader):
    """Finds a module under its name of before; it is the same object as under its name of now."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = _new_name(fullname)
        return None if new is None or find_spec(new) is None else ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = _new_name(old)
        assert new is not None
        warnings.warn(
            f"`{old}` is `{new}` now; its old name goes in the next minor release.",
            FutureWarning,
            stacklevel=2,
        )
        sys.modules[old] = import_module(new)


def _new_name(fullname: str) -> str | None:
    package, _, name = fullname.partition(".")
    if package == "optuna_nis":
        for old, new in MOVED.items():
            if name == old or name.startswith(f"{old}."):
                return f"optuna_nis.{new}{name.removeprefix(old)}"
    return None


def install_moved_modules() -> None:
    """Let the names of earlier releases be imported."""
    # First of all finders: another would load what is beneath a package that moved a second time.
    sys.meta_path.insert(0, _MovedModules())
