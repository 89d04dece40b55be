"""Slots: an aio_task in which jobs of one queue run, one after the other, as long as nothing of one is left in it.

An aio_task is the most expensive thing that a job needs here. Where a hundred jobs end at once, those in a new aio_task
would begin only when the last of the hundred has ended.
What a library can hang on an aio_task must be gone with its job, so the next job gets a new one unless this one is
provably as it was: nobody refers to it, to its name or to its coroutine, and it holds nothing that it did not hold.
"""

from __future__ import annotations

import asyncio
import sys
from contextvars import Context, copy_context
from gc import get_referents
from operator import is_
from sys import getrefcount
from typing import Any, Final, TypeAlias
from weakref import getweakrefcount

try:
    from _asyncio import Task as Native
except ImportError:  # what cannot be looked into is never used again
    Native = None  # type: ignore[assignment, misc]

IN_A_ROW: Final = 8  # jobs that end without having waited for anything, before the loop has its turn

Counts: TypeAlias = tuple[int, ...]


class Rounds:
    """Counts the rounds of the loop in which a job has begun.

    State: `number`, of the present one; `_counted`, whether its end is awaited; `bare`, how many references there are
    to an aio_task and its parts while nobody else keeps one: the fewest that were seen.
    """

    __slots__ = ("_counted", "bare", "number")

    def __init__(self) -> None:
        self.number = 0
        self._counted = False
        self.bare: Counts = ()

    def now(self) -> int:
        """The number of this round, another in the next one."""
        if not self._counted:
            self._counted = True
            asyncio.get_running_loop().call_soon(self._over)
        return self.number

    def _over(self) -> None:
        self.number += 1
        self._counted = False

    def learn(self, counts: Counts) -> None:
        """So many references there are to an aio_task whose first job begins."""
        self.bare = tuple(map(min, counts, self.bare)) if self.bare else counts


class Slot:
    """The present aio_task, for one job after the other.

    State: `_context`, the context variables as they were when the present job began, and `_round`, of the loop.
    `_in_a_row`, jobs that have ended here without having waited. `_name`, `_coroutine`, `_bearer` (its own
    context), `_parts`: of the aio_task, all that it held when its first job began. `_plain`: it can be looked into.
    """

    aio_task: asyncio.Task[Any]

    __slots__ = (
        "_bearer", "_context", "_coroutine", "_in_a_row", "_name", "_parts", "_plain", "_round", "_rounds", "aio_task",
    )  # fmt: skip

    def __init__(self, rounds: Rounds) -> None:
        aio_task: Any = asyncio.current_task()
        self.aio_task = aio_task
        self._rounds = rounds
        self._in_a_row = self._round = 0
        self._context: Context | None = None
        loop = aio_task.get_loop()
        # A factory of the app may keep of each aio_task what it likes, and what is no native one may hold anything.
        self._plain = type(aio_task) is Native and loop.get_task_factory() is None and not loop.get_debug()
        self._name, self._coroutine = aio_task.get_name(), aio_task.get_coro()
        # Its context can be had from Python 3.12 on.
        self._bearer = aio_task.get_context() if sys.version_info >= (3, 12) else None
        self._parts: list[Any] = []

    def begin(self) -> None:
        """A job begins."""
        self._round = self._rounds.now()
        self._context = copy_context()
        if not self._parts:
            self._look()

    def _look(self) -> None:
        """See what the aio_task is like before its first job."""
        aio_task = self.aio_task
        self._parts = get_referents(aio_task)
        if self._bearer is None:
            self._bearer = self._parts
        counts = self._references()
        if self._plain and counts != self._rounds.bare:
            self._rounds.learn(counts)

    def fit(self) -> bool:
        """Whether another job may run here, now that one has ended.

        Not so if that one has set a context variable, was cancelled, or has left anything on its aio_task or its
        aio_task anywhere: in a registry of database sessions, with a timer that cancels it, as the key of a weak
        dictionary. Nor if the loop has waited for long enough.
        """
        self._in_a_row = self._in_a_row + 1 if self._round == self._rounds.number else 0
        aio_task: Any = self.aio_task
        return (
            self._plain
            and self._in_a_row < IN_A_ROW
            and not aio_task.cancelling()
            and not aio_task._must_cancel  # it was cancelled, and that was taken back
            and aio_task._log_destroy_pending
            and self._references() == self._rounds.bare
            and same(self._context, copy_context())
            and identical(self._parts, get_referents(aio_task))
        )

    def _references(self) -> Counts:
        """How many there are to the aio_task and to what may stand for it, strong and weak."""
        return (
            getrefcount(self.aio_task),
            getweakrefcount(self.aio_task),
            getrefcount(self._name),
            getrefcount(self._coroutine),
            getweakrefcount(self._coroutine),
            getrefcount(self._bearer),
        )


def same(one: Context | None, other: Context) -> bool:
    """Whether both hold the very same values; to compare them might run code of theirs."""
    return one is not None and len(one) == len(other) and all(one.get(var, one) is other[var] for var in other)


def identical(one: list[Any], other: list[Any]) -> bool:
    """Whether both lists hold the very same objects."""
    return len(one) == len(other) and all(map(is_, one, other))
