"""What a search finds: for every feature, which ids keep an embedding and how wide it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
import itertools
import json
from typing import NamedTuple
import warnings

from optuna_nis._checks import instances
from optuna_nis._json import read_json
from optuna_nis.space.budget import bytes_per_element
from optuna_nis.space.precision import PRECISIONS, projection_nbytes, row_nbytes, step_nbytes

# Without precisions in version 1, without shared rows in version 2, which is written where there
# are none.
_JSON_VERSIONS = (1, 2, 3)


class Tier(NamedTuple):
    """A run of ids of similar frequency that share one width and one precision.

    Attributes:
        num_embeddings: Number of ids.
        embedding_dim: Width of their rows.
        bits: Bits of a number: 32 and 16 are floats, 8, 4 and 2 are codes.

    Example:
        >>> Tier(400, 32).embedding_dim
        32
        >>> print(Tier(400, 32, 4))
        400x32x4bit
    """

    num_embeddings: int
    embedding_dim: int
    bits: int = 32

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, each of which begins at a whole byte, and of their step."""
        rows = self.num_embeddings * row_nbytes(self.embedding_dim, self.bits)
        return rows + step_nbytes(self.bits)

    def __str__(self) -> str:
        size = f"{self.num_embeddings}x{self.embedding_dim}"
        return size if self.bits == 32 else f"{size}x{self.bits}bit"


