"""Alarms: they wake queues at a time, with one timer for each kind of alarm, whatever the number of queues."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any, Final, Protocol

from asyncjobs import clock
from asyncjobs.broker import REPLY_TIMEOUT
from asyncjobs.loop_budget import LoopBudget
from asyncjobs.work.prefetch import PATIENCE

ENTRIES: Final = 2  # heap entries for each consumer with an alarm, at most


class Sleeper(Protocol):
    """A queue that may be woken. `alarm_at`: the instant, or None; `lost_reply`: the queue has to adopt jobs."""

    alarm_at: float | None
    lost_reply: bool

    def look_again(self) -> None:
        """Take a turn soon, since the queue may have jobs to take."""


class Alarms:
    """Wakes any number of consumers at a time, with one heap and one timer.

    State: `_heap` of (deadline, tie breaker, consumer). An entry is valid while its deadline is the consumer's
    `alarm_at`, so that re-arming never searches the heap. `_set`: the consumers with an alarm. Invalid entries are
    removed when they outnumber the valid ones.
    """

    def __init__(self, loop: LoopBudget | None = None) -> None:
        self._loop = loop or LoopBudget()
        self._heap: list[tuple[float, int, Sleeper]] = []
        self._set: set[Sleeper] = set()
        self._ties = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def set(self, consumer: Sleeper, delay: float) -> None:
        """Wake `consumer` in `delay` seconds, and at no other time."""
        consumer.alarm_at = deadline = clock.monotonic() + delay
        self._set.add(consumer)
        heapq.heappush(self._heap, (deadline, next(self._ties), consumer))
        self._tidy()
        if self._heap[0][0] == deadline:
            self._arm()

    def _tidy(self) -> None:
        if len(self._heap) > ENTRIES * len(self._set):
            self._heap = [entry for entry in self._heap if entry[2].alarm_at == entry[0]]
            heapq.heapify(self._heap)

    def set_earlier(self, consumer: Sleeper, delay: float) -> None:
        """Wake `consumer` in `delay` seconds, unless its alarm is earlier."""
        if consumer.alarm_at is None or consumer.alarm_at > clock.monotonic() + delay:
            self.set(consumer, delay)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            delay = max(0.0, self._heap[0][0] - clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(min(delay, 3600.0), self._ring)

    def _ring(self) -> None:
        now = clock.monotonic()
        while self._heap and self._heap[0][0] <= now:
            deadline, _, consumer = heapq.heappop(self._heap)
            if consumer.alarm_at == deadline:
                consumer.alarm_at = None
                self._set.discard(consumer)
                consumer.look_again()
            if self._loop.spent():
                break  # the rest in the next round
        self._tidy()  # a woken queue may be reaped, and leave an entry that is hours ahead
        self._arm()

    def __len__(self) -> int:
        """The number of entries, invalid ones included."""
        return len(self._heap)

    def close(self) -> None:
        self._heap.clear()
        self._set.clear()
        if self._timer is not None:
            self._timer.cancel()


class Doubts:
    """Has queues adopt jobs a second time, some seconds after the first.

    A turn whose reply was lost may still be on its way to the server. Then the turn takes jobs after the store has told
    which jobs this process owns.

    State: `_young`, `_old`: the queues that have adopted since the timer last rang, and before that; `_last`: those
    whose next adoption is the second.
    """

    def __init__(self, offer: Callable[[Any], None]) -> None:
        self._offer = offer
        self._young: set[Sleeper] = set()
        self._old: set[Sleeper] = set()
        self._last: set[Sleeper] = set()
        self._timer: asyncio.TimerHandle | None = None

    def lost(self, consumer: Sleeper) -> None:
        """A reply was lost, so the next adoption of `consumer` is its first."""
        self._last.discard(consumer)

    def settled(self, consumer: Sleeper) -> None:
        """`consumer` has adopted its jobs."""
        if consumer in self._last:
            self._last.discard(consumer)
            return
        self._young.add(consumer)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REPLY_TIMEOUT, self._ring)

    def _ring(self) -> None:
        due, self._old, self._young = self._old, self._young, set()
        for consumer in due - self._old:
            self._last.add(consumer)
            consumer.lost_reply = True
            self._offer(consumer)
        again = self._old or self._young
        self._timer = asyncio.get_running_loop().call_later(REPLY_TIMEOUT, self._ring) if again else None

    def __contains__(self, consumer: Sleeper) -> bool:
        """True if `consumer` has to adopt once more. Until then the store may hold jobs that the consumer misses."""
        return consumer in self._young or consumer in self._old or consumer in self._last

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Holding(Protocol):
    """A queue that may hold jobs beyond its slots. `Served` describes the attributes."""

    @property
    def fetched(self) -> int: ...

    @property
    def has_ended(self) -> bool: ...

    @property
    def lingers(self) -> bool: ...

    def hand_back(self) -> None: ...


class Patience:
    """Sends prefetched jobs back to the store if no slot comes free for too long.

    Ended jobs are settled together with the last prefetched job, unless that job takes too long as well.

    State: `queues`, the queues with prefetched jobs that the timer looks after.
    """

    def __init__(self, offer: Callable[[Any], None]) -> None:
        self._offer = offer
        self.queues: dict[Holding, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, queue: Holding) -> None:
        self.queues[queue] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._look)

    def _look(self) -> None:
        left: dict[Holding, None] = {}
        for queue in self.queues:
            if queue.fetched and queue.lingers:
                queue.hand_back()
            elif queue.fetched:
                left[queue] = None
            elif queue.has_ended:
                self._offer(queue)
        self.queues = left
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._look) if left else None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
