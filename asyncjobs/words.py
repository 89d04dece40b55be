"""Words: numbers and texts as people read them, on one line, whatever they hold."""

from __future__ import annotations

import itertools
import math

UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def one_line(text: str) -> str:
    """`text` with everything that is not printable as an escape: no text moves a cursor or begins a line."""
    return text if text.isprintable() else "".join(map(_printable, text))


def lines(text: str) -> str:
    """The same, but line ends and tabs stay."""
    return "\n".join("\t".join(map(one_line, line.split("\t"))) for line in text.split("\n"))


def _printable(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")


def duration(seconds: float) -> str:
    """``0.4 ms``, ``12 ms``, ``1.25 s``, ``48 s``, ``3 min 20 s``, ``2 h 5 min``, ``4 d 3 h``."""
    if not math.isfinite(seconds):
        return "for ever"
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2f}".rstrip("0").rstrip(".") + " s"
    left = round(seconds)
    if left < 60:
        return f"{left} s"
    for (unit, name), (smaller, smaller_name) in itertools.pairwise(UNITS):
        if left >= unit:
            rest = left % unit // smaller
            return f"{left // unit} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{left} s"


def number(count: int) -> str:
    """``14,200``"""
    return f"{count:,}"
