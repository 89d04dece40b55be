"""Served and Ring: what the pump needs of a queue, and what a queue needs of the pump.

`Consumer` and `Pump` fulfil them, and neither names the other.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from asyncjobs.broker import Excess, TakenJob, WorkReply
from asyncjobs.declare.definition import JobSpec
from asyncjobs.errors import BrokerError
from asyncjobs.limits.shared_limit import SharedLimit
from asyncjobs.limits.waiting import Waiting
from asyncjobs.logs import ThrottledLog
from asyncjobs.work.alarms import Alarms, Doubts
from asyncjobs.work.turn import Source, Turn


class Served(Waiting, Source, Protocol):
    """A queue of this process, as the pump sees it. For the attributes see `Consumer`."""

    spec: JobSpec
    shared_limits: tuple[SharedLimit, ...]
    turns: list[Turn[Any]]
    queued: bool
    starving: bool
    lost_reply: bool
    flowing: bool
    spent: int
    alarm_at: float | None

    @property
    def at_leisure(self) -> bool:
        """Whether a turn of it may travel with somebody else."""

    @property
    def fetched(self) -> int:
        """How many jobs it holds beyond its slots."""

    @property
    def has_ended(self) -> bool:
        """Whether decisions of it wait to be settled."""

    @property
    def lingers(self) -> bool:
        """Whether what was fetched ahead has been waiting for too long."""

    def hand_back(self) -> None:
        """What was fetched ahead goes back to the head of the queue."""

    def prepare(self, process_slots: int) -> Turn[Any] | None:
        """Make up a turn with at most `process_slots` new jobs; None: nothing to do now."""

    def withdraw(self, turn: Turn[Any], reserved: int) -> bool:
        """A shared limit lets only `reserved` of a turn's jobs in; whether the turn is still worth its while."""

    def absorb(self, turn: Turn[Any], reply: WorkReply, sent_at: float) -> None:
        """The turn was answered."""

    def unanswered(self, turn: Turn[Any], rest: float = 0.0) -> None:
        """The reply of a turn was lost; the queue is left alone for `rest` seconds."""

    def refused(self, turn: Turn[Any], error: BrokerError) -> None:
        """The store refused the turn."""

    def adopt(self, owned: list[TakenJob]) -> None:
        """Start what is pending for this process and not known here."""

    def make_room(self, turn: Turn[Any], process_slots: int) -> None:
        """What was adopted has taken slots that `turn` had asked for; `process_slots` are left."""


class Ring(Protocol):
    """The pump, as a queue sees it.

    Attributes:
        running: slots of the process that are in use.
        overflow: job names with more finished jobs than they keep; `overflowed` is set when there are.
    """

    running: int
    alarms: Alarms
    doubts: Doubts
    throttled: ThrottledLog
    overflow: set[Excess]
    overflowed: asyncio.Event

    @property
    def ends_with_the_loop(self) -> bool:
        """Whether the app cancels every aio_task there is, and has not called stop."""

    def offer(self, consumer: Served) -> None:
        """Let it have a turn."""

    def leave(self, consumer: Served) -> None:
        """It waits for no slot any more."""

    def patience(self, consumer: Served) -> None:
        """It has jobs beyond its slots, which go back if none comes free for too long."""

    def free_slots(self) -> int:
        """Slots of the process."""

    def slot_freed(self) -> None:
        """A job has ended."""
