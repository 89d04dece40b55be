"""What a file in jobs/ or tasks/ declares, and the same made ready to run."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from asyncjobs.config import (
    UNSET,
    JobOptions,
    Retention,
    Seconds,
    Unset,
    WorkerOptions,
    build,
    choice,
    duration,
    flag,
    limiters,
    put,
    seconds,
    shown,
)
from asyncjobs.cron import next_tick, normalise
from asyncjobs.declared import annotation_of
from asyncjobs.errors import ConfigError
from asyncjobs.payload import Codec
from asyncjobs.terms import terms

JOB_ARGUMENTS: Final = ("data", "job", "queue", "io", "services")
TASK_ARGUMENTS: Final = ("services", "queue", "io")
DEFINE_ARGUMENTS: Final = ("services", "queue", "io")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Overlap = Literal["skip", "queue", "allow"]
Misfire = Literal["skip", "once"]


@dataclass(frozen=True, slots=True)
class JobDefinition:
    """A job: its handler, and how it is tried and consumed. `group`: each add names a ``group_id``."""

    handle: Callable[..., Any]
    job_options: JobOptions | Mapping[str, Any] = field(default_factory=JobOptions)
    worker_options: WorkerOptions | Mapping[str, Any] = field(default_factory=WorkerOptions)
    group: bool = False

    def __post_init__(self) -> None:
        if not callable(self.handle):
            raise ConfigError(f"handle={shown(self.handle)}: expected a function")
        put(self, job_options=build(JobOptions, self.job_options, "job_options"))
        put(self, worker_options=build(WorkerOptions, self.worker_options, "worker_options"))
        flag(self.group, "group")


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
        if not callable(self.task):
            raise ConfigError(f"task={shown(self.task)}: expected a function")
        put(self, cron_time=normalise(self.cron_time))
        if not isinstance(self.is_active, Unset):
            flag(self.is_active, "is_active")
        if self.environments is not None:
            given = self.environments
            if isinstance(given, str) or not all(isinstance(one, str) for one in given):
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
        ConfigError: there is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise ConfigError(f"timezone={shown(name)}: expected an IANA name such as 'America/Sao_Paulo'") from None


class Call:
    """A user's function with the arguments it wants, by name.

    Args:
        allowed: the names it may ask for; any other parameter without a default is an error that lists them.
    """

    __slots__ = ("function", "is_async", "wants")

    def __init__(self, function: Callable[..., Any], allowed: tuple[str, ...], what: str) -> None:
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
        )
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            raise ConfigError(f"{what}: {shown(function)} has no readable signature") from None
        wants = []
        for one in parameters:
            if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
                continue
            if one.name in allowed and one.kind is not one.POSITIONAL_ONLY:
                wants.append(one.name)
            elif one.default is one.empty:
                raise ConfigError(
                    f"{what} asks for {one.name!r}; it may name {', '.join(allowed)}"
                    if one.name not in allowed
                    else f"{what}: {one.name!r} is positional-only; arguments are given by name"
                )
        self.wants = tuple(wants)

    def __call__(self, given: Mapping[str, Any]) -> Any:
        return self.function(**{name: given[name] for name in self.wants})

    async def run(self, given: Mapping[str, Any], threads: Executor) -> Any:
        """Call it, on the loop if it is async, else in a thread with this context's variables."""
        if self.is_async:
            return await self(given)
        call = functools.partial(contextvars.copy_context().run, self, given)
        result = await asyncio.get_running_loop().run_in_executor(threads, call)
        return await result if inspect.isawaitable(result) else result


class JobSpec:
    """A registered job: its definition with every default resolved, in the units the broker wants."""

    __slots__ = (
        "call", "codec", "concurrency", "definition", "forgets", "group_idle", "grouped", "job_options", "lease",
        "limiters", "name", "named_limiters", "ordered", "retention", "slots", "source", "terms", "total_concurrency",
        "total_limiters", "worker_options",
    )  # fmt: skip

    def __init__(self, name: str, definition: JobDefinition, source: str = "") -> None:
        if not NAME.fullmatch(name):
            raise ConfigError(f"job name {shown(name)}: expected letters, digits, '-', '_' and '.', at most 128")
        self.name, self.definition, self.source = name, definition, source
        self.call = Call(definition.handle, JOB_ARGUMENTS, "handle")
        self.codec = _codec(definition.handle, self.call.wants)
        self.grouped = definition.group
        options, worker = definition.job_options, definition.worker_options
        assert isinstance(options, JobOptions)
        assert isinstance(worker, WorkerOptions)
        self.job_options, self.worker_options = options, worker
        self.ordered = worker.ordered
        given = worker.concurrency
        default = 1 if self.grouped or self.ordered else 10
        self.concurrency: int | None = default if isinstance(given, Unset) else given
        # Concurrency of groups, and of what keeps its order, holds over all processes: Redis counts it.
        self.slots = self.concurrency or 0 if self.grouped or self.ordered else 0
        every = limiters(worker.limiter, "limiter")
        self.limiters = tuple(one for one in every if one.name is None)
        self.named_limiters = tuple(one for one in every if one.name is not None)
        self.total_limiters = limiters(worker.total_limiter, "total_limiter")
        self.total_concurrency = worker.total_concurrency
        if not self.grouped and (self.total_limiters or self.total_concurrency):
            raise ConfigError("total_limiter and total_concurrency hold over all groups of a job; this one has none")
        self.terms = terms(self.limiters, self.concurrency)
        self.retention = (
            *limits(options.remove_on_complete),
            *limits(options.remove_on_fail),
        )
        self.forgets = 0 in self.retention  # no record of a finished job is kept
        self.lease = duration(worker.lease)
        self.group_idle = duration(worker.group_idle)

    def __repr__(self) -> str:
        return f"<JobSpec {self.name}>"


def limits(rule: Any) -> tuple[int, int]:
    """A Retention as the scripts take it: how many, and for how many ms; -1 for no bound."""
    assert isinstance(rule, Retention)
    age = -1 if rule.age is None else round(duration(rule.age) * 1000)
    return (-1 if rule.count is None else rule.count), age


def _codec(handle: Callable[..., Any], wants: tuple[str, ...]) -> Codec:
    return Codec(annotation_of(handle, "data")) if "data" in wants else Codec()


class TaskSpec:
    """A registered task: its definition, with the time zone resolved."""

    __slots__ = ("call", "definition", "name", "source", "zone")

    def __init__(self, name: str, definition: TaskDefinition, timezone: str, source: str = "") -> None:
        if not NAME.fullmatch(name):
            raise ConfigError(f"task name {shown(name)}: expected letters, digits, '-', '_' and '.', at most 128")
        self.name, self.definition, self.source = name, definition, source
        self.call = Call(definition.task, TASK_ARGUMENTS, "task")
        self.zone = zone(definition.timezone or timezone)
        next_tick(definition.cron_time, datetime.now(UTC).astimezone(self.zone))

    def runs_in(self, environment: str) -> bool:
        """Whether it ticks there: only what says ``is_active = True``, and nothing ever in ``test``."""
        where = self.definition.environments
        return self.definition.is_active is True and environment != "test" and (where is None or environment in where)

    def __repr__(self) -> str:
        return f"<TaskSpec {self.name} {self.definition.cron_time}>"
