"""The Round: what queues that share one limit have had of it, so that each gets its weight before any gets more.

A queue that runs one job at a time cannot ask for all that its weight gives it: it asks for one, and comes again when
that has run. So what it has had is remembered from one question to the next, and a queue that has had its weight leaves
as much as the others are about to take.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final

from asyncjobs import clock

if TYPE_CHECKING:
    from asyncjobs.work.consumer import Consumer

LOOKED_AT: Final = 64  # queues for which something is left; those behind them come later anyway
ROUNDING: Final = 1e-6  # rounds; thirds are none in a float


class Standing:
    """Where one queue stands: rounds it has had, when it was let in last, and how long it took to come again."""

    __slots__ = ("at", "cycle", "rounds", "weight")

    def __init__(self, rounds: float, weight: int) -> None:
        self.rounds, self.weight = rounds, weight
        self.at = self.cycle = 0.0


class Round:
    """The present round of a limit, as this process sees it.

    A queue that has nothing to do any more leaves it. The round ends when none of those that are left is owed anything.
    What a queue takes beyond its weight, since others could not use it, it has had of later rounds: as many of them as
    there are in a window, so that nobody waits for longer.

    State: `_number`, of the round; `_standings`, of each queue that has asked; `_weights`, theirs together. `_window`,
    seconds until what was taken is back, 0: as soon as a job ends; `_most`, starts in a window.
    """

    def __init__(self, window: float, most: int) -> None:
        self._window, self._most = window, most
        self._number = self._weights = 0
        self._standings: dict[Consumer, Standing] = {}

    def _rounds(self, consumer: Consumer) -> float:
        standing = self._standings.get(consumer)
        return self._number if standing is None else max(self._number, standing.rounds)

    def _until(self, rounds: int, consumer: Consumer) -> int:
        """How many jobs it may start until it has had so many rounds."""
        return max(0, int((rounds - self._rounds(consumer)) * consumer.terms.weight + ROUNDING))

    def credit(self, consumer: Consumer) -> int:
        """How many are left of its weight."""
        return self._until(self._number + 1, consumer)

    def fresh(self, consumer: Consumer) -> bool:
        """Whether it has had nothing in this round."""
        return self._rounds(consumer) == self._number

    def count(self, consumer: Consumer, jobs: int) -> None:
        """It has asked, and is let in with `jobs`."""
        weight = consumer.terms.weight
        standing = self._standings.get(consumer)
        if standing is None:
            standing = self._standings[consumer] = Standing(self._number, weight)
            self._weights += weight
        if jobs:
            standing.rounds = max(self._number, standing.rounds) + jobs / weight
            standing.at = clock.monotonic()
            self._number = max(self._number, int(standing.rounds) - 1 - self._most // max(1, self._weights))

    def came(self, consumer: Consumer) -> None:
        """It asks again."""
        standing = self._standings.get(consumer)
        if standing is not None and standing.at:
            standing.cycle, standing.at = clock.monotonic() - standing.at, 0.0

    def leave(self, consumer: Consumer) -> bool:
        """It has nothing to do any more; whether something was left for it."""
        standing = self._standings.pop(consumer, None)
        if standing is None:
            return False
        self._weights -= standing.weight
        return standing.rounds < self._number + 1

    def owed(self, parked: Iterable[Consumer], asking: Collection[Consumer]) -> int:
        """How many jobs others may start before those `asking`, and are about to before tokens come back.

        Of a queue whose jobs run for long no more than it can start meanwhile: what it cannot use others may have.
        """
        now, total = clock.monotonic(), 0
        until = int(min(map(self._rounds, asking), default=self._number) + ROUNDING)
        waiting = dict.fromkeys(islice(parked, LOOKED_AT))
        for consumer in waiting:
            if consumer not in asking:
                total += self._until(until, consumer)
        if not self._window:
            return total
        for consumer, standing in islice(self._standings.items(), LOOKED_AT):
            if consumer in waiting or consumer in asking or not consumer.hungry or not standing.at:
                continue
            if consumer.quiet or consumer.terms.paused:
                continue
            took = max(standing.cycle, now - standing.at)
            credit = self._until(until, consumer)
            total += min(credit, int(self._window / took)) if took else credit
        return total

    def end(self) -> None:
        """All have had their share: the next round begins, where somebody has not had it yet."""
        least = min((one.rounds for one in self._standings.values()), default=0.0)
        self._number = max(self._number + 1, int(least + ROUNDING))
