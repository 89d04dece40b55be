"""Retention: deletes finished jobs that are kept no longer, by a timer and after a finish that pushed them out."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from asyncjobs.broker import Broker, Excess, bounds
from asyncjobs.declare.options import Retention
from asyncjobs.declare.values import duration
from asyncjobs.errors import BrokerError
from asyncjobs.work.queues import Queues
from asyncjobs.work.shared import Shared

logger = logging.getLogger("asyncjobs.work")

LEAST_TRIM_INTERVAL: Final = 1.0
FIRST_TRIM: Final = 60.0  # another release may have kept more
MOST_EXCESS: Final = 1000  # rules that are kept while the store does not answer
FORGET_AGAIN: Final = 1.0
MOST_TRIM_INTERVAL: Final = 3600.0


class Trimmer:
    """The loops of one process that apply retention, over all queues that the process consumes."""

    def __init__(self, shared: Shared, queues: Queues) -> None:
        self._shared, self._queues = shared, queues

    @property
    def _broker(self) -> Broker:
        return self._shared.broker

    async def run_trimming(self) -> None:
        pause = min(FIRST_TRIM, self._trim_interval())
        while True:
            await asyncio.sleep(pause)
            pause = self._trim_interval()
            try:
                await self.trim_everything()
            except BrokerError as error:
                logger.debug("trimming: %s", error)

    async def trim_everything(self) -> None:
        """Apply the retention of each name that keeps finished jobs."""
        consumers = {consumer.keys: consumer for consumer in self._queues.consumers.values() if not consumer.indexed}
        for keys in await self._broker.ended(list(consumers)):
            await self._broker.trim(keys, bounds(consumers[keys].spec.retention))
        for registry in tuple(self._queues.registries.values()):
            await self._trim_groups(Excess(registry.spec.name, bounds(registry.spec.retention)))

    def _trim_interval(self) -> float:
        """Seconds between two trims: a sixtieth of the shortest age, within bounds."""
        shortest = MOST_TRIM_INTERVAL
        for spec in self._queues.specs():
            for rule in (spec.job_options.remove_on_complete, spec.job_options.remove_on_fail):
                if isinstance(rule, Retention) and rule.age:
                    shortest = min(shortest, duration(rule.age) / 60)
        return max(LEAST_TRIM_INTERVAL, shortest)

    async def _trim_groups(self, excess: Excess) -> None:
        while True:
            overflow = await self._broker.overflow(excess.name, excess.retention)
            if not await self._broker.forget(overflow):
                return

    async def _forget(self, excess: Excess) -> None:
        if excess.name in self._queues.registries:
            await self._trim_groups(excess)
        elif excess.name in self._queues.consumers:
            await self._broker.trim(self._queues.consumers[excess.name].keys, excess.retention)

    async def run_forgetting(self) -> None:
        """Delete the records that a finish pushed over their name's retention, or over the rule of one add."""
        pump = self._shared.pump
        while True:
            while not pump.overflow:
                pump.overflowed.clear()
                await pump.overflowed.wait()
            excess = pump.overflow.pop()
            try:
                await self._forget(excess)
            except BrokerError as error:
                logger.debug("forgetting: %s", error)
                if len(pump.overflow) < MOST_EXCESS:
                    pump.overflow.add(excess)  # kept, because the timer knows only the rule of the name
                await asyncio.sleep(FORGET_AGAIN)
