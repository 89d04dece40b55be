"""Alarms: what wakes queues at a time, whatever their number, by one timer each kind."""

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

ENTRIES: Final = 2  # that are kept for each consumer with an alarm at most


class Sleeper(Protocol):
    """A queue that may be woken. `alarm_at`: when, or None; `lost_reply`: it is to adopt."""

    alarm_at: float | None
    lost_reply: bool

    def look_again(self) -> None:
        """There may be something to take."""


class Alarms:
    """Wakes consumers at a time: one heap and one timer, however many they are.

    State: `_heap` of (deadline, tie breaker, consumer); an entry counts only while the consumer's `alarm_at` is
    still its deadline, so re-arming never searches. `_set`, consumers with an alarm: entries that do not count are
    swept out when they are more than those that do.
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
        """The same, unless it is woken before that anyway."""
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
        self._tidy()  # a queue that was woken may have left an entry behind, hours ahead, and be reaped
        self._arm()

    def __len__(self) -> int:
        """Entries, those included that do not count any more."""
        return len(self._heap)

    def close(self) -> None:
        self._heap.clear()
        self._set.clear()
        if self._timer is not None:
            self._timer.cancel()


class Doubts:
    """Has queues adopt once more, some seconds after they did.

    A turn whose reply was lost may still be on its way. Where the server, or the network, held it up, it takes jobs
    after the store was asked what is ours.

    State: `_young`, `_old`: queues that have adopted since the timer last rang, and before; `_last`, queues whose next
    adoption is the second one.
    """

    def __init__(self, offer: Callable[[Any], None]) -> None:
        self._offer = offer
        self._young: set[Sleeper] = set()
        self._old: set[Sleeper] = set()
        self._last: set[Sleeper] = set()
        self._timer: asyncio.TimerHandle | None = None

    def lost(self, consumer: Sleeper) -> None:
        """A reply was lost: what `consumer` adopts next is the first look."""
        self._last.discard(consumer)

    def settled(self, consumer: Sleeper) -> None:
        """`consumer` has adopted what is its own."""
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
        """Whether `consumer` is to adopt once more: until then jobs may be pending for it that it does not know."""
        return consumer in self._young or consumer in self._old or consumer in self._last

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Holding(Protocol):
    """A queue that may hold jobs beyond its slots; for its attributes see `Served`."""

    @property
    def fetched(self) -> int: ...

    @property
    def has_ended(self) -> bool: ...

    @property
    def lingers(self) -> bool: ...

    def hand_back(self) -> None: ...


class Patience:
    """Has jobs that were fetched ahead go back, should no slot come free for too long.

    What has ended meanwhile is settled together with the last of them, unless that takes too long as well.

    State: `queues`, those that hold such jobs, as far as they are looked after.
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
