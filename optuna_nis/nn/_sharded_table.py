"""A table whose rows are spread over the processes that train together, by TorchRec."""

from __future__ import annotations

from typing import Any
import weakref

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

try:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import ShardingEnv
except ImportError as error:
    raise ModuleNotFoundError(
        "`optuna_nis.nn.sharding` needs the package `torchrec`, which cannot be imported: "
        f"{error}. See docs/exporting.md for how to install it.",
        name="torchrec",
    ) from error

# What TorchRec calls the table of a collection that has one.
_KEY = "rows"
# The kernels of FBGEMM want rows of whole multiples of this.
_MULTIPLE = 4
# Of Adagrad, as that of RowwiseAdagrad.
_EPS = 1e-10
# Rows that are sent at once where a table is copied.
_CHUNK = 2**16


class ShardedTable:
    """Rows of which each process has a run, the first process the first one.

    Ids are sent to the processes that have their rows, and the rows back. In a backward pass the
    gradients go there, and move the rows at once: by row-wise Adagrad as in
    :class:`~optuna_nis.nn.RowwiseAdagrad`, with the mean of the gradients over the processes. All
    of this is TorchRec's; every process must take part in each lookup and backward pass.

    Args:
        name: What messages call it.
        num_embeddings: Number of rows.
        embedding_dim: Their width.
        learning_rate: Of row-wise Adagrad; None if an optimiser is to tell it.

    Attributes:
        start: The first row that this process has.
        end: The first row after those.
    """

    def __init__(
        self, name: str, num_embeddings: int, embedding_dim: int, learning_rate: float | None
    ) -> None:
        self.name = name
        self.shape = (num_embeddings, embedding_dim)
        width = -(-embedding_dim // _MULTIPLE) * _MULTIPLE
        # Adagrad takes the mean over columns of zeros, too.
        self._scale = (embedding_dim / width) ** 0.5
        self._learning_rate = learning_rate
        self._in_backward = False
        self._told: tuple[weakref.ref[Optimizer], int] | None = None
        config = EmbeddingConfig(
            name=_KEY, num_embeddings=num_embeddings, embedding_dim=width, feature_names=[_KEY]
        )
        collection = EmbeddingCollection(tables=[config], device=torch.device("meta"))
        sharder = EmbeddingCollectionSharder(
            fused_params={"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "eps": _EPS}
        )
        number = distributed.get_world_size()
        plan = construct_module_sharding_plan(
            collection,
            {_KEY: row_wise(compute_kernel="fused")},
            sharder=sharder,
            local_size=number,
            world_size=number,
            device_type="cpu",
        )
        env = ShardingEnv.from_process_group(distributed.group.WORLD)
        # What TorchRec draws differs in number between the processes.
        with torch.random.fork_rng(devices=[]):
            self._collection: Any = sharder.shard(collection, plan, env, torch.device("cpu"))
        (shard,) = self._sharded_rows().local_shards()
        self._rows: Tensor = shard.tensor.detach().zero_()
        self.start: int = shard.metadata.shard_offsets[0]
        self.end = self.start + len(self._rows)

    def __reduce__(self) -> Any:
        """Refuse to be copied."""
        raise TypeError(
            f"The table of {self.name!r} is spread over several processes and cannot be copied or "
            "pickled: copy the model before it is sharded, or keep its `state_dict()`."
        )

    @property
    def own(self) -> Tensor:
        """The rows that this process has."""
        return self._rows[:, : self.shape[1]]

    def look_up(self, ids: Tensor, *, trained: bool) -> Tensor:
        """The rows of ids; every process asks for its own.

        Args:
            ids: Of any shape, integers in ``[0, num_embeddings)``.
            trained: Whether a backward pass moves the rows.

        Returns:
            Shape ``(*, embedding_dim)``.

        Raises:
            RuntimeError: If they are trained and the learning rate is not known.
            ValueError: If the ids are not on the CPU. The backward pass raises a RuntimeError if
                it is one of several lookups: each would be a step of Adagrad.
        """
        if ids.device.type != "cpu":
            raise ValueError(
                f"`ids` of {self.name!r} must be on the CPU, where the rows of sharded tables "
                f"are, got {ids.device}."
            )
        trained = trained and torch.is_grad_enabled()
        if trained:
            self._set_rate()
        flat = ids.reshape(-1).long()
        # TorchRec takes no empty batch.
        sent = flat if len(flat) else flat.new_zeros(1)
        ones = torch.ones(len(sent), dtype=torch.int32)
        with torch.set_grad_enabled(trained):
            found = self._collection(KeyedJaggedTensor(keys=[_KEY], values=sent, lengths=ones))
            rows: Tensor = found[_KEY].values()
            rows = rows[: len(flat), : self.shape[1]]
        if trained:
            rows.register_hook(self._check_once)  # type: ignore[no-untyped-call]
        return rows.reshape(*ids.shape, self.shape[1])

    @torch.no_grad()
    def fetch(self, ids: Tensor) -> Tensor:
        """The rows of any number of ids, as they are now.

        Args:
            ids: Shape ``(n,)``; every process may ask for others, and for another number.
        """
        number = torch.tensor(-(-len(ids) // _CHUNK))
        distributed.all_reduce(number, distributed.ReduceOp.MAX)
        parts = [ids[n * _CHUNK : (n + 1) * _CHUNK] for n in range(int(number))]
        found = [self.look_up(part, trained=False) for part in parts]
        return torch.cat([torch.empty(0, self.shape[1]), *found])

    def draw(self, std: float) -> None:
        """Draw the rows anew, other ones in each process.

        As many random numbers are taken from torch's generator in all of them.
        """
        seed = int(torch.randint(2**62, ())) + distributed.get_rank()
        generator = torch.Generator().manual_seed(seed)
        self.own.normal_(0.0, std, generator=generator)

    def state(self) -> Tensor:
        """All rows in the first process, its own rows in every other; all must ask for it."""
        # Without the columns that the width is rounded up by.
        return self._gathered(self._sharded_rows(), self._rows)[:, : self.shape[1]].contiguous()

    def distributed_state(self) -> DTensor:
        """The rows where they are, for :mod:`torch.distributed.checkpoint`."""
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        return DTensor.from_local(
            self.own,
            mesh,
            [Shard(0)],
            run_check=False,
            shape=torch.Size(self.shape),
            stride=(self.shape[1], 1),
        )

    @torch.no_grad()
    def load(self, rows: Tensor, first_row: int = 0) -> str:
        """Take over all rows, or those of this process.

        Args:
            rows: The rows.
            first_row: Which of all is the first of them.

        Returns:
            What is wrong with them, if anything is.
        """
        given, own = rows.shape, self.own
        if given == self.shape and first_row == 0:
            rows, first_row = rows[self.start : self.end], self.start
        if rows.shape != own.shape or first_row != self.start:
            return (
                f"the table of {self.name!r} must have the shape {self.shape}, or "
                f"{tuple(own.shape)} with the rows of this process alone, from row {self.start} "
                f"on, got {tuple(given)} from row {first_row} on"
            )
        own.copy_(rows)
        return ""

    def follow(self, optimizer: Optimizer, weight: Tensor) -> bool:
        """Go by the learning rate of the group of an optimiser that has the layer's weight.

        Adagrad begins anew, since the optimiser does.

        Returns:
            Whether there is such a group.
        """
        for index, group in enumerate(optimizer.param_groups):
            if any(each is weight for each in group["params"]):
                self._told = weakref.ref(optimizer), index
                self._accumulators().local_shards()[0].tensor.zero_()
                return True
        return False

    def optimizer_state(self, *, own: bool) -> Tensor:
        """Adagrad's number of each row, as :meth:`state`, or of this process's own rows."""
        sums = self._accumulators()
        of_rows: Tensor = sums.local_shards()[0].tensor
        return of_rows.clone() if own else self._gathered(sums, of_rows)

    @torch.no_grad()
    def load_optimizer_state(self, sums: Tensor) -> None:
        """Take over what :meth:`optimizer_state` gives, in any process.

        Raises:
            ValueError: If it is of another number of rows.
        """
        own = self._accumulators().local_shards()[0].tensor
        if len(sums) not in (self.shape[0], len(own)):
            raise ValueError(
                f"The state of the optimiser must have a number for each of the {self.shape[0]} "
                f"rows of {self.name!r}, got {len(sums)}."
            )
        own.copy_(sums[self.start : self.end] if len(sums) == self.shape[0] else sums)

    def _check_once(self, _: Tensor) -> None:
        if self._in_backward:
            # What is raised here keeps the end from being called.
            self._in_backward = False
            raise RuntimeError(
                f"The sharded table of {self.name!r} was looked up twice in one step, which would "
                "move its rows twice: look all ids up at once. Features that share a table, as "
                "with `share`, cannot be sharded."
            )
        self._in_backward = True
        torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)

    def _end_backward(self) -> None:
        self._in_backward = False

    def _set_rate(self) -> None:
        rate, told = self._learning_rate, self._told
        if told is not None and (optimizer := told[0]()) is not None:
            rate = optimizer.param_groups[told[1]]["lr"]
        if rate is None:
            raise RuntimeError(
                f"The learning rate of the sharded table of {self.name!r} is not known: give "
                "`learning_rate` where it is sharded, or call `follow_rates(model, optimizer)` "
                "for an optimiser that has all parameters of the model."
            )
        fused = self._collection.fused_optimizer
        fused.param_groups[0]["lr"] = float(rate) * self._scale
        # So it hands the learning rate on; rows are moved by the backward pass.
        fused.step()

    def _sharded_rows(self) -> Any:
        return self._collection.state_dict()[f"embeddings.{_KEY}.weight"]

    def _accumulators(self) -> Any:
        state = self._collection.fused_optimizer.state_dict()["state"]
        (sums,) = state[f"embeddings.{_KEY}.weight"].values()
        return sums

    def _gathered(self, sharded: Any, own: Tensor) -> Tensor:
        if distributed.get_rank():
            sharded.gather(0, None)
            return own.detach().clone()
        whole = torch.empty(sharded.size())
        sharded.gather(0, whole)
        return whole
