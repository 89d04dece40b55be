"""Errands: questions to the store that some turns need answered before they can be sent.

There are two: which jobs a lost reply gave to this process, and how many starts a shared limit lets in. Each errand
runs in an aio_task of its own, so a node or a limit that does not answer holds up its own queues and no others.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.errors import BrokerError, BrokerUnavailableError
from asyncjobs.limits.shared_limit import Grant, SharedLimit, share
from asyncjobs.logs import ThrottledLog, said
from asyncjobs.work.alarms import Doubts
from asyncjobs.work.served import Served
from asyncjobs.work.turn import Turn

logger = logging.getLogger("asyncjobs")

REST: Final = 1.0  # seconds that a queue rests whose node alone does not answer, while the others go on


class Errands:
    """The turns that wait for an errand, and the turns that an errand has made ready.

    State:
        _cleared: turns that an errand has made ready to be sent.
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

    async def _clear(self, turns: list[Turn[Served]]) -> None:
        """Adopt jobs and ask shared limits for `turns`. The turns that are left can be sent."""
        left: list[Turn[Served]] = []
        for some in self._in_order(await self._adopt(turns)):
            left += await self._admit(some)
        turns[:] = []
        self._cleared += left
        self._wake.set()

    async def _adopt(self, turns: list[Turn[Served]]) -> list[Turn[Served]]:
        """Find the jobs that a lost reply gave to this process. Returns the turns that may go on."""
        left = []
        for turn in turns:
            consumer, reserved = turn.consumer, turn.reserved
            if not consumer.lost_reply:
                left.append(turn)
                continue
            try:
                owned = await self._broker.own(consumer.keys, self._process())
            except BrokerError as error:
                self._unreserve(reserved)
                self._unserved(turn, error)
                continue
            self._reserved -= reserved  # adopted jobs get the slots first
            try:
                consumer.adopt(owned)
                consumer.make_room(turn, self.free_slots())
            finally:
                self._reserved += turn.reserved
            consumer.lost_reply = False
            self.doubts.settled(consumer)
            self._feed()
            left.append(turn)
        return left

    def _in_order(self, turns: list[Turn[Served]]) -> list[list[Turn[Served]]]:
        """Split `turns`, which have the same shared limits. The second part has the queues that have had more."""
        shared_limits = turns[0].consumer.shared_limits if turns else ()
        levels = []
        for turn in turns:
            for shared_limit in shared_limits:
                shared_limit.round.came(turn.consumer)
            levels.append(max((shared_limit.round.level(turn.consumer) for shared_limit in shared_limits), default=0))
        if not levels or min(levels) == max(levels):
            return [turns]
        parts: tuple[list[Turn[Served]], list[Turn[Served]]] = ([], [])
        for turn, level in zip(turns, levels, strict=True):
            parts[level > min(levels)].append(turn)
        return list(parts)

    async def _admit(self, turns: list[Turn[Served]]) -> list[Turn[Served]]:
        """Ask the shared limits how many jobs of `turns` may start. Returns the turns that are left."""
        shared_limits = turns[0].consumer.shared_limits if turns else ()
        want = sum(turn.reserved for turn in turns)
        if not shared_limits or not want:
            return turns
        asking = {turn.consumer for turn in turns}
        sent_at = clock.monotonic()
        narrow = next((shared_limit for shared_limit in shared_limits if shared_limit.full), None)
        was_full = narrow is not None
        if was_full:
            want = 0
        grants: list[Grant] = []
        try:
            for shared_limit in shared_limits:
                if want or shared_limit.stale:
                    grants.append(await self._granted(shared_limit, want, asking))
                    if grants[-1].count < want:
                        want, narrow = grants[-1].count, shared_limit
        except BaseException:
            for grant in grants:
                grant.shared_limit.pending -= grant.count
            raise
        left: list[Turn[Served]] = []
        first: list[Served] = []
        asked = [(turn.consumer, turn.reserved) for turn in turns]
        for turn, given in zip(turns, share(asked, want, (narrow or shared_limits[0]).round), strict=True):
            consumer, missing = turn.consumer, turn.reserved - given
            for shared_limit in shared_limits:
                shared_limit.round.count(consumer, given)
            if missing and narrow is not None:
                fair = narrow.round
                if not fair.credit(consumer) or (was_full and fair.fresh(consumer)):
                    narrow.park(consumer)
                else:
                    first.append(consumer)
            self._reserved -= missing
            if consumer.withdraw(turn, given):
                turn.grants, turn.sent_at = tuple(grants), sent_at
                left.append(turn)
        for consumer in reversed(first):
            assert narrow is not None
            narrow.park(consumer, first=True)
        for grant in grants:
            self._give_back(grant, grant.count - want)
        self._feed()
        return left

    async def _granted(self, shared_limit: SharedLimit, want: int, asking: Collection[Served]) -> Grant:
        try:
            return await shared_limit.admit(want, asking)
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
