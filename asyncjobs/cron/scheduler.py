"""The Scheduler: fires tasks on their tick, once over all processes; built on a thin subclass of aiocron.Cron.

aiocron pins the wall clock to the loop's once, at start. `Tick` reads it again at every wake, at least twice a
minute, so that clock steps, a suspended machine or a blocked loop neither shift later ticks nor fire one twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import aiocron

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.declare.cron_expression import Ticks, last_tick
from asyncjobs.declare.definition import TaskSpec
from asyncjobs.declare.values import duration
from asyncjobs.errors import AsyncjobsError, BrokerError, NotRunningError
from asyncjobs.events import EventBus
from asyncjobs.guests.calls import leave_behind
from asyncjobs.guests.threads import InThread, Threads
from asyncjobs.logs import is_closing, log, told

logger = logging.getLogger("asyncjobs.declare.cron_expression")

LONGEST_NAP: Final = 30.0
MOST_PAST: Final = 1000  # past ticks that are skipped one by one
LATE: Final = 30.0  # seconds behind its instant after which a tick counts as missed
STEP_BACK: Final = 1.0
STEPS: Final = 7200.0  # seconds; if the clock goes back by more, it was wrong before
LEASE: Final = 30.0  # seconds of silence after which a process that runs a task counts as dead


class Tick(aiocron.Cron):  # type: ignore[misc]  # aiocron has no types
    """The clock of one task: it calls `fire(scheduled)` at each tick, and `missed(newest)` for ticks too far back.

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
        self.handle: asyncio.TimerHandle | None = None
        self.scheduled = datetime.fromtimestamp(0, UTC)

    def initialize(self) -> None:
        """Begin at this instant."""
        self._seen = self._wall()
        self._last = max(self._last, self._seen)
        self.cronsim = Ticks(self.spec, datetime.fromtimestamp(self._seen, self.tz))

    def get_next(self) -> float:
        """Set `scheduled` to the first tick that lies ahead. Returns the loop time of the next wake."""
        now = self._wall()
        past = 0
        while True:
            tick = next(self.cronsim)
            # cronsim drops `fold`, and the clock may have stepped, so ticks that are past or were fired are skipped.
            if tick.timestamp() > max(now, self._last):
                self.scheduled = tick.astimezone(UTC)
                return self._wake_at(now)
            past += 1
            if past == MOST_PAST:  # the clock has made a long step; the ticks within it are not walked one by one
                self.cronsim = Ticks(self.spec, datetime.fromtimestamp(max(now, self._last), self.tz))

    def _wake_at(self, now: float) -> float:
        return float(self.loop.time() + min(max(0.0, self.scheduled.timestamp() - now), LONGEST_NAP))

    def replan(self) -> None:
        """Begin anew at this instant: the clock was ahead, so the ticks that it fired did not run."""
        now = self._wall()
        self._last = now
        self.cronsim = Ticks(self.spec, datetime.fromtimestamp(now, self.tz))
        if self.handle is not None:
            self.handle.cancel()
        self.handle = self.loop.call_at(self.get_next(), self.call_next)

    def call_next(self) -> None:
        """Fire the ticks that are due, and arm the next wake."""
        now = self._wall()
        if now < self._seen - STEP_BACK:
            logger.info("the clock went back by %.1f s; %s is planned anew", self._seen - now, self.spec)
            self.cronsim = Ticks(self.spec, datetime.fromtimestamp(now, self.tz))
            if self._last - now > STEPS:
                self._last = now
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


class Run:
    """One run of a task, in an aio_task or in a thread.

    State: `aio_task`, in which the run began; `late`, the runtime stops and its grace is over.
    """

    __slots__ = ("aio_task", "late", "scheduled", "spec", "thread")

    def __init__(self, spec: TaskSpec, scheduled: datetime) -> None:
        self.spec, self.scheduled = spec, scheduled
        self.aio_task = asyncio.current_task()
        self.thread: InThread | None = None
        self.late = False

    def refusal(self) -> AsyncjobsError | None:
        """Why the run's thread may not use its queue and io any more; None: it may."""
        return (
            NotRunningError(f"the runtime stops, and the grace of task {self.spec.name} is over") if self.late else None
        )

    def returned(self, awaitable: bool) -> None:
        if self.late and awaitable:
            raise asyncio.CancelledError