@dataclass(frozen=True)
class TableAllocation:
    """The embedding of one feature: tiers by falling frequency, widest and most precise first.

    Ids are ranks: 0 is the most frequent. The first ``tiers[0].num_embeddings`` ids have rows of
    ``tiers[0].embedding_dim`` numbers, the next ``tiers[1].num_embeddings`` those of the second
    tier, and so on; ids beyond the last tier are out of vocabulary, or share ``num_shared`` rows
    of the last tier's size, over which their ranks are hashed. All tiers share a projection of
    shape ``(tiers[0].embedding_dim, embedding_dim)``, of which a narrower tier uses the first
    rows. A table whose rows are all as wide as ``embedding_dim`` needs none. It is stored as
    float32 if the first tier that is narrower is, else as float16.

    Args:
        name: Name of the feature.
        num_embeddings: Size of the whole vocabulary.
        embedding_dim: Width that the model downstream sees.
        tiers: Tiers of which each is narrower or less precise than the one before it, and neither
            wider nor more precise; none means that the feature is removed.
        num_shared: Number of rows that the ids beyond the last tier share.

    Raises:
        TypeError: If something is no tier.
        ValueError: If the tiers do not fit the vocabulary or are not in order, or there are more
            shared rows than ids to share them, or no tier to take their size from.

    Example:
        >>> table = TableAllocation("tailnum", 4043, 32, (Tier(400, 32), Tier(1200, 8)))
        >>> print(table)
        tailnum: 400x32 + 1200x8 (of 4043x32)
        >>> table.num_embedding_parameters, table.num_projection_parameters
        (22400, 1024)
        >>> table.nbytes()
        93696
        >>> hashed = TableAllocation("tailnum", 4043, 32, (Tier(400, 32),), num_shared=16)
        >>> print(hashed, hashed.nbytes() - 400 * 32 * 4)
        tailnum: 400x32 + 16 shared (of 4043x32) 2048
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    tiers: tuple[Tier, ...]
    num_shared: int = 0

    def __post_init__(self) -> None:
        for field in ("num_embeddings", "embedding_dim"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{field}` of {self.name!r} must be a positive integer, got {value!r}."
                )
        try:
            tiers = tuple(Tier(*tier) for tier in self.tiers)
        except TypeError:
            raise TypeError(
                f"`tiers` of {self.name!r} must be a sequence of `Tier`, got {self.tiers!r}."
            ) from None
        object.__setattr__(self, "tiers", tiers)
        for tier in tiers:
            if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in tier):
                raise ValueError(
                    f"`tiers` of {self.name!r} must hold positive integers, got "
                    f"{tuple(tier[:2] if tier.bits == 32 else tier)}."
                )
            if tier.bits not in PRECISIONS:
                raise ValueError(
                    f"`tiers` of {self.name!r} must have a number of bits out of "
                    f"{list(PRECISIONS)}, got {tier.bits}."
                )
        widths = [tier.embedding_dim for tier in tiers]
        bits = [tier.bits for tier in tiers]
        if any(a < b for a, b in itertools.pairwise(bits)):
            raise ValueError(
                f"`tiers` of {self.name!r} must not rise in precision with the rank, got bits "
                f"{bits}."
            )
        if any(a[1:] == b[1:] or a[1] < b[1] for a, b in itertools.pairwise(tiers)):
            raise ValueError(
                f"`tiers` of {self.name!r} must fall in width"
                f"{'' if set(bits) <= {32} else ' or precision'}, got widths {widths}"
                f"{'' if set(bits) <= {32} else f' and bits {bits}'}."
            )
        if widths and widths[0] > self.embedding_dim:
            raise ValueError(
                f"`tiers` of {self.name!r} must be at most {self.embedding_dim} wide, "
                f"got {widths[0]}."
            )
        if self.kept > self.num_embeddings:
            raise ValueError(
                f"`tiers` of {self.name!r} must hold at most {self.num_embeddings} ids, "
                f"got {self.kept}."
            )
        shared, most = self.num_shared, self.num_embeddings - self.kept if tiers else 0
        if isinstance(shared, bool) or not isinstance(shared, int) or not 0 <= shared <= most:
            raise ValueError(
                f"`num_shared` of {self.name!r} must be an integer from 0 to {most}, the number "
                f"of ids beyond its tiers, got {shared!r}."
            )

    @property
    def kept(self) -> int:
        """Number of ids that keep an embedding of their own."""
        return sum(tier.num_embeddings for tier in self.tiers)

    @property
    def stored_tiers(self) -> tuple[Tier, ...]:
        """The tiers as they are stored: the shared rows are the last ones of the last tier."""
        if not self.num_shared:
            return self.tiers
        *others, last = self.tiers
        return (*others, last._replace(num_embeddings=last.num_embeddings + self.num_shared))

    @property
    def is_projected(self) -> bool:
        """Whether there is a projection: some row is narrower than the output."""
        return any(tier.embedding_dim != self.embedding_dim for tier in self.tiers)

    @property
    def num_embedding_parameters(self) -> int:
        """Numbers in the rows of all tiers."""
        return sum(tier.num_embeddings * tier.embedding_dim for tier in self.stored_tiers)

    @property
    def num_projection_parameters(self) -> int:
        """Numbers in the projection that the tiers share."""
        return self.tiers[0].embedding_dim * self.embedding_dim if self.is_projected else 0

    @property
    def num_parameters(self) -> int:
        """Rows and projections together."""
        return self.num_embedding_parameters + self.num_projection_parameters

    @property
    def projection_bits(self) -> int:
        """Bits of a number of the projection: 32, or 16 if its first rows are not float32."""
        narrow = (tier.bits for tier in self.tiers if tier.embedding_dim < self.embedding_dim)
        return 32 if next(narrow, 32) == 32 else 16

    def nbytes(self) -> int:
        """Bytes of rows, steps and projection as they are stored."""
        rows = sum(tier.nbytes for tier in self.stored_tiers)
        if not self.is_projected:
            return rows
        widest = self.tiers[0].embedding_dim
        return rows + projection_nbytes(widest, self.embedding_dim, self.projection_bits)

    def unprojected(self) -> TableAllocation:
        """The same ids in the same precisions, at full width and so without a projection.

        Example:
            >>> print(TableAllocation("day", 7, 32, (Tier(2, 32), Tier(5, 8))).unprojected())
            day: 7x32 (of 7x32)
        """
        tiers: list[Tier] = []
        for tier in self.tiers:
            rows = tier.num_embeddings
            if tiers and tiers[-1].bits == tier.bits:
                rows += tiers.pop().num_embeddings
            tiers.append(Tier(rows, self.embedding_dim, tier.bits))
        return replace(self, tiers=tuple(tiers))

    def __str__(self) -> str:
        shared = [f"{self.num_shared} shared"] if self.num_shared else []
        kept = " + ".join([*map(str, self.tiers), *shared])
        full = f"(of {self.num_embeddings}x{self.embedding_dim})"
        return f"{self.name}: {kept or 'removed'} {full}"


class Allocation(Mapping[str, TableAllocation]):
    """The embedding tables of a whole model, a mapping from feature name to its table.

    Args:
        tables: One :class:`TableAllocation` for each feature.

    Raises:
        TypeError: If something is no table.
        ValueError: If there is no table or a name comes twice.

    Example:
        >>> allocation = Allocation([
        ...     TableAllocation("user", 1000, 16, (Tier(100, 16), Tier(900, 4))),
        ...     TableAllocation("city", 50, 16, ()),
        ... ])
        >>> print(allocation)
        user: 100x16 + 900x4 (of 1000x16)
        city: removed (of 50x16)
        >>> allocation.num_parameters, allocation.num_projection_parameters
        (5456, 256)
        >>> allocation.nbytes()
        21824
        >>> Allocation.from_json(allocation.to_json()) == allocation
        True
    """

    def __init__(self, tables: Iterable[TableAllocation]) -> None:
        self._tables: dict[str, TableAllocation] = {}
        for table in instances("tables", tables, TableAllocation):
            if table.name in self._tables:
                raise ValueError(f"`tables` names the feature {table.name!r} twice.")
            self._tables[table.name] = table
        if not self._tables:
            raise ValueError("`tables` must hold at least one feature, got none.")

    def widened(self) -> Allocation:
        """With rows of full width wherever they cost no more than narrower ones.

        Narrower rows come with a projection, which for few ids is larger than what they save.

        Returns:
            An allocation of the same ids, of no more bytes.

        Example:
            >>> day = TableAllocation("day", 7, 32, (Tier(7, 8),))
            >>> user = TableAllocation("user", 900, 32, (Tier(900, 8),))
            >>> for table in Allocation([day, user]).widened().values():
            ...     print(table)
            day: 7x32 (of 7x32)
            user: 900x8 (of 900x32)
        """
        wide = {name: table.unprojected() for name, table in self.items()}
        return Allocation(
            wide[name] if wide[name].nbytes() <= table.nbytes() else table
            for name, table in self.items()
        )

    def __getitem__(self, name: str) -> TableAllocation:
        if name not in self._tables:
            known = ", ".join(self._tables)
            raise KeyError(f"No feature {name!r} in this allocation; it has {known}.")
        return self._tables[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tables

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Allocation) and self._tables == other._tables

    def __hash__(self) -> int:
        return hash(frozenset(self._tables.values()))

    def __str__(self) -> str:
        return "\n".join(str(table) for table in self._tables.values())

    def __repr__(self) -> str:
        return f"Allocation({list(self._tables.values())!r})"

    @property
    def num_embedding_parameters(self) -> int:
        """Numbers in the rows of all tables."""
        return sum(table.num_embedding_parameters for table in self._tables.values())

    @property
    def num_projection_parameters(self) -> int:
        """Numbers in the projections of all tables."""
        return sum(table.num_projection_parameters for table in self._tables.values())

    @property
    def num_parameters(self) -> int:
        """Numbers in rows and projections together, of whatever precision."""
        return self.num_embedding_parameters + self.num_projection_parameters

    def nbytes(self, dtype: str | None = None) -> int:
        """Bytes of rows, steps and projections as they are stored: what a budget is about.

        Args:
            dtype: Deprecated: bytes if every number were of this type, such as ``"float16"``. The
                tiers know their precision.
        """
        if dtype is not None:
            warnings.warn(
                "`dtype` of `Allocation.nbytes` goes by no tier's precision and will be removed: "
                f"use `num_parameters`, times {bytes_per_element(dtype)} for {dtype}.",
                FutureWarning,
                stacklevel=2,
            )
            return self.num_parameters * bytes_per_element(dtype)
        return sum(table.nbytes() for table in self._tables.values())

    def to_json(self) -> str:
        """Write as JSON, to be read back by :meth:`from_json`."""
        tables = [asdict(table) for table in self._tables.values()]
        sharing = any(table.num_shared for table in self._tables.values())
        if not sharing:
            for table in tables:
                del table["num_shared"]
        return json.dumps({"version": 3 if sharing else 2, "tables": tables})

    @classmethod
    def from_json(cls, text: str) -> Allocation:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: If the text is not such an allocation.
        """
        try:
            data = read_json(text)
        except (ValueError, TypeError) as error:
            raise ValueError(f"An allocation must be JSON: {error}.") from error
        version = data.get("version") if isinstance(data, dict) else None
        if version not in _JSON_VERSIONS:
            raise ValueError(
                f"An allocation must be of a version from {_JSON_VERSIONS[0]} to "
                f"{_JSON_VERSIONS[-1]}, got {version!r}."
            )
        try:
            return cls(
                TableAllocation(**{**table, "name": str(table["name"])})
                for table in data["tables"]
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"This allocation is malformed: {error!r}.") from error
