"""One optimiser for a model whose tables are large: Adam, and row-wise Adagrad for the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Adam

from optuna_nis.nn._adam import adam
from optuna_nis.nn.rowwise_adagrad import RowwiseAdagrad


class AdamAndRowwiseAdagrad(RowwiseAdagrad):
    """Adam for the dense part of a model, row-wise Adagrad for tables of sparse gradients.

    Adam moves every row of a table at each step, and keeps two numbers for each of the table's;
    :class:`RowwiseAdagrad` touches the rows of the batch alone. Each part of the model has a
    group of parameters, with its learning rate, in an optimiser that is one for schedules,
    checkpoints and Lightning.

    Args:
        dense: Parameters of the dense part; at least one.
        tables: Parameters of the tables.
        lr: Learning rate of Adam.
        tables_lr: Learning rate of row-wise Adagrad.

    Raises:
        ValueError: If a learning rate is negative, or there are no dense parameters.

    Example:
        >>> table, head = torch.nn.Embedding(1000, 8, sparse=True), torch.nn.Linear(8, 1)
        >>> optimizer = AdamAndRowwiseAdagrad(head.parameters(), [table.weight], 0.01, 0.1)
        >>> head(table(torch.tensor([3, 4]))).sum().backward()
        >>> optimizer.step()
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.01, 0.1]
    """

    def __init__(
        self, dense: Iterable[Tensor], tables: Iterable[Tensor], lr: float, tables_lr: float
    ) -> None:
        groups = adam(dense, lr).param_groups
        super().__init__([*groups, {"params": tables}], lr=tables_lr)
        self._link()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters: Adam's if it has ``betas``, of tables otherwise."""
        adam_of_ours: Adam | None = self.__dict__.get("_adam")
        if adam_of_ours is not None and "betas" in param_group:
            rate = {"lr": adam_of_ours.param_groups[0]["lr"]}
            param_group = {**adam_of_ours.defaults, **rate, **param_group}
        super().add_param_group(param_group)
        if adam_of_ours is not None:
            self._link()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After copying, pickling and loading, groups and state are others."""
        super().__setstate__(state)
        self._link()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step along the gradients.

        Args:
            closure: Computes the loss and its gradients anew.

        Returns:
            The loss, if there is a closure.
        """
        loss = self._step(closure)
        self._adam.step()
        return loss

    def _rowwise(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if "betas" not in group]

    def _link(self) -> None:
        """Let Adam see its groups and all the state as they are here."""
        groups = [group for group in self.param_groups if "betas" in group]
        self._adam = Adam([torch.empty(0)])
        self._adam.param_groups, self._adam.state = groups, self.state
