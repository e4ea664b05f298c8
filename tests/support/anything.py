"""What others may have written into a study, and what reading it then says."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


def refusal(read: Callable[[], object]) -> str | None:
    """The message of the error with which something cannot be read, None if it can."""
    try:
        read()
    except ValueError as error:
        return str(error)
    return None
