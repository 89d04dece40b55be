"""The Scheduler: fires tasks on their tick, once over all processes; built on a thin subclass of aiocron.Cron.

aiocron pins the wall clock to the loop's once, at start. `Tick` reads it again at every wake, at least twice a
minute, so that clock steps, a suspended machine or a blocked loop neither shift later ticks nor fire one twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from datetime import UTC, datetime
from typing import Any, Final

import aiocron
from cronsim import CronSim

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.config import duration
from asyncjobs.cron import last_tick
from asyncjobs.definition import TaskSpec
from asyncjobs.errors import BrokerError
from asyncjobs.events import EventBus
from asyncjobs.stack import is_closing, log, told

logger = logging.getLogger("asyncjobs.cron")

LONGEST_NAP: Final = 30.0
LATE: Final = 30.0  # seconds behind its instant after which a tick counts as missed
STEP_BACK: Final = 1.0
LEASE: Final = 30.0  # seconds of silence after which a process that runs a task counts as dead


class Tick(aiocron.Cron):  # type: ignore[misc]  # aiocron has no types
    """One task's clock: calls `fire(scheduled)` at each tick, `missed(newest)` for what lies too far back.

    Attributes:
        scheduled: the next tick, UTC.
    """

    def __init__(
        self,
        spec: TaskSpec,
        fire: Callable[[datetime], None],
        missed: Callable[[datetime], None],
        wall: Callable[[], float],
    ) -> None:
        super().__init__(spec.definition.cron_time, tz=spec.zone, start=False, loop=asyncio.get_running_loop())
        self._fire, self._missed, self._wall = fire, missed, wall
        self._seen = self._last = 0.0
        self.scheduled = datetime.fromtimestamp(0, UTC)

    def initialize(self) -> None:
        """Begin at this instant."""
        self._seen = self._wall()
        self._last = max(self._last, self._seen)
        self.cronsim = CronSim(self.spec, datetime.fromtimestamp(self._seen, self.tz))

    def get_next(self) -> float:
        """Set `scheduled` to the first tick that lies ahead; returns the loop time of the next wake."""
        now = self._wall()
        for tick in self.cronsim:  # pragma: no branch - a checked expression always comes again
            # cronsim drops `fold`, and the clock may have stepped: what is past, or was fired, is skipped.
            if tick.timestamp() > max(now, self._last):
                self.scheduled = tick.astimezone(UTC)
                break
        return self._wake_at(now)

    def _wake_at(self, now: float) -> float:
        return float(self.loop.time() + min(max(0.0, self.scheduled.timestamp() - now), LONGEST_NAP))

    def call_next(self) -> None:
        """Woken: fire what is due, and arm the next wake."""
        now = self._wall()
        if now < self._seen - STEP_BACK:
            logger.info("the clock went back by %.1f s; %s is planned anew", self._seen - now, self.spec)
            self.cronsim = CronSim(self.spec, datetime.fromtimestamp(now, self.tz))
            self.handle = self.loop.call_at(self.get_next(), self.call_next)
            self._seen = now
            return
        self._seen = now
        due = self.scheduled.timestamp()
        if now < due:
            self.handle = self.loop.call_at(self._wake_at(now), self.call_next)
            return
        scheduled = self.scheduled
        self._last = due
        self.handle = self.loop.call_at(self.get_next(), self.call_next)
        if now - due <= LATE:
            self._fire(scheduled)
        else:
            newest = last_tick(self.spec, datetime.fromtimestamp(now, self.tz))
            self._missed(newest.astimezone(UTC) if newest else scheduled)


class Scheduler:
    """All tasks of one process.

    State: `_ticks`, one clock a task; `_running`, the aio_tasks of runs, held strongly; `_busy`, task name → runs
    in this process; `_queued`, the tick that waits behind a run of an `every_instance` task.
    """

    def __init__(
        self,
        broker: Broker,
        bus: EventBus,
        specs: tuple[TaskSpec, ...],
        environment: Mapping[str, Any],
        threads: Executor,
        process: Callable[[], str],
        wall: Callable[[], float] = clock.wall,
    ) -> None:
        self._broker, self._bus, self._specs = broker, bus, specs
        self._environment, self._threads, self._process, self._wall = environment, threads, process, wall
        self._ticks: list[Tick] = []
        self._running: set[asyncio.Task[None]] = set()
        self._busy: dict[str, int] = {}
        self._queued: dict[str, datetime] = {}
        self._stopping = False

    async def start(self) -> None:
        """Begin to tick; run once what was missed while nothing ran, where a task asks for it."""
        for spec in self._specs:
            await self._catch_up(spec)
            tick = Tick(
                spec,
                lambda due, spec=spec: self._spawn(self._on_tick(spec, due)),  # type: ignore[misc]
                lambda due, spec=spec: self._on_missed(spec, due),  # type: ignore[misc]
                self._wall,
            )
            tick.start()
            self._ticks.append(tick)

    def planned(self) -> dict[str, datetime]:
        """Task name → its next tick."""
        return {spec.name: tick.scheduled for spec, tick in zip(self._specs, self._ticks, strict=False)}

    def quiet(self) -> None:
        """No new firing from now on."""
        self._stopping = True
        for tick in self._ticks:
            tick.stop()
        self._ticks.clear()

    async def stop(self, grace: float) -> None:
        """Give what runs `grace` seconds, then cancel it."""
        self.quiet()
        if self._running:
            _, late = await asyncio.wait(tuple(self._running), timeout=grace)
            for aio_task in late:
                aio_task.cancel()
            if late:
                await asyncio.wait(late, timeout=1.0)

    def _spawn(self, run: Any) -> None:
        aio_task = asyncio.get_running_loop().create_task(run)
        self._running.add(aio_task)
        aio_task.add_done_callback(self._running.discard)

    async def _catch_up(self, spec: TaskSpec) -> None:
        if spec.definition.every_instance:
            return
        now = datetime.fromtimestamp(self._wall(), spec.zone)
        last_ms = await self._broker.last_tick(spec.name, int(now.timestamp() * 1000))
        newest = last_tick(spec.definition.cron_time, now)
        if newest is not None and newest.timestamp() * 1000 > last_ms:
            self._on_missed(spec, newest.astimezone(UTC))

    def _on_missed(self, spec: TaskSpec, newest: datetime) -> None:
        late = self._wall() - newest.timestamp()
        grace = duration(spec.definition.misfire_grace)
        if spec.definition.misfire == "once" and late <= grace:
            self._spawn(self._on_tick(spec, newest))
        else:
            self._skip(spec, newest, f"missed by {late:.0f} s")

    async def _on_tick(self, spec: TaskSpec, scheduled: datetime) -> None:
        if spec.definition.every_instance:
            await self._own_tick(spec, scheduled)
            return
        due_ms = round(scheduled.timestamp() * 1000)
        while not self._stopping:
            try:
                verdict, wait = await self._broker.tick(
                    spec.name, due_ms, self._process(), spec.definition.overlap, LEASE, bool(self._busy.get(spec.name))
                )
            except BrokerError as error:
                # Unclaimed it might fire in every process: rather not at all, and say so.
                self._skip(spec, scheduled, f"the store did not answer: {error}")
                return
            if verdict == "early":
                await asyncio.sleep(wait)  # this machine's clock is ahead of the store's
            elif verdict == "overlap":
                self._skip(spec, scheduled, "the last run has not ended")
                return
            elif verdict == "fire":
                await self._run_and_release(spec, scheduled)
                return
            else:
                return  # taken by another process, or queued behind the run that will take it

    async def _run_and_release(self, spec: TaskSpec, scheduled: datetime) -> None:
        due: datetime | None = scheduled
        while due is not None:
            try:
                await self._run(spec, due)
            finally:
                due = None
                if spec.definition.overlap != "allow":
                    try:
                        queued = await self._broker.tock(spec.name, self._process(), not self._stopping)
                        due = clock.from_ms(queued) if queued else None
                    except BrokerError as error:
                        logger.warning("the end of %s could not be recorded: %s", spec.name, error)

    async def _own_tick(self, spec: TaskSpec, scheduled: datetime) -> None:
        name, overlap = spec.name, spec.definition.overlap
        if self._busy.get(name) and overlap != "allow":
            if overlap == "queue":
                self._queued[name] = scheduled
            else:
                self._skip(spec, scheduled, "the last run has not ended")
            return
        due: datetime | None = scheduled
        while due is not None:
            await self._run(spec, due)
            due = None if self._stopping else self._queued.pop(name, None)

    async def _run(self, spec: TaskSpec, scheduled: datetime) -> None:
        self._bus.emit("task.fired", spec.name, scheduled_at=scheduled)
        self._busy[spec.name] = self._busy.get(spec.name, 0) + 1
        aio_task = asyncio.current_task()
        try:
            await spec.call.run(self._environment, self._threads)
        except asyncio.CancelledError as error:
            if self._stopping:
                raise
            self._failed(spec, scheduled, error)
        except BaseException as error:
            if issubclass(type(error), GeneratorExit) and is_closing(aio_task):
                raise
            self._failed(spec, scheduled, error)
        finally:
            self._busy[spec.name] -= 1

    def _failed(self, spec: TaskSpec, scheduled: datetime, error: BaseException) -> None:
        self._bus.emit("task.failed", spec.name, scheduled_at=scheduled, error=error)
        words = told(error)
        log(logger, logging.ERROR, words, error, "task %s failed; it ticks again: %s", spec.name, words.text)

    def _skip(self, spec: TaskSpec, scheduled: datetime, why: str) -> None:
        logger.info("task %s skipped its tick of %s: %s", spec.name, scheduled.isoformat(), why)
        self._bus.emit("task.skipped", spec.name, scheduled_at=scheduled, error=why)
