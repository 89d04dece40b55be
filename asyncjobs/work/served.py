"""Served and Ring: a queue as the pump sees it, and the pump as a queue sees it.

`Consumer` and `Pump` implement these protocols, and neither module names the other.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from asyncjobs.broker import Excess, TakenJob, WorkReply
from asyncjobs.declare.definition import JobSpec
from asyncjobs.errors import BrokerError
from asyncjobs.history.tally import Tally
from asyncjobs.limits.line import Line
from asyncjobs.limits.shared_limit import SharedLimit
from asyncjobs.limits.waiting import Waiting
from asyncjobs.logs import ThrottledLog
from asyncjobs.work.alarms import Alarms, Doubts
from asyncjobs.work.turn import Source, Turn


class Served(Waiting, Source, Protocol):
    """A queue of this process, as the pump sees it. `QueueState` describes the attributes."""

    spec: JobSpec
    shared_limits: tuple[SharedLimit, ...]
    turns: list[Turn[Any]]
    queued: bool
    starving: bool
    lost_reply: bool
    flowing: bool
    alarm_at: float | None
    tally: Tally | None
    held_back: int

    @property
    def wanted(self) -> int:
        """How many jobs its next turn would start, were there slots enough."""

    @property
    def at_leisure(self) -> bool:
        """True if a turn of the queue may travel behind an add."""

    @property
    def fetched(self) -> int:
        """The number of jobs that the queue holds beyond its slots."""

    @property
    def has_ended(self) -> bool:
        """True if decisions of the queue wait to be settled."""

    @property
    def lingers(self) -> bool:
        """True if the prefetched jobs have waited for too long."""

    def hand_back(self) -> None:
        """Put the prefetched jobs back to the head of the queue."""

    def prepare(self, process_slots: int) -> Turn[Any] | None:
        """Make up a turn with at most `process_slots` new jobs; None: the queue has nothing to do now."""

    def withdraw(self, turn: Turn[Any], reserved: int) -> bool:
        """A shared limit lets in only `reserved` jobs of a turn. Returns False if the turn has nothing left to do."""

    def absorb(self, turn: Turn[Any], reply: WorkReply, sent_at: float) -> None:
        """The turn was answered."""

    def unanswered(self, turn: Turn[Any], rest: float = 0.0) -> None:
        """The reply of a turn was lost. The pump leaves the queue alone for `rest` seconds."""

    def refused(self, turn: Turn[Any], error: BrokerError) -> None:
        """The store refused the turn."""

    def adopt(self, owned: list[TakenJob]) -> None:
        """Start the jobs in `owned` that this process does not know."""

    def make_room(self, turn: Turn[Any], process_slots: int) -> None:
        """Adopted jobs have taken slots that `turn` had asked for. `process_slots` are left."""


class Ring(Protocol):
    """The pump, as a queue sees it.

    Attributes:
        running: the process's slots in use.
        line: the queues that share the slots of the process.
        overflow: job names that have more finished jobs than they keep. `overflowed` is set when it gets a name.
    """

    running: int
    line: Line
    alarms: Alarms
    doubts: Doubts
    throttled: ThrottledLog
    overflow: set[Excess]
    overflowed: asyncio.Event

    @property
    def ends_with_the_loop(self) -> bool:
        """True if the app has cancelled all aio_tasks of the loop without calling stop."""

    def offer(self, consumer: Served) -> None:
        """Give `consumer` a turn."""

    def leave(self, consumer: Served, gone: bool = False) -> None:
        """`consumer` has no job to take, and waits for no slot any more; `gone`: for good."""

    def patience(self, consumer: Served) -> None:
        """`consumer` holds jobs beyond its slots. They go back if no slot comes free for too long."""

    def free_slots(self) -> int:
        """The free slots of the process."""

    def slot_freed(self) -> None:
        """A job has ended."""
