"""What all figures share: colours, layout, safe labels, thinning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
import html
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go

from optuna_nis._format import size

# Okabe and Ito's palette, readable with every kind of colour blindness; the blue is lighter, for
# dark pages.
BLUE = "#2383C9"
VERMILION = "#D55E00"
GREEN = "#009E73"
ORANGE = "#E69F00"
SKY = "#56B4E9"
PINK = "#CC79A7"
GREY = "#8a9099"
# Muted palette of Paul Tol, for more kinds of things at once.
MANY = (
    "#88CCEE",
    "#CC6677",
    "#DDCC77",
    "#117733",
    "#6f62c4",
    "#AA4499",
    "#44AA99",
    "#999933",
    "#b3446c",
    "#4477AA",
)
SCALE = "Viridis"
# Greys with enough contrast on white and on nearly black paper alike.
TEXT = "#777c85"
GRID = "rgba(128, 128, 128, 0.22)"

_AXIS = {
    "gridcolor": GRID,
    "zerolinecolor": GRID,
    "linecolor": GRID,
    "automargin": True,
    "title": {"standoff": 8, "font": {"size": 13}},
}
_TEMPLATE = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "font": {"color": TEXT, "family": "system-ui, sans-serif", "size": 13},
        "title": {
            "x": 0.0,
            "xref": "container",
            "xanchor": "left",
            "pad": {"l": 12},
            "font": {"size": 16},
        },
        "hoverlabel": {"align": "left", "namelength": -1},
        "legend": {
            "orientation": "h",
            "y": -0.15,
            "yanchor": "top",
            "x": 0,
            "itemsizing": "constant",
        },
        "margin": {"l": 60, "r": 30, "t": 60, "b": 50},
        "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": TEXT, "activecolor": BLUE},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


def style(figure: go.Figure, title: str, height: int, **layout: Any) -> go.Figure:
    """Give a figure the common look.

    Args:
        figure: The figure.
        title: Title, already safe to show.
        height: Height in pixels.
        **layout: Anything else for the layout.
    """
    figure.update_layout(template=_TEMPLATE, title_text=title, height=height, **layout)
    return figure


def label(text: object, limit: int = 32) -> str:
    """A name as Plotly shows it literally: markup escaped, too long ones cut in the middle."""
    name = " ".join(str(text).split())
    if len(name) > limit:
        tail = limit // 3
        name = f"{name[: limit - tail - 1]}…{name[-tail:]}"
    # Plotly shows the entities of quotes as they stand.
    return html.escape(name, quote=False)


def labels(texts: Iterable[object], limit: int = 32) -> list[str]:
    """As :func:`label` of several; those of which the same is left have a number each."""
    cut = [label(text, limit) for text in texts]
    times, seen = Counter(cut), Counter[str]()
    found = []
    for name in cut:
        seen[name] += 1
        found.append(name if times[name] == 1 else f"{name} ({seen[name]})")
    return found


def full_label(text: object) -> str:
    """A name of any sensible length, for hover texts."""
    return label(text, 200)


def byte_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Places and texts of the ticks of a logarithmic axis between two positive sizes in bytes."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    kinds = [[1.0, 2.0, 5.0], [*map(float, range(1, 10))]] if len(decades) <= 6 else [[1.0]]
    if low >= 100:
        # Where a narrow range has nothing else: tenths, which are a byte and more from here on.
        kinds.append([step / 10 for step in range(10, 100)])
    for steps in kinds:
        places = [step * 10.0**decade for decade in decades for step in steps]
        if sum(low <= place <= high for place in places) > 1:
            break
    return places, [size(place) for place in places]


def compact(values: Iterable[float], digits: int = 5) -> list[float]:
    """Round to significant digits, to keep figures small."""
    return [float(f"{value:.{digits}g}") for value in values]


def thin(length: int, limit: int) -> list[int]:
    """At most ``limit`` indices evenly spread over a sequence, both ends included."""
    if length <= limit:
        return list(range(length))
    return [int(i) for i in np.unique(np.linspace(0, length - 1, limit).round())]


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of every value and the ones before it, ``window`` at most."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return [float(mean) for mean in (sums[ends] - sums[starts]) / (ends - starts)]


def window_of(length: int) -> int:
    """Width of a moving mean over so many trials."""
    return max(1, min(200, math.ceil(length / 20)))