class Scheduler:
    """All tasks of one process.

    State: `_ticks`, one clock a task; `_running`, the aio_tasks of runs, held strongly; `_busy`, task name → runs
    in this process; `_runs`, the runs that have not ended; `_left`, the aio_tasks of runs that were left to their
    threads at stop; `_queued`, the tick that waits behind a run of an `every_instance` task.
    """

    def __init__(
        self,
        broker: Broker,
        bus: EventBus,
        specs: tuple[TaskSpec, ...],
        environment: Mapping[str, Any],
        threads: Threads,
        process: Callable[[], str],
        wall: Callable[[], float] = clock.wall,
    ) -> None:
        self._broker, self._bus, self.specs = broker, bus, specs
        self._environment, self._threads, self._process, self._wall = environment, threads, process, wall
        self._ticks: list[Tick] = []
        self._running: set[asyncio.Task[None]] = set()
        self._busy: dict[str, int] = {}
        self._runs: set[Run] = set()
        self._left: set[asyncio.Task[Any]] = set()
        self._queued: dict[str, datetime] = {}
        self._stopping = False

    async def start(self) -> None:
        """Begin to tick. A task with ``misfire="once"`` runs once if ticks were missed while no process ran."""
        for spec in self.specs:
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
        return {spec.name: tick.scheduled for spec, tick in zip(self.specs, self._ticks, strict=False)}

    def instants(self) -> dict[str, tuple[int, int]]:
        """Task → ms of its last tick that was due, 0 for none, and of the next one; of those that one process ticks."""
        found: dict[str, tuple[int, int]] = {}
        for spec, tick in zip(self.specs, self._ticks, strict=False):
            if not spec.definition.every_instance:
                last = last_tick(spec.definition.cron_time, datetime.fromtimestamp(self._wall(), spec.zone))
                found[spec.name] = (clock.to_ms(last) if last else 0, clock.to_ms(tick.scheduled))
        return found

    def quiet(self) -> None:
        """Fire no tick from now on."""
        self._stopping = True
        for tick in self._ticks:
            tick.stop()
        self._ticks.clear()

    async def stop(self, grace: float) -> None:
        """Give running tasks `grace` seconds, then cancel them. Runs in threads go on, as no thread can be stopped."""
        self.quiet()
        if self._running:
            _, late = await asyncio.wait(tuple(self._running), timeout=grace)
            for run in self._runs:
                run.late = True
                if run.thread is not None and run.thread.running and run.aio_task is not None:
                    run.thread.interrupt()
                    self._left.add(run.aio_task)
            late -= self._left
            for aio_task in late:
                aio_task.cancel()
            if late:
                _, stubborn = await asyncio.wait(late, timeout=1.0)
                for aio_task in stubborn:
                    leave_behind(aio_task)

    def in_threads(self) -> int:
        """The number of runs that go on in threads after the grace."""
        left = {one for one in self._left if not one.done()}
        return len(left) + sum(run.thread is not None and run.aio_task not in left for run in self._runs)

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
                # Without a claim the tick might fire in each process, so the scheduler skips it and reports that.
                self._skip(spec, scheduled, f"the store did not answer: {error}")
                return
            if verdict == "early":
                await asyncio.sleep(min(wait, LONGEST_NAP))  # the clock of this machine is ahead of the store's
                if scheduled.timestamp() > self._wall() + STEP_BACK:
                    for one, tick in zip(self.specs, self._ticks, strict=False):
                        if one is spec:
                            tick.replan()  # the clock is right again, and the tick comes when it is due
                    return
            elif verdict == "overlap":
                self._skip(spec, scheduled, "the last run has not ended")
                return
            elif verdict == "fire":
                if wait:
                    text = "a tick of %s was claimed %.0f s ahead: the store's clock was set back since; going on"
                    logger.warning(text, spec, wait)
                await self._run_and_release(spec, scheduled)
                return
            else:
                return  # another process has taken the tick, or it waits behind the run that will take it

    async def _run_and_release(self, spec: TaskSpec, scheduled: datetime) -> None:
        due: datetime | None = scheduled
        while due is not None:
            run = Run(spec, due)
            try:
                await self._run(run)
            except GeneratorExit:  # the loop is closing, so the run can await nothing any more
                raise
            except BaseException:
                if run.thread is None:
                    await self._release(spec)
                raise
            due = None if run.thread is not None else await self._release(spec)

    async def _release(self, spec: TaskSpec) -> datetime | None:
        """A run has ended. Returns the tick that was queued behind it, if any."""
        if spec.definition.overlap == "allow":
            return None
        try:
            queued = await self._broker.end_run(spec.name, self._process(), not self._stopping)
        except BrokerError as error:
            logger.warning("the end of %s could not be recorded: %s", spec.name, error)
            return None
        return clock.from_ms(queued) if queued else None

    async def _release_late(self, run: Run, thread: InThread) -> None:
        """The app had cancelled the aio_task of a run, and now the run's thread has ended."""
        if thread.error is not None:
            self._failed(run.spec, run.scheduled, thread.error)
        self._over(run)
        if not run.spec.definition.every_instance:
            due = await self._release(run.spec)
        else:
            due = None if self._stopping else self._queued.pop(run.spec.name, None)
        if due is not None:
            await (self._own_tick if run.spec.definition.every_instance else self._run_and_release)(run.spec, due)

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
            await self._run(Run(spec, due))
            due = None if self._stopping else self._queued.pop(name, None)

    async def _run(self, run: Run) -> None:
        spec, scheduled = run.spec, run.scheduled
        self._bus.emit("task.fired", spec.name, scheduled_at=scheduled)
        self._busy[spec.name] = self._busy.get(spec.name, 0) + 1
        self._runs.add(run)
        try:
            _, raised = await spec.call.run(self._environment, self._threads, run)
            if raised is not None:
                self._failed(spec, scheduled, raised)
        except asyncio.CancelledError as error:
            if self._stopping or run.thread is not None:
                raise
            self._failed(spec, scheduled, error)
        except BaseException as error:
            if issubclass(type(error), GeneratorExit) and is_closing(run.aio_task):
                raise
            self._failed(spec, scheduled, error)
        finally:
            if run.thread is None:
                self._over(run)
            else:  # the app has cancelled the aio_task, so the run ends when its thread ends
                thread = run.thread
                thread.ended.add_done_callback(lambda ended: self._spawn(self._release_late(run, thread)))

    def _over(self, run: Run) -> None:
        self._busy[run.spec.name] -= 1
        self._runs.discard(run)

    def _failed(self, spec: TaskSpec, scheduled: datetime, error: BaseException) -> None:
        self._bus.emit("task.failed", spec.name, scheduled_at=scheduled, error=error)
        words = told(error)
        log(logger, logging.ERROR, words, error, "task %s failed; it ticks again: %s", spec.name, words.text)

    def _skip(self, spec: TaskSpec, scheduled: datetime, why: str) -> None:
        logger.info("task %s skipped its tick of %s: %s", spec.name, scheduled.isoformat(), why)
        self._bus.emit("task.skipped", spec.name, scheduled_at=scheduled, error=why)
