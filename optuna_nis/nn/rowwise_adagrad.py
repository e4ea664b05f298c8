"""Adagrad with one accumulator for each row, for large embedding tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from optuna_nis.nn._native import rowwise_adagrad
from optuna_nis.nn._tracing import is_traced


class RowwiseAdagrad(Optimizer):
    """Adagrad whose state is one number for each row of a table.

    A row moves by ``lr * gradient / (sqrt(sum of mean squared gradients) + eps)``, where the mean
    is over the columns (Mudigere et al., 2021, section 4.1.4). The state of a table takes
    ``1 / embedding_dim`` of its memory, and of a sparse gradient only the rows that it holds are
    touched. Parameters with one dimension or none have an accumulator for each number. It has 32
    bits at least, as small squares would be lost in half of them.

    Args:
        params: Parameters, or groups of them with their own settings.
        lr: Learning rate.
        eps: Added to the root for stability.
        initial_accumulator_value: What the accumulators start from.

    Raises:
        ValueError: If a setting is negative.

    Example:
        >>> table = torch.nn.Embedding(1000, 8, sparse=True)
        >>> optimizer = RowwiseAdagrad(table.parameters(), lr=0.1)
        >>> table(torch.tensor([3, 4])).sum().backward()
        >>> optimizer.step()
        >>> optimizer.state[table.weight]["sum"].shape
        torch.Size([1000])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        eps: float = 1e-10,
        initial_accumulator_value: float = 0.0,
    ) -> None:
        settings = {
            "lr": lr,
            "eps": eps,
            "initial_accumulator_value": initial_accumulator_value,
        }
        for name, value in settings.items():
            if not value >= 0:
                raise ValueError(f"`{name}` must not be negative, got {value!r}.")
        super().__init__(params, settings)

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
        return self._step(closure)

    @torch.no_grad()
    def _step(self, closure: Callable[[], float] | None) -> float | None:
        """A step without the hooks of it, which torch calls around :meth:`step` of each class."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        traced = is_traced()
        for group in self._rowwise():
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group, traced)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, whose accumulators keep their type.

        Raises:
            ValueError: If it is no such state, the groups are others, or a table has another
                number of rows. Nothing is changed then.
        """
        parts = {"state", "param_groups"}
        if not (isinstance(state_dict, Mapping) and parts <= state_dict.keys()):
            raise ValueError(
                "`state_dict` must be what an optimiser's `state_dict()` gave, with `state` and "
                f"`param_groups`, got {str(state_dict)[:80]}."
            )
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        names = [name for g in self.param_groups for name in g.get("param_names", g["params"])]
        own = {id(parameter) for group in self._rowwise() for parameter in group["params"]}
        for index, (key, parameter) in enumerate(zip(keys, parameters)):
            state = state_dict["state"].get(key)
            if not state or id(parameter) not in own:
                continue
            shape = tuple(getattr(state.get("sum"), "shape", ()))
            if "sum" not in state or shape != parameter.shape[:1]:
                named = f"{names[index]!r}" if isinstance(names[index], str) else f"number {index}"
                raise ValueError(
                    f"`state_dict` must have a `sum` of shape {tuple(parameter.shape[:1])} for "
                    f"the parameter {named}, got {f'shape {shape}' if 'sum' in state else 'none'}."
                )
        super().load_state_dict(state_dict)
        for key, parameter in zip(keys, parameters):
            total = state_dict["state"].get(key, {}).get("sum")
            if total is not None:
                self.state[parameter]["sum"] = total.to(parameter.device, copy=True)

    def _rowwise(self) -> list[dict[str, Any]]:
        """The groups whose parameters have an accumulator for each row."""
        return self.param_groups

    def _move(self, parameter: Tensor, group: dict[str, Any], traced: bool) -> None:
        state = self.state[parameter]
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        if not state:
            state["sum"] = parameter.new_full(
                parameter.shape[:1], group["initial_accumulator_value"], dtype=dtype
            )
        total: Tensor = state["sum"]
        grad = parameter.grad
        assert grad is not None
        if not traced and rowwise_adagrad(parameter, total, grad, group["lr"], group["eps"]):
            return
        if grad.is_sparse:
            rows, values = _of_distinct_rows(grad)
            values = values.to(dtype)
            sums = _mean_squares(values).add_(total.index_select(0, rows))
            total.index_copy_(0, rows, sums)
            scale = sums.sqrt_().add_(group["eps"]).reciprocal_().mul_(-group["lr"])
            steps = values * _wide(scale, values)
            parameter.index_add_(0, rows, steps.to(parameter.dtype))
        else:
            grad = grad.to(dtype)
            total += _mean_squares(grad)
            scale = -group["lr"] / (total.sqrt() + group["eps"])
            parameter.addcmul_(grad, _wide(scale, grad))


def _of_distinct_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a sparse gradient, each once, and what it has for them."""
    # Autograd forgets that a gradient is coalesced; its rows tell, if they are sorted.
    if not grad.is_coalesced() and not _ascending(grad._indices()):
        grad = grad.coalesce()
    return grad._indices()[0], grad._values()


def _ascending(indices: Tensor) -> bool:
    if len(indices) > 1:
        return False
    if indices.device.type != "cpu":
        return bool((indices[:, 1:] > indices[:, :-1]).all())
    rows = indices.numpy()[0]
    return bool((rows[1:] > rows[:-1]).all())


def _mean_squares(values: Tensor) -> Tensor:
    return values.square() if values.dim() < 2 else values.square().flatten(1).mean(1)


def _wide(numbers: Tensor, values: Tensor) -> Tensor:
    return numbers.view(-1, *[1] * (values.dim() - 1)) if values.dim() else numbers
