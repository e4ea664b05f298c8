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
        >>> size(1), size(999_900), size(1.2e13)
        ('1 byte', '1 MB', '12,000 GB')
    """
    if num_bytes < 1_000:
        return "1 byte" if num_bytes == 1 else f"{num_bytes:.0f} bytes"
    number, unit = num_bytes / 1e3, "kB"
    for larger in ("MB", "GB"):
        # Rounded to three digits, it may be one of the next unit.
        if number >= 999.5:
            number, unit = number / 1e3, larger
    return f"{number:.3g} {unit}" if number < 999.5 else f"{number:,.0f} {unit}"


def percent(share: float) -> str:
    """A share as a percentage of three digits at most.

    Example:
        >>> percent(0.0025), percent(0.125), percent(1e-5)
        ('0.25 %', '12.5 %', '< 0.01 %')
    """
    value = 100 * share
    if value != 0 and abs(value) < 0.01:
        return "< 0.01 %"
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def memory(num_bytes: float, full_nbytes: float) -> str:
    """So much memory of tables, and its share of the full tables in float32.

    Example:
        >>> memory(16_016, 1_026_176)
        '16 kB, 1.56 % of the full tables'
    """
    return f"{size(num_bytes)}, {percent(num_bytes / full_nbytes)} of the full tables"
