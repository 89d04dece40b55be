"""``asyncjobs run``: the stand-alone process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from typing import Any

import click

from asyncjobs import __version__, terminal
from asyncjobs.cli import INTERRUPTED, project
from asyncjobs.runtime import Runtime

EXIT_AFTER = 3.0  # seconds that the interpreter gets for its own end
HARD_EXIT_AFTER = 8.0  # seconds beyond the grace; settling, leaving and flushing take less


@click.command("run")
@project.options
@click.option("--grace", type=click.FloatRange(min=0), help="Seconds that running jobs get to end; else 10.")
@click.option("--burst", is_flag=True, help="End as soon as no job is waiting, active or delayed; tasks do not tick.")
@click.option("-v", "--verbose", is_flag=True, help="Log every detail.")
def command(
    jobs: str | None,
    tasks: str | None,
    app: str | None,
    redis: str | None,
    grace: float | None,
    burst: bool,
    verbose: bool,
) -> int:
    """Run the jobs and tasks of a project until it is told to stop.

    SIGINT or SIGTERM once: stop, giving running jobs their grace. Twice: now.
    """
    more: dict[str, Any] = {} if not burst else {"schedule": False}
    runtime = project.runtime(jobs, tasks, app, redis, **more)
    # In the web process the app's runtime may only add. This command consumes all the same.
    runtime.config = replace(
        runtime.config, loop_budget=None, consume=True, schedule=runtime.config.schedule and not burst
    )
    code: int = project.run_loop(_run(runtime, grace, burst, verbose))
    return code


async def _run(runtime: Runtime, grace: float | None, burst: bool, verbose: bool) -> int:
    out = terminal.console()
    terminal.log_to_console(terminal.console(stderr=True), verbose)
    allowed = float(runtime.config.grace) if grace is None else grace  # type: ignore[arg-type]
    told = asyncio.Event()
    signals = _Signals(told, allowed)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signals.received, number)
    if not await _started(runtime, told):
        return INTERRUPTED if signals.number == signal.SIGINT else 0
    try:
        _banner(out, runtime)
        if burst:
            ends = [asyncio.ensure_future(told.wait()), asyncio.ensure_future(runtime.wait_idle())]
            done, left = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for future in left:
                future.cancel()
            for future in done:
                future.result()
        else:
            await told.wait()
        out.print(f"stopping; running jobs have {allowed:g} s")
    finally:
        await runtime.stop(grace=allowed)
        _end_in_time(1 if sys.exc_info()[0] else 0)
    out.print("stopped")
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


def _banner(out: Any, runtime: Runtime) -> None:
    health = runtime.health()
    config = runtime.config
    out.print(f"asyncjobs {__version__}  pid {os.getpid()}", style="bold")
    out.print(f"store {health['store']}  environment {config.environment}  time zone {config.timezone}", markup=False)
    terminal.show_loaded(out, runtime.loaded, set(health["tasks"]), config.environment)
    for name, at in health["tasks"].items():
        out.print(f"next {name}: {at:%Y-%m-%d %H:%M:%S} UTC", markup=False)
    out.print("ready")
