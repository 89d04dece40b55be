"""Definitions: what a file in jobs/ or tasks/ declares. Specs: the same definitions, ready to run."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from asyncjobs.declare.annotations import annotation_of
from asyncjobs.declare.cron_expression import next_tick, normalise
from asyncjobs.declare.options import JobOptions, Retention, WorkerOptions, limiters
from asyncjobs.declare.payload import MOST, Codec
from asyncjobs.declare.queue_limits import queue_limits
from asyncjobs.declare.values import UNSET, Seconds, Unset, build, choice, duration, flag, put, seconds, shown, strict
from asyncjobs.errors import ConfigError
from asyncjobs.guests.threads import Owner, Threads

JOB_ARGUMENTS: Final = ("data", "job", "queue", "io", "services")
TASK_ARGUMENTS: Final = ("services", "queue", "io")
DEFINE_ARGUMENTS: Final = ("services", "queue", "io")
OF_THE_LOOP: Final = ("job", "queue", "io")  # a sync function is given them as a thread sees them
SUSPECT: Final = 2  # stalls after which a job is a suspect: a process runs one suspect at a time
NO_BOUNDS: Final = (-1, -1)
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Overlap = Literal["skip", "queue", "allow"]
Misfire = Literal["skip", "once"]


def function(value: Any, option: str) -> Callable[..., Any]:
    """Return `value` if it can be called: a function, a method, a partial, or an object with ``__call__``.

    Raises:
        ConfigError: `value` is none of these.
    """
    if isinstance(value, staticmethod):
        value = value.__func__
    if isinstance(value, classmethod):
        raise ConfigError(f"{option}={shown(value)}: a classmethod is bound when its class is made; give Class.method")
    if isinstance(value, type):
        raise ConfigError(f"{option}={shown(value)}: expected a function, and this is a class; give an instance of it")
    if not callable(value):
        raise ConfigError(f"{option}={shown(value)}: expected a function")
    return value  # type: ignore[no-any-return]


@strict
@dataclass(frozen=True, slots=True)
class JobDefinition:
    """A job: its handler, and the options of its tries and of its queue. `group`: each add names a ``group_id``."""

    handle: Callable[..., Any]
    job_options: JobOptions | Mapping[str, Any] = field(default_factory=JobOptions)
    worker_options: WorkerOptions | Mapping[str, Any] = field(default_factory=WorkerOptions)
    group: bool = False

    def __post_init__(self) -> None:
        put(self, handle=function(self.handle, "handle"))
        put(self, job_options=build(JobOptions, self.job_options, "job_options"))
        put(self, worker_options=build(WorkerOptions, self.worker_options, "worker_options"))
        flag(self.group, "group")


@strict
@dataclass(frozen=True, slots=True)
class TaskDefinition:
    """A cron task: what runs, when, where, and what happens to ticks that overlap or were missed."""

    task: Callable[..., Any]
    cron_time: str
    is_active: bool | Unset = UNSET
    environments: list[str] | tuple[str, ...] | None = None
    timezone: str | None = None
    every_instance: bool = False
    overlap: Overlap = "skip"
    misfire: Misfire = "skip"
    misfire_grace: Seconds = 3600

    def __post_init__(self) -> None:
        put(self, task=function(self.task, "task"))
        put(self, cron_time=normalise(self.cron_time))
        if not isinstance(self.is_active, Unset):
            flag(self.is_active, "is_active")
        if self.environments is not None:
            given = self.environments
            if not isinstance(given, (list, tuple, set, frozenset)) or not all(isinstance(one, str) for one in given):
                raise ConfigError(f"environments={shown(given)}: expected a list of names, ['production', 'staging']")
            put(self, environments=tuple(given))
        if self.timezone is not None:
            zone(self.timezone)
        flag(self.every_instance, "every_instance")
        choice(self.overlap, "overlap", get_args(Overlap))
        choice(self.misfire, "misfire", get_args(Misfire))
        put(self, misfire_grace=seconds(self.misfire_grace, "misfire_grace"))


def zone(name: str) -> ZoneInfo:
    """The time zone called `name`.

    Raises:
        ConfigError: no time zone has this name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise ConfigError(f"timezone={shown(name)}: expected an IANA name such as 'America/Sao_Paulo'") from None


