"""Instants and lengths of time as they are typed: ``90s``, ``1h30m``, ``2d``; ``2026-12-01T09:00Z``, ``yesterday``."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from asyncjobs import clock

UNITS: Final = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
PIECE: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(ms|sec|s|min|m|h|d|w)?\s*", re.ASCII)
LONGEST: Final = 100 * 366 * 86400.0  # seconds
EXAMPLES: Final = "90s, 15m, 1h30m, 2d"


class Length(click.ParamType):  # type: ignore[type-arg]  # click 8.2 knows no arguments
    """A length of time in seconds; a number alone is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        found = length(value)
        if found is None:
            self.fail(f"{value!r}: expected a length of time such as {EXAMPLES}", param, ctx)
        return found


class Instant(click.ParamType):  # type: ignore[type-arg]
    """An instant: with a zone, or in this machine's own; or how long ago."""

    name = "when"

    def __init__(self, ahead: bool = False) -> None:
        self._ahead = ahead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        found = instant(value, self._ahead)
        if found is None:
            way = "from now" if self._ahead else "ago"
            said = f"expected 2026-12-01T09:00Z, 2026-12-01, or a length of time {way} such as {EXAMPLES}"
            self.fail(f"{value!r}: {said}", param, ctx)
        return found


def length(text: str) -> float | None:
    """Seconds; None: it is no length of time."""
    text = text.strip().removeprefix("+")
    pieces = list(PIECE.finditer(text))
    if (
        not text
        or "".join(one.group(0) for one in pieces) != text
        or (len(pieces) > 1 and not all(p[2] for p in pieces))
    ):
        return None
    seconds = sum(float(one[1]) * UNITS[one[2] or "s"] for one in pieces)
    return seconds if seconds <= LONGEST else None


def instant(text: str, ahead: bool = False) -> datetime | None:
    """An instant; `ahead`: a length of time lies before us, not behind. None: it is none."""
    text = text.strip()
    today = clock.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    words = {"now": clock.now(), "today": today, "yesterday": today - timedelta(days=1)}
    if text in words:
        return words[text].astimezone(UTC)
    seconds = length(text.removesuffix(" ago"))
    if seconds is not None:
        return clock.now() + timedelta(seconds=seconds if ahead else -seconds)
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC)  # without a zone it is this machine's
    except (ValueError, OverflowError, OSError):
        return None
