"""``asyncjobs health``: answers a probe of an orchestrator, or of a person."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import click

from asyncjobs import clock, words
from asyncjobs.cli import output, project
from asyncjobs.cli.command import Given, made
from asyncjobs.cli.when import Length
from asyncjobs.errors import AsyncjobsError, ConfigError

if TYPE_CHECKING:
    from asyncjobs.runtime import Runtime


@made("health")
@click.option("--timeout", type=Length(), default=5.0, show_default=True, help="The store must answer by then.")
@click.option("--name", "names", multiple=True, help="A living process must run that job name; may be repeated.")
@click.option(
    "--here", is_flag=True, help="A living process must be on this host: for a liveness probe of its container."
)
@click.option("--store-only", is_flag=True, help="The store must answer; no process need live.")
def command(given: Given, timeout: float, names: tuple[str, ...], here: bool, store_only: bool) -> int:
    """Answer a probe: 0 while the store answers and a process works, else 1 and why, on one line.

    A process works as long as its heartbeat is no older than its lease. The project's files are not loaded.
    """
    runtime = project.runtime(given, files="none")
    project.hush()
    found = project.run_loop(_look(runtime, timeout, names, here, store_only))
    wrong = found["wrong"]
    if given.as_json:
        output.emit({"ok": not wrong, **found})
    else:
        click.echo(words.one_line("; ".join(wrong) if wrong else _well(found)), err=bool(wrong))
    return 1 if wrong else 0


def _well(found: dict[str, Any]) -> str:
    answered = f"ok: {found['store']} answers in {words.duration(found['seconds'])}"
    processes = found["processes"]
    return answered if processes is None else f"{answered}, {processes} process{'es' * (processes != 1)} alive"


async def _look(
    runtime: Runtime, timeout: float, names: tuple[str, ...], here: bool, store_only: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {"store": None, "seconds": None, "processes": None, "wrong": []}
    wrong: list[str] = found["wrong"]
    try:
        async with asyncio.timeout(timeout), runtime.only_adding() as queue:
            began = clock.monotonic()
            found["store"] = runtime.health()["store"]
            processes = [] if store_only else await runtime.processes()
            if store_only:
                await queue.all_names()
            found["seconds"] = round(clock.monotonic() - began, 4)
    except ConfigError:
        raise
    except TimeoutError:
        wrong.append(f"the store has not answered within {words.duration(timeout)}")
        return found
    except AsyncjobsError as error:
        wrong.append(str(error))
        return found
    if not store_only:
        alive = [one for one in processes if one.state != "gone"]
        found["processes"] = len(alive)
        wrong += _missing(alive, names, here)
    return found


def _missing(alive: list[Any], names: tuple[str, ...], here: bool) -> list[str]:
    """What of the processes that were asked for does not live."""
    if not alive:
        return ["no process shows a sign of life: python -m asyncjobs run"]
    if here:
        host = socket.gethostname()
        alive = [one for one in alive if one.host == host]
        if not alive:
            return [f"no process on this host, {host}, shows a sign of life"]
    taking = {name for one in alive if one.state == "alive" for name in one.names}
    return [f"no process that shows a sign of life runs {name!r}" for name in names if name not in taking]
