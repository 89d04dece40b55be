"""Recovery: finding jobs whose news was lost, and giving back the jobs of dead processes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from asyncjobs.broker import Broker, Keys, Silent
from asyncjobs.declare.definition import JobSpec
from asyncjobs.errors import BrokerError
from asyncjobs.upkeep.heartbeat import died_here
from asyncjobs.work.consumer import Consumer
from asyncjobs.work.queues import Queues
from asyncjobs.work.shared import Shared

logger = logging.getLogger("asyncjobs.work")

LOOKED_AT: Final = 100  # open groups that get a turn in each look


class Recovery:
    """The loops of one process that find lost and stalled jobs, over all queues that the process consumes."""

    def __init__(self, shared: Shared, queues: Queues, process: Callable[[], str], sweep_interval: float) -> None:
        self._shared, self._queues = shared, queues
        self._process = process
        self._sweep_interval = sweep_interval
        self._looked_at = 0  # index of the open group at which the last look ended

    @property
    def _broker(self) -> Broker:
        return self._shared.broker

    # Looking ----------------------------------------------------------------------------------------------
    async def look_everywhere(self) -> None:
        """Give a turn to each queue that holds jobs, with or without news of it.

        Open groups get none: this process notices when the link for their news breaks, and looks at them when the link
        is back. News that is lost between the nodes of a Cluster breaks no link, so there some open groups get a turn.
        """
        consumers = {consumer.keys: consumer for consumer in self._queues.consumers.values()}
        for keys in await self._broker.stirring(list(consumers)):
            consumers[keys].look_again()
        for registry in tuple(self._queues.registries.values()):
            await registry.discover(look_at_open=False)
        if self._broker.is_cluster:
            await self._look_at_open()

    async def _look_at_open(self) -> None:
        """Give a turn to a bounded number of open groups of all names, to other groups each time."""
        groups = [one for registry in self._queues.registries.values() for one in registry.open.values()]
        start = self._looked_at if self._looked_at < len(groups) else 0
        self._looked_at = start + LOOKED_AT
        some = {consumer.keys: consumer for consumer in groups[start : start + LOOKED_AT]}
        for keys in await self._broker.stirring(list(some)):
            some[keys].look_again()

    async def run_looking(self) -> None:
        names = deque([self._process()], maxlen=3)
        while True:
            await asyncio.sleep(self._sweep_interval)
            names.append(self._process())
            try:
                await self.look_everywhere()
                if len(set(names)) > 1:
                    # A turn that was sent under the name before may reach the store after that name was buried.
                    await self.sweep_strangers()
            except BrokerError as error:
                logger.debug("looking: %s", error)

    # Shared limits ----------------------------------------------------------------------------------------
    async def run_telling(self) -> None:
        """Renew this process's numbers at its shared limits, because they count for one lease."""
        while True:
            lease = min((spec.lease for spec in self._queues.specs()), default=30.0)
            await asyncio.sleep(lease / 3)
            for shared_limit in tuple(self._queues.shared_limits.values()):
                try:
                    await shared_limit.tell()
                    shared_limit.open()  # the limit's news may have been lost
                except BrokerError as error:
                    logger.debug("at a shared limit: %s", error)

    # The dead ---------------------------------------------------------------------------------------------
    async def sweep(self, dead: str, silent: Silent, done: set[str]) -> bool:
        """Give back the jobs of a silent process, for each job name whose lease, as that process stated it, is over.

        One survivor sweeps a job name, and the others learn that the name is done. `done` holds the names that need no
        look any more; this call adds to it.

        Returns:
            True if this process has nothing left to sweep.
        """
        specs = {spec.name: spec for spec in self._queues.specs()}
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
        """Give back the jobs of one name that `dead` holds. False: that process has come back meanwhile."""
        async for queues in self._keys(spec):
            owners = await self._broker.owners([keys for keys, _ in queues])
            held = [queue for queue, names in zip(queues, owners, strict=True) if dead in names]
            if held and not died_here(dead) and (await self._broker.silent_for([dead]))[dead] < lease:
                return False
            await self._broker.loop.gather(self._sweep_queue(spec, keys, group_id, dead) for keys, group_id in held)
        return True

    async def sweep_strangers(self) -> None:
        """Give back the jobs of processes that have left no heartbeat, at start and when this process has a new name.

        Silent processes are left to the heartbeat, because the store may have been away, and not the process.
        """
        for spec in self._queues.specs():
            async for queues in self._keys(spec):
                owners = await self._broker.owners([keys for keys, _ in queues])
                names = {name for held in owners for name in held if name != self._process()}
                if not names:
                    continue
                silence = await self._broker.silent_for(sorted(names))
                dead = {name for name in names if silence[name] == float("inf") or died_here(name)}
                await self._broker.loop.gather(
                    self._sweep_queue(spec, keys, group_id, name)
                    for (keys, group_id), held in zip(queues, owners, strict=True)
                    for name in held
                    if name in dead
                )

    async def _keys(self, spec: JobSpec) -> AsyncIterator[list[tuple[Keys, str | None]]]:
        if spec.name in self._queues.consumers:
            yield [(self._broker.queue_keys(spec.name, None), None)]
        if spec.name not in self._queues.registries:
            return
        async for group_ids in self._broker.groups(spec.name):
            yield [(self._broker.queue_keys(spec.name, group_id), group_id) for group_id in group_ids]

    async def _sweep_queue(self, spec: JobSpec, keys: Keys, group_id: str | None, dead: str) -> None:
        token = next(self._shared.tokens)
        most = spec.worker_options.max_stalled_count
        back, doomed = await self._broker.sweep(spec.name, keys, dead, self._process(), token, most)
        stalled = back + [job.job_id for job in doomed if not job.mark]
        if self._shared.recorder is not None and stalled:
            self._shared.recorder.tally(spec.name).count("stalled", len(stalled))
        self._shared.counters.stalled += len(stalled)
        for job_id in stalled:
            self._shared.bus.emit("job.stalled", spec.name, job_id=job_id, group_id=group_id)
        consumer = self._consumer(spec, group_id) if doomed else None
        if consumer is not None:
            for job in doomed:
                (consumer.end_marked if job.mark else consumer.fail_stalled)(job)

    def _consumer(self, spec: JobSpec, group_id: str | None) -> Consumer | None:
        if group_id is None:
            return self._queues.consumers.get(spec.name)
        registry = self._queues.registries[spec.name]
        registry.wake(group_id)
        return registry.open.get(group_id)
