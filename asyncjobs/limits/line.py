"""The Line: the queues that want something scarce, in the order in which they come to it by their weights.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), with many starts under way at once as in SFQ(D) (Jin,
Chase and Kaur, SIGMETRICS 2004). The virtual time of a queue is the number of its starts over its weight; of the queues
that want to start something the one with the least goes first. The virtual time of the line is that of the last start,
and a queue that is new, or had nothing to do, begins there. So a start is refused to a queue only where another queue
takes it, and each queue that waits comes to be the one with the least.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final, TypeAlias

from asyncjobs import clock
from asyncjobs.limits.waiting import Waiting

SPARE_ENTRIES: Final = 64  # of a heap, beside as many as it has queues, that do not count any more
REMEMBERED: Final = 1024  # queues that have nothing to do and are ahead of the line; those before them are forgotten

Wants: TypeAlias = Sequence[tuple[Waiting, int]]


class Ranked:
    """Queues by a number, the least first; one that is added again has the new number.

    State: `_numbers`, of each queue the number and a tie breaker; `_heap`, entries that count while they agree with it.
    """

    def __init__(self) -> None:
        self._numbers: dict[Waiting, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, Waiting]] = []
        self._ties = itertools.count()

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, queue: Waiting) -> bool:
        return queue in self._numbers

    def __iter__(self) -> Iterator[Waiting]:
        return iter(sorted(self._numbers, key=self._numbers.__getitem__))

    def add(self, queue: Waiting, number: float) -> None:
        tie = next(self._ties)
        self._numbers[queue] = (number, tie)
        heapq.heappush(self._heap, (number, tie, queue))
        if len(self._heap) > 2 * len(self._numbers) + SPARE_ENTRIES:
            self._heap = [(number, tie, queue) for queue, (number, tie) in self._numbers.items()]
            heapq.heapify(self._heap)

    def discard(self, queue: Waiting) -> None:
        if self._numbers.pop(queue, None) is not None and not self._numbers:
            self._heap.clear()

    def pop(self) -> Waiting:
        """Take the first one out; there is one."""
        while True:
            number, tie, queue = heapq.heappop(self._heap)
            if self._numbers.get(queue) == (number, tie):
                del self._numbers[queue]
                return queue

    def before(self, number: float, most: int) -> list[tuple[float, Waiting]]:
        """Up to `most` of those that have less than `number`, the least first."""
        found: list[tuple[float, int, Waiting]] = []
        while self._heap and self._heap[0][0] < number and len(found) < most:
            entry = heapq.heappop(self._heap)
            if self._numbers.get(entry[2]) == entry[:2]:
                found.append(entry)
        for entry in found:
            heapq.heappush(self._heap, entry)
        return [(of_it, queue) for of_it, _, queue in found]


class Place:
    """How far one queue has come: its virtual time, without the starts that are under way, and its weight."""

    __slots__ = ("time", "weight")

    def __init__(self, time: float, weight: int) -> None:
        self.time, self.weight = time, weight


class Line:
    """Those that share one scarce thing in this process. While it is not scarce nothing is kept of anybody.

    A queue may fall behind by no more than its share of `most` starts, and one more, because it could not use what it
    was due: what it could not use others have had.

    State: `_time`, the virtual time of the line; `_places`, of the queues that have something to do; `_weights`, theirs
    together; `_ahead`, the virtual times of queues that have nothing to do, and will begin there; `waiting`, those that
    wait; `_short_at`, when there was too little for all last.
    """

    def __init__(self, most: int, calm: float, under_way: Callable[[Waiting], int]) -> None:
        """`calm`: seconds after which a thing is not scarce any more; `under_way`: starts of a queue that are."""
        self._most, self._calm, self._under_way = most, calm, under_way
        self._time = 0.0
        self._weights = 0
        self._places: dict[Waiting, Place] = {}
        self._ahead: dict[Waiting, float] = {}
        self.waiting = Ranked()
        self._short_at = float("-inf")

    @property
    def scarce(self) -> bool:
        """Whether there was too little for all, now or a moment ago."""
        if not self._places:
            return False
        if self.waiting or clock.monotonic() - self._short_at < self._calm:
            return True
        self._places.clear()
        self._ahead.clear()
        self._time, self._weights = 0.0, 0
        return False

    def _place(self, queue: Waiting) -> Place:
        place, weight = self._places.get(queue), queue.limits.weight
        if place is None:
            place = self._places[queue] = Place(max(self._time, self._ahead.pop(queue, 0.0)), 0)
        if place.weight != weight:
            self._weights += weight - place.weight
            place.weight = weight
        latest = self._time - 1 / weight - self._most / self._weights
        if place.time < latest:
            place.time = latest
        return place

    def position(self, queue: Waiting) -> float:
        """The virtual time of its next start."""
        place = self._place(queue)
        return place.time + self._under_way(queue) / place.weight

    def count(self, queue: Waiting, jobs: int) -> None:
        """It has started so many, or, where they are less than none, has not after all."""
        if not jobs or not self.scarce:
            return
        if queue in self._ahead:
            self._ahead[queue] += jobs / queue.limits.weight
        elif jobs > 0 or queue in self._places:
            place = self._place(queue)
            place.time += jobs / place.weight

    def rest(self, queue: Waiting, gone: bool = False) -> None:
        """It has nothing to do, and does not wait; `gone`: for good."""
        self.waiting.discard(queue)
        if gone:
            self._ahead.pop(queue, None)
        place = self._places.pop(queue, None)
        if place is None:
            return
        self._weights -= place.weight
        if place.time > self._time and not gone:
            self._ahead[queue] = place.time
            if len(self._ahead) > REMEMBERED:
                del self._ahead[next(iter(self._ahead))]

    def join(self, queue: Waiting) -> None:
        """There is too little for all, and it waits."""
        self._short_at = clock.monotonic()
        self.waiting.add(queue, self.position(queue))

    def starts(self, wants: Wants) -> Iterator[tuple[float, Waiting]]:
        """The starts that are wanted in their order, each with its virtual time."""
        together: dict[Waiting, int] = {}
        for queue, wanted in wants:
            if wanted:
                together[queue] = together.get(queue, 0) + wanted
        heap = [(self.position(queue), tie, queue) for tie, queue in enumerate(together)]
        heapq.heapify(heap)
        while heap:
            position, tie, queue = heap[0]
            yield position, queue
            together[queue] -= 1
            if together[queue]:
                heapq.heapreplace(heap, (position + 1 / self._places[queue].weight, tie, queue))
            else:
                heapq.heappop(heap)

    def allot(self, wants: Wants, most: int) -> list[int]:
        """How many of `most` starts each of `wants` gets. Where there are too few for all the thing is scarce."""
        if most >= sum(wanted for _, wanted in wants) and not self.scarce:
            return [wanted for _, wanted in wants]
        given: dict[Waiting, int] = {}
        for position, queue in islice(self.starts(wants), most):
            given[queue] = given.get(queue, 0) + 1
            self._time = max(self._time, position)
        found = []
        for queue, wanted in wants:
            got = min(wanted, given.get(queue, 0))
            found.append(got)
            if got:
                given[queue] -= got
        return found
