"""A click log in the shape of Criteo's, whose best AUC is known.

    python benchmarks/click_log_data.py FOLDER --rows 10000000

13 columns of integers ``I1`` to ``I13`` with missing and negative values and heavy tails, and 26
columns ``C1`` to ``C26`` of ids, 8 hexadecimal digits each, from 3 to 5 million different ones in
45 million rows. The ids of a column have Zipf's distribution: that of rank ``r`` is drawn with a
probability of ``log(1 + 1 / r) / log(1 + vocabulary)``. A click has a known probability; its logit
is a sum of

- an effect of each id, drawn once for the id and independent of how often it comes,
- an interaction of ids of two columns: the scalar product of hidden vectors of theirs, which no
  sum of effects can tell,
- a curve of each number, in its signed logarithm.

Whatever belongs to an id is a hash of it, so that no table of ids is kept. Rows are made in blocks
that depend on the seed alone: a shorter log is the beginning of a longer one, however it is cut
into parts. The parts are in the order of time; the last tenth of the rows is the test, on which no
model can have a better AUC than the true probabilities.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import json
from pathlib import Path
import shutil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
import pyarrow as pa
from pyarrow import csv, parquet

Array = NDArray[Any]

# Rows that are drawn from one generator, and rows of a row group.
BLOCK, GROUP = 50_000, 500_000
TEST_SHARE = 0.1
# A quarter of the rows are clicks, as in Criteo's log.
INTERCEPT = -1.75
HIDDEN = 4


class Ids(NamedTuple):
    """A column of ids: how many there can be, how often none, how much they say of the click."""

    vocabulary: int
    missing: float
    strength: float


class Numbers(NamedTuple):
    """A column of integers: ``exp(mean + deviation * normal) - shift``, rounded down.

    ``waves`` bends the curve of its effect; at 0 it is a straight line.
    """

    missing: float
    mean: float
    deviation: float
    shift: int
    strength: float
    waves: float


IDS = {
    "C1": Ids(1_460, 0.0, 0.35),
    "C2": Ids(583, 0.0, 0.28),
    "C3": Ids(10_000_000, 0.034, 0.42),
    "C4": Ids(10_000_000, 0.034, 0.0),
    "C5": Ids(305, 0.0, 0.0),
    "C6": Ids(24, 0.12, 0.21),
    "C7": Ids(12_517, 0.0, 0.42),
    "C8": Ids(633, 0.0, 0.0),
    "C9": Ids(3, 0.0, 0.14),
    "C10": Ids(1_000_000, 0.0, 0.42),
    "C11": Ids(5_683, 0.0, 0.35),
    "C12": Ids(10_000_000, 0.034, 0.28),
    "C13": Ids(3_194, 0.0, 0.0),
    "C14": Ids(27, 0.0, 0.28),
    "C15": Ids(14_992, 0.0, 0.28),
    "C16": Ids(10_000_000, 0.034, 0.0),
    "C17": Ids(10, 0.0, 0.28),
    "C18": Ids(5_652, 0.0, 0.28),
    "C19": Ids(2_173, 0.44, 0.14),
    "C20": Ids(4, 0.44, 0.14),
    "C21": Ids(10_000_000, 0.034, 0.42),
    "C22": Ids(18, 0.76, 0.14),
    "C23": Ids(15, 0.0, 0.28),
    "C24": Ids(10_000_000, 0.034, 0.28),
    "C25": Ids(3_000_000, 0.0, 0.0),
    "C26": Ids(300_000, 0.44, 0.28),
}
# Pairs of columns whose ids interact, and how much.
PAIRS = {
    ("C1", "C14"): 0.42,
    ("C7", "C11"): 0.42,
    ("C18", "C10"): 0.42,
    ("C15", "C3"): 0.35,
    ("C2", "C21"): 0.35,
}
NUMBERS = {
    "I1": Numbers(0.45, 0.6, 1.2, 0, 0.28, 0.0),
    "I2": Numbers(0.0, 2.5, 2.0, 3, 0.21, 1.5),
    "I3": Numbers(0.21, 1.8, 1.5, 0, 0.14, 0.0),
    "I4": Numbers(0.22, 1.6, 1.0, 0, 0.14, 0.0),
    "I5": Numbers(0.026, 7.5, 2.2, 0, 0.21, 1.2),
    "I6": Numbers(0.22, 3.6, 1.6, 0, 0.28, 0.0),
    "I7": Numbers(0.043, 1.6, 1.5, 0, 0.28, 0.0),
    "I8": Numbers(0.0005, 2.0, 1.1, 0, 0.0, 0.0),
    "I9": Numbers(0.043, 3.7, 1.5, 0, 0.14, 1.0),
    "I10": Numbers(0.45, 0.3, 0.5, 0, 0.14, 0.0),
    "I11": Numbers(0.043, 0.8, 0.9, 0, 0.28, 0.0),
    "I12": Numbers(0.76, 0.2, 1.2, 1, 0.14, 0.0),
    "I13": Numbers(0.22, 1.7, 1.0, 1, 0.14, 2.0),
}
COLUMNS = ("label", *NUMBERS, *IDS)


class Block(NamedTuple):
    """Some rows, and the true probabilities of their clicks."""

    table: pa.Table
    clicks: Array
    probabilities: Array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=int, default=20)
    parser.add_argument("--tsv", action="store_true", help="text instead of Parquet")
    parser.add_argument("--no-header", action="store_true", help="text as Criteo has it")
    args = parser.parse_args()
    facts = make_log(
        args.folder, args.rows, args.seed, args.parts, tsv=args.tsv, header=not args.no_header
    )
    print(json.dumps(facts))


def make_log(
    folder: str | Path,
    rows: int,
    seed: int,
    parts: int = 20,
    *,
    tsv: bool = False,
    header: bool = True,
) -> dict[str, Any]:
    """Write a log to a folder, whose files of an earlier log are replaced.

    Args:
        folder: Where the parts go, ``part-00000.parquet`` and so on.
        rows: Number of rows.
        seed: What everything is drawn from.
        parts: Number of files, as even as can be.
        tsv: Write text, separated by tabs, a missing value as nothing.
        header: Whether each file of text begins with the names of the columns.

    Returns:
        ``rows``; ``test_rows``, the last ones; ``best_auc``, that of the true probabilities on
        these; ``clicks``, the share of rows that are.

    Raises:
        ValueError: If there are fewer rows than parts, or no part.
    """
    if not 1 <= parts <= rows:
        raise ValueError(f"`parts` must be from 1 to the {rows} rows, got {parts}.")
    folder = Path(folder)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    test_from = rows - round(TEST_SHARE * rows)
    clicked = 0
    clicks, probabilities = [], []
    for part in range(parts):
        start, stop = part * rows // parts, (part + 1) * rows // parts
        path = folder / f"part-{part:05d}.{'tsv' if tsv else 'parquet'}"
        with _writer(path, tsv, header) as writer:
            waiting: list[pa.Table] = []
            at = start
            for block in blocks(start, stop, seed):
                waiting.append(block.table)
                if sum(map(len, waiting)) >= GROUP:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = []
                tested = max(test_from - at, 0)
                clicks.append(block.clicks[tested:])
                probabilities.append(block.probabilities[tested:])
                clicked += int(block.clicks.sum())
                at += len(block.clicks)
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
    return {
        "rows": rows,
        "test_rows": rows - test_from,
        "best_auc": auc(np.concatenate(clicks), np.concatenate(probabilities)),
        "clicks": clicked / rows,
    }


def blocks(start: int, stop: int, seed: int) -> Iterator[Block]:
    """The rows from one to another of the log of a seed, block by block."""
    for index in range(start // BLOCK, -(-stop // BLOCK)):
        block = _block(seed, index)
        first = max(start - index * BLOCK, 0)
        last = min(stop - index * BLOCK, BLOCK)
        yield Block(
            block.table.slice(first, last - first),
            block.clicks[first:last],
            block.probabilities[first:last],
        )


def auc(clicks: Array, scores: Array) -> float:
    """The probability that a click has a higher score than what is none, ties counting half.

    Example:
        >>> auc(np.array([False, True, False, True]), np.array([0.1, 0.2, 0.3, 0.4]))
        0.75
    """
    order = np.argsort(scores, kind="stable")
    ranked, hit = scores[order], clicks[order].astype(bool)
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    sizes = np.diff(np.r_[first, len(ranked)])
    ranks = np.repeat(first + (sizes + 1) / 2, sizes)
    num = int(hit.sum())
    return float((ranks[hit].sum() - num * (num + 1) / 2) / (num * (len(hit) - num)))


def _writer(path: Path, tsv: bool, header: bool) -> Any:
    if not tsv:
        return parquet.ParquetWriter(path, SCHEMA, compression="snappy")
    options = csv.WriteOptions(include_header=header, delimiter="\t", quoting_style="none")
    return csv.CSVWriter(path, SCHEMA, write_options=options)


SCHEMA = pa.schema(
    [("label", pa.int32())]
    + [(name, pa.int32()) for name in NUMBERS]
    + [(name, pa.string()) for name in IDS]
)


def _block(seed: int, index: int) -> Block:
    """One block of a log."""
    generator = np.random.default_rng((seed, index))
    logits = np.full(BLOCK, INTERCEPT)
    arrays = []
    for numbers in NUMBERS.values():
        values, effect = _draw_numbers(generator, numbers)
        logits += effect
        arrays.append(values)
    in_pairs = {name for pair in PAIRS for name in pair}
    hidden: dict[str, Array] = {}
    for column, (name, ids) in enumerate(IDS.items()):
        known = generator.random(BLOCK, dtype=np.float32) >= ids.missing
        ranks = (ids.vocabulary + 1.0) ** generator.random(BLOCK)
        # Rounding may give one rank too many.
        ranks = np.minimum(ranks.astype(np.uint32), ids.vocabulary) - 1
        named = _scattered(ranks + np.uint32(0x9E3779B9 * (column + 1) & 0xFFFFFFFF))
        drawn = _hashed(named, column, seed)
        if ids.strength:
            logits += ids.strength * known * _normal(drawn)
        if name in in_pairs:
            hidden[name] = (_mixed(drawn) & np.uint64(2**HIDDEN - 1)) * known, known
        arrays.append(_texts(named, known))
    for (one, other), strength in PAIRS.items():
        (first, known), (second, also) = hidden[one], hidden[other]
        product = (HIDDEN - 2.0 * _ONES[first ^ second]) / np.sqrt(HIDDEN)
        logits += strength * product * (known & also)
    probabilities = 1 / (1 + np.exp(-logits))
    clicks = generator.random(BLOCK) < probabilities
    label = pa.array(clicks.astype(np.int32))
    return Block(pa.table([label, *arrays], schema=SCHEMA), clicks, probabilities)


def _draw_numbers(generator: np.random.Generator, numbers: Numbers) -> tuple[pa.Array, Array]:
    """Integers with holes, and what they add to the logit."""
    missing = generator.random(BLOCK, dtype=np.float32) < numbers.missing
    normal = generator.standard_normal(BLOCK, dtype=np.float32)
    drawn = np.exp(numbers.mean + numbers.deviation * normal)
    values = np.minimum(drawn, 2**31 - 1024).astype(np.int32) - numbers.shift
    # The effect is that of the value as it is written, rounded down.
    logs = np.sign(values) * np.log1p(np.abs(values))
    scaled = (logs - numbers.mean) / numbers.deviation
    effect = np.sin(numbers.waves * scaled) if numbers.waves else np.clip(scaled, -3, 3)
    return pa.array(values, mask=missing), np.where(missing, 0.5, effect) * numbers.strength


def _scattered(numbers: Array) -> Array:
    """A permutation of all numbers of 32 bits (the end of MurmurHash3, Appleby 2011)."""
    numbers = numbers ^ (numbers >> np.uint32(16))
    numbers = numbers * np.uint32(0x85EBCA6B)
    numbers = numbers ^ (numbers >> np.uint32(13))
    numbers = numbers * np.uint32(0xC2B2AE35)
    return numbers ^ (numbers >> np.uint32(16))


def _hashed(named: Array, column: int, seed: int) -> Array:
    """64 bits for each id of a column."""
    salt = _mixed(np.array([seed * len(IDS) + column], dtype=np.uint64))
    return _mixed(named.astype(np.uint64) ^ salt)


def _mixed(numbers: Array) -> Array:
    """A step of SplitMix64 (Steele et al., 2014)."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _normal(drawn: Array) -> Array:
    """Numbers of mean 0 and variance 1, close to normal, from 64 bits each."""
    quarters = drawn.view(np.uint16).reshape(len(drawn), 4)
    total = quarters.sum(1, dtype=np.float64) / 2**16
    return (total - 2) * np.sqrt(3)


# How many bits are set.
_ONES = np.array([n.bit_count() for n in range(2**HIDDEN)])
# The digits of all numbers of 16 bits, as 4 bytes.
_DIGITS = np.frombuffer("".join(f"{n:04x}" for n in range(2**16)).encode(), dtype=np.uint32)
_OFFSETS = np.arange(0, 8 * (BLOCK + 1), 8, dtype=np.int32)


def _texts(named: Array, known: Array) -> pa.Array:
    """Ids as 8 hexadecimal digits; nothing where they are not known."""
    digits = np.empty((len(named), 2), dtype=np.uint32)
    digits[:, 0] = _DIGITS[named >> np.uint32(16)]
    digits[:, 1] = _DIGITS[named & np.uint32(0xFFFF)]
    valid = np.packbits(known, bitorder="little")
    return pa.StringArray.from_buffers(
        len(named), pa.py_buffer(_OFFSETS), pa.py_buffer(digits), pa.py_buffer(valid)
    )


if __name__ == "__main__":
    main()