class Call:
    """A function of the user, and the names of the arguments that it wants.

    Args:
        allowed: the names that the function may ask for. Another parameter without a default is an error, which lists
            the allowed names.
    """

    __slots__ = ("function", "is_async", "wants")

    def __init__(self, function: Callable[..., Any], allowed: tuple[str, ...], what: str) -> None:
        self.function = function
        called, bound = _called(function)
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
        if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
            raise ConfigError(f"{what} is a generator: it has a yield, and nothing would run it; return the result")
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            raise ConfigError(f"{what}: {shown(function)} has no readable signature") from None
        self.wants = tuple(one.name for one in parameters if one.name not in bound and _wanted(one, allowed, what))
        if not self.wants and any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters):
            raise ConfigError(
                f"{what} takes *args or **kwargs and names no argument, so it would get none; it may name "
                f"{', '.join(allowed)} (a decorator passes the names on with functools.wraps)"
            )

    def __call__(self, given: Mapping[str, Any]) -> Any:
        return self.function(**{name: given[name] for name in self.wants})

    async def run(self, given: Mapping[str, Any], threads: Threads, owner: Owner) -> tuple[Any, BaseException | None]:
        """Call the function, on the loop if it is async, else in a thread. Returns its result and a thread's error."""
        if self.is_async:
            return await self(given), None
        seen = {name: threads.way.seen(value, owner) if name in OF_THE_LOOP else value for name, value in given.items()}
        return await threads.run(functools.partial(self, seen), owner)


def _called(function: Callable[..., Any]) -> tuple[Any, set[str]]:
    """The function behind partials and callable objects, and the arguments that a partial has given already."""
    called: Any = function
    bound: set[str] = set()
    while isinstance(called, functools.partial):
        bound.update(called.keywords)
        called = called.func
    return called if inspect.isroutine(called) else getattr(called, "__call__", called), bound  # noqa: B004


def _wanted(one: inspect.Parameter, allowed: tuple[str, ...], what: str) -> bool:
    """True if the parameter is given an argument.

    Raises:
        ConfigError: the parameter needs an argument that does not exist, or cannot be given by name.
    """
    if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
        return False
    if one.name in allowed:
        if one.kind is one.POSITIONAL_ONLY:
            raise ConfigError(f"{what}: {one.name!r} is positional-only; arguments are given by name")
        return True
    if one.default is one.empty:
        method = "; a method is given bound to its object" if one.name in ("self", "cls") else ""
        raise ConfigError(f"{what} asks for {one.name!r}; it may name {', '.join(allowed)}{method}")
    return False


