"""Numbers for people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A time, to the accuracy that one waits by.

    Example:
        >>> duration(0.4), duration(75), duration(600), duration(8000)
        ('1 s', '75 s', '10 min', '2 h 13 min')
    """
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def size(num_bytes: float) -> str:
    """So much memory.

    Example:
        >>> size(999), size(51_200), size(64_000_000), size(1.5e9)
        ('999 bytes', '51.2 kB', '64 MB', '1.5 GB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"
