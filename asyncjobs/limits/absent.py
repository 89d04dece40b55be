"""The Absent: queues that run what they were let in with, and come again before the tokens of a limit are back.

Tokens come back together, and a queue that runs one job at a time can ask for one of them only. Were the rest given to
those that happen to ask, weights would not count: what a queue is about to take is left for it. Disks have the same
trouble with programs that read one block after the other (Iyer and Druschel, "Anticipatory scheduling", SOSP 2001).
"""

from __future__ import annotations

import heapq
from itertools import islice
from typing import Final

from asyncjobs import clock
from asyncjobs.limits.line import Line, Ranked, Wants
from asyncjobs.limits.waiting import Waiting

LOOKED_AT: Final = 256  # of those that are further behind than one that asks
MANY: Final = 1_000_000  # starts of a queue whose jobs take no time


class Absence:
    """When a queue was let in last, whether with all that it can run, and how long it took to come again."""

    __slots__ = ("at", "busy", "cycle")

    def __init__(self) -> None:
        self.at, self.cycle, self.busy = clock.monotonic(), 0.0, False


class Absent:
    """Of the queues in a line those that do not wait.

    State: `_window`, seconds until a token is back; `_absences`, of each queue; `_ranked`, all by the virtual times of
    their next starts.
    """

    def __init__(self, line: Line, window: float) -> None:
        self._line, self._window = line, window
        self._absences: dict[Waiting, Absence] = {}
        self._ranked = Ranked()

    def add(self, queue: Waiting, let_in: int = 0) -> None:
        """It waits no more; `let_in`: and starts so many."""
        absence = self._absences.get(queue)
        if absence is None:
            absence = self._absences[queue] = Absence()
        if let_in:
            absence.at, absence.busy = clock.monotonic(), not queue.free()
        self._ranked.add(queue, self._line.position(queue))

    def came(self, queue: Waiting) -> None:
        """It asks again."""
        absence = self._absences.get(queue)
        if absence is not None and absence.busy:
            absence.cycle, absence.busy = clock.monotonic() - absence.at, False

    def waits(self, queue: Waiting) -> None:
        """It is here."""
        self._ranked.discard(queue)

    def forget(self, queue: Waiting) -> bool:
        """It has nothing to do; whether something may have been left for it."""
        self._ranked.discard(queue)
        return self._absences.pop(queue, None) is not None

    def clear(self) -> None:
        """Nothing is scarce any more."""
        self._absences.clear()
        self._ranked = Ranked()

    def _about_to_start(self, queue: Waiting, asked: int, now: float) -> int:
        """How many jobs, beside those `asked` for, it can start before tokens are back.

        Of a queue whose jobs run for long no more than end meanwhile: what it cannot use others may have.
        """
        if not queue.hungry or queue.quiet or queue.parked is not None or queue.limits.paused:
            return 0
        more = queue.free() - asked + sum(turn.reserved for turn in queue.turns if not turn.grants)
        if more > 0:
            return more if queue.queued or queue.turns else 0
        absence = self._absences.get(queue)
        if absence is None:
            return 0
        took = absence.cycle if asked else max(absence.cycle, now - absence.at)
        return int(self._window / took) if took > self._window / MANY else MANY

    def owed(self, wants: Wants, want: int, most: int) -> list[int]:
        """Of each of the first `want` starts: how many starts of others come before it, up to `most`.

        Empty: of none any. Those that ask come again as well, for more than they ask for now.
        """
        positions = [position for position, _ in islice(self._line.starts(wants), want)]
        behind = self._ranked.before(positions[-1], LOOKED_AT) if positions else []
        asking: dict[Waiting, int] = {}
        for queue, wanted in wants:
            asking[queue] = asking.get(queue, 0) + wanted
        others = [(position, queue, 0) for position, queue in behind if queue not in asking]
        others += [(self._line.position(queue) + n / queue.limits.weight, queue, n) for queue, n in asking.items()]
        now = clock.monotonic()
        heap = [
            (position, tie, 1 / queue.limits.weight, coming)
            for tie, (position, queue, asked) in enumerate(others)
            if position < positions[-1] and (coming := self._about_to_start(queue, asked, now))
        ]
        if not heap:
            return []
        heapq.heapify(heap)
        owed, found = 0, []
        for position in positions:
            while heap and heap[0][0] < position and owed < most:
                before, tie, step, coming = heap[0]
                owed += 1
                if coming > 1:
                    heapq.heapreplace(heap, (before + step, tie, step, coming - 1))
                else:
                    heapq.heappop(heap)
            found.append(owed)
        return found
