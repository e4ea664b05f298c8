"""The drawings of docs/images: blocks and tiers, light and dark, from a real space and allocation.

python docs/drawings.py           # writes docs/images/{blocks,tiers}-{light,dark}.svg
python docs/drawings.py --check   # fails if they are not up to date
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
import sys

from optuna_nis import EmbeddingSpec, SearchSpace

IMAGES = Path(__file__).parent / "images"
# Ink, lines, paper between blocks, and a fill for each row block, from frequent to rare ids.
THEMES = {
    "light": ("#33373d", "#8a9099", "#ffffff"),
    "dark": ("#d5d8dd", "#8a9099", "#15171a"),
}
FILLS = ("#2383C9", "#009E73", "#E69F00")
SPEC = EmbeddingSpec("item", 1_000, 16, row_blocks=(100, 200, 300, 400))
SPACE = SearchSpace([SPEC])
PARAMS = {"item[0:100]": 16, "item[100:300]": 4, "item[300:600]": 4, "item[600:1000]": 0}

# Pixels for an id and for a dimension.
ROW, COLUMN = 0.28, 15
LEFT, TOP = 150, 66


def blocks(theme: str) -> str:
    """The largest table cut into blocks, those of a choice filled."""
    ink, line, paper = THEMES[theme]
    table = SPACE.allocation(PARAMS)["item"]
    fills = dict(zip((tier.embedding_dim for tier in table.tiers), FILLS))
    parts = [
        _text(LEFT, 22, "columns: widths to choose from", ink, bold=True),
        _text(LEFT - 12, TOP + 10, "most frequent", ink, anchor="end"),
        _text(LEFT - 12, TOP + 26, "ids", ink, anchor="end"),
        _text(LEFT - 12, TOP + ROW * SPEC.num_embeddings - 4, "rarest ids", ink, anchor="end"),
    ]
    for width in SPEC.widths[1:]:
        parts.append(_text(LEFT + COLUMN * width - 2, TOP - 8, str(width), ink, anchor="end"))
    for (start, rows), width in zip(_rows(SPEC.row_blocks), PARAMS.values()):
        top, height = TOP + ROW * start, ROW * rows
        for left, right in zip(SPEC.widths, SPEC.widths[1:]):
            chosen = right <= width
            parts.append(
                f'<rect x="{LEFT + COLUMN * left:g}" y="{top:g}" '
                f'width="{COLUMN * (right - left):g}" height="{height:g}" '
                f'fill="{fills[width] if chosen else "none"}" '
                f'stroke="{paper if chosen else line}" stroke-width="1.5"/>'
            )
        middle, right = top + height / 2, LEFT + COLUMN * SPEC.embedding_dim + 16
        what = f"width {width}" if width else "width 0: out of vocabulary"
        parts.append(_text(right, middle - 3, f"ids {start} to {start + rows - 1}", ink))
        parts.append(_text(right, middle + 14, what, ink, bold=True))
    return _svg(620, TOP + ROW * SPEC.num_embeddings + 16, "Embedding blocks", parts)


def tiers(theme: str) -> str:
    """How an id becomes a row: its tier, and as much of the projection as the tier is wide."""
    ink, line, _ = THEMES[theme]
    table = SPACE.allocation(PARAMS)["item"]
    dim, out = table.embedding_dim, 560
    height = 96
    parts = [
        _text(20, 22, "rank of the id", ink, bold=True),
        _text(LEFT + 60, 22, "tier", ink, bold=True),
        _text(LEFT + 250, 22, "projection", ink, bold=True),
        _text(out, 22, f"output, {dim} wide", ink, bold=True),
    ]
    first = 0
    for index, (tier, fill) in enumerate(zip(table.tiers, FILLS)):
        top = 44 + height * index
        middle = top + 33
        last = first + tier.num_embeddings - 1
        width = 8 * tier.embedding_dim
        parts += [
            _text(20, middle + 5, f"{first} to {last}", ink),
            _arrow(120, middle, LEFT + 52, line),
            f'<rect x="{LEFT + 60}" y="{top}" width="{width}" height="66" fill="{fill}"/>',
            _text(
                LEFT + 60, top + 82, f"{tier.num_embeddings} x {tier.embedding_dim}", ink, size=12
            ),
        ]
        end = LEFT + 68 + width
        # The rows of the projection that this tier uses, out of all.
        rows = 4 * tier.embedding_dim
        parts += [
            _arrow(end, middle, LEFT + 242, line),
            f'<rect x="{LEFT + 250}" y="{middle - 2 * dim}" width="{8 * dim}" height="{4 * dim}" '
            f'fill="none" stroke="{line}"/>',
            f'<rect x="{LEFT + 250}" y="{middle - 2 * dim}" width="{8 * dim}" height="{rows}" '
            f'fill="{fill}"/>',
            _text(
                LEFT + 250 + 4 * dim,
                middle + 2 * dim + 16,
                f"{tier.embedding_dim} of {dim} rows",
                ink,
                anchor="middle",
                size=12,
            ),
            _arrow(LEFT + 258 + 8 * dim, middle, out - 8, line),
        ]
        parts.append(_row(out, middle, dim, fill))
        first = last + 1
    middle = 44 + height * len(table.tiers) + 16
    parts += [
        _text(20, middle + 5, f"{first} to {table.num_embeddings - 1}", ink),
        _arrow(120, middle, out - 8, line),
        _text(LEFT + 60, middle - 8, "out of vocabulary", ink, size=12),
        f'<rect x="{out}" y="{middle - 8}" width="{8 * dim}" height="16" fill="none" '
        f'stroke="{line}" stroke-width="1.5"/>',
        _text(out + 4 * dim, middle + 5, "zeros", ink, anchor="middle", size=12),
    ]
    return _svg(720, middle + 30, "Tiers of a multi-size embedding", parts)


def _rows(row_blocks: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    return zip(accumulate((0, *row_blocks)), row_blocks)


def _row(x: float, middle: float, dim: int, fill: str) -> str:
    return f'<rect x="{x:g}" y="{middle - 8:g}" width="{8 * dim}" height="16" fill="{fill}"/>'


def _arrow(start: float, y: float, end: float, color: str) -> str:
    return (
        f'<path d="M{start:g} {y:g}H{end:g}m-6 -4l6 4l-6 4" fill="none" stroke="{color}" '
        'stroke-width="1.5"/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    color: str,
    *,
    anchor: str = "start",
    bold: bool = False,
    size: int = 14,
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{color}" text-anchor="{anchor}" '
        f'font-size="{size}"{weight}>{text}</text>'
    )


def _svg(width: float, height: float, title: str, parts: list[str]) -> str:
    lines = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" font-family="system-ui, sans-serif" role="img">\n'
        f"<title>{title}</title>\n{lines}\n</svg>\n"
    )


def main() -> None:
    """Write or check all drawings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for draw in (blocks, tiers):
        for theme in THEMES:
            path = IMAGES / f"{draw.__name__}-{theme}.svg"
            if not check:
                path.write_text(draw(theme), encoding="utf-8")
            elif path.read_text(encoding="utf-8") != draw(theme):
                sys.exit(f"{path} is not up to date: run python docs/drawings.py")


if __name__ == "__main__":
    main()
