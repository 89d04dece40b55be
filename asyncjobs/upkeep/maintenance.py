"""Maintenance: looking where news may have been lost, giving back what dead processes held, retention by timer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

from asyncjobs.broker import Broker, Excess, Keys, Silent
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.options import Retention, duration
from asyncjobs.errors import BrokerError
from asyncjobs.upkeep.heartbeat import died_here
from asyncjobs.work.consumer import Consumer
from asyncjobs.work.groups import GroupRegistry
from asyncjobs.work.shared import Shop

logger = logging.getLogger("asyncjobs")

LEAST_TRIM_INTERVAL: Final = 1.0
FIRST_TRIM: Final = 60.0  # another release may have kept more
MOST_EXCESS: Final = 1000  # rules that wait for a store that does not answer
FORGET_AGAIN: Final = 1.0
MOST_TRIM_INTERVAL: Final = 3600.0


class Maintenance:
    """The slow loops of one process, over whatever it consumes."""

    def __init__(
        self,
        shop: Shop,
        consumers: dict[str, Consumer],
        registries: dict[str, GroupRegistry],
        process: Callable[[], str],
        sweep_interval: float,
    ) -> None:
        self._shop = shop
        self._consumers = consumers
        self._registries = registries
        self._process = process
        self._sweep_interval = sweep_interval

    @property
    def _broker(self) -> Broker:
        return self._shop.broker

    def _specs(self) -> Iterable[JobSpec]:
        """Each job once, though it may have had groups in another release."""
        specs = {name: consumer.spec for name, consumer in self._consumers.items()}
        specs |= {name: registry.spec for name, registry in self._registries.items()}
        return specs.values()

    # Looking ----------------------------------------------------------------------------------------------
    async def look_everywhere(self) -> None:
        """Every queue that holds anything gets a turn, whether there was news of it or not.

        Open groups do not: a link that could lose their news is noticed, and they are looked at when it is back.
        """
        consumers = {consumer.keys: consumer for consumer in self._consumers.values()}
        for keys in await self._broker.stirring(list(consumers)):
            consumers[keys].look_again()
        for registry in tuple(self._registries.values()):
            await registry.discover(look_at_open=False)

    async def run_looking(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_interval)
            try:
                await self.look_everywhere()
            except BrokerError as error:
                logger.debug("looking: %s", error)

    # Gates ------------------------------------------------------------------------------------------------
    async def run_telling(self) -> None:
        """Keep the word of this process at its gates: it counts for a lease."""
        while True:
            lease = min((spec.lease for spec in self._specs()), default=30.0)
            await asyncio.sleep(lease / 3)
            for gate in {gate for gates in self._shop.gates.values() for gate in gates}:
                try:
                    await gate.tell()
                    gate.open()  # its news may have been lost
                except BrokerError as error:
                    logger.debug("at a gate: %s", error)

    # The dead ---------------------------------------------------------------------------------------------
    async def sweep(self, dead: str, silent: Silent, done: set[str]) -> bool:
        """Give back what a silent process holds of every job whose lease is over, by its own word.

        One survivor does it for a job name; the others hear that it is done. `done` are the names that need no look any
        more; it grows.

        Returns:
            Whether nothing of it is left here.
        """
        specs = {spec.name: spec for spec in self._specs()}
        for name, spec in specs.items():
            lease = silent.leases.get(name, silent.leases.get("", spec.lease))
            if name in done or silent.seconds < lease:
                continue
            claimed = await self._broker.claim(dead, name, self._process())
            if claimed == "sweep":
                if not await self._sweep_name(spec, dead, lease):
                    return False
                await self._broker.claim(dead, name, self._process(), done=True)
            if claimed != "wait":
                done.add(name)
        return specs.keys() <= done

    async def _sweep_name(self, spec: JobSpec, dead: str, lease: float) -> bool:
        """Give back what `dead` holds of one job; False: it has come back while we looked elsewhere."""
        async for queues in self._queues(spec):
            owners = await self._broker.owners([keys for keys, _ in queues])
            held = [queue for queue, names in zip(queues, owners, strict=True) if dead in names]
            if held and not died_here(dead) and (await self._broker.silent_for([dead]))[dead] < lease:
                return False
            await asyncio.gather(*(self._sweep_queue(spec, keys, group_id, dead) for keys, group_id in held))
        return True

    async def sweep_strangers(self) -> None:
        """Give back what processes hold that nobody hears of any more: at start, after everybody was dead.

        Who is merely silent is left to the heartbeat: the store may have been away, and not the process.
        """
        for spec in self._specs():
            async for queues in self._queues(spec):
                owners = await self._broker.owners([keys for keys, _ in queues])
                names = {name for held in owners for name in held if name != self._process()}
                if not names:
                    continue
                silence = await self._broker.silent_for(sorted(names))
                dead = {name for name in names if silence[name] == float("inf") or died_here(name)}
                await asyncio.gather(
                    *(
                        self._sweep_queue(spec, keys, group_id, name)
                        for (keys, group_id), held in zip(queues, owners, strict=True)
                        for name in held
                        if name in dead
                    )
                )

    async def _queues(self, spec: JobSpec) -> AsyncIterator[list[tuple[Keys, str | None]]]:
        if spec.name in self._consumers:
            yield [(self._broker.queue_keys(spec.name, None), None)]
        if spec.name not in self._registries:
            return
        async for group_ids in self._broker.groups(spec.name):
            yield [(self._broker.queue_keys(spec.name, group_id), group_id) for group_id in group_ids]

    async def _sweep_queue(self, spec: JobSpec, keys: Keys, group_id: str | None, dead: str) -> None:
        token = next(self._shop.tokens)
        most = spec.worker_options.max_stalled_count
        back, doomed = await self._broker.sweep(spec.name, keys, dead, self._process(), token, most)
        for job_id in back + [job.job_id for job in doomed]:
            self._shop.bus.emit("job.stalled", spec.name, job_id=job_id, group_id=group_id)
        consumer = self._consumer(spec, group_id) if doomed else None
        if consumer is not None:
            for job in doomed:
                consumer.fail_stalled(job)

    def _consumer(self, spec: JobSpec, group_id: str | None) -> Consumer | None:
        if group_id is None:
            return self._consumers.get(spec.name)
        registry = self._registries[spec.name]
        registry.wake(group_id)
        return registry.open.get(group_id)

    # Retention --------------------------------------------------------------------------------------------
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
        """Apply every name's retention, to those names alone that keep anything."""
        consumers = {consumer.keys: consumer for consumer in self._consumers.values() if not consumer.indexed}
        for keys in await self._broker.ended(list(consumers)):
            await self._broker.trim(keys, consumers[keys].spec.retention)
        for registry in tuple(self._registries.values()):
            await self._trim_groups(Excess(registry.spec.name, registry.spec.retention))

    def _trim_interval(self) -> float:
        """Nothing outlives the shortest age by more than a sixtieth of it; where ages are days, seldom."""
        shortest = MOST_TRIM_INTERVAL
        for spec in self._specs():
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
        if excess.name in self._registries:
            await self._trim_groups(excess)
        elif excess.name in self._consumers:
            await self._broker.trim(self._consumers[excess.name].keys, excess.retention)

    async def run_forgetting(self) -> None:
        """Delete the records that a finish pushed over their name's retention, or over the rule of one add."""
        pump = self._shop.pump
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
                    pump.overflow.add(excess)  # the timer knows the rule of the name alone
                await asyncio.sleep(FORGET_AGAIN)
