"""The Round: what queues that share one limit have had of it, so that each gets its weight before any gets more.

A queue that runs one job at a time cannot ask for all that its weight gives it: it asks for one, and comes again when
that has run. So what it has had is remembered from one question to the next, and a queue that has had its weight leaves
as much as the others are about to take.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Final

from asyncjobs import clock
from asyncjobs.limits.waiting import Waiting

LOOKED_AT: Final = 64  # queues for which something is left; those behind them come later anyway
ROUNDING: Final = 1e-6  # rounds; thirds are none in a float


def coming(consumer: Waiting) -> bool:
    """Whether it is about to ask, or is just asking."""
    return any(turn.reserved for turn in consumer.turns) or (consumer.queued and consumer.free() > 0)


class Standing:
    """Where one queue stands: rounds it has had, how long it took to come again after it was let in, and since when
    nothing is heard of it."""

    __slots__ = ("at", "cycle", "inside", "rounds", "weight")

    def __init__(self, rounds: float, weight: int) -> None:
        self.rounds, self.weight = rounds, weight
        self.at = self.cycle = 0.0
        self.inside = False


class Round:
    """The present round of a limit, as this process sees it.

    A queue that has nothing to do any more leaves it. The round ends when none of those that are left is owed anything.
    What a queue takes beyond its weight, since others could not use it, it has had of later rounds: as many of them as
    there are in two windows, so that nobody waits for longer.

    State: `_number`, of the round; `_standings`, of each queue that has asked; `_weights`, theirs together. `_window`,
    seconds until what was taken is back, 0: as soon as a job ends; `_most`, starts in a window.
    """

    def __init__(self, window: float, most: int) -> None:
        self._window, self._most = window, most
        self._number = self._weights = 0
        self._standings: dict[Waiting, Standing] = {}

    def _rounds(self, consumer: Waiting) -> float:
        standing = self._standings.get(consumer)
        return self._number if standing is None else max(self._number, standing.rounds)

    def _until(self, rounds: int, consumer: Waiting) -> int:
        """How many jobs it may start until it has had so many rounds."""
        return max(0, int((rounds - self._rounds(consumer)) * consumer.limits.weight + ROUNDING))

    def credit(self, consumer: Waiting) -> int:
        """How many are left of its weight."""
        return self._until(self._number + 1, consumer)

    def fresh(self, consumer: Waiting) -> bool:
        """Whether it has had nothing in this round."""
        return self._rounds(consumer) == self._number

    def count(self, consumer: Waiting, jobs: int) -> None:
        """It has asked, and is let in with `jobs`."""
        weight = consumer.limits.weight
        standing = self._standings.get(consumer)
        if standing is None:
            standing = self._standings[consumer] = Standing(self._number, weight)
            self._weights += weight
        if jobs:
            standing.rounds = max(self._number, standing.rounds) + jobs / weight
            standing.at, standing.inside = clock.monotonic(), True
            self._number = max(self._number, int(standing.rounds) - 1 - 2 * self._most // max(1, self._weights))

    def came(self, consumer: Waiting) -> None:
        """It asks again."""
        standing = self._standings.get(consumer)
        if standing is not None:
            now = clock.monotonic()
            if standing.inside:
                standing.cycle, standing.inside = now - standing.at, False
            standing.at = now

    def leave(self, consumer: Waiting) -> bool:
        """It has nothing to do any more; whether something was left for it."""
        standing = self._standings.pop(consumer, None)
        if standing is None:
            return False
        self._weights -= standing.weight
        return standing.rounds < self._number + 1

    def level(self, consumer: Waiting) -> int:
        """How many rounds it has had wholly."""
        return int(self._rounds(consumer) + ROUNDING)

    def owed(self, parked: Iterable[Waiting], asking: Collection[Waiting]) -> int:
        """How many jobs others may start before those `asking`, and are about to before tokens come back.

        Of a queue whose jobs run for long no more than it can start meanwhile: what it cannot use others may have.
        """
        now, total = clock.monotonic(), 0
        for consumer, at, cycle, credit in self._others(parked, asking):
            took = max(cycle, now - at)
            if took and not (consumer.parked or coming(consumer)):
                credit = min(credit, int(self._window / took))
            total += credit
        return total

    def contested(self, parked: Iterable[Waiting], asking: Collection[Waiting]) -> bool:
        """Whether others that come before those `asking` wait for a slot, or are just asking for one."""
        return any(consumer.parked is not None or coming(consumer) for consumer, *_ in self._others(parked, asking))

    def _others(
        self, parked: Iterable[Waiting], asking: Collection[Waiting]
    ) -> Iterator[tuple[Waiting, float, float, int]]:
        """Those that are owed something before those `asking`: since when they run, for how long, and how much."""
        until = min(map(self.level, asking), default=self._number)
        waiting = dict.fromkeys(islice(parked, LOOKED_AT))
        for consumer in waiting:
            if consumer not in asking and (credit := self._until(until, consumer)):
                yield consumer, 0.0, 0.0, credit
        for consumer, standing in islice(self._standings.items(), LOOKED_AT):
            if consumer in waiting or consumer in asking or consumer.parked is not None or not consumer.hungry:
                continue
            if not (consumer.quiet or consumer.limits.paused) and (credit := self._until(until, consumer)):
                yield consumer, standing.at, standing.cycle, credit

    def end(self) -> None:
        """All have had their share: the next round begins, where somebody has not had it yet."""
        least = min((one.rounds for one in self._standings.values()), default=0.0)
        self._number = max(self._number + 1, int(least + ROUNDING))
