"""The Parts: what a started runtime consists of."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Final

from asyncjobs import clock
from asyncjobs.broker import Broker, Place, Store
from asyncjobs.cron.scheduler import Scheduler
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.options import Limiter
from asyncjobs.embedded.store import EmbeddedStore
from asyncjobs.errors import BrokerError, BrokerUnavailableError, visible
from asyncjobs.guests.calls import Deadline, leave_behind, within
from asyncjobs.invariants import at_a_glance
from asyncjobs.limits.shared_limit import Gate
from asyncjobs.logs import said
from asyncjobs.upkeep.heartbeat import Liveness
from asyncjobs.upkeep.maintenance import Maintenance
from asyncjobs.upkeep.supervisor import Crew
from asyncjobs.work.attempts import STUBBORN
from asyncjobs.work.consumer import Consumer
from asyncjobs.work.groups import GroupRegistry
from asyncjobs.work.pump import Pump
from asyncjobs.work.shared import Shop

logger = logging.getLogger("asyncjobs")

LAST_WRITES: Final = 2.0  # seconds, after the drain, for settling, leaving and flushing each
AFTER_GRACE: Final = 2.5  # seconds that a drain takes at most beyond its grace
AGAIN: Final = 1.0  # seconds until it is tried again to consume a job
SHOWN_GROUPS: Final = 5
DEFAULT_LEASE: Final = 30.0
UNDOING: Final = 2.0  # seconds for undoing what a failed start has got to
CLOSING: Final = 0.5  # seconds that closing gets, however late it is
AFTERWARDS: Final = 4.3  # seconds, after the grace, for all that a stop does then
LINGERING: Final[set[asyncio.Task[None]]] = set()  # of stopped runtimes, held strongly


class Parts:
    """What a started runtime consists of; the attributes without a default are set while it is built."""

    broker: Broker
    liveness: Liveness
    pump: Pump
    shop: Shop
    maintenance: Maintenance
    scheduler: Scheduler

    def __init__(self) -> None:
        self.stack, self.crew = AsyncExitStack(), Crew()
        self.lifeline = Crew()  # what must go on for as long as a thread runs a job or a task
        self.embedded: EmbeddedStore | None = None
        self.end = Deadline(float("inf"))  # by when a stop must be over
        self.store: Store | None = None  # what it said of itself
        self.consumers: dict[str, Consumer] = {}
        self.registries: dict[str, GroupRegistry] = {}
        self.gates: dict[str, Gate] = {}
        self.expected: list[JobSpec] = []  # jobs that are about to be consumed: the first beat tells their leases
        self._beats = False
        self.quiet = False  # nothing is to begin any more

    def gates_of(self, spec: JobSpec) -> tuple[Gate, ...]:
        """The limits that hold over the queues of a job and others, one object each in a process."""
        total, named = self.broker.gate_keys(spec.name, [one.name or "" for one in spec.named_limiters])
        wanted: list[tuple[str, tuple[Limiter, ...], int | None]] = []
        if spec.total_limiters or spec.total_concurrency:
            wanted.append((total, spec.total_limiters, spec.total_concurrency))
        wanted += [(key, (limiter,), None) for key, limiter in zip(named, spec.named_limiters, strict=True)]
        for key, limiters, slots in wanted:
            if key not in self.gates:
                self.gates[key] = Gate(self.broker, key, spec.name, limiters, slots, spec.lease)
                self.stack.callback(self.gates[key].close)
        return tuple(self.gates[key] for key, _, _ in wanted)

    async def consume(self, spec: JobSpec) -> None:
        """Open the queue of one job, or the registry of its groups; the first look comes with the news link.

        May be called again after an error. Jobs that were added while the job had groups and now has none, or the other
        way round, are run as well.
        """
        gates = self.shop.gates[spec.name] = self.gates_of(spec)
        if spec.grouped:
            await self.registry(spec).reload()
        else:
            self.queue(spec)
        await self._look_elsewhere(spec)

        def room() -> None:
            for gate in gates:
                gate.open()

        def news(group_id: str, delay: float) -> None:
            if group_id:
                self.registry(spec).wake(group_id, delay)
            else:
                self.queue(spec).wake(group_id, delay)

        def look() -> None:
            if spec.name in self.consumers:
                self.consumers[spec.name].look_again()
            if spec.name in self.registries:
                self.crew.once(f"looking at the groups of {spec.name}", self.registries[spec.name].look)

        def reload() -> None:
            self.crew.once(f"looking at the groups of {spec.name}", self.registry(spec).reload)

        await self.broker.listen_for_news(spec.name, news, look, reload, room)

    async def join(self) -> None:
        """Show the first sign of life, before anything is taken; once."""
        if not self.liveness.joined:
            await self.liveness.join()

    async def begin(self, spec: JobSpec) -> None:
        """Consume a job that was registered while this runs, as soon as the store answers."""
        while not self.quiet:
            try:
                await self.join()
                self.show_life()
                await self.consume(spec)
                return
            except BrokerError as error:
                self.pump.throttled.warning(f"begin {spec.name}", "%s is not consumed yet: %s", spec.name, error)
                await asyncio.sleep(AGAIN)

    def show_life(self) -> None:
        """Beat from now on."""
        if not self._beats:
            self._beats = True
            self.lifeline.start("heartbeat", self.liveness.run)
            self.lifeline.start("lapses and the dead", self.liveness.run_consequences)

    def queue(self, spec: JobSpec) -> Consumer:
        """The consumer of what is added without a group."""
        consumer = self.consumers.get(spec.name)
        if consumer is None:
            consumer = Consumer(self.shop, spec, self.broker.queue_keys(spec.name, None))
            consumer.quiet = self.quiet
            self.consumers[spec.name] = consumer
            self._mind_shapes(spec)
        return consumer

    def registry(self, spec: JobSpec) -> GroupRegistry:
        """The groups of a job."""
        registry = self.registries.get(spec.name)
        if registry is None:
            registry = self.registries[spec.name] = GroupRegistry(self.shop, spec)
            registry.quiet = self.quiet
            self.crew.start(f"reaper of {spec.name}", registry.run)
            self._mind_shapes(spec)
        return registry

    def _mind_shapes(self, spec: JobSpec) -> None:
        """Finished jobs with and without a group stand in one list: what they may keep is decided for all of them."""
        if spec.name in self.consumers and spec.name in self.registries:
            self.consumers[spec.name].indexed = True

    async def _look_elsewhere(self, spec: JobSpec) -> None:
        """Find the jobs of a name that another release has added with groups, where it has none, or without."""
        try:
            found = await self.broker.other_shape(spec.name, spec.grouped)
        except BrokerUnavailableError:
            raise
        except BrokerError as error:  # a key of a foreign type: said where the queue has its turns
            logger.debug("looking at %s: %s", spec.name, error)
            return
        if found is None:
            return
        if spec.grouped:
            text = (
                "%s has groups, and %d of its jobs were added when it had none; they run one after the other, with no "
            )
            logger.warning(text + "group_id", spec.name, found.jobs)
            self.queue(spec)
            return
        if found.jobs:
            some = ", ".join(visible(one) for one in found.groups[:SHOWN_GROUPS])
            more = ", …" if len(found.groups) > SHOWN_GROUPS else ""
            text = "%s has no groups, and %d of its jobs were added when it had some (%s%s); each group's run in order"
            logger.warning(text, spec.name, found.jobs, some, more)
        registry = self.registry(spec)
        for group_id in found.groups:
            registry.wake(group_id)

    def leases(self) -> dict[str, float]:
        """By which the others judge this process: job name → seconds, '' for what runs besides jobs."""
        found = {spec.name: spec.lease for spec in (*self.expected, *self.specs())}
        usual = Counter(found.values()).most_common(1)
        rest = usual[0][0] if usual else DEFAULT_LEASE
        return {"": rest, **{name: lease for name, lease in found.items() if lease != rest}}

    def specs(self) -> list[JobSpec]:
        consumed = [consumer.spec for consumer in self.consumers.values()]
        return consumed + [registry.spec for registry in self.registries.values()]

    def consumer_at(self, place: Place) -> Consumer | None:
        """Whoever consumes here what is added there."""
        if not place.registry:
            return self.consumers.get(place.name)
        registry = self.registries.get(place.name)
        return None if registry is None else registry.open.get(place.keys.group)

    def all_consumers(self) -> list[Consumer]:
        grouped = [consumer for registry in self.registries.values() for consumer in registry.open.values()]
        return [*self.consumers.values(), *grouped]

    def running(self) -> int:
        return sum(len(consumer.attempts.running) for consumer in self.all_consumers())

    def unsettled(self) -> int:
        return sum(consumer.unsettled for consumer in self.all_consumers())

    def at_rest(self) -> bool:
        """Whether nothing runs, nothing waits to be settled, and nothing may be pending of which nobody knows here."""
        return self.running() == 0 and not any(one.unsettled or one.unsure for one in self.all_consumers())

    def at_rest_but_for_threads(self) -> bool:
        """The same, but for jobs that threads run."""
        consumers = self.all_consumers()
        in_threads = sum(one.attempts.in_threads() for one in consumers)
        return self.running() == in_threads and not any(one.unsettled or one.unsure for one in consumers)

    def health(self) -> dict[str, Any]:
        """How this process is doing; see `Runtime.health`."""
        connected = self.broker.subscriber.connected and self.pump.outage_since is None
        lost_at, running, down = self.liveness.data_lost_at, self.running(), [*self.crew.down(), *self.lifeline.down()]
        return {
            "status": "ok" if connected and lost_at is None and not down else "degraded",
            "store": self.broker.address.text,
            "keeps": self.store.keeps if self.store else "unknown",
            "data_lost_at": lost_at,
            "process": self.liveness.process,
            "connected": connected,
            "loops_down": down,
            "seconds_since_beat": round(self.liveness.since_last_beat(), 3),
            "running": running,
            "unsettled": self.unsettled(),
            "invariants": at_a_glance(self, running),
            "groups": {name: len(registry.open) for name, registry in self.registries.items()},
            "tasks": self.scheduler.planned(),
        }

    async def settled(self, reached: Callable[[], bool], timeout: float) -> None:
        """Wait until `reached()`, for `timeout` seconds at most."""
        deadline = clock.monotonic() + timeout
        while not reached() and clock.monotonic() < deadline:  # noqa: ASYNC110 - counts of many consumers have no event
            await asyncio.sleep(0.01)

    async def drain(self, grace: float) -> None:
        """No new job starts, running ones get `grace` seconds and are cancelled then, and this process is gone.

        Takes at most `AFTER_GRACE` seconds more than that.
        """
        deadline = clock.monotonic() + grace

        def left(most: float) -> float:
            return max(0.1, min(most, deadline + AFTER_GRACE - clock.monotonic()))

        self.quiet = True
        self.scheduler.quiet()
        for registry in self.registries.values():
            registry.quiet = True
        for consumer in self.all_consumers():
            consumer.hush()
        tasks_end = asyncio.ensure_future(self.scheduler.stop(grace))
        try:
            await self.settled(self.at_rest, deadline - clock.monotonic())
            if self.running():
                for consumer in self.all_consumers():
                    consumer.cancel_all()
                await self.settled(lambda: self.running() == 0, left(STUBBORN + 0.5))
            await tasks_end
        finally:
            tasks_end.cancel()
        # Settling, leaving and flushing are for the living: what they miss, the lease brings back. A turn on the wire
        # may bring jobs, which go back; after a lost one it is not known which jobs are ours until they were adopted.
        await self.settled(self.at_rest_but_for_threads, left(LAST_WRITES))
        if not self.in_threads():
            await self.leave(left(LAST_WRITES))

    async def leave(self, timeout: float = LAST_WRITES) -> None:
        """This process is gone, for all others."""
        queues = [one.keys for one in self.all_consumers() if one.group_id is None or one.took or one.unsure]
        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(*(gate.correct() for gate in self.gates.values()))
                if self.specs() or self.scheduler.specs:
                    await self.broker.leave(queues, self.liveness.process)
        except (BrokerError, TimeoutError) as error:
            logger.debug("leaving: %s", error)

    async def close(self) -> None:
        """The end, after `leave`."""
        await self.lifeline.stop(self.end.left(0.5, keep=0.5))
        for aio_task in tuple(self.shop.stubborn) if hasattr(self, "shop") else ():
            leave_behind(aio_task)  # a handler that does not end keeps no process from ending
        error = await within(max(CLOSING, self.end.left()), self.stack.aclose)
        if error is not None:
            logger.warning("stopping: %s", said(error))

    async def undo(self) -> None:
        """Whatever a start has begun ends. It may have begun to work, and what it took goes back."""
        try:
            if hasattr(self, "liveness") and self.liveness.joined:
                await self.drain(0)
        finally:
            self.end = Deadline(UNDOING)
            await self.crew.stop(self.end.left(keep=0.5))
            await self.close()

    async def abandon(self) -> None:
        """The loop that all this belongs to has been closed without a stop: let go of it, from another one."""
        self.end = Deadline(UNDOING)
        self.crew.abandon()
        self.lifeline.abandon()
        self.broker.abandon()
        error = await within(UNDOING, self.stack.aclose)
        logger.debug("what is left of the old loop: %s", error)

    # Threads ----------------------------------------------------------------------------------------------
    def in_threads(self) -> int:
        """How many jobs and runs of tasks cannot be cancelled, because threads run them."""
        return sum(one.attempts.in_threads() for one in self.all_consumers()) + self.scheduler.in_threads()

    def linger(self) -> None:
        """Close when the threads have ended that run jobs or tasks: until then nobody else may run the same.

        The heartbeat goes on for as long, so the leases hold, and what a thread comes to is settled. All this ends with
        the loop as well: the process is about to end then, and its threads with it.
        """
        text = "%d jobs or tasks run in threads, which cannot be cancelled; they stay active until these end"
        logger.warning(text, self.in_threads())
        aio_task = asyncio.get_running_loop().create_task(self._outlive(), name="asyncjobs threads that go on")
        LINGERING.add(aio_task)
        aio_task.add_done_callback(LINGERING.discard)

    async def _outlive(self) -> None:
        try:
            while self.in_threads():  # noqa: ASYNC110 - a thread ends whenever it likes
                await asyncio.sleep(0.05)
            self.end = Deadline(AFTERWARDS)
            await self.settled(self.at_rest, LAST_WRITES)
            await self.leave()
        finally:
            self.end = Deadline(UNDOING)
            await self.close()

    async def keep_owned(self, process: str) -> None:
        """After a lapse: every try that another process took over meanwhile is cancelled."""
        await asyncio.gather(*(one.keep_owned(process) for one in self.all_consumers() if one.attempts.running))
