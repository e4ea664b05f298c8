"""MPE, PEP and OptEmbed: their authors' classes in the reference model, searched and trained anew.

What their papers do in stages is done here with the data, the optimiser and the end of trainings
of all other methods. Numbers that are not codes are stored in float16 and tested so.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
import tempfile
import time
from typing import Any

from authors import (
    AuthorsEmbeddings,
    global_ids,
    mpe_embedding,
    optembed_embedding,
    pep_embedding,
)
from evolution import evolve
from host_model import Job, Result, build_model, specs_of, trained, validated
from lightning.pytorch import Callback, LightningModule, Trainer
import numpy as np
from numpy.typing import NDArray
from rival_jobs import again, halve
from sparse_bytes import kept_nbytes, mixed_nbytes, sparse_nbytes
import torch
from torch import Tensor, nn

from optuna_nis import Allocation, SearchSpace
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning.training import Training, quiet_lightning, quiet_trainer

# As in the scripts and papers of the authors.
_GROUPS, _TAU = 128, 3e-3
_THRESHOLD_RATE = 1e-4
# Of PEP's thresholds and all else in its search: it is what raises them.
_WEIGHT_DECAY = 1e-5
# What a search of PEP may take at most, as a training of ours.
MOST_STEPS = 10_000

Make = Callable[[Allocation], LightningModule]


class _Host:
    """The reference model on a data set, whose embeddings a method takes the place of."""

    def __init__(self, data: str, datamodule: EmbeddingDataModule, seed: int) -> None:
        self.data, self.datamodule, self.seed = data, datamodule, seed
        self.space = SearchSpace(specs_of(data, datamodule))
        self._build = build_model(data, datamodule)
        self.sizes = {spec.name: spec.num_embeddings for spec in self.space.specs}
        self.embedding_dim = self.space.specs[0].embedding_dim
        self.starts = np.cumsum([0, *self.sizes.values()])

    def model(
        self, embedding: Callable[[float], nn.Module], look_up: Callable[[Any, Tensor], Tensor]
    ) -> LightningModule:
        """The model with an embedding, made from the spread of ours at first."""
        model = self._build(self.space.full())
        init_std: float = model.embeddings.layers[0].init_std
        own = embedding(init_std)
        bags = self.datamodule.features.bags
        model.embeddings = AuthorsEmbeddings(own, lambda ids: look_up(own, ids), self.sizes, bags)
        return model

    def train(self, make: Make) -> Training:
        """Train what a function makes, as all other methods are trained."""
        return trained(self.data, self.datamodule, self.space.full(), self.seed, make=make)

    def of_features(self, of_ids: Tensor) -> list[NDArray[Any]]:
        """What is known of the ids of all features, by feature."""
        return [of_ids[start:end].numpy() for start, end in pairwise(self.starts)]


def mpe(data: str, datamodule: EmbeddingDataModule, job: Job, folder: str) -> Result:
    """Mixed-precision embeddings: bits for groups of ids by a penalty, then trained anew."""
    start = time.process_time()
    host = _Host(data, datamodule, job["seed"])
    counts = [datamodule.vocabularies[name].counts for name in host.sizes]
    to_global = global_ids(list(host.sizes.values()))
    initial: dict[str, Tensor] = {}

    def make(full: Allocation) -> LightningModule:
        model = host.model(
            lambda init_std: mpe_embedding(
                folder,
                counts,
                host.embedding_dim,
                groups=_GROUPS,
                tau=_TAU,
                init_std=init_std,
            ),
            lambda embedding, ids: embedding(to_global(ids)),
        )
        initial.update(deepcopy(model.state_dict()))
        penalised(model, lambda: job["penalty"] * model.embeddings.embedding.regularization())
        return model

    searched = host.train(make)
    model, embedding = searched.model, searched.model.embeddings.embedding
    with torch.no_grad():
        # As its authors do: the rows begin anew, all else goes on.
        embedding.weight.copy_(initial["embeddings.embedding.weight"])
        bits = embedding.get_bit()[0].long()[embedding.group_index]
        embedding.discrete_gamma()
    del model.training_step
    search_seconds = time.process_time() - start
    training = host.train(lambda _: model)
    halve([embedding.alpha, embedding.beta])
    # A step for each number of bits, an offset for each column.
    steps = len(set(bits.tolist()) - {0})
    nbytes = sum(mixed_nbytes(own, host.embedding_dim) for own in host.of_features(bits))
    result = again(data, training, datamodule, searched)
    return result | {
        "nbytes": nbytes + 2 * (steps + host.embedding_dim),
        "search_seconds": search_seconds,
        "mean_bits": float(bits.float().mean()),
    }


def penalised(model: LightningModule, penalty: Callable[[], Tensor]) -> None:
    """Add a penalty to the loss of a model, until its ``training_step`` is deleted."""
    plain = model.training_step

    def training_step(batch: Any, batch_idx: int) -> Tensor:
        return plain(batch, batch_idx) + penalty().float()

    model.training_step = training_step


class _UntilSparse(Callback):
    """Ends a training when the numbers that are left take few enough bytes."""

    def __init__(self, nbytes: Callable[[Tensor], int], budget_nbytes: int) -> None:
        self._nbytes, self._budget = nbytes, budget_nbytes
        self.found: Tensor | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        rows = pl_module.embeddings.embedding.sparse_v.detach()
        if self._nbytes(rows) <= self._budget:
            self.found = rows.clone()
            trainer.should_stop = True


def pep(data: str, datamodule: EmbeddingDataModule, job: Job, folder: str) -> Result:
    """PEP: numbers below learned thresholds are pruned until the budget holds the others.

    What is left is trained anew from where it began. Without ``"val"`` if the budget is not
    reached.
    """
    start = time.process_time()
    host = _Host(data, datamodule, job["seed"])
    sizes = list(host.sizes.values())

    def nbytes(rows: Tensor) -> int:
        return sum(sparse_nbytes(own) for own in host.of_features(rows != 0))

    def make(**options: Any) -> LightningModule:
        return host.model(
            lambda _: pep_embedding(folder, sizes, host.embedding_dim, **options),
            lambda embedding, ids: embedding(ids),
        )

    torch.manual_seed(job["seed"])
    datamodule.shuffle_seed = job["seed"]
    model = make()
    initial = model.embeddings.embedding.v.detach().clone()
    model.configure_optimizers = lambda: torch.optim.Adam(
        model.parameters(), lr=model.learning_rate, weight_decay=_WEIGHT_DECAY
    )
    reached = _UntilSparse(nbytes, host.space.with_budget(job["budget"]).budget_nbytes)
    with quiet_lightning():
        trainer = quiet_trainer(
            model,
            max_epochs=-1,
            max_steps=job.get("most_steps", MOST_STEPS),
            callbacks=[reached],
            limit_val_batches=0,
        )
        trainer.fit(model, datamodule=datamodule)
    search_seconds = time.process_time() - start
    if reached.found is None:
        return {"nbytes": nbytes(model.embeddings.embedding.sparse_v.detach())}
    with tempfile.TemporaryDirectory() as files:
        np.save(Path(files) / "found.npy", reached.found.numpy())
        np.save(Path(files) / "initial_embedding.npy", initial.numpy())
        # The class reads what it is trained on from files with these names.
        of_found = {
            "retrain_emb_param": "found",
            "emb_save_path": f"{files}/{{num_parameter}}",
            "re_init": False,
        }
        training = host.train(lambda _: make(**of_found))
    halve(training.model.embeddings.parameters())
    result = again(data, training, datamodule)
    result["steps"] += trainer.global_step
    return result | {"nbytes": nbytes(reached.found), "search_seconds": search_seconds}


class _WithDescent(torch.optim.Adam):
    """Adam, and plain descent for the thresholds, in one."""

    def __init__(self, parameters: list[nn.Parameter], threshold: nn.Parameter, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self._threshold = threshold

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        if self._threshold.grad is not None:
            self._threshold.sub_(_THRESHOLD_RATE * self._threshold.grad)
            self._threshold.grad = None
        return loss


def optembed(data: str, datamodule: EmbeddingDataModule, job: Job, folder: str) -> Result:
    """OptEmbed: ids pruned by learned thresholds, widths by evolution, then trained anew.

    Of the widths only those within the budget are bred. Without ``"val"`` if all ids that are left
    are over it at a width of 1.
    """
    start = time.process_time()
    host = _Host(data, datamodule, job["seed"])
    sizes = list(host.sizes.values())
    to_global = global_ids(sizes)
    initial: dict[str, Tensor] = {}

    def embedding(stage: str) -> Any:
        return optembed_embedding(folder, stage, sizes, host.embedding_dim)

    def supernet(full: Allocation) -> LightningModule:
        model = host.model(
            lambda _: embedding("super"),
            lambda own, ids: own.calculate_input(
                to_global(ids), "train" if own.training else "test"
            ),
        )
        threshold = model.embeddings.embedding.threshold
        penalised(model, lambda: job["penalty"] * torch.exp(-threshold).sum())
        others = [each for each in model.parameters() if each is not threshold]
        model.configure_optimizers = lambda: _WithDescent(others, threshold, model.learning_rate)
        initial.update(deepcopy(model.state_dict()))
        return model

    searched = host.train(supernet)
    model = searched.model
    evo = embedding("evo")
    evo.load_state_dict(model.embeddings.embedding.state_dict(), strict=False)
    with torch.no_grad():
        evo.prepare_sparse_feature()
    kept = evo.feature_mask.detach()
    kept_ids = [int(own.sum()) for own in host.of_features(kept)]

    def nbytes(widths: tuple[int, ...]) -> int:
        return sum(map(kept_nbytes, sizes, kept_ids, widths))

    def quality(widths: tuple[int, ...]) -> float:
        cand = torch.tensor(widths) - 1
        model.embeddings.look_up = lambda ids: evo.calculate_input(to_global(ids), cand)
        return validated(data, model, datamodule)

    budget_nbytes = host.space.with_budget(job["budget"]).budget_nbytes
    widths = evolve(
        len(sizes),
        host.embedding_dim,
        quality,
        lambda widths: nbytes(widths) <= budget_nbytes,
        np.random.default_rng(job["seed"]),
    )
    if widths is None:
        return {"nbytes": nbytes((1,) * len(sizes))}

    def sized(full: Allocation) -> LightningModule:
        made = host.model(
            lambda _: embedding("retrain"),
            lambda own, ids: own.calculate_input(to_global(ids)),
        )
        made.load_state_dict(initial, strict=False)
        made.embeddings.embedding.update_mask(torch.tensor(widths) - 1, kept)
        return made

    search_seconds = time.process_time() - start
    training = host.train(sized)
    halve(training.model.embeddings.parameters())
    result = again(data, training, datamodule, searched)
    return result | {
        "nbytes": nbytes(widths),
        "search_seconds": search_seconds,
        "widths": list(widths),
    }
