"""Figures: the history of a name as it is read, in typed records. Where too little was measured nothing is said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from asyncjobs import clock
from asyncjobs.broker.tallying import SLOTS, TIERS, Series
from asyncjobs.declare.values import Seconds, shown
from asyncjobs.errors import ConfigError
from asyncjobs.history.histogram import Histogram
from asyncjobs.history.tally import COUNTERS, PLACE

LEAST_SAMPLES: Final = 20  # fewer say nothing of a percentile
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Spread:
    """How long something took, in seconds.

    Attributes:
        samples: how often that was measured.
        p50, p95, p99: what half, 95 % and 99 % took at most; None where there are fewer than 20 samples.
    """

    samples: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """What happened to the jobs of a name in a span of time.

    Attributes:
        at: when the span begins.
        complete: whether it is over; the last span of a series is open.
        added, completed, failed, stalled, cancelled: jobs; `failed` for good.
        failed_tries: tries that failed, the last ones of jobs too.
        retried: how often a job was put back for another try.
        refused: turns in which a limit let fewer start than wanted to, while there were jobs.
        busy: seconds that tries ran, all added.
        wait: from when a job was due to its start. run: from its start to its end, of tries that returned.
        oldest_waiting: seconds that the job had waited that waited for longest; backlog, running: jobs that waited and
            ran. The most that was seen of each, looked at every minute while there is work; None: it was not.
    """

    at: datetime
    complete: bool
    added: int
    completed: int
    failed_tries: int
    failed: int
    retried: int
    stalled: int
    cancelled: int
    refused: int
    busy: float
    wait: Spread
    run: Spread
    oldest_waiting: float | None = None
    backlog: int | None = None
    running: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """What a group took of a name: its starts, and the seconds that they ran. Of the heaviest ones alone it is kept."""

    group_id: str
    starts: int
    busy: float


@dataclass(frozen=True, slots=True)
class History:
    """A series of figures.

    Attributes:
        name: of the jobs; ``"*other"`` stands for all names beyond the hundred that have a history of their own.
        step: seconds of a span.
        points: the spans, the oldest first, without a gap; the last one is open.
        total: all of them together.
    """

    name: str
    step: int
    points: tuple[Figures, ...]
    total: Figures


class Slot:
    """The stored figures of one span, or of several that were added.

    State: `counts` by `COUNTERS`; `gauges`, the oldest waiting in ms, backlog, running, or nothing.
    """

    __slots__ = ("counts", "gauges", "run", "wait")

    def __init__(self, stored: Any = ()) -> None:
        self.counts, self.gauges = [0] * len(COUNTERS), list[int]()
        self.wait, self.run = Histogram(), Histogram()
        if isinstance(stored, list) and len(stored) == 4:
            with suppress(TypeError, ValueError):  # somebody else may have written it
                counts, gauges, wait, run = stored
                more = [int(count) for count in counts[: len(COUNTERS)]]
                self.counts[: len(more)] = more
                self.gauges = [int(one) for one in gauges]
                self.wait, self.run = Histogram.of(wait), Histogram.of(run)

    def __getitem__(self, counter: str) -> int:
        return self.counts[PLACE[counter]]

    @property
    def tries(self) -> int:
        """How many have ended."""
        return self["completed"] + self["failed_tries"]

    def merge(self, other: Slot) -> None:
        """Add another one."""
        self.counts = [one + more for one, more in zip(self.counts, other.counts, strict=True)]
        if other.gauges:
            self.gauges = [max(pair) for pair in zip(self.gauges or [0, 0, 0], other.gauges, strict=False)]
        self.wait.merge(other.wait)
        self.run.merge(other.run)

    def figures(self, at_ms: int, complete: bool) -> Figures:
        """As they are shown."""
        counted = {one.name: self.counts[place] for place, one in enumerate(COUNTERS) if one.name != "busy_ms"}
        oldest, backlog, running = self.gauges if len(self.gauges) == 3 else (None, None, None)
        return Figures(
            at=clock.from_ms(at_ms), complete=complete, **counted, busy=self["busy_ms"] / 1000,
            wait=spread(self.wait), run=spread(self.run),
            oldest_waiting=None if oldest is None else oldest / 1000, backlog=backlog, running=running,
        )  # fmt: skip


def spread(histogram: Histogram) -> Spread:
    """What a histogram says."""
    if histogram.samples < LEAST_SAMPLES:
        return Spread(histogram.samples)
    return Spread(histogram.samples, *(histogram.quantile(share) for share in (0.5, 0.95, 0.99)))


def slots_of(series: Series, count: int, step_ms: int) -> list[tuple[int, Slot]]:
    """The newest `count` slots of a series, each with the ms when it begins, the open one last."""
    newest = series.now_ms // step_ms
    found = []
    blocks: dict[int, list[Any]] = {}
    for number in range(newest - count + 1, newest + 1):
        block = number // SLOTS
        if block not in blocks:
            blocks[block] = decoded(series, block)
        found.append((number * step_ms, Slot(blocks[block][number % SLOTS])))
    return found


def decoded(series: Series, number: int) -> list[Any]:
    """The ten slots of a block; empty ones where there is none, or nothing that can be read."""
    place = number - series.first
    body = series.blocks[place] if 0 <= place < len(series.blocks) else b""
    try:
        slots = msgspec.msgpack.decode(body) if body else []
    except (msgspec.MsgspecError, UnicodeDecodeError):
        slots = []
    return slots if isinstance(slots, list) and len(slots) == SLOTS else [[]] * SLOTS


def history_of(name: str, series: Series, seconds: float, tier: int) -> History:
    """The history of a name over the last `seconds`, by spans of `tier` minutes."""
    step = 60 * tier
    slots = slots_of(series, max(1, -int(-seconds // step)) + 1, 1000 * step)
    total = Slot()
    for _, slot in slots:
        total.merge(slot)
    points = tuple(slot.figures(at_ms, at_ms != slots[-1][0]) for at_ms, slot in slots)
    return History(name, step, points, total.figures(slots[0][0], False))


def heaviest_of(series: Series, minutes: int, most: int) -> tuple[Group, ...]:
    """The groups that were heaviest in the last `minutes`, the open one included."""
    newest = series.now_ms // 60_000
    found: dict[str, list[int]] = {}
    for number in range(newest - minutes, newest + 1):
        for group_id, starts, busy in _triples(decoded(series, number // SLOTS)[number % SLOTS]):
            one = found.setdefault(group_id, [0, 0])
            one[0] += starts
            one[1] += busy
    ranked = sorted(found.items(), key=lambda one: (-sum(one[1]), one[0]))
    return tuple(Group(group_id, starts, busy / 1000) for group_id, (starts, busy) in ranked[:most])


def _triples(flat: Sequence[Any]) -> Iterable[tuple[str, int, int]]:
    return zip(flat[::3], flat[1::3], flat[2::3], strict=False)


def span(value: str | Seconds, option: str = "range") -> float:
    """Seconds of a range: ``"90s"``, ``"15m"``, ``"3h"``, ``"30d"``, a timedelta, or seconds.

    Raises:
        ConfigError: it is none, or longer than anything that is kept.
    """
    found: float | None = None
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,7})([smhd])", value, re.ASCII)):
        found = int(match[1]) * UNITS[match[2]]
    elif isinstance(value, timedelta):
        found = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        found = float(value)
    if found is None or not found > 0:
        raise ConfigError(f"{option}={shown(value)}: expected '15m', '3h', '48h', '30d', a timedelta, or seconds")
    return found


def tier_of(seconds: float, value: Any) -> int:
    """The minutes of a span in the finest tier that holds a range.

    Raises:
        ConfigError: none does.
    """
    for minutes, kept_ms, _ in TIERS:
        if seconds * 1000 <= kept_ms:
            return minutes
    raise ConfigError(f"range={shown(value)}: history is kept for 30 days")
