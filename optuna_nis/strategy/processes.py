"""The processes that train one model together, such as those of DistributedDataParallel."""

from __future__ import annotations

from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Processes(Protocol):
    """The processes that train one model together."""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes the trials."""

    def share(self, value: _T) -> _T:
        """What the first process has, in all of them."""


class OneProcess:
    """A training in this process alone."""

    is_first = True

    def share(self, value: _T) -> _T:
        """The value."""
        return value
