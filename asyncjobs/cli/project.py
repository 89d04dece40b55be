"""Finds the project of a command: by its options, then ``[tool.asyncjobs]``, then ``./jobs ./tasks``."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import sys
import tomllib
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from asyncjobs.errors import BrokerError, ConfigError
from asyncjobs.logs import said
from asyncjobs.queue import Queue
from asyncjobs.runtime import Runtime

Command = TypeVar("Command", bound=Callable[..., Any])
PATIENCE: Final = 1.0  # seconds
SETTINGS: Final = ("jobs", "tasks", "app", "redis")


def options(command: Command) -> Command:
    """Add the options that name the project. The command takes them as keyword arguments of the same names."""
    for option in (
        click.option("--redis", metavar="URL", help="The store; else ASYNCJOBS_REDIS_URL, else the embedded one."),
        click.option("--app", metavar="MODULE:RUNTIME", help="A Runtime of your own instead of the folders."),
        click.option("--tasks", metavar="FOLDER", help="Where the tasks are; else ./tasks or src/tasks."),
        click.option("--jobs", metavar="FOLDER", help="Where the jobs are; else ./jobs or src/jobs."),
    ):
        command = option(command)
    return command


def settings() -> dict[str, str]:
    """``[tool.asyncjobs]`` of the pyproject.toml here."""
    try:
        table = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"pyproject.toml cannot be read: {error}") from None
    known = table.get("tool", {}).get("asyncjobs", {})
    for key, value in known.items():
        if key not in SETTINGS or not isinstance(value, str):
            # The message leaves out the value, because it may be an address with a password.
            raise ConfigError(f"[tool.asyncjobs] {key} in pyproject.toml: expected {', '.join(SETTINGS)}, each a text")
    return dict(known)


def runtime(jobs: str | None, tasks: str | None, app: str | None, redis: str | None, **more: Any) -> Runtime:
    """The runtime of the project. `more` goes to `Runtime(...)`, unless the app has made the runtime.

    Raises:
        ConfigError: no jobs and no tasks were found, or the options contradict each other.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    known = settings()
    if app and (jobs or tasks or redis):
        raise ConfigError("--app names a Runtime, which knows its own folders and store; leave out the other options")
    if not (jobs or tasks or redis):
        app = app or known.get("app")
    if app:
        return imported(app)
    jobs = jobs or known.get("jobs") or _found("jobs")
    tasks = tasks or known.get("tasks") or _found("tasks")
    if jobs is None and tasks is None:
        raise ConfigError(
            "no jobs and no tasks here: make ./jobs/hello.py with `async def handle(data): …`, or say where they "
            "are with --jobs, --tasks, --app or [tool.asyncjobs] in pyproject.toml"
        )
    return Runtime(redis or known.get("redis"), jobs=jobs, tasks=tasks, **more)


def _found(name: str) -> str | None:
    return next((folder for folder in (name, f"src/{name}") if Path(folder).is_dir()), None)


def imported(app: str) -> Runtime:
    """The Runtime called ``module:name``."""
    module, colon, path = app.partition(":")
    if not colon or not module or not path:
        raise ConfigError(f"--app {app!r}: expected module:runtime, such as app.main:runtime")
    try:
        found: Any = importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ConfigError(f"--app {app!r}: {said(error)}{_place(error)}") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(f"--app {app!r}: {module} has no {path}") from None
    if not isinstance(found, Runtime):
        raise ConfigError(f"--app {app!r} is a {type(found).__name__}, not a Runtime")
    return found


def _place(error: BaseException) -> str:
    """The line of the user's code at which an import failed."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith("<frozen")]
    inside = [one for one in frames if one.filename not in (__file__, importlib.__file__)]
    return f" ({os.path.relpath(inside[-1].filename)}, line {inside[-1].lineno})" if inside else ""


@contextmanager
def patience(runtime: Runtime) -> Iterator[None]:
    """Print what the command waits for, if it waits for longer than a moment."""

    def say() -> None:
        store = runtime.health().get("store")
        click.echo(f"connecting to {store} …" if store else "starting …", err=True)

    timer = asyncio.get_running_loop().call_later(PATIENCE, say)
    try:
        yield
    finally:
        timer.cancel()


@asynccontextmanager
async def looking(runtime: Runtime) -> AsyncIterator[Queue]:
    """The queue of a runtime that can only add and look."""
    async with AsyncExitStack() as stack:
        with patience(runtime):
            queue = await stack.enter_async_context(runtime.only_adding())
        with suppress(BrokerError):  # a full store takes no names, but it can be read
            await queue.announce()
        yield queue


def run_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run `coroutine` on uvloop where it is installed, else on asyncio's own loop.

    The process belongs to asyncjobs, so its garbage collector may be tuned: jobs live for a moment and free themselves,
    but thousands at once look like survivors to the collector. With Python's own thresholds the collector took a third
    of the time of 10,000 busy groups.
    """
    gc.set_threshold(10_000, 20, 50)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)
