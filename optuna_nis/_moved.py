"""Public modules under the names that they had in earlier releases, with a warning."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
import sys
from types import ModuleType
import warnings

_MOVED = {
    "allocation": "space.allocation",
    "baselines": "strategy.baselines",
    "budget": "space",
    "dashboard": "show.dashboard",
    "datasets": "data",
    "export": "serve",
    "export.torchrec": "serve.torchrec",
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
    "visualization": "show.figures",
}


class _MovedModules(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package == "optuna_nis" and name in _MOVED:
            return ModuleSpec(fullname, self)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = f"optuna_nis.{_MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(
            f"`{spec.name}` is `{new}` now, and goes in the next minor release.",
            FutureWarning,
            stacklevel=2,
        )
        return ModuleType(spec.name, f"See :mod:`{new}`.")

    def exec_module(self, module: ModuleType) -> None:
        """Give it all names of the module that it has become."""
        new = vars(import_module(f"optuna_nis.{_MOVED[module.__name__.partition('.')[2]]}"))
        names = new.keys() - vars(ModuleType("")).keys() - {"__file__", "__cached__", "__path__"}
        vars(module).update({name: new[name] for name in names}, __path__=[])


def install_moved_modules() -> None:
    """Let the names of earlier releases be imported."""
    if not any(type(finder).__name__ == _MovedModules.__name__ for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
