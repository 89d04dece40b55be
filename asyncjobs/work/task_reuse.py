"""Slots: aio_tasks in which jobs of one queue run one after the other, as long as no job leaves a trace in the task.

An aio_task is the most expensive object that a job needs here. And where a hundred jobs end at once, jobs in new
aio_tasks would begin only when the last of the hundred has ended.
A library may attach state to an aio_task, and that state must be gone with its job. So the next job gets a new aio_task
unless the old one is provably unchanged: no reference to the task, its name or its coroutine is left, and the task
holds only what it held before.
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
except ImportError:  # aio_tasks that cannot be inspected are never used again
    Native = None  # type: ignore[assignment, misc]

HAS_CONTEXT: Final = sys.version_info >= (3, 12)
MAKES_NAMES: Final = sys.version_info >= (3, 12)  # asyncio makes a task's name at the first question for it
LESSONS: Final = 64  # the first aio_tasks; their references are counted before their first job
IN_A_ROW: Final = 8  # jobs that end without waiting for anything, before the loop has its turn; without a budget

Counts: TypeAlias = tuple[int, ...]


class LoopRounds(LoopBudget):
    """The rounds of the loop, and the reference counts of an aio_task without a trace of a job.

    State: `bare`, the fewest references that were seen to an aio_task and to the objects that may stand for it;
    `lessons`, the number of aio_tasks whose references are still to be counted when they begin.
    """

    __slots__ = ("bare", "lessons")

    def __init__(self, budget: float | None = None) -> None:
        super().__init__(budget)
        self.bare: Counts = ()
        self.lessons = LESSONS

    def are_bare(self, counts: Counts) -> bool:
        """True if `counts` are the fewest references that an aio_task can have."""
        if counts != self.bare:
            if self.bare and any(map(gt, counts, self.bare)):
                return False
            self.bare = counts
        return True


class Slot:
    """The present aio_task, for one job after the other.

    State: `_context`, the context variables at the beginning of the present job, and `_round`, the loop's round then.
    `_in_a_row`, the jobs that have ended here without waiting. `_held`, all objects that the aio_task held when its
    first job began; `_plain`, the aio_task can be inspected.
    """

    __slots__ = ("_context", "_held", "_in_a_row", "_plain", "_round", "_rounds", "aio_task")

    def __init__(self, rounds: LoopRounds) -> None:
        aio_task: Any = asyncio.current_task()
        self.aio_task: asyncio.Task[Any] = aio_task
        self._rounds = rounds
        self._in_a_row = self._round = 0
        self._context: Context | None = None
        self._held: list[Any] = []
        # The app's task factory may keep references to each aio_task, and a task that is not native may hold anything.
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
        """Record the state of the aio_task before its first job."""
        self._held = get_referents(self.aio_task)
        if self._rounds.lessons and self._plain:
            self._rounds.lessons -= 1
            aio_task = self.aio_task  # a local name as in `fit`, because it counts as a reference
            self._rounds.are_bare(references(aio_task))

    def fit(self) -> bool:
        """True if another job may run here after the job that has ended.

        False if that job has set a context variable, was cancelled, has left state on its aio_task, or has left a
        reference to its aio_task anywhere: in a registry of database sessions, in a timer that cancels the task, as
        the key of a weak dictionary. False also if the loop has waited for long enough.
        """
        if self._round != self._rounds.number:
            self._in_a_row = 0
        elif self._rounds.budget is None:
            self._in_a_row += 1
        elif self._rounds.spent():  # one that has waited keeps its aio_task, and waits there for room
            return False
        aio_task: Any = self.aio_task
        if (
            self._in_a_row >= IN_A_ROW
            or not self._plain
            or aio_task.cancelling()
            or aio_task._must_cancel  # the task was cancelled, and uncancelled
            or not aio_task._log_destroy_pending
        ):
            return False
        counts = references(aio_task)
        return (counts == self._rounds.bare or self._rounds.are_bare(counts)) and self._unchanged()

    def _unchanged(self) -> bool:
        """True if the aio_task and its context hold what they held before. A variable may have been set and reset."""
        context = copy_context()
        held = get_referents(self.aio_task, self._context, context)
        # Of the objects held at first only the name, a str, can be replaced, so the comparison runs no foreign code.
        return held[:-2] == self._held and (held[-1] is held[-2] or same(self._context, context))


def references(aio_task: Any) -> Counts:
    """The references to an aio_task, and to the objects that may stand for it, strong and weak."""
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
    """True if both hold identical values. ``==`` might run code of the values."""
    return one is not None and len(one) == len(other) and all(one.get(var, one) is other[var] for var in other)
