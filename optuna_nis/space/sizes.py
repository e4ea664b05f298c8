"""The sizes that the row blocks of a feature may have, and what each costs after each other."""

from __future__ import annotations

import numpy as np

from optuna_nis.space.constraint import Choice, FloatArray, IntArray
from optuna_nis.space.precision import kept_share, projection_nbytes, row_nbytes, step_nbytes
from optuna_nis.space.spec import EmbeddingSpec


class Sizes:
    """The sizes that the row blocks of a feature may have: a width and a precision.

    The first one is no row; the others are in the order of their widths, and of precisions within.

    Attributes:
        pairs: The width of each and its bits.
        names: What each is called as a choice: its width if there is only float32.
        widths: Their widths.
        bits: Their bits.
        octaves: Of the widths, where they lie among the powers of two: 1 for 1, 2 for 2, 3 for 4.
        kept: The part of what rows are worth that is left when they are rounded so.
        log_weights: Weight of each that grows with the width, e-fold per octave.
        row_nbytes: Bytes of a row.
        steps: Bytes of the step of a tier.
        projection: Bytes of the projection of a table whose first tier has this size.
        late_costs: Bytes of step and projection of a row block (second index) that comes after
            another one (first index), beyond what that one has paid for.
        fits: Whether one (second index) may come after another one (first index).
        meets: Index of the size with the smaller width and the smaller precision of two.
        joins: The same of the larger ones.
    """

    def __init__(self, spec: EmbeddingSpec) -> None:
        self.spec = spec
        dim, rising = spec.embedding_dim, spec.precisions[::-1]
        self.pairs = [(0, rising[0])]
        self.pairs += [(width, bits) for width in spec.widths[1:] for bits in rising]
        if rising == (32,):
            self.names: tuple[Choice, ...] = spec.widths
        else:
            self.names = ("0", *(f"{width}x{bits}bit" for width, bits in self.pairs[1:]))
        self._index = {pair: index for index, pair in enumerate(self.pairs)}
        self._by_name = dict(zip(self.names, self.pairs))
        self.octaves: FloatArray = np.log2(np.maximum(2.0 * np.array(spec.widths), 1.0))
        levels = np.append(0, np.repeat(np.arange(1, len(spec.widths)), len(rising)))
        self.widths = np.array(spec.widths)[levels]
        self.bits = bits = np.array([bits for _, bits in self.pairs])
        self.kept = np.array([kept_share(int(own)) for own in bits])
        self.log_weights = self.octaves[levels] + np.log(self.kept)
        self.row_nbytes = np.array([row_nbytes(*pair) for pair in self.pairs])
        # No row has no step.
        self.steps = np.array([step_nbytes(own) if width else 0 for width, own in self.pairs])
        # The widest tier pays for the projection that all share; a table of full width has none
        # until a narrower tier follows.
        full = self.widths == dim
        needed = np.array([projection_nbytes(width, dim, own) for width, own in self.pairs])
        self.projection = np.where(full, 0, needed)
        late = np.array([projection_nbytes(dim, dim, own) for _, own in self.pairs])
        follows = full[:, None] & ~full & (self.widths > 0)
        is_new = ~np.eye(len(self.pairs), dtype=np.bool_)
        self.late_costs = is_new * self.steps + follows * late
        self.fits = (self.widths <= self.widths[:, None]) & (bits <= bits[:, None])
        # No row may come after anything, and nothing but no row after it.
        self.fits[:, 0] = True
        places = np.append(0, np.tile(np.arange(len(rising)), len(spec.widths) - 1))

        def both(of: np.ufunc) -> IntArray:
            level, place = of.outer(levels, levels), of.outer(places, places)
            return np.where(level == 0, 0, 1 + (level - 1) * len(rising) + place)

        self.meets, self.joins = both(np.minimum), both(np.maximum)

    def of(self, name: Choice) -> tuple[int, int]:
        """The size of some name."""
        return self._by_name[name]

    def name(self, size: tuple[int, int]) -> Choice:
        """What a size is called."""
        return self.names[self._index[size if size[0] else self.pairs[0]]]
