"""What a search finds: for every feature, which ids keep an embedding and how wide it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
import itertools
import json
from typing import NamedTuple

from optuna_nis.space.budget import bytes_per_element

_JSON_VERSION = 1


class Tier(NamedTuple):
    """A run of ids of similar frequency that share one width.

    Attributes:
        num_embeddings: Number of ids.
        embedding_dim: Width of their rows.

    Example:
        >>> Tier(400, 32).embedding_dim
        32
    """

    num_embeddings: int
    embedding_dim: int


@dataclass(frozen=True)
class TableAllocation:
    """The embedding of one feature: tiers by falling frequency, widest first.

    Ids are ranks: 0 is the most frequent. The first ``tiers[0].num_embeddings`` ids have rows of
    ``tiers[0].embedding_dim`` numbers, the next ``tiers[1].num_embeddings`` those of the second
    tier, and so on; ids beyond the last tier are out of vocabulary. All tiers share a projection
    of shape ``(tiers[0].embedding_dim, embedding_dim)``, of which a narrower tier uses the first
    rows. A table whose rows are all as wide as ``embedding_dim`` needs none.

    Args:
        name: Name of the feature.
        num_embeddings: Size of the whole vocabulary.
        embedding_dim: Width that the model downstream sees.
        tiers: Tiers with strictly falling widths; none means that the feature is removed.

    Raises:
        ValueError: If the tiers do not fit the vocabulary or are not in order.

    Example:
        >>> table = TableAllocation("tailnum", 4043, 32, (Tier(400, 32), Tier(1200, 8)))
        >>> print(table)
        tailnum: 400x32 + 1200x8 (of 4043x32)
        >>> table.num_embedding_parameters, table.num_projection_parameters
        (22400, 1024)
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    tiers: tuple[Tier, ...]

    def __post_init__(self) -> None:
        for field in ("num_embeddings", "embedding_dim"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{field}` of {self.name!r} must be a positive integer, got {value!r}."
                )
        tiers = tuple(Tier(*tier) for tier in self.tiers)
        object.__setattr__(self, "tiers", tiers)
        for tier in tiers:
            if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in tier):
                raise ValueError(
                    f"`tiers` of {self.name!r} must hold positive integers, got {tuple(tier)}."
                )
        widths = [tier.embedding_dim for tier in tiers]
        if any(a <= b for a, b in itertools.pairwise(widths)):
            raise ValueError(f"`tiers` of {self.name!r} must fall in width, got widths {widths}.")
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

    @property
    def kept(self) -> int:
        """Number of ids that keep an embedding."""
        return sum(tier.num_embeddings for tier in self.tiers)

    @property
    def is_projected(self) -> bool:
        """Whether there is a projection: some row is narrower than the output."""
        return any(tier.embedding_dim != self.embedding_dim for tier in self.tiers)

    @property
    def num_embedding_parameters(self) -> int:
        """Numbers in the rows of all tiers."""
        return sum(tier.num_embeddings * tier.embedding_dim for tier in self.tiers)

    @property
    def num_projection_parameters(self) -> int:
        """Numbers in the projection that the tiers share."""
        return self.tiers[0].embedding_dim * self.embedding_dim if self.is_projected else 0

    @property
    def num_parameters(self) -> int:
        """Rows and projections together."""
        return self.num_embedding_parameters + self.num_projection_parameters

    def __str__(self) -> str:
        kept = " + ".join(f"{tier.num_embeddings}x{tier.embedding_dim}" for tier in self.tiers)
        full = f"(of {self.num_embeddings}x{self.embedding_dim})"
        return f"{self.name}: {kept or 'removed'} {full}"


class Allocation(Mapping[str, TableAllocation]):
    """The embedding tables of a whole model, a mapping from feature name to its table.

    Args:
        tables: One :class:`TableAllocation` for each feature.

    Raises:
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
        >>> allocation.nbytes("float16")
        10912
        >>> Allocation.from_json(allocation.to_json()) == allocation
        True
    """

    def __init__(self, tables: Iterable[TableAllocation]) -> None:
        self._tables: dict[str, TableAllocation] = {}
        for table in tables:
            if table.name in self._tables:
                raise ValueError(f"`tables` names the feature {table.name!r} twice.")
            self._tables[table.name] = table
        if not self._tables:
            raise ValueError("`tables` must hold at least one feature, got none.")

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
        return hash(tuple(self._tables.values()))

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
        """Rows and projections together: what a budget is compared with."""
        return self.num_embedding_parameters + self.num_projection_parameters

    def nbytes(self, dtype: str = "float32") -> int:
        """Memory of rows and projections in bytes.

        Args:
            dtype: Type of one parameter, such as ``"float32"`` or ``"float16"``.
        """
        return self.num_parameters * bytes_per_element(dtype)

    def to_json(self) -> str:
        """Write as JSON, to be read back by :meth:`from_json`."""
        tables = [asdict(table) for table in self._tables.values()]
        return json.dumps({"version": _JSON_VERSION, "tables": tables})

    @classmethod
    def from_json(cls, text: str) -> Allocation:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: If the text is not such an allocation.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"An allocation must be JSON: {error}.") from error
        if not isinstance(data, dict) or data.get("version") != _JSON_VERSION:
            version = data.get("version") if isinstance(data, dict) else None
            raise ValueError(
                f"An allocation must be of version {_JSON_VERSION}, got version {version!r}."
            )
        try:
            return cls(
                TableAllocation(**{**table, "name": str(table["name"])})
                for table in data["tables"]
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"This allocation is malformed: {error!r}.") from error
