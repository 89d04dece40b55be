"""Schedule: a cron expression in words, and its next ticks with what changes of the clock do to them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from asyncjobs import clock
from asyncjobs.declare.cron_expression import Ticks

NEXT: Final = 10
MOST_PASSED: Final = 10_000  # ticks of the plain calendar between two real ones


class NextTick(msgspec.Struct, frozen=True):
    """A tick to come. `local`: in the task's time zone; `note`: what a change of the clock does to it, else ''."""

    at: datetime
    local: datetime
    note: str = ""


def in_words(expression: str) -> str:
    """A cron expression in English; the expression itself where there are no words for it."""
    try:
        return str(CronSim(expression, datetime(2026, 1, 1)).explain())
    except Exception:
        return expression


def next_ticks(expression: str, zone: ZoneInfo, count: int = NEXT, after: datetime | None = None) -> list[NextTick]:
    """The next ticks, fewer where the expression ends before."""
    start = (clock.now() if after is None else after).astimezone(zone)
    try:
        return list(islice(_noted(Ticks(expression, start), expression, start, zone), count))
    except CronSimError:
        return []


def _noted(ticks: Iterator[datetime], expression: str, start: datetime, zone: ZoneInfo) -> Iterator[NextTick]:
    """Each tick beside those that the calendar alone would have."""
    plain = CronSim(expression, start.replace(tzinfo=None, fold=0))
    planned = next(plain, None)
    for tick in ticks:
        local = tick.astimezone(zone)
        wall = local.replace(tzinfo=None, fold=0)
        left_out: list[datetime] = []
        for _ in range(MOST_PASSED):
            if planned is None or planned >= wall:
                break
            if _is_missing(planned, zone):
                left_out.append(planned)
            planned = next(plain, None)
        form = "%H:%M:%S" if len(expression.split()) == 6 else "%H:%M"
        if left_out:
            note = _note_of_missing(left_out, None if planned == wall else wall, form)
        else:
            note = _note_of_twice(local, expression, zone, form) if _comes_twice(wall, zone) else ""
        yield NextTick(tick.astimezone(UTC), local, note)


def _note_of_missing(left_out: list[datetime], instead: datetime | None, form: str) -> str:
    """The clock passes over ticks; `instead`: when the task runs for them."""
    first, last = format(left_out[0], form), format(left_out[-1], form)
    missing = f"{first} does not exist" if len(left_out) == 1 else f"{first} to {last} do not exist"
    day = f"on {left_out[0].day} {left_out[0]:%b}"
    return f"{missing} {day}: left out" if instead is None else f"{missing} {day}: runs at {format(instead, form)}"


def _note_of_twice(local: datetime, expression: str, zone: ZoneInfo, form: str) -> str:
    """The clock has the time of a tick twice."""
    twice = f"{format(local, form)} comes twice on {local.day} {local:%b}"
    if not _fires_in_both(expression, local.replace(tzinfo=None, fold=0), zone):
        return f"{twice}: runs once"
    return f"{twice}: this is the {'second' if local.fold else 'first'}"


def _fires_in_both(expression: str, wall: datetime, zone: ZoneInfo) -> bool:
    """Whether a tick at a wall time that comes twice fires both times."""
    first = wall.replace(tzinfo=zone)
    second = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    ticks = Ticks(expression, (first.astimezone(UTC) - timedelta(seconds=1)).astimezone(zone))
    for tick in islice(ticks, MOST_PASSED):
        if tick.astimezone(UTC) >= second:
            return tick.astimezone(UTC) == second
    return False


def _is_missing(wall: datetime, zone: ZoneInfo) -> bool:
    """Whether the clock passes over a wall time."""
    there = wall.replace(tzinfo=zone)
    return there.astimezone(UTC).astimezone(zone).replace(tzinfo=None, fold=0) != wall


def _comes_twice(wall: datetime, zone: ZoneInfo) -> bool:
    """Whether the clock has a wall time twice."""
    early, late = wall.replace(tzinfo=zone), wall.replace(tzinfo=zone, fold=1)
    return early.utcoffset() != late.utcoffset() and not _is_missing(wall, zone)
