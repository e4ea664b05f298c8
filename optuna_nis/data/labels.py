"""The label of a yes-or-no task: as it is written, or by a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import operator
import re
from typing import Any

import numpy as np

from optuna_nis.data import cells
from optuna_nis.data.coded import CodedColumn, plain_values
from optuna_nis.data.scaling import Floats

_NO_AND_YES = {"0": 0, "false": 0, "f": 0, "no": 0, "n": 0}
_NO_AND_YES |= {"1": 1, "true": 1, "t": 1, "yes": 1, "y": 1}
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_LIKE_NO = re.compile(r"\s*(?:no|un|false|neg)", re.IGNORECASE)
_QUOTED = re.compile(r"'.+'|\".+\"")
_RULE = re.compile(r"\s*(.+?)\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*")


@dataclass(frozen=True)
class Label:
    """The column of the label, and what is a yes.

    Attributes:
        column: Name of the column.
        operator: ``">="``, ``"<="``, ``">"``, ``"<"``, ``"=="`` or ``"!="``, or :obj:`None` if the
            column holds yes and no as it is.
        value: What a cell is compared with.

    Example:
        >>> Label.parse("rating >= 4", ["user", "rating"])
        Label(column='rating', operator='>=', value='4')
        >>> Label.parse("clicked", ["user", "clicked"]).operator is None
        True
    """

    column: str
    operator: str | None = None
    value: str = ""

    @classmethod
    def parse(cls, text: str, columns: Sequence[str] | None = None) -> Label:
        """Read a column's name, or a rule.

        Args:
            text: Such as ``"clicked"`` or ``"rating>=4"``.
            columns: Names of the columns, if they are known: one of them is no rule.

        Raises:
            ValueError: If it is neither, or what a rule compares with is no number where it must
                be one.
        """
        rule = _RULE.fullmatch(text)
        if columns is not None and text in columns:
            return cls(text)
        column, sign, value = (text, "", "") if rule is None else rule.groups()
        if columns is not None and column not in columns and any(c in column for c in "<=>"):
            raise ValueError(
                f"`label` must be a column or a rule with one of {', '.join(_OPERATORS)}, such as "
                f"rating>=4, got {text!r}."
            )
        if rule is None:
            return cls(text)
        if sign not in ("==", "!="):
            try:
                float(value)
            except ValueError:
                raise ValueError(
                    f"`label` must compare with a number after {sign}, such as rating>=4, got "
                    f"{text!r}."
                ) from None
        return cls(column, sign, value)

    def of(self, column: CodedColumn) -> Floats:
        """Labels 0 and 1 of all rows, NaN where the cell is missing.

        Raises:
            ValueError: If a cell is neither yes nor no, cannot be compared, or all are the same.
        """
        codes = column.cells
        used = np.bincount(codes[codes >= 0], minlength=len(column.values)) > 0
        values = plain_values(column.values)
        labels = self._by_rule(values, used) if self.operator else self._as_written(values, used)
        table = np.array([*labels, np.nan], dtype=np.float32)
        found = table[codes]
        seen = np.unique(found[~np.isnan(found)])
        if len(seen) == 1:
            shown = ", ".join(repr(v) for v, there in zip(values, used) if there)
            raise ValueError(
                f"The label {self} must hold two classes, got only {shown}."
                if self.operator is None
                else f"The label {self} must give two classes, got {seen[0]:g} in every row."
                f"{self._without_quotes(values, used)}"
            )
        return found

    def __str__(self) -> str:
        return repr(self.column if self.operator is None else self._text())

    def _text(self) -> str:
        return f"{self.column}{self.operator}{self.value}"

    def _by_rule(self, values: Sequence[Any], used: Any) -> list[float]:
        assert self.operator is not None
        compare = _OPERATORS[self.operator]
        labels = []
        for value, there in zip(values, used):
            try:
                labels.append(float(compare(value, self._like(value))) if there else np.nan)
            except ValueError as error:
                raise ValueError(f"{error}{self._without_quotes(values, used)}") from None
        return labels

    def _without_quotes(self, values: Sequence[Any], used: Any) -> str:
        """What to say if quotes are what keeps cells from being equal, or compared."""
        if self.operator not in ("==", "!=") or _QUOTED.fullmatch(self.value) is None:
            return ""
        bare = replace(self, value=self.value[1:-1])
        try:
            labels = bare._by_rule(values, used)
        except ValueError:
            return ""
        if not {0.0, 1.0}.issubset(labels):
            return ""
        return f" Quotes are compared as a part of the value: write `{bare._text()}`."

    def _like(self, value: Any) -> Any:
        """What a cell is compared with, in its type."""
        if isinstance(value, str) and self.operator in ("==", "!="):
            return self.value
        if isinstance(value, bool) and self.value.lower() in ("true", "false"):
            return self.value.lower() == "true"
        try:
            number = float(self.value)
            # Whether it can be compared.
            _ = value < number
        except (TypeError, ValueError):
            raise ValueError(
                f"The label {self} compares the column {self.column!r} with {self.value!r}, got "
                f"{value!r} in it.{_marked([value])}"
            ) from None
        return number

    def _as_written(self, values: Sequence[Any], used: Any) -> list[float]:
        there = [value for value, is_used in zip(values, used) if is_used]
        # Margins of a classifier.
        plus_and_minus = set(map(str, there)) <= {"-1", "1", "+1", "-1.0", "1.0"}
        minus = plus_and_minus and len(there) == 2
        labels = [int(float(v) > 0) if minus else _no_or_yes(v) for v in there]
        if None in labels:
            shown = ", ".join(repr(value) for value in there[:5])
            raise ValueError(
                f"The label {self} must hold 0 and 1 only (or false and true, no and yes), got "
                f"{shown}{', ...' * (len(there) > 5)}.{_marked(there)}{self._as_rule(there)}"
            )
        found = iter(labels)
        return [float(next(found) or 0) if is_used else np.nan for is_used in used]

    def _as_rule(self, values: Sequence[Any]) -> str:
        if len(values) == 2 and all(isinstance(value, str) for value in values):
            yes = min(reversed(values), key=lambda value: _LIKE_NO.match(value) is not None)
            return f" If {yes!r} is a yes, say so: `{self.column}=={yes}`."
        numbers = sorted(v for v in values if isinstance(v, (int, float)) and v == v)
        if len(numbers) < 2 or len(numbers) < len(values):
            return ""
        if len(numbers) == 2:
            return f" If {numbers[1]:g} is a yes, say so: `{self.column}=={numbers[1]:g}`."
        middle = numbers[len(numbers) // 2]
        return (
            f" If it is a rating, say from where on it is a yes, such as `{self.column}>="
            f"{middle:g}`."
        )


def _marked(values: Sequence[Any]) -> str:
    """How to go on where a label stands for none."""
    markers = [value for value in values if value in cells.USUAL_MARKERS]
    if not markers:
        return ""
    return (
        f" If {' or '.join(map(repr, markers))} stands for a missing label, say so: `na_values`, "
        f"on the command line `--na-values {','.join(map(str, markers))}`."
    )


def _no_or_yes(value: Any) -> int | None:
    if isinstance(value, str):
        return _NO_AND_YES.get(value.strip().lower())
    return int(value) if value in (0, 1) else None


def check_rule(label: Label, task: str) -> None:
    """Raise a ValueError if a label is a rule and its task has targets, not yes and no."""
    if task == "retrieval" and label.operator is not None:
        raise ValueError(
            f"`label` must be the column of the targets for task='retrieval', got the rule "
            f"{label}."
        )
