"""The Tally: what this process counts of one name, until it is flushed.

A turn is counted as a whole. How long jobs wait and run is measured of some: of all while there are few, and of every
k-th, standing for k of them, where there are many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import random
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from msgspec.structs import force_setattr

from asyncjobs import clock
from asyncjobs.broker import Sample, TakenJob, WorkReply
from asyncjobs.errors import JobStalledError
from asyncjobs.history.histogram import Histogram
from asyncjobs.history.sketch import Sketch


class Counter(NamedTuple):
    """Something that is counted: its name, and the event of the settlements that it counts, '' for none."""

    name: str
    event: str = ""


COUNTERS: Final = (
    Counter("added"), Counter("completed", "job.completed"), Counter("failed_tries"), Counter("failed", "job.failed"),
    Counter("retried", "job.retrying"), Counter("stalled"), Counter("cancelled", "job.cancelled"), Counter("refused"),
    Counter("busy_ms"),
)  # fmt: skip
PLACE: Final = {one.name: place for place, one in enumerate(COUNTERS)}
BY_EVENT: Final = {one.event: place for place, one in enumerate(COUNTERS) if one.event}
ADDED, COMPLETED, FAILED_TRIES = PLACE["added"], PLACE["completed"], PLACE["failed_tries"]
REFUSED, BUSY = PLACE["refused"], PLACE["busy_ms"]
DONE, BEFORE, GONE = b"123"  # statuses of a settlement that counts; of the last, if it was sent again
SAMPLES: Final = 200  # a second and name, 12,000 a minute; beyond, every k-th job is measured
BURST: Final = 300  # that many may be measured at once, where there were few before
MOST_A_TURN: Final = 16  # jobs that were taken together, which say much the same
PACED: Final = 20  # measured jobs after which it is looked how many there are
MOST_GROUPS: Final = 32  # of a frame that are sent


class Settled(Protocol):
    """As much of a settled try as is looked at."""

    @property
    def decision(self) -> Any:
        """Its event, and its error."""

    @property
    def resent(self) -> bool:
        """Whether it was sent before."""


class Frame:
    """Figures of one name from one flush to the next.

    State: `counts` by `COUNTERS`; `gauges`, the oldest waiting in ms, backlog, running, or nothing; `busy`, µs.
    """

    __slots__ = ("began_at", "busy", "counts", "gauges", "groups", "run", "wait")

    def __init__(self) -> None:
        self.began_at = clock.monotonic()
        self.counts = [0] * len(COUNTERS)
        self.gauges: list[int] = []
        self.busy = 0
        self.wait, self.run = Histogram(), Histogram()
        self.groups: Sketch | None = None

    @property
    def empty(self) -> bool:
        return not (any(self.counts) or self.gauges or self.wait.samples or self.busy)

    @property
    def traffic(self) -> int:
        """How much happened, as names are ranked by it."""
        return sum(self.counts[:REFUSED])

    def merge(self, other: Frame) -> None:
        """Add the figures of another name, but for its groups."""
        self.counts = [one + more for one, more in zip(self.counts, other.counts, strict=True)]
        if other.gauges:
            oldest, backlog, running = self.gauges or (0, 0, 0)
            self.gauges = [max(oldest, other.gauges[0]), backlog + other.gauges[1], running + other.gauges[2]]
        self.busy += other.busy
        self.wait.merge(other.wait)
        self.run.merge(other.run)

    def encode(self) -> bytes:
        """The figures as ``lua/chronicle.lua`` takes them."""
        counts = self.counts.copy()
        counts[BUSY] += round(self.busy / 1000)
        groups = [] if self.groups is None else self.groups.flat(MOST_GROUPS)
        return msgspec.msgpack.encode([counts, self.gauges, self.wait.flat(), self.run.flat(), groups])


class Tally:
    """What is counted of one name.

    State:
        frame: what was counted since the last flush.
        every: for how many jobs each that is measured stands.
        gap: how many jobs pass before the next one is measured.
        _seen, _measured, _since: jobs taken, and those measured, since then.
        _credit: how many more may be measured at once.
    """

    __slots__ = ("_credit", "_measured", "_seen", "_since", "every", "frame", "gap", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.frame = Frame()
        self.every, self.gap = 1, 0
        self._seen = self._measured = 0
        self._credit = float(BURST)
        self._since = clock.monotonic()

    def count(self, counter: str, number: int = 1) -> None:
        """Count what is not told by a settlement."""
        self.frame.counts[PLACE[counter]] += number

    def look(self, oldest_ms: int, backlog: int, running: int) -> None:
        """What waits and runs of it in all processes."""
        self.frame.gauges = [oldest_ms, backlog, running]

    # Turns ------------------------------------------------------------------------------------------------
    def turned(self, sending: Sequence[Settled], reply: WorkReply, plain: bool, sent_at: float, ordered: bool) -> None:
        """A turn was answered: what it has settled counts, and of what it has taken some is measured.

        Args:
            sending: what it was to settle. plain: all of that was to complete.
            sent_at: when it was sent.
            ordered: a job that is tried again waits at the head of its queue, since before its last try.
        """
        if sending:
            if plain and reply.statuses.count(DONE) == len(sending):
                self.frame.counts[COMPLETED] += len(sending)
            else:
                self._settled(sending, reply.statuses)
        if reply.figures[1]:
            self.frame.counts[REFUSED] += 1
        taken = len(reply.jobs)
        self._seen += taken
        if self.gap >= taken:
            self.gap -= taken
        else:
            self._measure(reply.jobs, reply.figures, sent_at, ordered)

    def _settled(self, sending: Sequence[Settled], statuses: bytes) -> None:
        """Count these tries, whatever they came to."""
        counts = self.frame.counts
        for finished, status in zip(sending, statuses, strict=True):
            place = BY_EVENT.get(finished.decision.event)
            if status in (DONE, BEFORE) or (status == GONE and finished.resent):
                if place is not None:
                    counts[place] += 1
                error = finished.decision.error
                counts[FAILED_TRIES] += error is not None and not issubclass(type(error), JobStalledError)

    def _measure(self, jobs: Sequence[TakenJob], figures: Sequence[Any], sent_at: float, ordered: bool) -> None:
        """Choose those of `jobs`, which were taken together, that are measured."""
        late = dict(zip(figures[2::2], figures[3::2], strict=True)) if len(figures) > 2 else {}
        place, taken = self.gap, len(jobs)
        every = max(self.every, taken // MOST_A_TURN)
        while place < taken:
            one = jobs[place]
            due_at = None if ordered and one.attempts_made else since(one, figures[0], late, sent_at)
            force_setattr(one, "sample", Sample(due_at, every))  # nobody has seen it yet
            self._measured += 1
            place += 1 if every == 1 else 1 + int(random() * (2 * every - 1))
        self.gap = place - taken
        if self._measured >= PACED:
            self.pace(sent_at)

    def pace(self, now: float) -> None:
        """Measure all while that is `SAMPLES` a second, else so many at the rate of the last moments."""
        passed = now - self._since
        self._credit = min(float(BURST), self._credit + passed * SAMPLES - self._measured)
        self.every = 1 if self._credit > 0 else max(1, math.ceil(self._seen / max(passed, 0.001) / SAMPLES))
        self._seen = self._measured = 0
        self._since = now

    # Measured ---------------------------------------------------------------------------------------------
    def started(self, sample: Sample, group_id: str | None) -> None:
        """The handler of a job that is measured is called."""
        sample.began_at = clock.monotonic()
        if sample.due_at is not None:
            self.frame.wait.add(int(max(0.0, sample.began_at - sample.due_at) * 1e6), sample.weight)
        if group_id is not None:
            self._groups().add(group_id, sample.weight, 0)

    def ended(self, sample: Sample, group_id: str | None, returned: bool) -> None:
        """A try that is measured has ended; how long it ran says something where it returned."""
        if not sample.began_at:
            return
        took = int((clock.monotonic() - sample.began_at) * 1e6)
        self.frame.busy += took * sample.weight
        if returned:
            self.frame.run.add(took, sample.weight)
        if group_id is not None:
            self._groups().add(group_id, 0, took * sample.weight)

    def _groups(self) -> Sketch:
        if self.frame.groups is None:
            self.frame.groups = Sketch()
        return self.frame.groups

    # Flushed ----------------------------------------------------------------------------------------------
    def turn_over(self) -> Frame | None:
        """What was counted since the last flush; None: nothing was."""
        now = clock.monotonic()
        if self.every > 1 and now - self._since > 1.0:  # the rush is over
            self.pace(now)
            self.gap = 0
        if self.frame.empty:
            self.frame.began_at = now
            return None
        frame, self.frame = self.frame, Frame()
        return frame


def since(job: TakenJob, now_us: int, late: dict[bytes, bytes], sent_at: float) -> float | None:
    """When a job was due, by the monotonic clock of this process; None: it stalled, and has run before.

    What the store says is compared with the store's own clock alone.
    """
    if job.stalled_count:
        return None
    due = late.get(job.entry)
    try:
        due_us = 1000 * int(float(due)) if due else 1000 * int(job.entry.partition(b"-")[0]) + 500
    except ValueError:
        return None
    return sent_at - max(0, now_us - due_us) / 1e6
