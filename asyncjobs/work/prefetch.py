"""Prefetch: the jobs that a queue holds in this process beyond its slots, and how many those may be.

They are active for the store and have not begun. In a queue with one slot, quick jobs would else wait a round trip
each. With more slots, each that is freed would stand empty for one. What waits here for too long goes back to the head
of the queue: somebody else may be quicker, and it must not look started.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from asyncjobs import clock
from asyncjobs.broker import TakenJob
from asyncjobs.record import Record

MOST_ALONE: Final = 16  # jobs of a queue with one slot
QUICK: Final = 0.001  # seconds; behind a job that took longer nothing is held, where there is one slot
MOST: Final = 256  # jobs of a queue with more slots
LATER: Final = 0.008  # seconds that such a job may be expected to wait for its slot
PACED: Final = 0.01  # seconds over which it is counted how many jobs end
PATIENCE: Final = 0.005  # seconds that jobs wait behind the only one that runs, which was expected to be quick
LONG_PATIENCE: Final = 0.02  # the same where they wait for the first of several slots
GOVERNED: Final = 20  # times as long, where jobs wait for their share of the loop
PRESSED: Final = 1.0  # seconds in which nothing is held, after something had to go back


class Prefetched(Record, frozen=True, gc=False):
    """A job that has not begun; when its tokens were taken, and by how much its start may lag behind them."""

    job: TakenJob
    sent_at: float
    margin: float


class Prefetch:
    """What one queue holds beyond its slots.

    State:
        most: how many jobs may be held. With one slot it doubles with every quick job; with more it is as many as end
            in `LATER`, counted over `PACED`.
        jobs: those that are, last first.
        _moved_at: when the first of them came to be the next in line.
        _ended, _paced_at: tries that have ended since then.
        _pressed_until: until when none may be held.
    """

    __slots__ = ("_ended", "_moved_at", "_paced_at", "_pressed_until", "jobs", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.jobs: list[Prefetched] | None = None  # of ten thousand idle groups each would have a list of its own
        self._ended = 0
        self._moved_at = self._paced_at = self._pressed_until = 0.0

    def __len__(self) -> int:
        return len(self.jobs) if self.jobs else 0

    def hold(self, jobs: Sequence[Prefetched]) -> None:
        """Put `jobs` behind those that are held."""
        if not self.jobs:
            self._moved_at = clock.monotonic()
        self.jobs = [*reversed(jobs), *(self.jobs or ())]

    def next(self) -> Prefetched:
        """The first of those that are held; there is one."""
        assert self.jobs
        self._moved_at = clock.monotonic()
        held = self.jobs.pop()
        if not self.jobs:
            self.jobs = None
        return held

    def renew(self, owned: dict[str, TakenJob]) -> None:
        """Hold the jobs that are in `owned` as they were taken last, and take them out of it."""
        for i, held in enumerate(self.jobs or ()):
            taken = owned.pop(held.job.job_id, None)
            if taken is not None and self.jobs:
                self.jobs[i] = held._replace(job=taken)

    def release(self) -> list[Prefetched]:
        """All that are held, the first first; none may be for a while."""
        jobs, self.jobs = self.jobs or [], None
        self.most = 0
        self._pressed_until = clock.monotonic() + PRESSED
        return jobs[::-1]

    def lingers(self, alone: bool, governed: bool = False) -> bool:
        """Whether the first of them has been waiting for too long.

        Args:
            alone: there is one slot.
            governed: jobs wait for their share of the loop, so that even quick ones take a while.
        """
        patience = PATIENCE if alone else LONG_PATIENCE
        return clock.monotonic() - self._moved_at > (GOVERNED * patience if governed else patience)

    def learn(self, took: float) -> bool:
        """A try of a queue with one slot has ended; whether it was quick, so that more may be held behind the next."""
        quick = took < QUICK
        self.most = min(MOST_ALONE, 2 * self.most + 1) if quick else 0
        return quick

    def count(self) -> None:
        """A try of a queue with several slots has ended."""
        self._ended += 1

    def pace(self) -> None:
        """Look how many have, now and then."""
        now = clock.monotonic()
        if now - self._paced_at < PACED:
            return
        ends = self._ended * LATER / (now - self._paced_at)
        self.most = 0 if now < self._pressed_until else min(MOST, int(self.most + ends) // 2)
        self._ended, self._paced_at = 0, now
