"""The Registrations: the jobs and tasks of one runtime, registered in code and found in files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeVar

from asyncjobs.declare import loader
from asyncjobs.declare.cron_expression import normalise
from asyncjobs.declare.definition import JobDefinition, JobSpec, TaskDefinition, TaskSpec, check_limiters
from asyncjobs.declare.options import JobOptions, RuntimeConfig, WorkerOptions
from asyncjobs.declare.values import build, keywords, shown
from asyncjobs.errors import ConfigError
from asyncjobs.guests.crossing import Crossing, FromThread, here
from asyncjobs.queue import Queue

Function = TypeVar("Function", bound=Callable[..., Any])

JOB_OPTIONS: Final = tuple(one.name for one in fields(JobOptions))
WORKER_OPTIONS: Final = tuple(one.name for one in fields(WorkerOptions))
TASK_OPTIONS: Final = tuple(one.name for one in fields(TaskDefinition) if one.name not in ("task", "cron_time"))


class Registrations:
    """State: `jobs` and `tasks`, registered in code, by name; `_loaded`, found in the folders at the last load.

    The runtime's config may be replaced between two starts, so each call gets the present one.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.jobs: dict[str, JobSpec] = {}
        self.tasks: dict[str, TaskSpec] = {}
        self._loaded = loader.Loaded([], [])

    @property
    def loaded(self) -> loader.Loaded:
        """All jobs and tasks that are registered in code, or were found in files at the last load."""
        return loader.Loaded([*self.jobs.values(), *self._loaded.jobs], [*self.tasks.values(), *self._loaded.tasks])

    def definition(self, function: Callable[..., Any], options: Mapping[str, Any]) -> JobDefinition:
        """The definition of a job whose options are given flat."""
        return JobDefinition(
            handle=function,
            job_options=JobOptions(**{key: options[key] for key in JOB_OPTIONS if key in options}),
            worker_options=WorkerOptions(**{key: options[key] for key in WORKER_OPTIONS if key in options}),
            group=options.get("group", False),
        )

    def add_job(self, config: RuntimeConfig, name: str, definition: JobDefinition | Mapping[str, Any]) -> JobSpec:
        """Register a job.

        Raises:
            ConfigError: the name is taken, or an option is bad.
        """
        spec = JobSpec(name, build(JobDefinition, definition, "the job"), "in code", config.max_result)
        if name in self._queue.names:
            raise ConfigError(f"a job called {name!r} is registered already; a name has one handler")
        check_limiters(spec, self.loaded.jobs)
        return spec

    def keep_job(self, spec: JobSpec) -> None:
        """Let a job be added from now on."""
        self.jobs[spec.name] = spec
        self._queue.register(spec)

    def task(
        self, config: RuntimeConfig, cron_time: str, name: str | None, options: Mapping[str, Any]
    ) -> Callable[[Function], Function]:
        """A decorator that registers a task."""
        cron_time = normalise(cron_time)
        given = {"is_active": True, **keywords(options, TASK_OPTIONS, "@runtime.task")}

        def register(function: Function) -> Function:
            known = name_of(function) if name is None else name
            definition = TaskDefinition(task=function, cron_time=cron_time, **given)
            spec = TaskSpec(known, definition, config.timezone, "in code")
            if known in self.tasks:
                raise ConfigError(f"a task called {known!r} is registered already; name this one, name='…'")
            self.tasks[known] = spec
            return function

        return register

    def tasks_here(self, config: RuntimeConfig) -> tuple[TaskSpec, ...]:
        """The tasks that run in this process."""
        tasks = self.loaded.tasks if config.schedule else []
        return tuple(spec for spec in tasks if spec.runs_in(config.environment))

    async def load(
        self, config: RuntimeConfig, jobs: Path | None, tasks: Path | None, given: Mapping[str, Any], way: Crossing
    ) -> None:
        """Load the folders. Sync functions may use what their `define` was given, so it works in threads as well.

        Raises:
            LoadError: every bad file, with its reason.
        """
        given = {**given, **{name: FromThread(given[name], way) for name in ("queue", "io")}}
        for spec in self._loaded.jobs:
            self._queue.unregister(spec.name)
        self._loaded = await loader.load(
            jobs,
            tasks if config.schedule and config.environment != "test" else None,
            given=given,
            timezone=config.timezone,
            known=tuple(self.jobs.values()),
            known_tasks=tuple(self.tasks.values()),
            strict=config.strict_load,
            max_result=config.max_result,
        )
        for spec in self._loaded.jobs:
            self._queue.register(spec)

    def with_add(self, function: Function, name: str) -> Function:
        """Give `function` an `add`. A method, or an object with an `add` of its own, is wrapped."""
        add = functools.partial(self._add, name)
        plain: Any = getattr(function, "__func__", function) if isinstance(function, staticmethod) else function
        other = getattr(plain, "add", None)
        if other is None or isinstance(other, functools.partial):
            try:
                plain.add = add
                function.add = add  # type: ignore[attr-defined]
                return function
            except AttributeError:
                pass
        wrapped: Any = functools.partial(function)
        wrapped.add = add
        self._queue.refer(wrapped, name)
        return wrapped  # type: ignore[no-any-return]

    def _add(self, name: str, *args: Any, **options: Any) -> Any:
        return here(self._queue).add(name, *args, **options)


def name_of(function: Callable[..., Any]) -> str:
    """The name under which a function is registered, unless another one is given."""
    name = getattr(function, "__name__", "")
    if not name or name == "<lambda>":
        raise ConfigError(f"{shown(function)} has no name to be called by; give one")
    return str(name).strip("_").replace("_", "-")
