"""Errands: questions to the store that some turns need answered before they can be sent.

There are two: which jobs a lost reply gave to this process, and how many starts a shared limit lets in. Each errand
runs in an aio_task of its own, so a node or a limit that does not answer holds up its own queues and no others.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Final

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.errors import BrokerError, BrokerUnavailableError
from asyncjobs.limits.line import Wants
from asyncjobs.limits.shared_limit import Grant, SharedLimit
from asyncjobs.logs import ThrottledLog, said
from asyncjobs.work.alarms import Doubts
from asyncjobs.work.served import Served
from asyncjobs.work.turn import Turn

logger = logging.getLogger("asyncjobs.work")

REST: Final = 1.0  # seconds that a queue rests whose node alone does not answer, while the others go on


class Errands:
    """The turns that wait for an errand, and the turns that an errand has made ready.

    State:
        _cleared: turns that an errand has made ready to be sent.
        _questions: the turns that ask the same shared limits, all of them in one errand. Those that come while it asks
            are asked for next, together: they are served in the order of their weights and not in that of their coming.
        _held: the turns of each connection's pipeline, of each errand, and of each follow-up. A turn is held until it
            is answered or put back, so each turn has an owner.
        running, _reserved: the process's slots in use, and the slots that turns have asked for.
    """

    def __init__(self, broker: Broker, slots: int, process: Callable[[], str]) -> None:
        self._broker = broker
        self._slots = slots
        self._process = process
        self._wake = asyncio.Event()
        self._cleared: list[Turn[Served]] = []
        self._held: dict[object, list[Turn[Served]]] = {}
        self._errands: set[asyncio.Task[None]] = set()
        self._questions: dict[tuple[SharedLimit, ...], list[Turn[Served]]] = {}
        self.doubts = Doubts(self.offer)
        self._reserved = 0
        self.running = 0
        self.throttled = ThrottledLog(logger)

    @abstractmethod
    def offer(self, consumer: Served) -> None:
        """Give `consumer` a turn."""

    @abstractmethod
    def _feed(self) -> None:
        """Give a turn to as many starving queues as the process has free slots."""

    def free_slots(self) -> int:
        return self._slots - self.running - self._reserved

    def _send(self, errand: Coroutine[Any, Any, None], turns: list[Turn[Served]]) -> None:
        """Run `errand` beside the connections. The turns that it does not make ready are put back."""
        aio_task = asyncio.get_running_loop().create_task(errand, name="asyncjobs errand")
        self._errands.add(aio_task)
        self._held[aio_task] = turns
        aio_task.add_done_callback(self._errand_ended)

    def _errand_ended(self, aio_task: asyncio.Task[None]) -> None:
        self._errands.discard(aio_task)
        turns = self._held.pop(aio_task)
        error = None if aio_task.cancelled() else aio_task.exception()
        if error is not None:
            self.throttled.error("errand", "turns could not be made ready, and are tried again: %s", said(error))
        self._put_back(turns, REST)

    async def _adopt(self, turn: Turn[Served]) -> None:
        """After a lost reply jobs may be pending for us that nobody here knows of: look before `turn` goes on."""
        consumer, reserved = turn.consumer, turn.reserved
        try:
            owned = await self._broker.own(consumer.keys, self._process())
        except BrokerError as error:
            self._unreserve(reserved)
            self._unserved(turn, error)
            return
        self._reserved -= reserved  # what is adopted comes first
        try:
            consumer.adopt(owned)
            consumer.make_room(turn, self.free_slots())
        finally:
            self._reserved += turn.reserved
        consumer.lost_reply = False
        self.doubts.settled(consumer)
        self._feed()
        self._held[asyncio.current_task()].remove(turn)
        if consumer.shared_limits and turn.reserved:
            self._ask([turn])
        else:
            self._cleared.append(turn)
            self._wake.set()

    def _ask(self, turns: list[Turn[Served]]) -> None:
        """Have the shared limits of `turns` asked, together with what comes while they are."""
        for turn in turns:
            shared_limits = turn.consumer.shared_limits
            waiting = self._questions.get(shared_limits)
            if waiting is None:
                waiting = self._questions[shared_limits] = []
                self._send(self._ask_together(shared_limits, waiting), waiting)
            waiting.append(turn)

    async def _ask_together(self, shared_limits: tuple[SharedLimit, ...], waiting: list[Turn[Served]]) -> None:
        """Ask for those that wait until none is left; what may be sent is."""
        try:
            while waiting:
                self._cleared += await self._admit(shared_limits, waiting)
                self._wake.set()
        finally:
            del self._questions[shared_limits]

    async def _admit(self, shared_limits: tuple[SharedLimit, ...], waiting: list[Turn[Served]]) -> list[Turn[Served]]:
        """Ask how many of the jobs that the turns in `waiting` want may start. Returns the turns that can be sent.

        What is granted is for all that wait by then: a turn that came later, of a queue that is further behind, would
        else wait for those before it. A turn that got nothing, though nothing was refused, asks again.
        """
        wants = [(turn.consumer, turn.reserved) for turn in waiting]
        want = sum(turn.reserved for turn in waiting)
        sent_at = clock.monotonic()
        narrow = next((shared_limit for shared_limit in shared_limits if shared_limit.full), None)
        if narrow is not None:
            want = 0
        grants: list[Grant] = []
        try:
            for shared_limit in shared_limits:
                if want or shared_limit.stale:
                    grants.append(await self._granted(shared_limit, want, wants))
                    if grants[-1].count < want:
                        want, narrow = grants[-1].count, shared_limit
        except BaseException:
            for grant in grants:
                grant.shared_limit.pending -= grant.count
            raise
        left: list[Turn[Served]] = []
        turns, waiting[:] = waiting[:], []
        wants = [(turn.consumer, turn.reserved) for turn in turns]
        for turn, given in zip(turns, (narrow or shared_limits[0]).line.allot(wants, want), strict=True):
            if not given and narrow is None:
                waiting.append(turn)
                continue
            consumer, missing = turn.consumer, turn.reserved - given
            self._reserved -= missing
            if consumer.withdraw(turn, given):
                turn.grants, turn.sent_at = tuple(grants), sent_at
                left.append(turn)
            for shared_limit in shared_limits:
                shared_limit.let_in(consumer, given)
            if missing and narrow is not None:
                consumer.held_back += bool(narrow.window)
                narrow.park(consumer)
        for grant in grants:
            self._give_back(grant, grant.count - want)
        self._feed()
        return left

    async def _granted(self, shared_limit: SharedLimit, want: int, wants: Wants) -> Grant:
        try:
            return await shared_limit.admit(want, wants)
        except BrokerError as error:
            self.throttled.warning(repr(shared_limit), "%r lets nothing in for now: %s", shared_limit, error)
            return Grant(shared_limit, "", 0)

    def _give_back(self, grant: Grant, unused: int) -> None:
        """Give back the part of a grant that found no job. An errand tells the other processes."""
        if unused:
            grant.shared_limit.pending -= unused
            self._send(grant.shared_limit.give_back(grant, unused), [])

    def _unserved(self, turn: Turn[Served], error: BrokerError) -> None:
        self.doubts.lost(turn.consumer)
        if isinstance(error, BrokerUnavailableError):
            turn.consumer.unanswered(turn, rest=REST)
        else:
            turn.consumer.refused(turn, error)

    def _put_back(self, turns: list[Turn[Served]], rest: float = 0.0) -> None:
        """Put back the turns that were not answered. Their queues have new turns after `rest` seconds."""
        for turn in turns:
            if turn in turn.consumer.turns:
                turn.dropped()
                self._unreserve(turn.reserved)
                self.doubts.lost(turn.consumer)
                turn.consumer.unanswered(turn, rest)

    def _unreserve(self, slots: int) -> None:
        """Free slots that a pipeline had asked for."""
        self._reserved -= slots
        self._feed()

    @property
    def asking(self) -> bool:
        """True while an errand runs: then jobs that shared limits count may be on their way to a turn or back."""
        return bool(self._errands)

    def close(self) -> None:
        """Start no errand any more."""
        for aio_task in tuple(self._errands):
            aio_task.cancel()
        self.doubts.close()