def checked_name(name: Any, what: str) -> str:
    """The name of a job or a task.

    Raises:
        ConfigError: the name has characters that are not allowed, or too many.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(f"{what} name {shown(name)}: expected letters, digits, '-', '_' and '.', at most 128")
    return name


class JobSpec:
    """A registered job: its definition with every default resolved, in the units of the broker."""

    __slots__ = (
        "call", "codec", "concurrency", "definition", "forgets", "group_idle", "grouped", "job_options", "lease",
        "limiters", "limits", "max_result", "name", "named_limiters", "ordered", "retention", "slots", "source",
        "suspect_after", "total_concurrency", "total_limiters", "worker_options",
    )  # fmt: skip

    def __init__(self, name: str, definition: JobDefinition, source: str = "", max_result: int = MOST) -> None:
        self.name, self.definition, self.source = checked_name(name, "job"), definition, source
        self.max_result = max_result
        self.call = Call(definition.handle, JOB_ARGUMENTS, "handle")
        self.codec = _codec(definition.handle, self.call.wants)
        self.grouped = definition.group
        options, worker = definition.job_options, definition.worker_options
        assert isinstance(options, JobOptions)
        assert isinstance(worker, WorkerOptions)
        self.job_options, self.worker_options = options, worker
        self.ordered = worker.ordered
        self.suspect_after = max(1, min(SUSPECT, worker.max_stalled_count))
        given = worker.concurrency
        default = 1 if self.grouped or self.ordered else 10
        self.concurrency: int | None = default if isinstance(given, Unset) else given
        # The concurrency of groups, and of ordered jobs, holds over all processes: Redis counts the slots.
        self.slots = self.concurrency or 0 if self.grouped or self.ordered else 0
        every = limiters(worker.limiter, "limiter")
        self.limiters = tuple(one for one in every if one.name is None)
        self.named_limiters = tuple(one for one in every if one.name is not None)
        names = [one.name for one in self.named_limiters]
        if len(set(names)) < len(names):
            raise ConfigError(f"limiter={shown(worker.limiter)}: a name has one limit; give each of them its own")
        self.total_limiters = limiters(worker.total_limiter, "total_limiter")
        self.total_concurrency = worker.total_concurrency
        if not self.grouped and (self.total_limiters or self.total_concurrency):
            raise ConfigError("total_limiter and total_concurrency hold over all groups of a job; this one has none")
        self.limits = queue_limits(self.limiters, self.concurrency)
        rules = kept(options.remove_on_complete), kept(options.remove_on_fail)
        self.forgets = any(0 in rule for rule in rules)  # no record of a finished job is kept
        # Where no finished job is kept, a finishing job removes only itself, so nothing is trimmed.
        (count, age), (failed_count, failed_age) = (NO_BOUNDS if 0 in rule else rule for rule in rules)
        self.retention = (count, age, failed_count, failed_age)
        self.lease = duration(worker.lease)
        self.group_idle = duration(worker.group_idle)

    def __repr__(self) -> str:
        return f"<JobSpec {self.name}>"


def check_limiters(spec: JobSpec, others: Iterable[JobSpec]) -> None:
    """Check that a limiter's name stands for one limit.

    Raises:
        ConfigError: another job gives a limiter of the same name another limit.
    """
    for mine in spec.named_limiters:
        for other in others:
            for theirs in other.named_limiters:
                if mine.name == theirs.name and mine != theirs:
                    raise ConfigError(
                        f"limiter {mine.name!r} is {mine} in job {spec.name!r} ({spec.source}) and {theirs} in job "
                        f"{other.name!r} ({other.source}); a name has one limit, so give both the same, or two names"
                    )


def kept(rule: Any) -> tuple[int, int]:
    """A Retention as the scripts take it: how many jobs, and for how many ms; -1: no bound."""
    assert isinstance(rule, Retention)
    age = -1 if rule.age is None else round(duration(rule.age) * 1000)
    return (-1 if rule.count is None else rule.count), age


def _codec(handle: Callable[..., Any], wants: tuple[str, ...]) -> Codec:
    return Codec(annotation_of(handle, "data")) if "data" in wants else Codec()


class TaskSpec:
    """A registered task: its definition, with the time zone resolved."""

    __slots__ = ("call", "definition", "name", "source", "zone")

    def __init__(self, name: str, definition: TaskDefinition, timezone: str, source: str = "") -> None:
        self.name, self.definition, self.source = checked_name(name, "task"), definition, source
        self.call = Call(definition.task, TASK_ARGUMENTS, "task")
        self.zone = zone(definition.timezone or timezone)
        next_tick(definition.cron_time, datetime.now(UTC).astimezone(self.zone))

    def runs_in(self, environment: str) -> bool:
        """True if the task ticks in `environment`. It says ``is_active = True``; in ``test`` no task ticks."""
        where = self.definition.environments
        return self.definition.is_active is True and environment != "test" and (where is None or environment in where)

    def __repr__(self) -> str:
        return f"<TaskSpec {self.name} {self.definition.cron_time}>"
