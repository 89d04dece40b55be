"""The Runtime: builds every part, starts and stops them in order; the one object that an app embeds."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Literal, Self

from asyncjobs.assembly import AFTERWARDS, LAST_WRITES, Assembly
from asyncjobs.declare import loader
from asyncjobs.declare.definition import JobDefinition, zone
from asyncjobs.declare.options import Alerts, RuntimeConfig
from asyncjobs.declare.services import Unmade, is_factory
from asyncjobs.declare.values import Seconds, duration, folder, keywords, seconds, strict
from asyncjobs.embedded.location import located
from asyncjobs.errors import NotRunningError
from asyncjobs.events import EventBus, Subscriber
from asyncjobs.following import Broadcast, Followed
from asyncjobs.guests.calls import Deadline
from asyncjobs.guests.crossing import Crossing, here
from asyncjobs.health import Health, health
from asyncjobs.home import Home
from asyncjobs.idle import idle
from asyncjobs.integrations.sentry import Sentry
from asyncjobs.live_updates import LiveUpdates
from asyncjobs.operate.names import tell_strangers
from asyncjobs.operate.oversight import Oversight
from asyncjobs.queue import Queue
from asyncjobs.registrations import JOB_OPTIONS, WORKER_OPTIONS, Function, Registrations, name_of

logger = logging.getLogger("asyncjobs")

State = Literal["stopped", "starting", "running", "stopping"]


@strict
class Runtime(Oversight, Followed):
    """Durable jobs, per-tenant groups, rate limits and cron tasks on the app's own event loop.

    Args:
        redis: a URL, a `redis.asyncio` client, or None: ``ASYNCJOBS_REDIS_URL``, else the embedded store.
        jobs, tasks: the folders, or None.
        services: an object, a mapping, or an (async) context manager factory, given to handlers.
        io: a `socketio.AsyncServer` or manager for live updates, or None.
        prefix: the beginning of all keys, so that several apps can share one Redis.
        environment: decides which tasks run; else ``ASYNCJOBS_ENV``, else ``development``.
        timezone: the zone in which cron expressions are read, unless a task names another.
        consume, schedule: False for a process that only adds, or that runs no tasks.
        durability: ``"replicated"`` makes each add wait for a replica.
        concurrency: most jobs at once in this process, of all kinds together.
        max_payload: bytes of JSON that one job may carry.
        max_result: bytes of JSON that a result, or a progress, may have. A job that returns more fails for good.
        connect_timeout: seconds in which the store must answer, at start and for each call.
        grace: seconds that running jobs get when the runtime stops, unless `stop` gives another number.
        sentry_capture, sentry_payload: report each failed try or only the last one; whether payloads may be sent.
        sweep_interval: seconds between two looks for work whose news was lost.
        data_dir: the folder of the embedded store. A relative one lies below the nearest pyproject.toml above the jobs.
            None: ``.asyncjobs``, and in the environment ``test`` a private one that is removed at stop.
        allow_eviction: start even on a store whose `maxmemory-policy` lets it delete jobs.
        strict_load: False leaves bad files of the folders out, instead of refusing to start.
        blocking_warning: seconds after which the log names the code that blocks the event loop; None: never.
        loop_budget: most seconds in a row that the runtime's own steps take before the loop serves the app again. A job
            may compute for longer by itself. None: no bound, for a process that only runs jobs.
        gc_freeze: the start ends with `gc.freeze()`, so no garbage collection stops the app to look at its objects.
        history: False: `queue.history` has nothing, and nothing is alerted.
        alerts: the bounds beyond which something is alerted; None: nothing is.
    Raises:
        ConfigError: an option has a value that is not allowed. The call does no I/O, so it is safe at import.
    """

    def __init__(
        self,
        redis: Any = None,
        *,
        jobs: str | os.PathLike[str] | None = None,
        tasks: str | os.PathLike[str] | None = None,
        services: Any = None,
        io: Any = None,
        prefix: str = "asyncjobs",
        environment: str | None = None,
        timezone: str = "America/Sao_Paulo",
        consume: bool = True,
        schedule: bool = True,
        durability: Literal["local", "replicated"] = "local",
        concurrency: int = 1000,
        max_payload: int = 1024 * 1024,
        max_result: int = 1024 * 1024,
        connect_timeout: Seconds = 10,
        grace: Seconds = 10,
        sentry_capture: Literal["every", "final"] = "every",
        sentry_payload: bool = False,
        sweep_interval: Seconds = 15,
        data_dir: str | os.PathLike[str] | None = None,
        allow_eviction: bool = False,
        strict_load: bool = True,
        blocking_warning: Seconds | None = 0.25,
        loop_budget: Seconds | None = 0.005,
        gc_freeze: bool = False,
        history: bool = True,
        alerts: Alerts | Mapping[str, Any] | None = Alerts(),  # noqa: B008 - it is frozen
    ) -> None:
        self.config = RuntimeConfig(
            prefix=prefix, timezone=timezone, consume=consume, schedule=schedule, durability=durability,
            environment=os.environ.get("ASYNCJOBS_ENV") or "development" if environment is None else environment,
            concurrency=concurrency, max_payload=max_payload, max_result=max_result, connect_timeout=connect_timeout,
            grace=grace, sentry_capture=sentry_capture, sentry_payload=sentry_payload, sweep_interval=sweep_interval,
            data_dir=None if data_dir is None else str(folder(data_dir, "data_dir")), allow_eviction=allow_eviction,
            strict_load=strict_load, blocking_warning=blocking_warning, loop_budget=loop_budget, gc_freeze=gc_freeze,
            history=history, alerts=alerts,  # type: ignore[arg-type]  # made of a dict where it is checked
        )  # fmt: skip
        zone(timezone)
        self._redis = redis
        self._jobs_folder = folder(jobs, "jobs")
        self._tasks_folder = folder(tasks, "tasks")
        self._services = services
        self._bus = EventBus()
        self._sentry = Sentry(self._bus, sentry_capture, sentry_payload)
        self._io = LiveUpdates(io)
        self._home = Home()
        self._queue = Queue(self._bus, max_payload, self._home)
        self._registered = Registrations(self._queue)
        self._looking = False
        self._state: State = "stopped"
        self._lock = asyncio.Lock()  # replaced in each new loop
        self._assembly: Assembly | None = None
        self._starting: asyncio.Timeout | None = None  # ends a start that `stop` is called in

    @property
    def queue(self) -> Queue:
        """The queue, which adds jobs and looks at them. In a handler's thread its methods block until they are done."""
        return here(self._queue)  # type: ignore[no-any-return]

    @property
    def io(self) -> LiveUpdates:
        """The live updates that handlers get as `io`."""
        return here(self._io)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        where = self._assembly.broker.address.text if self._assembly else "no store"
        return f"<Runtime {self.config.prefix} [{self._state}, {where}]>"

    # Registering in code ----------------------------------------------------------------------------------
    def job(self, name: str | Callable[..., Any] | None = None, **options: Any) -> Any:
        """Register a function as a job: ``@runtime.job("send-mail", attempts=10, limiter=Limiter(5, 1))``.

        The decorator returns the function itself, which a unit test can call, with an `add` like `queue.add`. On a
        running runtime the job can be added at once. It is consumed at once with ``autorun=True``, else from the next
        start on.
        """
        if callable(name):
            return self.job()(name)
        given = keywords(options, ("group", *JOB_OPTIONS, *WORKER_OPTIONS), "@runtime.job")

        def register(function: Function) -> Function:
            known = name_of(function) if name is None else name
            self.add_job(known, self._registered.definition(function, given))
            return self._registered.with_add(function, known)

        return register

    def add_job(self, name: str, definition: JobDefinition | Mapping[str, Any]) -> None:
        """Register a job by its definition. `job` describes when it is consumed.

        Raises:
            ConfigError: the name is taken, or an option is bad.
        """
        spec = self._registered.add_job(self.config, name, definition)
        parts = self._assembly if self.config.consume and spec.worker_options.autorun else None
        if parts is not None:
            self._home.check("runtime.add_job with autorun=True")
            parts.supervisor.once(f"starting {name}", lambda: parts.begin(spec))  # in the next loop turn
        self._registered.keep_job(spec)
        if self._state == "running" and self._assembly is not None and self._home.is_here():
            self._assembly.supervisor.once(f"announcing {name}", self._queue.announce)

    def task(self, cron_time: str, *, name: str | None = None, **options: Any) -> Callable[[Function], Function]:
        """Register a function as a cron task: ``@runtime.task("0 */3 * * *")``. Its `is_active` is True by default."""
        return self._registered.task(self.config, cron_time, name, options)

    def on(self, event_type: str, callback: Subscriber | None = None) -> Any:
        """Call `callback`, sync or async, with each `Event` of a type, ``"*"`` for all. Also a decorator.

        Returns:
            A function that ends the subscription; as a decorator, the callback.
        """
        if callback is not None:
            return self._bus.on(event_type, callback)

        def subscribe(function: Function) -> Function:
            self._bus.on(event_type, function)
            return function

        return subscribe

    # Life -------------------------------------------------------------------------------------------------
    async def start(self) -> Self:
        """Load the folders, reach the store, begin to work. Starting a started runtime does nothing.

        Raises:
            LoadError: the folders have bad files. No part was started.
            BrokerUnavailableError: the store was not reached within `connect_timeout`.
            ConfigError: the store cannot be started, is too old, or may delete jobs.
            BrokerError: the store refuses the connection, or a command that asyncjobs needs. The message names it.
            NotRunningError: `stop` was called meanwhile.
        """
        async with self._claimed("runtime.start"):
            if self._state == "running":
                return self
            self._state = "starting"
            parts = Assembly(self.config, self._bus)
            limit = self._starting = asyncio.timeout(None)
            try:
                try:
                    async with limit:
                        await self._build(parts)
                        self._assembly = parts
                        await self._launch(parts)
                finally:
                    self._starting = None
            except BaseException as error:
                self._assembly = None
                self._queue.close()
                await parts.undo()
                self._state = "stopped"
                if isinstance(error, TimeoutError) and limit.expired():
                    raise NotRunningError("the runtime was stopped while it was starting") from None
                raise
            self._state = "running"
        return self

    @asynccontextmanager
    async def _claimed(self, what: str) -> AsyncIterator[None]:
        """Start or stop alone, in the runtime's own loop. If that loop was closed, the running loop is the new home.

        Raises:
            NotRunningError: the runtime lives in another loop.
        """
        left: Assembly | None = None
        if not self._home.is_here():
            if self._state != "stopped":
                lost = self._home.lost()
                if not lost:
                    self._home.check(what)
                left, self._assembly, self._state = self._assembly if lost == "closed" else None, None, "stopped"
                self._queue.close()
                self._bus.abandon()
                self._io.close()
            self._home.enter()
            self._lock = asyncio.Lock()
        async with self._lock:
            if left is not None:
                logger.warning(
                    "the event loop of this runtime was closed without a stop; its leases bring its jobs back"
                )
                await left.abandon()
            yield

    async def _build(self, parts: Assembly) -> None:
        """Load the folders, and make all parts."""
        unmade = self._looking and is_factory(self._services)  # no job will run
        services = Unmade() if unmade else await parts.enter(self._services)
        given = {"queue": self._queue, "io": self._io, "services": services}
        way = parts.crossing()
        await self._registered.load(self.config, self._jobs_folder, self._tasks_folder, given, way)
        files = self._jobs_folder or self._tasks_folder
        target, parts.embedded = await located(self._redis, self.config, files, parts.stack)
        parts.build(target, given, way, self._registered.tasks_here(self.config), self._sentry.scope)

    async def _launch(self, parts: Assembly) -> None:
        """Reach the store, then begin to work."""
        await parts.check()
        self._sentry.silence_logs()
        self.queue.open(parts.broker)
        parts.supervisor.start("live update", self.io.run)
        await parts.launch(self.loaded)
        if self.config.consume:
            parts.resume(lambda: self._queue.operations.take_up())
        if not self._looking:
            await Broadcast(parts.broker, self._bus, parts.supervisor.once).begin()
            parts.supervisor.once("looking for jobs without a handler", lambda: tell_strangers(self._queue.strangers))

    async def load(self) -> loader.Loaded:
        """Load and check both folders without a store, as `python -m asyncjobs check` does.

        Raises:
            LoadError: the folders have bad files.
        """
        services = Unmade() if is_factory(self._services) else self._services
        given = {"queue": self._queue, "io": self._io, "services": services}
        await self._registered.load(self.config, self._jobs_folder, self._tasks_folder, given, Crossing())
        return self.loaded

    @property
    def loaded(self) -> loader.Loaded:
        """All jobs and tasks that are registered in code, or were found in files at the last start or `load`."""
        return self._registered.loaded

    async def stop(self, grace: Seconds | None = None) -> None:
        """quiet → drain → cancel: no new job starts, running jobs get `grace` seconds, the rest goes back uncounted.

        A thread cannot be cancelled. It keeps its job, and the runtime's connections and heartbeat go on in the
        background until the thread has ended. The process can end at any time, and then the leases bring the job back.

        A stop takes at most `grace` and a few seconds, whatever handlers do and whether the store answers or not.
        Stopping a stopped runtime does nothing. A stopped runtime may be started again.
        """
        allowed = duration(self.config.grace) if grace is None else seconds(grace, "grace")
        if self._state == "stopped" and self._assembly is None:
            return
        if self._starting is not None and self._home.is_here() and not self._starting.expired():
            self._starting.reschedule(0.0)
        async with self._claimed("runtime.stop"):
            parts = self._assembly
            if parts is None:
                return
            self._state = "stopping"
            parts.end = Deadline(allowed + AFTERWARDS)
            try:
                await parts.drain(allowed)
                last = parts.end.left(LAST_WRITES, keep=1.0)
                await asyncio.gather(self._bus.drain(last), self._io.flush(last), self._sentry.flush(last))
            finally:
                self._assembly = None
                self._queue.close()
                self._state = "stopped"
                parts.shared.threads.way.close()
                await parts.supervisor.stop(parts.end.left(0.5, keep=0.5))
                self._io.close()
                if parts.in_threads():
                    parts.linger()
                else:
                    await parts.close()

    @asynccontextmanager
    async def only_adding(self) -> AsyncIterator[Queue]:
        """Start only the parts that add and look, for a command that runs no job, and stop them at the end."""
        config = self.config
        self.config, self._looking = replace(config, consume=False, schedule=False, alerts=None), True
        try:
            async with self:
                yield self._queue
        finally:
            self.config, self._looking = config, False

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    # Embedding --------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[dict[str, Runtime]]:
        """For Starlette, FastAPI, Litestar: ``FastAPI(lifespan=runtime.lifespan)``; ``request.state.jobs`` is this."""
        async with self:
            yield {"jobs": self}

    async def cleanup_ctx(self, app: Any = None) -> AsyncIterator[None]:
        """For aiohttp: ``app.cleanup_ctx.append(runtime.cleanup_ctx)``."""
        async with self:
            yield

    # Looking ----------------------------------------------------------------------------------------------
    @property
    def state(self) -> State:
        return self._state

    async def wait_idle(self, timeout: Seconds | None = None) -> None:
        """Wait until no job that this runtime knows is waiting, active or delayed, in any process.

        Raises:
            JobTimeoutError: jobs are left after `timeout` seconds.
        """
        await idle(self.queue, self._running_here, None if timeout is None else seconds(timeout, "timeout"))

    def _running_here(self) -> int:
        parts = self._assembly
        return 0 if parts is None else parts.queues.running() + parts.queues.unsettled()

    def health(self) -> Health:
        """The state of this runtime, without a question to the store; see `Health`."""
        return {**health(self._assembly, self._bus, self._io), "state": self._state}

    def acknowledge_data_loss(self) -> None:
        """Acknowledge that the store has lost its data, so that `health` is well again."""
        if self._assembly is not None:
            self._assembly.heartbeat.data_lost_at = None
