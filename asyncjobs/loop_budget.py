"""The LoopBudget: what the loop does between two looks at the app's sockets and timers, and how much of it is ours.

asyncio runs all that is ready before it looks for more. A hundred jobs that begin at once are one such round, in which
no request is read. So with a budget a step of ours begins only while those before it have not used up the slice; the
others wait here. After each slice the loop is left to the app, until a round went by in which there was nothing to do
or the app has had its share. Then as many of those that wait are called as fit, to run in the next round.

       a step finds the slice used up        a round had nothing to do, or the app has had its share
free ─────────────────────────► left to the app ────────────────────────► called ──────────► ours
 ▲                                       ▲                                   ▲                 │
 │                                       │                                   └─── some is left ┤
 │                                       └──────────── the slice is used up ───────────────────┤
 └──────────────────────────────── nobody waits any more ──────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Coroutine, Iterable
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

import msgspec

from asyncjobs import clock

SLICES: Final = 10  # of a budget; the app is served after each
QUIET: Final = 0.00005  # seconds; a round that takes less had nothing to do
SHARE: Final = 2  # slices of time that the app gets after one of ours, where it has that much to do
PAUSE: Final = 4  # slices between two trips to the store, while there is enough to do here
FIRST: Final = 1 << 62  # ahead of all that has no such rank

DIRECTLY: Final = 4  # jobs that begin in a round without having waited; of more it is seen first what one costs
AT_ONCE: Final = 50  # calls that are begun together where there is a budget
T = TypeVar("T")

FREE, LEFT, CALLED, OURS = range(4)


class Starter(Protocol):
    """Whose job waits for room."""

    def begin(self, job: Any, sent_at: float, margin: float, rank: int | None) -> None: ...


class Step(msgspec.Struct, frozen=True, gc=False, order=True):
    """A step that waits: an aio_task by its future, or a job that has none yet. No two have the same rank."""

    rank: int
    future: asyncio.Future[None] | None = None
    owner: Starter | None = None
    job: Any = None
    sent_at: float = 0.0
    margin: float = 0.0


class LoopBudget:
    """Counts the rounds of the loop in which a job has begun, and lets no more begin in one than fits its slice.

    State: `number`, of the present one; `_counted`, whether its end is awaited.
    `until`, the monotonic instant at which the slice is used up; without a budget none ever is.
    `begun`, jobs, in all; `_fits`, how many began in the last slice, and `_begun`, in all before it.
    `_waiting`, a heap of steps that wait for room, by rank; `_called`, how many of them run in this round, and
    `_again`, how many of those found no room; `_cost`, seconds that one took, with all that it has begun in its place.
    `_phase`, of the drawing above; `_fresh`, whether the first step of a slice is still to come; `_left_at`, since when
    the loop is left to the app, and `_began_at`, when this round began.
    """

    __slots__ = (
        "_again", "_began_at", "_begun", "_called", "_cost", "_counted", "_fits", "_fresh", "_left_at", "_pauses",
        "_phase", "_ranks", "_slice", "_waiting", "begun", "budget", "number", "until",
    )  # fmt: skip

    def __init__(self, budget: float | None = None) -> None:
        self.number = 0
        self._counted = False
        self.until = float("inf")
        self.budget = budget
        self._slice = 0.0 if budget is None else budget / SLICES
        self._waiting: list[Step] = []
        self._ranks = itertools.count()
        self.begun = self._begun = 0
        self._fits = 1
        self._called = self._again = 0
        self._cost = self._slice
        self._phase = FREE
        self._fresh = False
        self._left_at = self._began_at = 0.0
        self._pauses: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> int:
        """The number of this round, another in the next one."""
        if not self._counted:
            self._counted = True
            asyncio.get_running_loop().call_soon(self._over)
            if self._slice:
                self._began_at = clock.monotonic()
                self.until = self._began_at + self._slice
                self._called, self._again, self._begun = 0, 0, self.begun
        return self.number

    def spent(self) -> bool:
        """Whether the slice of this round is used up."""
        if not self._slice:
            return False
        self.now()
        return clock.monotonic() >= self.until

    def may_begin(self) -> bool:
        """Whether a job may have an aio_task at once: no more of them than are expected to have room."""
        if not self._slice:
            return True
        if self._phase != FREE or self.spent() or self._called >= DIRECTLY:
            return False
        self._called += 1
        return True

    def has_room(self) -> bool:
        """Whether a step may begin in this round."""
        now = clock.monotonic()
        if self._fresh:  # one step there is in each slice, whatever else has run in its first round
            self._fresh = False
            self.until = now + self._slice
        return now < self.until

    async def room(self, rank: int | None = None, *, first: bool = False) -> None:
        """Wait until a round has room for another step.

        Args:
            rank: of a step that was told to begin, and found no room after all.
            first: before all that do not say so.
        """
        self.now()
        if rank is None:
            rank = next(self._ranks) - (FIRST if first else 0)
        else:
            self._again += 1
        loop = asyncio.get_running_loop()
        while True:
            future: asyncio.Future[None] = loop.create_future()
            heapq.heappush(self._waiting, Step(rank, future))
            await future
            if self.has_room():
                return
            self._again += 1

    def defer(self, owner: Starter, job: Any, sent_at: float, margin: float) -> None:
        """Have `owner` begin a job before a round that may have room for it.

        What waits so has no aio_task yet, and costs little until then.
        """
        self.now()
        heapq.heappush(self._waiting, Step(next(self._ranks), None, owner, job, sent_at, margin))

    def next_of(self, owner: Starter) -> Step | None:
        """The job that is to begin next, if it is one of `owner` and has room now."""
        if not self._waiting or self._waiting[0].owner is not owner or not self.has_room():
            return None
        return heapq.heappop(self._waiting)

    async def breathe(self) -> None:
        """Where the slice is used up, wait for room: between two steps of what is long."""
        if self.spent():
            await self.room()

    async def gather(self, calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """What all `calls` return, in order; with a budget some of them at a time."""
        if not self._slice:
            return await asyncio.gather(*calls)
        left, found = iter(calls), []
        while some := list(islice(left, AT_ONCE)):
            found += await asyncio.gather(*some)
            await self.breathe()
        return found

    @property
    def holds(self) -> bool:
        """Whether some wait for room."""
        return bool(self._waiting)

    @property
    def governs(self) -> bool:
        """Whether some wait for room, so that whatever else begins stands behind them."""
        return self._phase != FREE

    @property
    def crowded(self) -> bool:
        """Whether more waits for room than the next slice is expected to have."""
        return len(self._waiting) > self._fits

    async def pause(self, since: float) -> None:
        """Wait for some slices since `since`, or until this is not crowded any more.

        A trip to the store costs as much as the jobs themselves where it settles a few of them, and the more often the
        loop is left to others the fewer have ended.
        """
        if self.crowded:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._pauses.append((since + PAUSE * self._slice, future))
            await future

    def _end_pauses(self, now: float) -> None:
        crowded = self.crowded
        left = []
        for until, future in self._pauses:
            if crowded and now < until:
                left.append((until, future))
            elif not future.done():
                future.set_result(None)
        self._pauses = left

    def _over(self) -> None:
        """A round has ended, and the next one begins."""
        self.number += 1
        if not (self._waiting or self._phase):
            self._counted = False
            return
        asyncio.get_running_loop().call_soon(self._over)  # ahead of what is called here
        now = clock.monotonic()
        if self._phase == LEFT:
            if now - self._began_at < QUIET or now - self._left_at >= SHARE * self._slice:
                self._call(now, self._slice)
        elif self._phase == CALLED:
            self._phase = OURS
            if not self.until:
                self._fresh, self._begun = True, self.begun
        else:
            if self._called:
                cost = (now - self._began_at) / max(1, self._called - self._again)
                self._cost = max(cost, self._cost / 2)
            if now < self.until:
                self._call(now, self.until - now)
            else:
                self._fits = max(1, self.begun - self._begun)
                self._phase, self.until, self._left_at = LEFT, 0.0, now
        self._began_at = now
        if self._pauses:
            self._end_pauses(now)

    def _call(self, now: float, left: float) -> None:
        """Have some of those that wait run in the next round, as many as fit into the seconds that are `left`."""
        most = max(1, int(left / self._cost))
        self._called = self._again = 0
        while self._waiting and self._called < most:
            one = heapq.heappop(self._waiting)
            future, owner = one.future, one.owner
            if future is None or not future.done():
                self._called += 1
                if future is not None:
                    future.set_result(None)
                elif owner is not None:
                    owner.begin(one.job, one.sent_at, one.margin, one.rank)
        self._fresh = False
        self._phase = CALLED if self._called else FREE
        if not self._called:  # nobody waits any more
            self.until = now + self._slice
