"""Finds the project of a command: by its options, then ``[tool.asyncjobs]``, then ``./jobs ./tasks``."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import tomllib
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeAlias

import click

from asyncjobs import words
from asyncjobs.cli import INTERRUPTED
from asyncjobs.errors import BrokerError, ConfigError

if TYPE_CHECKING:
    from asyncjobs.cli.command import Given
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

    Work: TypeAlias = Callable[[Queue, Runtime], Coroutine[Any, Any, int]]

PATIENCE: Final = 1.0  # seconds
SETTINGS: Final = ("jobs", "tasks", "app", "redis", "prefix")
Files: TypeAlias = Literal["must", "may", "none"]
UNDO: Final[list[Callable[[], None]]] = []  # called before an interrupted command ends


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


def runtime(given: Given, *, files: Files = "must", **more: Any) -> Runtime:
    """The runtime of the project. `more` goes to `Runtime(...)`, unless the app has made the runtime.

    Args:
        files: ``must`` be there and well; ``may``: what is there and well is loaded; ``none`` is loaded.
    Raises:
        ConfigError: no jobs and no tasks were found, or the options contradict each other.
    """
    from asyncjobs.runtime import Runtime

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    known = settings()
    app, named = given.app, given.jobs or given.tasks or given.redis or given.prefix
    if app and named:
        raise ConfigError("--app names a Runtime, which knows its own folders and store; leave out the other options")
    if not named:
        app = app or known.get("app")
    if app:
        return imported(app)
    jobs = given.jobs or known.get("jobs") or _found("jobs")
    tasks = given.tasks or known.get("tasks") or _found("tasks")
    redis = given.redis or known.get("redis")
    if jobs is None and tasks is None and files == "must":
        raise ConfigError(
            "no jobs and no tasks here: make ./jobs/hello.py with `async def handle(data): …`, or say where they "
            "are with --jobs, --tasks, --app or [tool.asyncjobs] in pyproject.toml"
        )
    if given.prefix or known.get("prefix"):
        more["prefix"] = given.prefix or known["prefix"]
    if files != "must":
        more["strict_load"] = False
    if files == "none" or (jobs is None and tasks is None):
        more["data_dir"] = _data_folder(redis, jobs or tasks)
        jobs = tasks = None
    return Runtime(redis, jobs=jobs, tasks=tasks, **more)


def _data_folder(redis: str | None, files: str | None) -> str | None:
    """The folder of the embedded store of a project that is not loaded; None: another store is named.

    Raises:
        ConfigError: there is none.
    """
    from asyncjobs.embedded.store import project_of

    if redis or os.environ.get("ASYNCJOBS_REDIS_URL"):
        return None
    folder = project_of(None if files is None else Path(files)) / ".asyncjobs"
    if files is None and not folder.is_dir():
        raise ConfigError(
            "no store is named, and there is no project here: say --redis URL, set ASYNCJOBS_REDIS_URL, or go to the "
            "folder of the project"
        )
    return str(folder)


def _found(name: str) -> str | None:
    return next((folder for folder in (name, f"src/{name}") if Path(folder).is_dir()), None)


def imported(app: str) -> Runtime:
    """The Runtime called ``module:name``."""
    from asyncjobs.logs import said
    from asyncjobs.runtime import Runtime

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
async def looking(runtime: Runtime, announce: bool = True, stand_ins: bool = False) -> AsyncIterator[Queue]:
    """The queue of a runtime that can only add and look.

    Args:
        announce: leave the names of its jobs in the store.
        stand_ins: know also the names that the store alone knows.
    """
    from asyncjobs.operate import names

    async with AsyncExitStack() as stack:
        with patience(runtime):
            queue = await stack.enter_async_context(runtime.only_adding())
        if announce:
            with suppress(BrokerError):  # a full store takes no names, but it can be read
                await queue.announce()
        if stand_ins and runtime._assembly is not None:
            for spec in await names.stand_ins(
                runtime._assembly.broker, {name: queue.spec(name) for name in queue.names}
            ):
                queue.register(spec)
        yield queue


def is_here(queue: Queue, name: str) -> bool:
    """Whether a job name is registered by the project, and not known from the store alone."""
    from asyncjobs.operate.names import IN_THE_STORE

    return name in queue.names and queue.spec(name).source != IN_THE_STORE


def ask(given: Given, work: Work, *, files: Files = "may", announce: bool = False, stand_ins: bool = True) -> int:
    """Run `work` with the queue of a runtime that can only add and look. Returns the exit code.

    An interruption ends the process at once: what a command has begun in the store is whole or goes on by itself.
    """
    made = runtime(given, files=files)
    hush()

    async def run() -> int:
        async with looking(made, announce, stand_ins) as queue:
            return await work(queue, made)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupted)
    code: int = run_loop(run())
    return code


def hush() -> None:
    """Print no more than the errors of the log, each on one line; a stack is in the log of the process that works."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    logging.basicConfig(level=logging.ERROR, handlers=[handler], force=True)


class OneLine(logging.Formatter):
    """A line of the log without its stack."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {words.one_line(record.getMessage())}"


def _interrupted(number: int, frame: object) -> NoReturn:
    for undo in UNDO:
        with suppress(Exception):
            undo()
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(Exception):
        os.write(2, b"\nerror: interrupted\n")
    os._exit(INTERRUPTED)


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
