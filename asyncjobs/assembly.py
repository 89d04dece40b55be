"""The Assembly: the parts of a started runtime, and the order in which they are built, started, drained and closed.

The broker starts first and ends last, because all other parts use it. A process beats before it takes jobs, so that no
other process gives these jobs back. It listens for news before it looks for jobs, so that no job is missed in between.
A stop goes the other way round: no job begins, running jobs end or go back, decisions are settled, and after that the
process takes its name off the list.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from typing import Any, Final, TypeAlias

from asyncjobs import clock
from asyncjobs.active_job import ActiveJob
from asyncjobs.broker import WORK_CONNECTIONS, Broker, Store
from asyncjobs.cron.scheduler import Scheduler
from asyncjobs.declare.definition import JobSpec, TaskSpec
from asyncjobs.declare.loader import Loaded
from asyncjobs.declare.options import RuntimeConfig
from asyncjobs.declare.services import Services
from asyncjobs.declare.values import duration
from asyncjobs.embedded.store import EmbeddedStore
from asyncjobs.errors import BrokerError, ConfigError
from asyncjobs.events import EventBus
from asyncjobs.guests.calls import Deadline, leave_behind, within
from asyncjobs.guests.crossing import Crossing
from asyncjobs.guests.threads import Threads
from asyncjobs.history.recorder import Recorder
from asyncjobs.history.watch import Serves, Watch
from asyncjobs.logs import said
from asyncjobs.operate.tasks import declare
from asyncjobs.supervisor import Supervisor
from asyncjobs.upkeep.draining import Draining
from asyncjobs.upkeep.heartbeat import Heartbeat
from asyncjobs.upkeep.orders import Orders
from asyncjobs.upkeep.recovery import Recovery
from asyncjobs.upkeep.resuming import run_resuming
from asyncjobs.upkeep.retention import Trimmer
from asyncjobs.upkeep.watchdog import Watchdog
from asyncjobs.upkeep.word import Speaker
from asyncjobs.work.attempts import STUBBORN
from asyncjobs.work.pump import Pump
from asyncjobs.work.queues import Queues
from asyncjobs.work.shared import Shared
from asyncjobs.work.task_reuse import LoopRounds

logger, of_the_store = logging.getLogger("asyncjobs"), logging.getLogger("asyncjobs.store")

Scope: TypeAlias = Callable[[ActiveJob], AbstractContextManager[Any]]
TASK_THREADS: Final = 100  # most sync tasks at once
LAST_WRITES: Final = 2.0  # seconds after the drain, for each of settling, leaving and flushing
AFTER_GRACE: Final = 2.5  # seconds that a drain takes beyond its grace, at most
AGAIN: Final = 1.0  # seconds until the next try to consume a job
UNDOING: Final = 2.0  # seconds for undoing a failed start
CLOSING: Final = 0.5  # seconds that closing gets, even if the stop is late
AFTERWARDS: Final = 4.3  # seconds for all steps of a stop after the grace
LINGERING: Final[set[asyncio.Task[None]]] = set()  # tasks of stopped runtimes, held strongly


class Assembly:
    """The parts of a started runtime: built, launched, drained and closed in this order.

    `build` sets the attributes without a default, and puts the undoing of each on `stack`.
    """

    broker: Broker
    heartbeat: Heartbeat
    pump: Pump
    shared: Shared
    queues: Queues
    recovery: Recovery
    trimmer: Trimmer
    scheduler: Scheduler
    recorder: Recorder | None  # None: nothing is counted
    watch: Watch | None  # None: nothing is alerted
    orders: Orders

    def __init__(self, config: RuntimeConfig, bus: EventBus) -> None:
        self.config, self.bus = config, bus
        self.stack, self.supervisor = AsyncExitStack(), Supervisor()
        self.lifeline = Supervisor()  # loops that must go on while a thread runs a job or a task
        self.embedded: EmbeddedStore | None = None
        self.end = Deadline(float("inf"))  # the instant by which a stop must be over
        self.store: Store | None = None  # the store's own description
        self.watchdog: Watchdog | None = None
        self._beats = False

    # Starting ---------------------------------------------------------------------------------------------
    async def enter(self, services: Any) -> Any:
        """Enter the services. Returns the object that handlers get."""
        entered = Services(services)
        self.stack.push_async_callback(lambda: entered.leave(self.end.left(keep=0.3)))
        return await entered.enter()

    def crossing(self) -> Crossing:
        """Make the way from threads to this loop. It is closed with all other parts."""
        way = Crossing()
        self.stack.callback(way.close)
        return way

    def build(
        self, target: Any, given: Mapping[str, Any], way: Crossing, tasks: tuple[TaskSpec, ...], scope: Scope
    ) -> None:
        """Make all parts. No part runs yet.

        Args:
            target: the store to connect to.
            given: the arguments that handlers may ask for by name.
            scope: the context that is entered around each try.
        """
        config, stack = self.config, self.stack
        threads, task_threads = Threads(config.concurrency, way), Threads(TASK_THREADS, way)
        stack.callback(threads.close)
        stack.callback(task_threads.close)
        rounds = LoopRounds(None if config.loop_budget is None else duration(config.loop_budget))
        self.broker = Broker(
            target,
            prefix=config.prefix,
            process=os.urandom(6).hex(),
            connect_timeout=duration(config.connect_timeout),
            replicas=1 if config.durability == "replicated" else 0,
            loop=rounds,
        )
        stack.push_async_callback(lambda: self.broker.close(self.end.left(keep=0.5)))
        process = lambda: self.heartbeat.process  # noqa: E731 - the process gets another name after a lapse
        self.recorder = Recorder(self.broker, os.urandom(6).hex()) if config.history else None
        if self.recorder is not None:
            self.broker.count_for(self.recorder.added, self.recorder.cancelled)
        self.pump = Pump(self.broker, config.concurrency, process, lambda place: self.queues.consumer_at(place), rounds)
        stack.callback(self.pump.close)
        self.shared = Shared(
            self.broker,
            self.bus,
            self.pump,
            given,
            threads,
            scope,
            os.urandom(6).hex(),
            self.pump.rounds,
            self.recorder,
        )
        self.queues = Queues(self.shared, self.supervisor)
        stack.callback(self.queues.close)
        self.recovery = Recovery(self.shared, self.queues, process, duration(config.sweep_interval))
        self.trimmer = Trimmer(self.shared, self.queues)
        self.scheduler = Scheduler(self.broker, self.bus, tasks, given, task_threads, process)
        self.watch = None
        if self.recorder is not None and config.alerts is not None:
            self.watch = Watch(self.broker, self.bus, config.alerts, self.recorder, process, self._serves)
        self._build_heartbeat(process)

    def _serves(self) -> Serves:
        return Serves([spec.name for spec in self.queues.specs()], self.scheduler.instants())

    def _build_heartbeat(self, process: Callable[[], str]) -> None:
        """What shows that this process lives, and what the others say with theirs."""

        def fire_nothing(on: bool) -> None:
            self.scheduler.draining = on

        draining = Draining(self.broker, self.queues, process, fire_nothing)
        self.heartbeat = Heartbeat(
            self.broker,
            self.queues.leases,
            self.recovery.sweep,
            self.queues.keep_owned,
            Speaker(
                self.config, self.pump, self.queues, lambda: [spec.name for spec in self.scheduler.specs], self._lag
            ),
            draining.heard,
            self.queues.cancel,
        )
        self.orders = Orders(
            self.broker,
            self.supervisor,
            draining,
            process,
            self.scheduler.notes.look,
            self.scheduler.asked,
            self.queues.relearn,
        )

    def _lag(self) -> float | None:
        return None if self.watchdog is None else self.watchdog.lag()["now"]

    async def launch(self, loaded: Loaded) -> None:
        """Start the parts; the store has been reached."""
        supervisor, jobs = self.supervisor, loaded.jobs if self.config.consume else []
        if self.embedded is not None:
            embedded = self.embedded
            self.broker.subscriber.on_lost = lambda: supervisor.once("restarting the embedded store", embedded.ensure)
        if self.config.schedule:
            await declare(self.broker, loaded.tasks, self.config.environment)
        works = bool(jobs or self.scheduler.specs)
        if works:
            self.queues.expected = list(jobs)
            await self.join()
        if works:
            await self.broker.listen_for_cancels(self.queues.cancel)
        for spec in jobs:
            await self.queues.consume(spec)
        supervisor.start("subscriber", self.broker.subscriber.run)
        if works:
            self.show_life()
            longest = self.config.blocking_warning
            if longest is not None:
                lease = min(self.queues.leases().values())
                self.watchdog = Watchdog(min(duration(longest), lease / 3))
                supervisor.start("watchdog", self.watchdog.run)
        if self.config.consume:
            for connection in range(WORK_CONNECTIONS):
                self.lifeline.start("work", functools.partial(self.pump.run, connection))
            supervisor.start("sweeping", self.recovery.sweep_strangers, may_return=True)
            supervisor.start("sweep", self.recovery.run_looking)
            self.lifeline.start("shared_limits", self.recovery.run_telling)
            supervisor.start("retention", self.trimmer.run_trimming)
            supervisor.start("forgetting", self.trimmer.run_forgetting)
        await self.scheduler.start()
        if self.recorder is not None:
            supervisor.start("history", self.recorder.run)
        if self.watch is not None:
            self.watch.store = self.store
            supervisor.start("alerts", self.watch.run)
        with suppress(TimeoutError):  # it works without news, if worse, and `health` says so
            async with asyncio.timeout(duration(self.config.connect_timeout)):
                await self.broker.subscriber.opened()
        if self.config.gc_freeze:
            gc.collect()
            gc.freeze()

    async def check(self) -> None:
        """Reach the store, and log what it is.

        Raises:
            ConfigError: the store may delete jobs by itself.
            BrokerError: see `Runtime.start`.
        """
        config, address = self.config, self.broker.address
        store = self.store = await self.broker.check()
        of_the_store.info("the store %s is %s", address.text, store)
        if store.evicts and not config.allow_eviction:
            raise ConfigError(
                f"the store's maxmemory-policy is {store.policy!r}: short of memory it would delete jobs; "
                "set it to 'noeviction', or say Runtime(allow_eviction=True)"
            )
        if not store.durable:
            of_the_store.warning(
                "the store keeps nothing over a restart of its own; set appendonly to yes to keep jobs"
            )
        if config.durability == "replicated" and not store.replicas:
            of_the_store.warning("durability='replicated', and the store has no replica: every add will fail")

    async def join(self) -> None:
        """Send the first beat, before jobs are taken. Only the first call does that."""
        if not self.heartbeat.joined:
            await self.heartbeat.join()
            await self.orders.listen()

    async def begin(self, spec: JobSpec) -> None:
        """Consume a job that was registered on a running runtime, as soon as the store answers."""
        while not self.queues.quiet:
            try:
                await self.join()
                self.show_life()
                await self.queues.consume(spec)
                return
            except BrokerError as error:
                self.pump.throttled.warning(f"begin {spec.name}", "%s is not consumed yet: %s", spec.name, error)
                await asyncio.sleep(AGAIN)

    def resume(self, take_up: Callable[[], Awaitable[Any]]) -> None:
        """From now on `take_up` the operations that nobody drives any more."""
        interval = duration(self.config.sweep_interval)
        self.supervisor.start("operations", functools.partial(run_resuming, take_up, interval))

    def show_life(self) -> None:
        """Beat from now on."""
        if not self._beats:
            self._beats = True
            self.lifeline.start("heartbeat", self.heartbeat.run)
            self.lifeline.start("lapses and the dead", self.heartbeat.run_consequences)

    # Stopping ---------------------------------------------------------------------------------------------
    async def settled(self, reached: Callable[[], bool], timeout: float) -> None:
        """Wait until `reached()` is true, for `timeout` seconds at most."""
        deadline = clock.monotonic() + timeout
        while not reached() and clock.monotonic() < deadline:  # noqa: ASYNC110 - counts of many consumers have no event
            await asyncio.sleep(0.01)

    async def drain(self, grace: float) -> None:
        """Start no new job, give running jobs `grace` seconds, cancel them then, and take this process off the list.

        The drain takes at most `AFTER_GRACE` seconds more than the grace.
        """
        deadline = clock.monotonic() + grace

        def left(most: float) -> float:
            return max(0.1, min(most, deadline + AFTER_GRACE - clock.monotonic()))

        self.scheduler.quiet()
        self.queues.hush()
        tasks_end = asyncio.ensure_future(self.scheduler.stop(grace))
        try:
            await self.settled(self.queues.at_rest, deadline - clock.monotonic())
            if self.queues.running():
                self.queues.cancel_all()
                await self.settled(lambda: self.queues.running() == 0, left(STUBBORN + 0.5))
            await tasks_end
        finally:
            tasks_end.cancel()
        # If settling, leaving or flushing fails, the lease brings the jobs back. A turn on the wire may bring jobs, and
        # they go back. After a lost turn, this process does not know which jobs it owns until it has adopted them.
        await self.settled(self.queues.at_rest_but_for_threads, left(LAST_WRITES))
        if not self.in_threads():
            await self.leave(left(LAST_WRITES))

    async def leave(self, timeout: float = LAST_WRITES) -> None:
        """Flush what was counted, and take this process off the list, so that it is gone for all others."""
        queues = [one.keys for one in self.queues.all() if one.group_id is None or one.took or one.unsure]
        try:
            async with asyncio.timeout(timeout):
                if self.recorder is not None:
                    await self.recorder.flush()
                if self.watch is not None:
                    await self.watch.leave()
                await asyncio.gather(*(shared_limit.correct() for shared_limit in self.queues.shared_limits.values()))
                if self.queues.specs() or self.scheduler.specs:
                    await self.broker.leave(queues, self.heartbeat.process)
        except (BrokerError, TimeoutError) as error:
            logger.debug("leaving: %s", error)

    async def close(self) -> None:
        """The end, after `leave`."""
        await self.lifeline.stop(self.end.left(0.5, keep=0.5))
        for aio_task in tuple(self.shared.stubborn) if hasattr(self, "shared") else ():
            leave_behind(aio_task)  # a handler that does not end must not keep the process from ending
        error = await within(max(CLOSING, self.end.left()), self.stack.aclose)
        if error is not None:
            logger.warning("stopping: %s", said(error))

    async def undo(self) -> None:
        """End all that a failed start has begun. It may have begun to work, and then the jobs that it took go back."""
        try:
            if hasattr(self, "heartbeat") and self.heartbeat.joined:
                await self.drain(0)
        finally:
            self.end = Deadline(UNDOING)
            await self.supervisor.stop(self.end.left(keep=0.5))
            await self.close()

    async def abandon(self) -> None:
        """The loop that all this belongs to has been closed without a stop: let go of it, from another one."""
        self.end = Deadline(UNDOING)
        self.supervisor.abandon()
        self.lifeline.abandon()
        self.broker.abandon()
        error = await within(UNDOING, self.stack.aclose)
        logger.debug("letting go of the old loop: %s", error)

    # Threads ----------------------------------------------------------------------------------------------
    def in_threads(self) -> int:
        """The number of jobs and runs of tasks that cannot be cancelled, because threads run them."""
        return self.queues.in_threads() + self.scheduler.in_threads()

    def linger(self) -> None:
        """Close when the threads that run jobs or tasks have ended. Until then no other process may run the same jobs.

        The heartbeat goes on until then, so that the leases hold, and the threads' outcomes are settled. If the loop
        ends first, this ends as well: then the process is about to end, and its threads with it.
        """
        text = "%d jobs or tasks run in threads, which cannot be cancelled; they stay active until these end"
        logger.warning(text, self.in_threads())
        aio_task = asyncio.get_running_loop().create_task(self._outlive(), name="asyncjobs threads that go on")
        LINGERING.add(aio_task)
        aio_task.add_done_callback(LINGERING.discard)

    async def _outlive(self) -> None:
        try:
            while self.in_threads():  # noqa: ASYNC110 - threads set no event when they end
                await asyncio.sleep(0.05)
            self.end = Deadline(AFTERWARDS)
            await self.settled(self.queues.at_rest, LAST_WRITES)
            await self.leave()
        finally:
            self.end = Deadline(UNDOING)
            await self.close()
