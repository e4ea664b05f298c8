"""Embedding classes of other methods, as their authors wrote them, in the reference model.

Their code is no part of this project. A folder, ``--rivals-dir``, has what :data:`REPOSITORIES`
names, each under its own name, and the classes are used as they are: what they expect of ids,
files and optimisers is done around them.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
import importlib.util
import io
from pathlib import Path
import pickle
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from rival_layers import mean_of_known
import torch
from torch import Tensor, nn
from torch.nn import functional


class Repository(NamedTuple):
    """Where a method's code is.

    Attributes:
        name: On GitHub, its owner first.
        commit: With which it has been tried.
        file: What is needed of it.
    """

    name: str
    commit: str
    file: str

    @property
    def folder(self) -> str:
        """What its folder is called."""
        return self.name.split("/")[1]


REPOSITORIES = {
    "mpe": Repository("Leopold1423/mpe", "4afa784", "model/embedding.py"),
    "pep": Repository(
        "ssui-liu/learnable-embed-sizes-for-RecSys", "e4d07d2", "models/pep_embedding.py"
    ),
    "optembed": Repository("fuyuanlyu/OptEmbed", "0feda5f", "models/modules_super.py"),
}


def add_rivals_argument(parser: ArgumentParser) -> None:
    """Let a benchmark's command line say where the code of other methods is."""
    folders = ", ".join(repository.folder for repository in REPOSITORIES.values())
    parser.add_argument(
        "--rivals-dir",
        help=f"folder of other authors' code, for {', '.join(REPOSITORIES)}: "
        f"their repositories {folders}",
    )


def check_rivals(parser: ArgumentParser, folder: str | None, methods: Iterable[str]) -> None:
    """End a benchmark before it begins if the code of some methods is not there."""
    for method in methods:
        if method in REPOSITORIES and (folder is None or not _file(folder, method).is_file()):
            repository = REPOSITORIES[method]
            parser.error(
                f"`--rivals-dir` must name a folder with {repository.folder}/{repository.file} "
                f"for the method {method!r}, got {folder!r}: fetch the repository "
                f"{repository.name} from GitHub into it (commit {repository.commit})."
            )


def _file(folder: str, method: str) -> Path:
    repository = REPOSITORIES[method]
    return Path(folder) / repository.folder / repository.file


def _module(folder: str, method: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"authors_{method}", _file(folder, method))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mpe_embedding(
    folder: str,
    counts: Sequence[Sequence[int]],
    embedding_dim: int,
    *,
    groups: int,
    tau: float,
    init_std: float,
) -> Any:
    """The ``OptFP_Embedding`` of mixed-precision embeddings, for the ids of all features.

    It reads the counts of ids from a file of its authors, of which it is given ours instead: those
    of the training data. Ids of a feature that are as frequent as others go by their rank, so that
    the groups of its ids are runs of ranks.
    """
    module = _module(folder, "mpe")
    flat = np.concatenate([np.asarray(own) - np.arange(len(own)) * 1e-7 for own in counts])
    file = pickle.dumps(torch.from_numpy(flat))
    module.open = lambda *args: io.BytesIO(file)  # type: ignore[attr-defined]
    size = -(-len(flat) // min(groups, len(flat)))
    config = {
        # None of them empty, whose count its penalty would divide by.
        "group": -(-len(flat) // size),
        "bitsets": "0123456",
        "tau": tau,
    }
    return module.OptFP_Embedding(len(flat), embedding_dim, f"normal_{init_std}", "", config)


def pep_embedding(folder: str, sizes: Sequence[int], embedding_dim: int, **options: Any) -> Any:
    """The ``PEPEmbedding`` of learnable embedding sizes, with a threshold for each number.

    Args:
        folder: Of the code.
        sizes: Number of ids of each feature.
        embedding_dim: Width of the rows.
        **options: Further ones, such as for the training of what was found.
    """
    if not hasattr(np, "long"):
        raise RuntimeError("The class of PEP uses `numpy.long`, which needs numpy 2.")
    module = _module(folder, "pep")
    with redirect_stdout(io.StringIO()):
        return module.PEPEmbedding(
            {
                "use_cuda": False,
                "latent_dim": embedding_dim,
                "field_dims": list(sizes),
                "threshold_type": "feature_dim",
                "g_type": "sigmoid",
                "gk": 1,
                "threshold_init": -15.0,
                **options,
            }
        )


def _look_up(ids: Tensor, weight: Tensor) -> Tensor:
    return weight[ids] if weight.dim() == 1 else functional.embedding(ids, weight)


def optembed_embedding(folder: str, stage: str, sizes: Sequence[int], embedding_dim: int) -> Any:
    """What OptEmbed looks up with in a stage of its own: ``"super"``, ``"evo"`` or ``"retrain"``.

    The classes ``BasicSuper``, ``BasicEvo`` and ``BasicRetrain``, with a threshold for each
    feature and zeros for the ids that are pruned.
    """
    root = str(Path(folder) / REPOSITORIES["optembed"].folder)
    if root not in sys.path:
        # Its modules import each other from here; nothing else is called so.
        sys.path.append(root)
    module = importlib.import_module(f"models.modules_{stage}")
    # It looks up a mask of one dimension, which torch allowed in its time.
    module.F = SimpleNamespace(embedding=_look_up)  # type: ignore[attr-defined]
    with redirect_stdout(io.StringIO()):
        return getattr(module, f"Basic{stage.capitalize()}")(
            {
                "use_cuda": False,
                "latent_dim": embedding_dim,
                "field_dim": list(sizes),
                "mode_supernet": "all",
                "mode_threshold": "field",
                "mode_oov": "zero",
                "mode_retrain": "weight",
                "norm": 1,
            }
        )


class AuthorsEmbeddings(nn.Module):
    """All features of a batch by one embedding, in place of the reference model's.

    The embedding looks up ids of shape ``(n, features)`` and knows neither bags nor ids that are
    unknown: of a bag it looks up each id that is there once, and its mean is made here.

    Args:
        embedding: The embedding, an attribute so that it is trained.
        look_up: Gives rows ``(n, features, embedding_dim)`` of ids ``(n, features)``, as the ranks
            within their feature.
        sizes: Number of ids of each feature, in their order.
        bags: Names of the features that are bags.
    """

    def __init__(
        self,
        embedding: nn.Module,
        look_up: Callable[[Tensor], Tensor],
        sizes: dict[str, int],
        bags: Iterable[str],
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.look_up = look_up
        self._sizes = sizes
        self._bags = frozenset(bags)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Look up every feature."""
        ids, known = [], []
        for name, size in self._sizes.items():
            own = batch[name][:, 0] if name in self._bags else batch[name]
            ids.append(own.clamp(max=size - 1))
            known.append(own < size)
        rows = self.look_up(torch.stack(ids, 1)) * torch.stack(known, 1).unsqueeze(-1)
        features = [
            self._bag(batch[name], index, size) if name in self._bags else rows[:, index]
            for index, (name, size) in enumerate(self._sizes.items())
        ]
        return torch.stack(features, 1)

    def _bag(self, ids: Tensor, index: int, size: int) -> Tensor:
        known = ids < size
        distinct, places = ids.clamp(max=size - 1).unique(return_inverse=True)
        alone = ids.new_zeros(len(distinct), len(self._sizes))
        alone[:, index] = distinct
        rows = self.look_up(alone)[:, index][places] * known.unsqueeze(-1)
        return mean_of_known(rows, known)


def global_ids(sizes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Gives ids of all features together, of ranks within each."""
    starts = torch.tensor([0, *np.cumsum(sizes)[:-1]])
    return lambda ids: ids + starts
