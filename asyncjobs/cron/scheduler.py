"""The Scheduler: fires tasks on their tick, once over all processes, and when an operator asks for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.cron.run import Run, RunNotes
from asyncjobs.cron.tick import LONGEST_NAP, STEP_BACK, Tick
from asyncjobs.declare.cron_expression import last_tick
from asyncjobs.declare.definition import TaskSpec
from asyncjobs.declare.values import duration
from asyncjobs.errors import BrokerError
from asyncjobs.events import EventBus
from asyncjobs.guests.calls import leave_behind
from asyncjobs.guests.threads import InThread, Threads
from asyncjobs.logs import is_closing, log, told

logger = logging.getLogger("asyncjobs.cron")

LAST_NOTES: Final = 1.0  # seconds
LEASE: Final = 30.0  # seconds of silence after which a process that runs a task counts as dead


class Scheduler:
    """All tasks of one process.

    State: `_ticks`, one clock a task; `_running`, the aio_tasks of runs, held strongly; `_busy`, task name → runs
    in this process; `_runs`, the runs that have not ended; `_left`, the aio_tasks of runs that were left to their
    threads at stop; `_queued`, the tick that waits behind a run of an `every_instance` task; `notes`,
    what is written down of runs; `draining`, no tick fires until further notice.
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
        self._stopping = self.draining = False
        self.notes = RunNotes(broker)

    async def start(self) -> None:
        """Begin to tick. A task with ``misfire="once"`` runs once if ticks were missed while no process ran."""
        if self.specs:
            await self.notes.look()
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

        await self.notes.stop(LAST_NOTES)

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
            self._skip(spec, newest, f"missed by {late:.0f} s", "missed")

    async def _on_tick(self, spec: TaskSpec, scheduled: datetime) -> None:
        if self.draining:
            return  # another process takes it
        if spec.definition.every_instance:
            await self._own_tick(spec, scheduled)
            return
        due_ms = round(scheduled.timestamp() * 1000)
        while not self._stopping:
            process = self._process()
            try:
                verdict, wait = await self._broker.tick(
                    spec.name, due_ms, process, spec.definition.overlap, LEASE, bool(self._busy.get(spec.name))
                )
            except BrokerError as error:
                # Without a claim the tick might fire in each process, so the scheduler skips it and reports that.
                self._skip(spec, scheduled, f"the store did not answer: {error}", "store_away")
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
            elif verdict == "paused":
                self._skip(spec, scheduled, "it is paused")
                return
            elif verdict == "fire":
                if wait:
                    text = "a tick of %s was claimed %.0f s ahead: the store's clock was set back since; going on"
                    logger.warning(text, spec, wait)
                await self._run_and_release(Run(spec, scheduled, process))
                return
            else:
                return  # another process has taken the tick, or it waits behind the run that will take it

    async def asked(self, task: str, request: str) -> None:
        """An operator asks for a run of a task now: take it, unless another process does."""
        spec = next((one for one in self.specs if one.name == task), None)
        if spec is None or self._stopping or self.draining:
            return
        overlap, each = spec.definition.overlap, spec.definition.every_instance
        process, busy = self._process(), bool(self._busy.get(task))
        verdict, ms = await self._broker.take_run(task, request, process, overlap, LEASE, busy, each)
        scheduled = clock.from_ms(ms)
        if verdict == "overlap":
            self._skip(spec, scheduled, "the last run has not ended")
        elif verdict == "queued" and each:
            self._queued[task] = scheduled
        elif verdict == "fire":
            run = Run(spec, scheduled, process, asked=True)
            self._spawn(self._run_own(run) if each else self._run_and_release(run))

    async def _run_and_release(self, run: Run) -> None:
        following: Run | None = run
        while following is not None:
            run = following
            try:
                await self._run(run)
            except GeneratorExit:  # the loop is closing, so the run can await nothing any more
                raise
            except BaseException:
                if run.thread is None:
                    await self._release(run)
                raise
            following = None if run.thread is not None else await self._release(run)

    async def _release(self, run: Run) -> Run | None:
        """A run has ended. Returns the run of the tick that was queued behind it, if any."""
        spec = run.spec
        if spec.definition.overlap == "allow":
            self.notes.ended(run)
            return None
        try:
            queued = await self._broker.end_run(spec.name, run.process, not self._stopping, run.mark, run.told())
        except BrokerError as error:
            logger.warning("the end of %s could not be recorded: %s", spec.name, error)
            return None
        return Run(spec, clock.from_ms(queued), run.process) if queued else None

    async def _release_late(self, run: Run, thread: InThread) -> None:
        """The app had cancelled the aio_task of a run, and now the run's thread has ended."""
        self._ended(run, thread.error)
        self._over(run)
        if not run.spec.definition.every_instance:
            following = await self._release(run)
            if following is not None:
                await self._run_and_release(following)
            return
        self.notes.ended(run)
        due = None if self._stopping else self._queued.pop(run.spec.name, None)
        if due is not None:
            await self._own_tick(run.spec, due)

    async def _own_tick(self, spec: TaskSpec, scheduled: datetime) -> None:
        name, overlap = spec.name, spec.definition.overlap
        if name in self.notes.paused:
            self._skip(spec, scheduled, "it is paused", "paused")
        elif self._busy.get(name) and overlap == "queue":
            self._queued[name] = scheduled
        elif self._busy.get(name) and overlap == "skip":
            self._skip(spec, scheduled, "the last run has not ended", "overlap")
        else:
            run = Run(spec, scheduled, self._process())
            self.notes.begun(run)
            await self._run_own(run)

    async def _run_own(self, run: Run) -> None:
        """A run of a task that each process runs for itself, and what was queued behind it here."""
        while True:
            try:
                await self._run(run)
            finally:
                if run.thread is None:
                    self.notes.ended(run)
            due = None if self._stopping or run.thread is not None else self._queued.pop(run.spec.name, None)
            if due is None:
                return
            run = Run(run.spec, due, self._process())
            self.notes.begun(run)

    async def _run(self, run: Run) -> None:
        spec, scheduled = run.spec, run.scheduled
        run.aio_task = asyncio.current_task()
        self._bus.emit("task.fired", spec.name, scheduled_at=scheduled)
        self._busy[spec.name] = self._busy.get(spec.name, 0) + 1
        self._runs.add(run)
        try:
            _, raised = await spec.call.run(self._environment, self._threads, run)
            self._ended(run, raised)
        except asyncio.CancelledError as error:
            if self._stopping or run.thread is not None:
                run.ended(None, "")
                raise
            self._ended(run, error)
        except BaseException as error:
            if issubclass(type(error), GeneratorExit) and is_closing(run.aio_task):
                raise
            self._ended(run, error)
        finally:
            if run.thread is None:
                self._over(run)
            else:  # the app has cancelled the aio_task, so the run ends when its thread ends
                thread = run.thread
                thread.ended.add_done_callback(lambda ended: self._spawn(self._release_late(run, thread)))

    def _over(self, run: Run) -> None:
        self._busy[run.spec.name] -= 1
        self._runs.discard(run)

    def _ended(self, run: Run, error: BaseException | None) -> None:
        """Tell what a run has come to."""
        name, scheduled, duration = run.spec.name, run.scheduled, clock.monotonic() - run.began
        if error is None:
            self._bus.emit("task.completed", name, scheduled_at=scheduled, duration=duration)
            return
        self._bus.emit("task.failed", name, scheduled_at=scheduled, duration=duration, error=error)
        words = told(error)
        run.ended(error, words.text)
        parts = {"task": name, "outcome": "failed", "duration": duration, "error": words.text}
        log(logger, logging.ERROR, words, error, "task %s failed; it ticks again: %s", name, words.text, parts=parts)

    def _skip(self, spec: TaskSpec, scheduled: datetime, why: str, note: str = "") -> None:
        """A tick has no run. `note`: under what it is written down, unless it has been."""
        parts = {"task": spec.name, "outcome": "skipped", "error": why}
        text = "task %s skipped its tick of %s: %s"
        log(logger, logging.INFO, None, None, text, spec.name, scheduled.isoformat(), why, parts=parts)
        if note:
            self.notes.skipped(spec, scheduled, note, why)
        self._bus.emit("task.skipped", spec.name, scheduled_at=scheduled, error=why)
