"""The Queue: the front door. It checks jobs, builds them and gives them to the broker; it never starts a consumer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from asyncjobs import clock
from asyncjobs.broker import AddCall, Broker
from asyncjobs.declare.add_options import ADD_OPTIONS, AT_ONCE, due_of, group_of, id_text
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.options import Backoff, JobOptions, KeepRule
from asyncjobs.declare.overrides import NO_OVERRIDES, Overrides
from asyncjobs.declare.values import UNSET, Seconds, Unset, keywords, shown
from asyncjobs.errors import ConfigError, NotRunningError, PayloadError, UnknownJobError
from asyncjobs.history.asking import PastFigures
from asyncjobs.home import Home
from asyncjobs.job import Job, counts_of, new_id, read_job
from asyncjobs.limits.bounds import Bounds
from asyncjobs.operate.copying import Copier
from asyncjobs.operate.desk import Desk
from asyncjobs.operator import Operator

if TYPE_CHECKING:
    from asyncjobs.events import EventBus

NOTHING: Final[Mapping[str, Any]] = {}


class Queue(Desk, PastFigures):
    """Adds jobs of a runtime, and looks at them. `runtime.queue` and a handler's `queue` are the same object.

    State: `_specs`, name → registered job; `_names`, reference → name and handler; the broker, present while the
    runtime runs.
    """

    def __init__(self, bus: EventBus, max_payload: int, home: Home) -> None:
        self._bus = bus
        self._max_payload = max_payload
        self._specs: dict[str, JobSpec] = {}
        self._names: dict[Any, tuple[str, Any]] = {}
        self._broker: Broker | None = None
        self._home = home
        self._bounds = Bounds()
        copier = Copier(self._running, self._specs, self.spec, self._bounds, max_payload)
        self.operator = Operator(bus, copier)

    # The runtime's side -----------------------------------------------------------------------------------
    def register(self, spec: JobSpec) -> None:
        self._specs[spec.name] = spec
        handle = spec.definition.handle
        self.refer(handle, spec.name)
        behind = getattr(handle, "__wrapped__", handle)
        self._names.setdefault(_reference(behind), (spec.name, behind))

    def refer(self, handle: Callable[..., Any], name: str) -> None:
        """Let `handle` mean the job called `name` where jobs are added by reference."""
        self._names[_reference(handle)] = (name, handle)

    def unregister(self, name: str) -> None:
        spec = self._specs.pop(name, None)
        if spec is not None:
            self._names = {key: one for key, one in self._names.items() if one[0] != name}

    def open(self, broker: Broker) -> None:
        self._broker = broker

    def close(self) -> None:
        self._broker = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all jobs that may be added."""
        return tuple(sorted(self._specs))

    # Adding -----------------------------------------------------------------------------------------------
    async def add(
        self,
        job: str | Callable[..., Any],
        data: Any = None,
        *,
        group_id: str | int | None = None,
        job_id: str | None = None,
        delay: Seconds | None = None,
        at: datetime | None = None,
        attempts: int | Unset | None = UNSET,
        backoff: Backoff | Mapping[str, Any] | Seconds | Unset | None = UNSET,
        timeout: Seconds | Unset | None = UNSET,
        remove_on_complete: KeepRule | Mapping[str, Any] | Unset = UNSET,
        remove_on_fail: KeepRule | Mapping[str, Any] | Unset = UNSET,
    ) -> Job:
        """Add one job. Once this call returns, the job will run, through any crash of any process.

        Args:
            job: the job's name, or its handler.
            data: the payload: JSON, or a value of the type that the handler declares for `data`.
            group_id: the group of a grouped job; required for it, refused for other jobs.
            job_id: your own id. If any job has this id, in any state, no job is added, and `added` is False.
            delay: seconds from now, 0 for at once; or `at`, an aware datetime.
            attempts, backoff, timeout, remove_on_complete, remove_on_fail: this job's own options, over those of its
                definition.
        Raises:
            UnknownJobError, PayloadError, ConfigError: the job was not sent.
            NotRunningError: the runtime is not started.
            BrokerUnavailableError: no answer. The job is wholly there or not at all, and a repeat with the id in
                `job_ids` cannot add it twice.
            BrokerError: the store refused, and no job was added.
            QueueFullError: as many jobs wait as `max_waiting` allows.
        """
        own = (attempts, backoff, timeout, remove_on_complete, remove_on_fail)
        given: Mapping[str, Any] = NOTHING
        if any(value is not UNSET for value in own):
            given = {name: value for name, value in zip(ADD_OPTIONS[4:], own, strict=True) if value is not UNSET}
        broker = self._running("add")
        call, handle = self._prepare(broker, job, data, group_id, job_id, delay, at, given)
        if call.place.registry:
            (call,) = await self._bounds.laid_over(broker, [call])
        (reply,) = await broker.add([call])
        return self._added(handle, reply.added, clock.from_ms(reply.at_ms))

    async def add_bulk(self, jobs: Iterable[tuple[Any, ...]]) -> list[Job]:
        """Add many jobs in one round trip: ``(job, data)`` or ``(job, data, options)`` each.

        All jobs are checked before any is sent. The error names a bad job by its index, and then no job is added.
        """
        broker = self._running("add_bulk")
        calls, handles = [], []
        for place, one in enumerate(tuple(jobs) if isinstance(jobs, list) else jobs):
            await broker.loop.breathe()
            if not isinstance(one, (tuple, list)) or not 1 <= len(one) <= 3:
                raise ConfigError(f"add_bulk[{place}]={shown(one)}: expected (job, data) or (job, data, options)")
            data, options = one[1] if len(one) > 1 else None, one[2] if len(one) > 2 else None
            try:
                if options:
                    known = keywords(options, ADD_OPTIONS, "an add")
                    group_id, job_id, delay, at = (known.pop(name, None) for name in ADD_OPTIONS[:4])
                    call, handle = self._prepare(broker, one[0], data, group_id, job_id, delay, at, known)
                else:
                    call, handle = self._prepare(broker, one[0], data)
            except (ConfigError, PayloadError) as error:
                raise type(error)(f"add_bulk[{place}]: {error}") from error
            calls.append(call)
            handles.append(handle)
        if not calls:
            return []
        replies = await broker.add(await self._bounds.laid_over(broker, calls))
        at_ms, added_at = -1, None
        for handle, reply in zip(handles, replies, strict=True):
            if added_at is None or reply.at_ms != at_ms:  # computed once, since a script adds hundreds at one instant
                at_ms, added_at = reply.at_ms, clock.from_ms(reply.at_ms)
            self._added(handle, reply.added, added_at)
            await broker.loop.breathe()
        return handles

    def _prepare(
        self,
        broker: Broker,
        job: str | Callable[..., Any],
        data: Any,
        group_id: Any = None,
        job_id: Any = None,
        delay: Any = None,
        at: Any = None,
        given: Mapping[str, Any] = NOTHING,
    ) -> tuple[AddCall, Job]:
        spec = self._specs.get(job) if type(job) is str else None
        if spec is None:
            spec = self.spec(job)
        group = group_of(spec, group_id) if spec.grouped or group_id is not None else None
        named = job_id is not None
        identity = id_text(job_id, "job_id") if named else new_id()
        raw = spec.codec.encode(data, self._max_payload)
        overrides = Overrides.of(given, JobOptions(**given)) if given else NO_OVERRIDES
        due = AT_ONCE if delay is None and at is None else due_of(delay, at)
        place = broker.place(spec.name, group)
        call = AddCall(place, identity, due[0], due[1], raw, overrides.encode() if given else b"", named)
        handle = Job(
            identity, spec.name, group, data, attempts=overrides.attempts(spec.job_options),
            _broker=broker, _keys=place.keys, _spec=spec, _operator=self.operator,
        )  # fmt: skip
        if due[1]:
            handle.due_at = clock.from_ms(due[1] if due[0] == "at" else clock.wall() * 1000 + due[1])
        return call, handle

    def _added(self, job: Job, added: bool, added_at: datetime) -> Job:
        job.added = added
        if added:
            job.added_at = added_at
            job.state = "delayed" if job.due_at is not None and job.due_at > added_at else "waiting"
            self._bus.counters.added += 1
            if self._bus.wants("job.added"):
                self._bus.emit("job.added", job.name, job_id=job.id, group_id=job.group_id)
        else:
            job.due_at = None
        return job

    # Looking ----------------------------------------------------------------------------------------------
    async def get_job(
        self, name: str | Callable[..., Any], job_id: str, group_id: str | int | None = None
    ) -> Job | None:
        """Read a job; None if there is no job with that id (any more)."""
        broker, spec = self._running("get_job"), self.spec(name)
        group = group_of(spec, group_id)
        keys = broker.queue_keys(spec.name, group)
        due, record = await broker.read(keys, id_text(job_id, "job_id"))
        if "d" not in record:
            return None
        return read_job(broker, spec, spec.name, keys, group, job_id, due, record, operator=self.operator)

    async def counts(self, name: str | Callable[..., Any], group_id: str | int | None = None) -> dict[str, int]:
        """How many jobs are in each state. For a grouped job without `group_id`: over all its groups.

        `cancelled` is a key only if there are such jobs. A state that is missing counts 0.
        """
        broker, spec = self._running("counts"), self.spec(name)
        if group_id is None:
            counts = await broker.total_counts(spec.name)
        else:
            counts = await broker.counts(broker.queue_keys(spec.name, group_of(spec, group_id)))
        return counts_of(counts)

    async def groups(self, name: str | Callable[..., Any]) -> list[str]:
        """The ids of the groups that are not reaped, sorted."""
        broker, spec = self._running("groups"), self.spec(name)
        if not spec.grouped:
            raise ConfigError(f"{spec.name} has no groups; group=True in its definition gives each group_id a queue")
        return sorted([group_id async for page in broker.groups(spec.name) for group_id in page])

    def spec(self, job: str | Callable[..., Any]) -> JobSpec:
        """The registered job with this name or handler."""
        name = job if isinstance(job, str) else _name_of(job, self._names, self._specs)
        spec = self._specs.get(name)
        if spec is None:
            raise UnknownJobError(name, self._specs)
        return spec

    def _running(self, what: str, of: str = "queue") -> Broker:
        """The broker, for the method `what` that was called, `of` the queue or of the runtime.

        Raises:
            NotRunningError: the runtime does not run, or runs in another loop.
        """
        if self._broker is None:
            raise NotRunningError(
                "the runtime is not running; start it with `async with runtime`, `lifespan=runtime.lifespan`, "
                "`cleanup_ctx`, or `await runtime.start()`"
            )
        if not self._home.is_here():
            self._home.check(f"{of}.{what}")
        return self._broker


def _name_of(handle: Any, names: Mapping[Any, tuple[str, Any]], known: Iterable[str]) -> str:
    name, _ = names.get(_reference(handle), (None, None))
    if name is None:
        raise UnknownJobError(getattr(handle, "__qualname__", None) or shown(handle), known)
    return name


def _reference(handle: Any) -> Any:
    """The key under which a handler is found: a function or a method itself, or the identity of a callable object."""
    if isinstance(handle, (staticmethod, classmethod)):
        handle = handle.__func__
    return handle if inspect.isroutine(handle) else (id(handle), type(handle))
