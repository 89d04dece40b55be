"""``asyncjobs doctor``: looks for what is wrong, and says what to type."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from asyncjobs import __version__, clock, words
from asyncjobs.cli import output, project
from asyncjobs.cli.command import Given, made
from asyncjobs.errors import AsyncjobsError, LoadError, visible

if TYPE_CHECKING:
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

SLOW: Final = 0.05  # seconds of a round trip
LAGGING: Final = 0.25  # seconds by which a process's event loop is late
OLD: Final = 3600.0  # seconds that a job waits
MARKS: Final = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "wrong": ("✕", "red")}


class Finding(NamedTuple):
    """What was found. `level`: ``ok``, ``warning`` or ``wrong``; `action`: what to do about it."""

    level: str
    about: str
    text: str
    action: str = ""


@made("doctor")
def command(given: Given) -> int:
    """Look for what is wrong with the project, the store and the processes, and say what to do. 1 if anything is."""
    runtime = project.runtime(given, files="may")
    project.hush()
    found = project.run_loop(_look(runtime))
    if given.as_json:
        output.emit([one._asdict() for one in found])
    else:
        for one in found:
            _show(one)
        wrong = sum(one.level == "wrong" for one in found)
        warnings = sum(one.level == "warning" for one in found)
        click.echo(f"{wrong} wrong, {warnings} to look at" if wrong or warnings else "all well")
    return 1 if any(one.level == "wrong" for one in found) else 0


def _show(one: Finding) -> None:
    if not output.is_terminal():
        click.echo("\t".join(map(output.plain, one)))
        return
    mark, colour = MARKS[one.level]
    click.echo(
        f"{click.style(mark if output.fancy() else one.level, fg=colour)} {one.about}: {words.one_line(one.text)}"
    )
    if one.action:
        click.echo(f"    {'→' if output.fancy() else '->'} {words.one_line(one.action)}")


async def _look(runtime: Runtime) -> list[Finding]:
    found = [Finding("ok", "asyncjobs", f"{__version__} on Python {'.'.join(map(str, sys.version_info[:3]))}")]
    tolerant = runtime.config
    try:
        runtime.config = replace(tolerant, strict_load=True)
        loaded = await runtime.load()
        found.append(Finding("ok", "project", f"{len(loaded.jobs)} jobs and {len(loaded.tasks)} tasks load"))
    except LoadError as error:
        found += [
            Finding("wrong", "project", f"{one.path}: {one.reason}", "asyncjobs check") for one in error.complaints
        ]
    runtime.config = replace(tolerant, strict_load=False)
    try:
        async with project.looking(runtime, announce=False, stand_ins=True) as queue:
            async for one in _looks(queue, runtime):
                found.append(one)
    except AsyncjobsError as error:
        found.append(Finding("wrong", "store", str(error), "start it, or say where it is: --redis URL"))
    return found


async def _looks(queue: Queue, runtime: Runtime) -> AsyncIterator[Finding]:
    from asyncjobs.invariants import of_store

    parts = runtime._assembly
    assert parts is not None
    yield Finding("ok", "store", f"{parts.broker.address.text} is {parts.store}")
    if parts.store is not None and not parts.store.durable:
        yield Finding("warning", "store", "it keeps nothing over a restart of its own", "CONFIG SET appendonly yes")
    if parts.store is not None and parts.store.evicts:
        text = f"short of memory it deletes jobs: its maxmemory-policy is {parts.store.policy}"
        yield Finding("wrong", "store", text, "CONFIG SET maxmemory-policy noeviction")
    began = clock.monotonic()
    names = await queue.all_names()
    took = clock.monotonic() - began
    level = "ok" if took < SLOW * max(1, len(names)) else "warning"
    yield Finding(level, "store", f"{len(names)} job names are counted in {words.duration(took)}")
    processes = [one for one in await runtime.processes() if one.state != "gone"]
    for one in _processes(processes):
        yield one
    taken = {name for one in processes for name in one.names}
    for name, counts in names.items():
        async for finding in _queue(queue, name, counts, name in taken or not processes):
            yield finding
    for task in await runtime.tasks():
        for finding in _task(task, processes):
            yield finding
    async with asyncio.timeout(10):
        broken = await of_store(runtime)
    yield from_invariants(broken)


def from_invariants(broken: list[str]) -> Finding:
    """What should hold of the store and does not."""
    if not broken:
        return Finding("ok", "records", "each job stands in one place, and its record agrees")
    return Finding("warning", "records", f"{broken[0]}" + (f", and {len(broken) - 1} more" if len(broken) > 1 else ""))


def _processes(processes: list[Any]) -> list[Finding]:
    if not processes:
        return [Finding("wrong", "processes", "none shows a sign of life, so nothing runs", "python -m asyncjobs run")]
    found = [Finding("ok", "processes", f"{len(processes)} alive on {len({one.host for one in processes})} hosts")]
    releases = {one.release for one in processes}
    if len(releases) > 1:
        text = f"they run different releases: {', '.join(sorted(map(str, releases)))}"
        found.append(Finding("warning", "processes", text, "asyncjobs processes"))
    for one in processes:
        if one.loop_lag is not None and one.loop_lag > LAGGING:
            text = f"{one.host} {one.pid}: its event loop is {words.duration(one.loop_lag)} late"
            found.append(Finding("warning", "processes", text, "make what computes a plain def, see its log"))
        if one.state == "draining":
            text = f"{one.host} {one.pid} takes nothing: {one.draining_reason or 'it was asked to drain'}"
            found.append(Finding("warning", "processes", text, f"asyncjobs processes resume {visible(one.id)}"))
    return found


async def _queue(queue: Queue, name: str, counts: dict[str, int], taken: bool) -> AsyncIterator[Finding]:
    work = counts["waiting"] + counts["active"] + counts["delayed"]
    if not work:
        return
    if not taken:
        text = f"{words.number(work)} jobs, and no process runs that name"
        yield Finding("wrong", name, text, "start a process that has it, or asyncjobs queues drain " + name)
    if not counts["waiting"]:
        return
    info = await queue.job(name).info() if name in queue.names else {}
    if info.get("paused"):
        yield Finding(
            "warning", name, f"it is paused, and {words.number(work)} jobs wait", f"asyncjobs queues resume {name}"
        )
    oldest = (await queue.select(name, state="waiting", newest_first=False).page(limit=1)).jobs
    if oldest and oldest[0].added_at is not None:
        age = (clock.now() - oldest[0].added_at).total_seconds()
        if age > OLD:
            text = f"{words.number(counts['waiting'])} jobs wait, the oldest for {words.duration(age)}"
            group = "" if oldest[0].group_id is None else f" --group {oldest[0].group_id!r}"
            yield Finding("warning", name, text, f"asyncjobs jobs why {oldest[0].id} --name {name}{group}")


def _task(task: Any, processes: list[Any]) -> list[Finding]:
    found = []
    if task.active and not task.paused and processes and not task.processes:
        found.append(Finding("warning", task.name, "no living process fires it", "python -m asyncjobs run"))
    if task.paused:
        found.append(Finding("warning", task.name, "it is paused", f"asyncjobs tasks resume {task.name}"))
    if task.runs and task.runs[0].outcome in ("failed", "lost"):
        text = f"its last run {task.runs[0].outcome}: {task.runs[0].error.partition(chr(10))[0]}"
        found.append(Finding("warning", task.name, text, f"asyncjobs tasks show {task.name}"))
    return found
