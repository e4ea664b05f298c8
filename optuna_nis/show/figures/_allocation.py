from __future__ import annotations

import math
from typing import Any, NamedTuple

from optuna import Study
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optuna_nis._format import memory, percent, size
from optuna_nis.show.figures import _style
from optuna_nis.space.allocation import Allocation, TableAllocation
from optuna_nis.study import results

_ROW_HEIGHT = 24
_MIN_ROW_HEIGHT = 15
# Plotly makes bars as thick as the rows of a trace are apart, and not every feature is in each.
_THICKNESS = 0.75
# Of rows with so many bits a number.
_PATTERNS = {16: ".", 8: "/", 4: "\\", 2: "x"}


class _Segment(NamedTuple):
    """Rows of a table that share one width, 0 for those removed, and one precision."""

    start: int
    end: int
    width: int
    bits: int
    nbytes: int


class _FeatureInfo(NamedTuple):
    name: str
    num_embeddings: int
    embedding_dim: int
    segments: tuple[_Segment, ...]
    nbytes: int
    full_nbytes: int
    share: float


class _AllocationInfo(NamedTuple):
    """Features by falling memory; ``share`` is of all that is in use."""

    features: tuple[_FeatureInfo, ...]
    nbytes: int
    full_nbytes: int
    budget_nbytes: int | None


def plot_allocation(study_or_allocation: Study | Allocation) -> go.Figure:
    """Plot which ids keep an embedding, how wide and how precise it is, and what it costs.

    One band per feature, from its most to its least frequent ids; the colour is the width, what
    was removed is hollow, and rows of fewer than 32 bits a number are hatched and labelled such as
    "8 x 4 bit". Features that take the most memory come first.

    Args:
        study_or_allocation: An allocation, or a study whose best allocation is shown.

    Returns:
        The figure.

    Raises:
        ValueError: If the study holds no search space or no finished trial.

    Example:
        >>> from optuna_nis import Allocation, TableAllocation, Tier
        >>> user = TableAllocation("user", 1000, 16, (Tier(100, 16), Tier(300, 4)))
        >>> figure = plot_allocation(Allocation([user]))
        >>> "12.2 kB, 19.1 % of the full tables" in figure.layout.title.text
        True
    """
    return _draw(_allocation_info(study_or_allocation))


def _allocation_info(study_or_allocation: Study | Allocation) -> _AllocationInfo:
    if isinstance(study_or_allocation, Allocation):
        allocation, budget_nbytes = study_or_allocation, None
    else:
        allocation = results.best_allocation(study_or_allocation)
        budget_nbytes = results.space_of(study_or_allocation).budget_nbytes
    total = allocation.nbytes()
    features = [_feature_info(table, total) for table in allocation.values()]
    features.sort(key=lambda feature: -feature.nbytes)
    full = sum(feature.full_nbytes for feature in features)
    return _AllocationInfo(tuple(features), total, full, budget_nbytes)


def _feature_info(table: TableAllocation, total: int) -> _FeatureInfo:
    segments = []
    row = 0
    # The widest tier pays for the projection that all share.
    projection = table.nbytes() - sum(tier.nbytes for tier in table.stored_tiers)
    for tier, stored in zip(table.tiers, table.stored_tiers):
        end = row + tier.num_embeddings
        # The last one pays for the rows that ids without one share.
        paid = stored.nbytes + (projection if row == 0 else 0)
        segments.append(_Segment(row, end, tier.embedding_dim, tier.bits, paid))
        row = end
    if row < table.num_embeddings:
        segments.append(_Segment(row, table.num_embeddings, 0, 0, 0))
    return _FeatureInfo(
        table.name,
        table.num_embeddings,
        table.embedding_dim,
        tuple(segments),
        table.nbytes(),
        4 * table.num_embeddings * table.embedding_dim,
        table.nbytes() / total if total else 0.0,
    )


