"""Slots: an aio_task in which jobs of one queue run, one after the other, as long as nothing of one is left in it.

An aio_task is the most expensive thing that a job needs here; and where a hundred jobs end at once, those in a new one
would begin only when the last of the hundred has ended.
"""

from __future__ import annotations

import asyncio
from contextvars import Context, copy_context
from sys import getrefcount
from typing import Final

IN_A_ROW: Final = 8  # jobs that end without having waited for anything, before the loop has its turn


class Rounds:
    """Counts the rounds of the loop in which a job has begun.

    State: `number`, of the present one; `_counted`, whether its end is awaited.
    """

    __slots__ = ("_counted", "number")

    def __init__(self) -> None:
        self.number = 0
        self._counted = False

    def now(self) -> int:
        """The number of this round, another in the next one."""
        if not self._counted:
            self._counted = True
            asyncio.get_running_loop().call_soon(self._over)
        return self.number

    def _over(self) -> None:
        self.number += 1
        self._counted = False


class Slot:
    """The present aio_task, for one job after the other.

    State, as it was when the present job began: `_context`, its context variables; `_references`, how many there are to
    `aio_task`; `_round`, of the loop. `_in_a_row`, jobs that have ended here without having waited.
    """

    __slots__ = ("_context", "_in_a_row", "_references", "_round", "_rounds", "aio_task")

    def __init__(self, rounds: Rounds) -> None:
        aio_task = asyncio.current_task()
        assert aio_task is not None
        self.aio_task = aio_task
        self._rounds = rounds
        self._in_a_row = self._round = self._references = 0
        self._context: Context | None = None

    def begin(self) -> None:
        """A job begins."""
        self._round = self._rounds.now()
        self._references = getrefcount(self.aio_task)
        self._context = copy_context()

    def fit(self) -> bool:
        """Whether another job may run here, now that one has ended.

        Not so if that one has set a context variable, was cancelled, or has left its aio_task somewhere, such as in a
        registry of database sessions or with a timer that cancels it; nor if the loop has waited for long enough.
        """
        self._in_a_row = self._in_a_row + 1 if self._round == self._rounds.number else 0
        return (
            self._in_a_row < IN_A_ROW
            and not self.aio_task.cancelling()
            and getrefcount(self.aio_task) <= self._references
            and same(self._context, copy_context())
        )


def same(one: Context | None, other: Context) -> bool:
    """Whether both hold the very same values; to compare them might run code of theirs."""
    return one is not None and len(one) == len(other) and all(one.get(var, one) is other[var] for var in other)
