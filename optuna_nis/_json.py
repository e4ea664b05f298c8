"""Reading what was written as JSON."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str | bytes) -> Any:
    """What a text stands for.

    Raises:
        ValueError: If it is no JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("This JSON is nested too deeply.") from error
