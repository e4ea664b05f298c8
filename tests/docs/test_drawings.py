from __future__ import annotations

from pathlib import Path
import subprocess
import sys
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]


def test_the_drawings_are_up_to_date():
    subprocess.run([sys.executable, ROOT / "docs" / "drawings.py", "--check"], check=True)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "images").glob("*.svg")), ids=str)
def test_nothing_is_drawn_outside(path):
    svg = ElementTree.parse(path).getroot()
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    assert len(svg) > 10
    for part in svg.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, w, h = (float(part.attrib[key]) for key in ("x", "y", "width", "height"))
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
