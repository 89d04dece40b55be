"""Prefetch: the jobs that a queue holds in this process beyond its slots, and how many it may hold.

Prefetched jobs are active in the store and have not begun. Without them, each quick job of a queue with one slot would
wait for a round trip, and in a queue with more slots each freed slot would stand empty for one. A job that waits here
for too long goes back to the head of the queue, because another process may be quicker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from asyncjobs import clock
from asyncjobs.broker import TakenJob
from asyncjobs.record import Record

MOST_ALONE: Final = 16  # jobs of a queue with one slot
QUICK: Final = 0.001  # seconds; with one slot, no job is held behind a job that took longer
MOST: Final = 256  # jobs of a queue with more slots
LATER: Final = 0.008  # seconds for which a held job of such a queue is expected to wait for its slot
PACED: Final = 0.01  # seconds over which ended jobs are counted
PATIENCE: Final = 0.005  # seconds that held jobs wait for the only slot; its job was expected to be quick
LONG_PATIENCE: Final = 0.02  # seconds that held jobs wait for the first of several slots
GOVERNED: Final = 20  # factor on both patiences while jobs wait for their share of the loop
PRESSED: Final = 1.0  # seconds in which no job is held, after jobs had to go back


class Prefetched(Record, frozen=True, gc=False):
    """A job that has not begun, the instant at which its tokens were taken, and the lag that its start may have."""

    job: TakenJob
    sent_at: float
    margin: float


class Prefetch:
    """The jobs that one queue holds beyond its slots.

    State:
        most: how many jobs may be held. With one slot, each quick job doubles it. With more slots it is the number of
            jobs that end in `LATER`, counted over `PACED`.
        jobs: the held jobs, the last one first.
        _moved_at: the instant at which the first held job became the next in line.
        _ended, _paced_at: the number of tries that have ended since the instant `_paced_at`.
        _pressed_until: the instant until which no job may be held.
    """

    __slots__ = ("_ended", "_moved_at", "_paced_at", "_pressed_until", "jobs", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.jobs: list[Prefetched] | None = None  # not a list, to save memory in each of ten thousand idle groups
        self._ended = 0
        self._moved_at = self._paced_at = self._pressed_until = 0.0

    def __len__(self) -> int:
        return len(self.jobs) if self.jobs else 0

    def hold(self, jobs: Sequence[Prefetched]) -> None:
        """Put `jobs` behind the held jobs."""
        if not self.jobs:
            self._moved_at = clock.monotonic()
        self.jobs = [*reversed(jobs), *(self.jobs or ())]

    def next(self) -> Prefetched:
        """Remove and return the first held job. There must be one."""
        assert self.jobs
        self._moved_at = clock.monotonic()
        held = self.jobs.pop()
        if not self.jobs:
            self.jobs = None
        return held

    def renew(self, owned: dict[str, TakenJob]) -> None:
        """Give held jobs the entries and tokens of their takes in `owned`, and remove those takes from `owned`."""
        for i, held in enumerate(self.jobs or ()):
            taken = owned.pop(held.job.job_id, None)
            if taken is not None and self.jobs:
                self.jobs[i] = held._replace(job=taken)

    def withdraw(self, job_id: str, token: bytes) -> TakenJob | None:
        """Take out a job that is not to run; None: it is not held, not under `token`."""
        for held in self.jobs or ():
            if held.job.job_id == job_id and held.job.token == token:
                self.jobs = [one for one in self.jobs or () if one is not held] or None
                return held.job
        return None

    def release(self) -> list[Prefetched]:
        """Remove and return all held jobs, the first one first. No job may be held for a while after that."""
        jobs, self.jobs = self.jobs or [], None
        self.most = 0
        self._pressed_until = clock.monotonic() + PRESSED
        return jobs[::-1]

    def lingers(self, alone: bool, governed: bool = False) -> bool:
        """True if the first held job has waited for too long.

        Args:
            alone: the queue has one slot.
            governed: jobs wait for their share of the loop, so that even quick jobs take a while.
        """
        patience = PATIENCE if alone else LONG_PATIENCE
        return clock.monotonic() - self._moved_at > (GOVERNED * patience if governed else patience)

    def learn(self, took: float) -> bool:
        """A try of a queue with one slot has ended. Returns True if it was quick, so that more jobs may be held."""
        quick = took < QUICK
        self.most = min(MOST_ALONE, 2 * self.most + 1) if quick else 0
        return quick

    def count(self) -> None:
        """A try of a queue with several slots has ended."""
        self._ended += 1

    def pace(self) -> None:
        """Set `most` by the number of tries that have ended, now and then."""
        now = clock.monotonic()
        if now - self._paced_at < PACED:
            return
        ends = self._ended * LATER / (now - self._paced_at)
        self.most = 0 if now < self._pressed_until else min(MOST, int(self.most + ends) // 2)
        self._ended, self._paced_at = 0, now
