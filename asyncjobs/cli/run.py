"""``asyncjobs run``: the stand-alone process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from asyncjobs import __version__
from asyncjobs.cli import INTERRUPTED, project
from asyncjobs.cli.command import Given, made

if TYPE_CHECKING:
    from asyncjobs.runtime import Runtime

    Say: TypeAlias = Callable[[Runtime, str], None]

logger = logging.getLogger("asyncjobs")

EXIT_AFTER = 3.0  # seconds that the interpreter gets for its own end
HARD_EXIT_AFTER = 8.0  # seconds beyond the grace; settling, leaving and flushing take less


@made("run")
@click.option("--grace", type=click.FloatRange(min=0), help="Seconds that running jobs get to end; else 10.")
@click.option("--burst", is_flag=True, help="End as soon as no job is waiting, active or delayed; tasks do not tick.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Log every detail.")
@click.option(
    "--log-format",
    type=click.Choice(("text", "json")),
    help="The log as text or as one JSON object a line, whatever the app has set up; else the app's own, or text.",
)
def command(given: Given, grace: float | None, burst: bool, quiet: bool, verbose: bool, log_format: str | None) -> int:
    """Run the jobs and tasks of a project until it is told to stop. Prints a line for each finished try and tick.

    SIGINT or SIGTERM once: stop, giving running jobs their grace. Twice: now.
    """
    from asyncjobs.cli import log_output

    more: dict[str, Any] = {} if not burst else {"schedule": False}
    log_format = "json" if given.as_json else log_format
    runtime = project.runtime(given, **more)
    # In the web process the app's runtime may only add. This command consumes all the same.
    runtime.config = replace(
        runtime.config, loop_budget=None, consume=True, schedule=runtime.config.schedule and not burst
    )
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    log_output.set_up(sys.stderr, level, log_format)
    say: Say = _banner if log_format != "json" and not quiet else _in_the_log
    code: int = project.run_loop(_run(runtime, grace, burst, say, quiet))
    return code


async def _run(runtime: Runtime, grace: float | None, burst: bool, say: Say, quiet: bool) -> int:
    from asyncjobs.cli import log_output

    allowed = float(runtime.config.grace) if grace is None else grace  # type: ignore[arg-type]
    told = asyncio.Event()
    signals = _Signals(told, allowed)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signals.received, number)
    if not await _started(runtime, told):
        return INTERRUPTED if signals.number == signal.SIGINT else 0
    lines = log_output.Lines(runtime, well=not quiet)
    try:
        say(runtime, "ready")
        if burst:
            ends = [asyncio.ensure_future(told.wait()), asyncio.ensure_future(runtime.wait_idle())]
            done, left = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for future in left:
                future.cancel()
            for future in done:
                future.result()
        else:
            await told.wait()
        say(runtime, f"stopping; running jobs have {allowed:g} s")
    finally:
        await runtime.stop(grace=allowed)
        lines.close()
        _end_in_time(1 if sys.exc_info()[0] else 0)
    say(runtime, "stopped")
    return 0


async def _started(runtime: Runtime, told: asyncio.Event) -> bool:
    """Start the runtime. False: a signal came first, so the command ends at once."""
    starting, signalled = asyncio.ensure_future(runtime.start()), asyncio.ensure_future(told.wait())
    with project.patience(runtime):
        await asyncio.wait((starting, signalled), return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    if starting.done():
        starting.result()
        return True
    starting.cancel()
    await asyncio.wait((starting,), timeout=EXIT_AFTER)
    _end_in_time(INTERRUPTED)
    return False


def _end_in_time(code: int) -> None:
    """Bound the interpreter's end, because it waits for foreign threads, such as those of an executor, for ever."""
    timer = threading.Timer(EXIT_AFTER, _end, (code,))
    timer.daemon = True
    timer.start()


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


class _Signals:
    """Handles signals. The first one stops the runtime with grace and bounds the end; the second one ends at once."""

    def __init__(self, told: asyncio.Event, grace: float) -> None:
        self._told, self._grace = told, grace
        self.number = 0

    def received(self, number: int) -> None:
        if self._told.is_set():
            # Running jobs go to other processes when their lease ends, so safety does not need a clean stop.
            os._exit(1)
        self.number = number
        self._told.set()
        asyncio.get_running_loop().call_later(self._grace + HARD_EXIT_AFTER, os._exit, 1)


def _banner(runtime: Runtime, word: str) -> None:
    """What is run, and on what; then `word`."""
    from asyncjobs import terminal

    out = terminal.console()
    if word == "ready":
        health, config = runtime.health(), runtime.config
        out.print(f"asyncjobs {__version__}  pid {os.getpid()}", style="bold")
        out.print(
            f"store {health['store']}  environment {config.environment}  time zone {config.timezone}", markup=False
        )
        terminal.show_loaded(out, runtime.loaded, set(health["tasks"]), config.environment)
        for name, at in health["tasks"].items():
            out.print(f"next {name}: {at:%Y-%m-%d %H:%M:%S} UTC", markup=False)
    out.print(word)


def _in_the_log(runtime: Runtime, word: str) -> None:
    """The same as a line of the log."""
    text = "asyncjobs %s, pid %d: %s; %d jobs, %d tasks, environment %s"
    loaded, environment = runtime.loaded, runtime.config.environment
    logger.info(text, __version__, os.getpid(), word, len(loaded.jobs), len(loaded.tasks), environment)