def _draw(info: _AllocationInfo, num_left_out: int = 0) -> go.Figure:
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        column_widths=[0.72, 0.28],
        horizontal_spacing=0.04,
    )
    widths = sorted(
        {s.width for feature in info.features for s in feature.segments if s.width}
        | {feature.embedding_dim for feature in info.features}
    )
    _add_segments(figure, info, kept=False)
    _add_segments(figure, info, kept=True)
    _explain_patterns(figure, info)
    figure.add_bar(
        x=_style.compact(100 * feature.share for feature in info.features),
        y=list(range(len(info.features))),
        orientation="h",
        width=_THICKNESS,
        marker={"color": _style.BLUE},
        text=[percent(feature.share) for feature in info.features],
        textposition="outside",
        cliponaxis=False,
        name="Memory",
        showlegend=False,
        customdata=[
            [_style.full_label(f.name), size(f.nbytes), size(f.full_nbytes)] for f in info.features
        ],
        hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]} of %{customdata[2]}"
        "<br>%{text} of the memory in use<extra></extra>",
        row=1,
        col=2,
    )
    count = len(info.features)
    height = 205 + count * (_ROW_HEIGHT if count <= 40 else _MIN_ROW_HEIGHT)
    details = memory(info.nbytes, info.full_nbytes)
    if info.budget_nbytes is not None:
        details += f" (budget {percent(info.budget_nbytes / info.full_nbytes)})"
    if num_left_out > 0:
        details += f"; {num_left_out} features of little memory left out"
    _style.style(
        figure,
        f'Embedding sizes<br><span style="font-size:12px">{details}</span>',
        height,
        barmode="overlay",
        uniformtext={"minsize": 9, "mode": "hide"},
        coloraxis={
            "colorscale": _style.SCALE,
            "cmin": 0.0,
            "cmax": max(1.0, math.log2(widths[-1])),
            "colorbar": {
                "title": {"text": "Width", "side": "right", "font": {"size": 13}},
                "tickvals": [math.log2(width) for width in widths],
                "ticktext": [str(width) for width in widths],
                "orientation": "h",
                "lenmode": "fraction",
                "len": 0.5,
                "thickness": 12,
                # Clear of the axis titles whatever the height of the figure.
                "yref": "container",
                "y": 0,
                "yanchor": "bottom",
                "x": 0,
                "xanchor": "left",
            },
        },
        legend={"yref": "container", "y": 0.0, "yanchor": "bottom", "x": 1.0, "xanchor": "right"},
        margin={"l": 60, "r": 40, "t": 75, "b": 110},
    )
    figure.update_yaxes(
        tickvals=list(range(count)),
        ticktext=_style.labels((feature.name for feature in info.features), 24),
        range=[count - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(showticklabels=False, col=2)
    figure.update_xaxes(title_text="Rows by falling frequency (%)", range=[0, 100], col=1)
    largest = max(feature.share for feature in info.features)
    figure.update_xaxes(title_text="Memory (%)", range=[0, 135 * largest or 1], nticks=5, col=2)
    return figure


def _add_segments(figure: go.Figure, info: _AllocationInfo, *, kept: bool) -> None:
    rows = [
        (index, feature, segment)
        for index, feature in enumerate(info.features)
        for segment in feature.segments
        if (segment.width > 0) == kept
    ]
    if not rows:
        return
    widest = max(feature.embedding_dim for feature in info.features)
    details = "%{customdata[3]}<br>%{customdata[4]}" if kept else "removed"
    figure.add_bar(
        base=_style.compact(100 * s.start / f.num_embeddings for _, f, s in rows),
        x=_style.compact(100 * (s.end - s.start) / f.num_embeddings for _, f, s in rows),
        y=[index for index, _, _ in rows],
        orientation="h",
        width=_THICKNESS,
        name="Kept" if kept else "Removed",
        showlegend=not kept,
        marker={
            "color": [math.log2(s.width) for _, _, s in rows] if kept else "rgba(0, 0, 0, 0)",
            "coloraxis": "coloraxis" if kept else None,
            "line": {"color": _style.GREY, "width": 1},
            # Lines in the colour of the text, over that of the width.
            "pattern": _pattern(
                [_PATTERNS.get(s.bits, "") for _, _, s in rows],
                [_ink(s.width, widest) for _, _, s in rows],
            )
            if kept
            else None,
        },
        text=[_words(s) for _, _, s in rows] if kept else None,
        textposition="inside" if kept else None,
        insidetextanchor="middle",
        insidetextfont={"color": [_ink(s.width, widest) for _, _, s in rows]},
        textangle=0,
        customdata=[
            [
                _style.full_label(f.name),
                s.start,
                s.end,
                f"width {s.width} of {f.embedding_dim}" + _in_bits(s.bits),
                size(s.nbytes),
            ]
            for _, f, s in rows
        ],
        hovertemplate="<b>%{customdata[0]}</b><br>rows %{customdata[1]:,} to %{customdata[2]:,}: "
        + details
        + "<extra></extra>",
        row=1,
        col=1,
    )


def _explain_patterns(figure: go.Figure, info: _AllocationInfo) -> None:
    """Say in the legend how many bits a pattern stands for: narrow rows have no room for it."""
    bits = {segment.bits for feature in info.features for segment in feature.segments}
    for own in sorted(bits & set(_PATTERNS), reverse=True):
        figure.add_bar(
            x=[None],
            y=[None],
            orientation="h",
            width=_THICKNESS,
            name=f"{own} bit",
            marker={
                "color": "rgba(0, 0, 0, 0)",
                "line": {"color": _style.GREY, "width": 1},
                "pattern": _pattern([_PATTERNS[own]], [_style.GREY]),
            },
            row=1,
            col=1,
        )


def _pattern(shapes: list[str], colors: list[str]) -> dict[str, Any]:
    return {
        "shape": shapes,
        "fillmode": "overlay",
        "fgcolor": colors,
        "fgopacity": 0.35,
        "size": 6,
        "solidity": 0.2,
    }


def _words(segment: _Segment) -> str:
    bits = segment.bits
    return str(segment.width) if bits == 32 else f"{segment.width} x {bits} bit"


def _in_bits(bits: int) -> str:
    return "" if bits == 32 else f" in {bits} bits"


def _ink(width: int, widest: int) -> str:
    """Text colour on the colour of a width."""
    return "#15171a" if width > 1 and math.log2(width) > 0.55 * math.log2(widest) else "white"
