"""Layers whose ids have an order by frequency, which is kept with their weights."""

from __future__ import annotations

from typing import Any
import warnings

import torch
from torch import Tensor, nn

from optuna_nis.nn._ids import check_ids, check_ranks
from optuna_nis.nn._tracing import is_traced


def constant(
    layer: nn.Module, name: str, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """A tensor that a layer holds but that is no state of it, where it is needed.

    It is no buffer, so nobody averages, casts or broadcasts it; it moves when it is first used on
    another device.
    """
    tensor: Tensor = getattr(layer, name)
    if tensor.device != device or (dtype is not None and tensor.dtype != dtype):
        tensor = tensor.to(device=device, dtype=dtype)
        if not is_traced() and not tensor.is_meta:
            setattr(layer, name, tensor)
    return tensor


class Ranked(nn.Module):
    """A layer that sorts ids by frequency before it looks them up.

    The ranks are saved and loaded with the weights, whose rows they belong to.

    Attributes:
        name: Name of the feature.
        num_ids: Size of its vocabulary.
    """

    name: str
    num_ids: int
    # With the id out of vocabulary.
    _ranks: Tensor | None

    @property
    def ranks(self) -> Tensor | None:
        """Rank by frequency of every id, of shape ``(num_ids,)``; None if ids are ranks."""
        return None if self._ranks is None else self._ranks[:-1]

    def same_order(self, other: Ranked) -> bool:
        """Whether another layer sorts its ids in the same order."""
        if self._ranks is None or other._ranks is None:
            return self._ranks is other._ranks
        return torch.equal(self._ranks.to(other._ranks.device), other._ranks)

    def take_order(self, other: Ranked, dtype: torch.dtype) -> None:
        """Sort the ids of the same feature as another layer does."""
        self.name, self.num_ids = other.name, other.num_ids
        self._ranks = None if other._ranks is None else other._ranks.to(dtype)

    def _set_ranks(self, ranks: Tensor | None, num_ids: int, name: str) -> None:
        """Keep the order of the ids of a feature; by default ids are ranks already.

        Raises:
            ValueError: If it is not a permutation.
        """
        self.name, self.num_ids = name, num_ids
        self._ranks = check_ranks(ranks, num_ids, name)

    def _by_id(self, rows: Tensor, dim: int) -> Tensor:
        """What is in the order of ranks, such as rows, in the order of ids."""
        if self._ranks is None:
            return rows
        return rows.index_select(dim, constant(self, "_ranks", rows.device)[:-1].long())

    def _ranks_of(self, ids: Tensor) -> Tensor:
        """Check ids and map them to ranks.

        Raises:
            TypeError: If the ids are not integers.
            ValueError: If an id is out of range, as far as that is checked.
        """
        check_ids(ids, self.num_ids, self.name)
        if self._ranks is None:
            return ids
        # Both may be int32, with which ONNX cannot index.
        return constant(self, "_ranks", ids.device)[ids.long()].long()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._ranks is not None:
            # A copy: formats that take no shared tensors would drop one of a layer that is held
            # in two places.
            destination[f"{prefix}_ranks"] = self._ranks.clone()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = f"{prefix}_ranks"
        ranks = state_dict.pop(key, None)
        rows_given = any(name.startswith(prefix) for name in state_dict)
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        if ranks is not None:
            self._load_ranks(ranks, key, local_metadata, error_msgs)
        elif self._ranks is not None and rows_given and strict:
            missing_keys.append(key)
            warnings.warn(
                f"The state has the rows of {self.name!r} but not the order of their ids, "
                f"`{key}`; the layer keeps the order that it has. If the ids of the model that "
                "was saved were sorted already, build this one without `counts` or `ranks`.",
                stacklevel=2,
            )

    def _load_ranks(
        self, ranks: Tensor, key: str, local_metadata: dict[str, Any], error_msgs: list[str]
    ) -> None:
        wanted = self.num_ids + 1
        if ranks.shape != (wanted,) or ranks.dtype not in (torch.int32, torch.int64):
            error_msgs.append(
                f"`{key}` must be {wanted} integers, got {ranks.dtype} of shape "
                f"{tuple(ranks.shape)}."
            )
        elif not ranks.is_meta and not 0 <= int(ranks.min()) <= int(ranks.max()) < wanted:
            error_msgs.append(
                f"`{key}` must be between 0 and {wanted - 1}, got {int(ranks.min())} to "
                f"{int(ranks.max())}."
            )
        elif local_metadata.get("assign_to_params_buffers", False):
            self._ranks = ranks
        else:
            dtype = ranks.dtype if self._ranks is None else self._ranks.dtype
            self._ranks = ranks.to(dtype, copy=True)
