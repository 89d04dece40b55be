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
from operator import gt
from sys import getrefcount
from typing import Any, Final, TypeAlias
from weakref import getweakrefcount

from asyncjobs.loop_budget import LoopBudget

try:
    from _asyncio import Task as Native
except ImportError:  # what cannot be looked into is never used again
    Native = None  # type: ignore[assignment, misc]

HAS_CONTEXT: Final = sys.version_info >= (3, 12)
MAKES_NAMES: Final = sys.version_info >= (3, 12)  # when they are asked for, which must not look like a change
LESSONS: Final = 64  # aio_tasks, from the first on, whose references are counted before their first job
IN_A_ROW: Final = 8  # jobs that end without having waited for anything, before the loop has its turn

Counts: TypeAlias = tuple[int, ...]


class LoopRounds(LoopBudget):
    """The rounds of the loop, and what an aio_task looks like in which nothing of a job is left.

    State: `bare`, how many references there are to an aio_task and what may stand for it while nobody else keeps one:
    the fewest that were seen; `lessons`, how many aio_tasks are still looked at for that when they begin.
    """

    __slots__ = ("bare", "lessons")

    def __init__(self, budget: float | None = None) -> None:
        super().__init__(budget)
        self.bare: Counts = ()
        self.lessons = LESSONS

    def are_bare(self, counts: Counts) -> bool:
        """Whether `counts` are the fewest references that there can be."""
        if counts != self.bare:
            if self.bare and any(map(gt, counts, self.bare)):
                return False
            self.bare = counts
        return True


class Slot:
    """The present aio_task, for one job after the other.

    State: `_context`, the context variables as they were when the present job began, and `_round`, of the loop.
    `_in_a_row`, jobs that have ended here without having waited. `_held`, all that the aio_task held when its first job
    began; `_plain`, it can be looked into.
    """

    __slots__ = ("_context", "_held", "_in_a_row", "_plain", "_round", "_rounds", "aio_task")

    def __init__(self, rounds: LoopRounds) -> None:
        aio_task: Any = asyncio.current_task()
        self.aio_task: asyncio.Task[Any] = aio_task
        self._rounds = rounds
        self._in_a_row = self._round = 0
        self._context: Context | None = None
        self._held: list[Any] = []
        # A factory of the app may keep of each aio_task what it likes, and what is no native one may hold anything.
        self._plain = type(aio_task) is Native and aio_task.get_loop().get_task_factory() is None
        if MAKES_NAMES:
            aio_task.get_name()

    def begin(self) -> None:
        """A job begins."""
        self._round = self._rounds.now()
        self._context = copy_context()
        if not self._held:
            self._look()

    def _look(self) -> None:
        """See what the aio_task is like before its first job."""
        self._held = get_referents(self.aio_task)
        if self._rounds.lessons and self._plain:
            self._rounds.lessons -= 1
            aio_task = self.aio_task  # as `fit` has it, since it counts
            self._rounds.are_bare(references(aio_task))

    def fit(self) -> bool:
        """Whether another job may run here, now that one has ended.

        Not so if that one has set a context variable, was cancelled, or has left anything on its aio_task or its
        aio_task anywhere: in a registry of database sessions, with a timer that cancels it, as the key of a weak
        dictionary. Nor if the loop has waited for long enough.
        """
        self._in_a_row = self._in_a_row + 1 if self._round == self._rounds.number else 0
        aio_task: Any = self.aio_task
        if (
            self._in_a_row >= IN_A_ROW
            or not self._plain
            or aio_task.cancelling()
            or aio_task._must_cancel  # it was cancelled, and that was taken back
            or not aio_task._log_destroy_pending
        ):
            return False
        counts = references(aio_task)
        return (counts == self._rounds.bare or self._rounds.are_bare(counts)) and self._unchanged()

    def _unchanged(self) -> bool:
        """Whether the aio_task and its context hold what they held; a variable may have been set and set back."""
        context = copy_context()
        held = get_referents(self.aio_task, self._context, context)
        # Of what it held at first nothing but the name, a str, can be replaced: no code of others compares anything.
        return held[:-2] == self._held and (held[-1] is held[-2] or same(self._context, context))


def references(aio_task: Any) -> Counts:
    """How many there are to an aio_task and to what may stand for it, strong and weak."""
    coroutine = aio_task.get_coro()
    return (
        getrefcount(aio_task),
        getweakrefcount(aio_task),
        getrefcount(aio_task.get_name()),
        getrefcount(coroutine),
        getweakrefcount(coroutine),
        getrefcount(aio_task.get_context()) if HAS_CONTEXT else 0,
    )


def same(one: Context | None, other: Context) -> bool:
    """Whether both hold the very same values; to compare them might run code of theirs."""
    return one is not None and len(one) == len(other) and all(one.get(var, one) is other[var] for var in other)
