"""Groups: ``group_id`` → its Consumer, opened on demand and reaped when idle.

absent ──news, a due job, found at start──► open ──nothing waiting, active or delayed──► idle
   ▲                                         ▲                                             │
   │                                         └──────────── news, a due job ────────────────┤
   └──────────────── reaped after `group_idle`, by one script that looks once more ────────┘
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.declare.definition import JobSpec
from asyncjobs.errors import BrokerError
from asyncjobs.record import Record
from asyncjobs.work.consumer import Consumer
from asyncjobs.work.shared import Shared

logger = logging.getLogger("asyncjobs.work")

REAPED_AT_ONCE = 200
REST = 1.0  # seconds until the next try to reap, after the store did not answer
SETTINGS = {"windows": "w", "concurrency": "c", "weight": "g", "paused": "p"}  # limit → its name in the store


class Resting(Record, frozen=True, gc=False, order=True):
    """A group that may be reaped. No two have the same `tie`, so that consumers are never compared."""

    since: float
    tie: int
    consumer: Consumer


class GroupRegistry:
    """All open groups of one job name in this process.

    State: `open`, the open groups; `_resting`, a heap with one entry for each of `_listed`. A group that has had work
    since then is put back with the time at which its latest rest began. `quiet`: no further group is opened;
    `draining`: jobs of opened groups do not begin until further notice.
    """

    def __init__(self, shared: Shared, spec: JobSpec) -> None:
        self._shared = shared
        self.spec = spec
        self.open: dict[str, Consumer] = {}
        self._resting: list[Resting] = []
        self._on_rest = self._rest  # one for all
        self._listed: set[Consumer] = set()
        self._ties = itertools.count()
        self._rested = asyncio.Event()
        self.quiet = self.draining = False
        self.limits = spec.limits

    @property
    def _broker(self) -> Broker:
        return self._shared.broker

    def wake(self, group_id: str, delay: float = 0.0) -> None:
        """A group has work, now or in `delay` seconds. Open the group if it is not open."""
        consumer = self.open.get(group_id)
        if consumer is None:
            if self.quiet:
                return
            keys = self._broker.queue_keys(self.spec.name, group_id)
            consumer = self.open[group_id] = Consumer(
                self._shared, self.spec, keys, group_id, self.limits, self._on_rest
            )
            consumer.quiet = self.draining
            if self._shared.bus.wants("group.opened"):
                self._shared.bus.emit("group.opened", self.spec.name, group_id=group_id)
            consumer.look_again()
        else:
            consumer.wake(group_id, delay)

    async def discover(self, look_at_open: bool = True) -> None:
        """Open each registered group that is not open, at start and now and then.

        `look_at_open`: open groups get a turn as well, because their news may have been lost.
        """
        async for group_ids in self._broker.groups(self.spec.name):
            for group_id in group_ids:
                if look_at_open or group_id not in self.open:
                    self.wake(group_id)
                await self._broker.loop.breathe()

    async def look(self) -> None:
        """Read the settings and find groups with work, because news of both may have been missed."""
        await self.reload()
        await self.discover()

    async def reload(self) -> None:
        """Read the settings for all groups of this name. If they have changed, all groups get a turn."""
        found = await self._broker.settings(self._broker.queue_keys(self.spec.name, None))
        given = {long: found.get(short, "") for long, short in SETTINGS.items()}
        new = self.spec.limits.laid_over(**given)
        if new != self.limits:
            self.limits = new
            for consumer in tuple(self.open.values()):
                consumer.rebase(self.limits)  # another reload may have read newer limits meanwhile
                consumer.look_again()
                await self._broker.loop.breathe()

    @property
    def resting(self) -> int:
        """The number of heap entries of groups that may be reaped."""
        return len(self._resting)

    def _rest(self, consumer: Consumer) -> None:
        assert consumer.rested_at is not None
        if consumer not in self._listed:
            self._listed.add(consumer)
            heapq.heappush(self._resting, Resting(consumer.rested_at, next(self._ties), consumer))
            self._rested.set()

    async def run(self) -> None:
        """Reap groups that have been idle for `group_idle` seconds, until cancelled."""
        while True:
            if not self._resting:
                self._rested.clear()
                await self._rested.wait()
                continue
            await asyncio.sleep(max(0.0, self._resting[0].since + self.spec.group_idle - clock.monotonic()))
            due = self._due()
            await self._broker.loop.gather(self._reap(consumer) for consumer in due)

    def _due(self) -> list[Consumer]:
        due: list[Consumer] = []
        latest = clock.monotonic() - self.spec.group_idle
        while self._resting and self._resting[0].since <= latest and len(due) < REAPED_AT_ONCE:
            consumer = heapq.heappop(self._resting).consumer
            self._listed.discard(consumer)
            if consumer.rested_at is None or not consumer.idle:
                continue  # the group rests again after its next turn
            if consumer.rested_at <= latest:
                due.append(consumer)
            else:
                self._rest(consumer)
        return due

    async def _reap(self, consumer: Consumer) -> None:
        group_id = consumer.keys.group
        try:
            score, age = await self._broker.idle(self.spec.name, group_id)
            if score and age < self.spec.group_idle - 0.002:
                # Another process has given the group work, or has just finished a job of it.
                consumer.rested_at = clock.monotonic() - age
                self._rest(consumer)
                return
            gone, wait = await self._broker.reap(self.spec.name, consumer.keys, score)
        except BrokerError as error:
            logger.debug("reaping %r: %s", consumer, error)
            consumer.rested_at = clock.monotonic() + REST
            self._rest(consumer)
            return
        if not consumer.idle:
            return
        if gone:
            self.open.pop(group_id, None)
            consumer.retire()
            self._shared.bus.emit("group.reaped", self.spec.name, group_id=group_id)
        elif wait > 0:
            self._shared.pump.alarms.set_earlier(consumer, wait)
        else:
            consumer.look_again()
