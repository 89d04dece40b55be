"""The LoopBudget: bounds the runtime's share of the event loop between two looks at the app's sockets and timers.

asyncio runs all ready callbacks before it looks at sockets again: that is a round. A hundred jobs that begin at once
are one round, in which no request is read. With a budget, steps of the runtime begin only until the slice of the round
is used up, and further steps wait here. After each slice the loop is left to the app, until a round had nothing to do
or the app has had its share.

       a step finds the slice used up                   nothing to do there, or enough time was left to the app
free ──────────────────────────────────► left to the app ────────────────────────────────────────────────► ours
 ▲                                                 ▲                                                         │
 │                                                 └────────────── some still wait ──────────────────────────┤
 └──────────────────────────────── nobody waits any more ────────────────────────────────────────────────────┘
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

SLICES: Final = 10  # slices of a budget; the app is served after each slice
QUIET: Final = 0.00005  # seconds; a round that takes less had nothing to do
SHARE: Final = 2  # slices of time that the app gets after a slice of the runtime, if it has that much to do
PAUSE: Final = 4  # slices between two trips to the store, while this process has enough to do
FIRST: Final = 1 << 62  # subtracted from a rank that has to come before all ordinary ranks

AT_ONCE: Final = 50  # calls that begin together, with a budget
T = TypeVar("T")

FREE, LEFT, OURS = range(3)


class Starter(Protocol):
    """The attempts whose job waits for room."""

    def begin(self, job: Any, sent_at: float, margin: float, rank: int | None) -> None: ...


class Step(msgspec.Struct, frozen=True, gc=False, order=True):
    """A step that waits for room: an aio_task by its future, or a job without an aio_task. Each rank is unique."""

    rank: int
    future: asyncio.Future[None] | None = None
    owner: Starter | None = None
    job: Any = None
    sent_at: float = 0.0
    margin: float = 0.0


class LoopBudget:
    """Counts the rounds of the loop in which jobs begin, and lets only as many steps begin as fit into a slice.

    State: `number`, of the present round; `_counted`, whether its end is awaited.
    `until`, the monotonic instant at which the slice of this round is used up; infinite without a budget.
    `_waiting`, a heap of steps that wait for room, by rank; `_most`, how many of them are woken for a round: more than
    last time if all had room then, else as many as had room; `_woken` and `_again`, how many were woken, and how many
    of these wait again.
    `_phase`, of the drawing above; `_fresh`, the first step of a round of the runtime is still to come; `_left_at`,
    the instant since which the loop is left to the app; `_began_at`, the beginning of this round.
    """

    __slots__ = (
        "_again", "_began_at", "_counted", "_fresh", "_left_at", "_most", "_pauses", "_phase", "_ranks", "_slice",
        "_waiting", "_woken", "budget", "number", "until",
    )  # fmt: skip

    def __init__(self, budget: float | None = None) -> None:
        self.number = 0
        self._counted = False
        self.until = float("inf")
        self.budget = budget
        self._slice = 0.0 if budget is None else budget / SLICES
        self._waiting: list[Step] = []
        self._ranks = itertools.count()
        self._most = 1
        self._woken = self._again = 0
        self._phase = FREE
        self._fresh = False
        self._left_at = self._began_at = 0.0
        self._pauses: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> int:
        """The number of this round. Each round has another number."""
        if not self._counted:
            self._counted = True
            asyncio.get_running_loop().call_soon(self._over)
            if self._slice:
                self.until = clock.monotonic() + self._slice
        return self.number

    def spent(self) -> bool:
        """True if the slice of this round is used up."""
        if not self._slice:
            return False
        self.now()
        return clock.monotonic() >= self.until

    def has_room(self) -> bool:
        """True if a step may begin in this round."""
        now = clock.monotonic()
        if self._fresh:  # each round of the runtime has at least one step, even if other code has used it up
            self._fresh = False
            self.until = now + self._slice
        return now < self.until

    async def room(self, rank: int | None = None, *, first: bool = False) -> None:
        """Wait until a round has room for another step.

        Args:
            rank: the rank of a step that was told to begin, and found no room after all.
            first: the step comes before all steps without `first`.
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

        A job that waits in this way has no aio_task yet, and costs little.
        """
        heapq.heappush(self._waiting, Step(next(self._ranks), None, owner, job, sent_at, margin))

    async def breathe(self) -> None:
        """Wait for room if the slice is used up. Long work calls this between its steps."""
        if self.spent():
            await self.room()

    async def gather(self, calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """The results of all `calls`, in order. With a budget only some calls run at a time."""
        if not self._slice:
            return await asyncio.gather(*calls)
        left, found = iter(calls), []
        while some := list(islice(left, AT_ONCE)):
            found += await asyncio.gather(*some)
            await self.breathe()
        return found

    @property
    def governs(self) -> bool:
        """True if steps wait for room, so that each new step has to wait behind them."""
        return self._phase != FREE

    @property
    def crowded(self) -> bool:
        """True if more steps wait for room than the runtime's next round is expected to have."""
        return len(self._waiting) > self._most

    async def pause(self, since: float) -> None:
        """Wait for some slices since `since`, or until the budget is not crowded any more.

        A trip to the store that settles only a few jobs costs as much as the jobs themselves. And the more often the
        loop is left to the app, the fewer jobs have ended by the next trip.
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
        asyncio.get_running_loop().call_soon(self._over)  # ahead of what is woken here
        now = clock.monotonic()
        if self._phase != LEFT:
            if self._phase == OURS:
                if self._again:
                    self._most = max(1, self._woken - self._again)
                elif self._waiting:  # else it is not known whether more would have had room
                    self._most += self._most // 2 + 1
            self._left_at = now
            self._leave(now)
        elif self._woken and (now - self._began_at < QUIET or now - self._left_at >= SHARE * self._slice):
            self._phase, self._fresh = OURS, True
        else:
            self._leave(now)
        self._began_at = now
        if self._pauses:
            self._end_pauses(now)

    def _leave(self, now: float) -> None:
        """Leave this round to the app, unless no step waits. Steps woken here run in the runtime's next round."""
        self._woken = self._again = 0
        while self._waiting and self._woken < self._most:
            one = heapq.heappop(self._waiting)
            future, owner = one.future, one.owner
            if future is None or not future.done():
                self._woken += 1
                if future is not None:
                    future.set_result(None)
                elif owner is not None:
                    owner.begin(one.job, one.sent_at, one.margin, one.rank)
        self._fresh = False
        self._phase, self.until = (LEFT, 0.0) if self._woken else (FREE, now + self._slice)
