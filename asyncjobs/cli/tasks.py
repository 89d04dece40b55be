"""``asyncjobs tasks list|show|next|run|pause|resume``"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import click

from asyncjobs import words
from asyncjobs.cli import output, project
from asyncjobs.cli.command import Given, made, noun
from asyncjobs.cli.output import Cell, Column
from asyncjobs.errors import ConfigError

if TYPE_CHECKING:
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

NAMES: Final = click.argument("names", nargs=-1, required=True)
NAME: Final = click.argument("name")
MOST_RUNS: Final = 10
STYLES: Final = {"completed": "green", "failed": "red", "lost": "red", "running": "blue", "cancelled": "dim"}


async def found(runtime: Runtime, name: str) -> Any:
    """A task by its name.

    Raises:
        ConfigError: there is none.
    """
    known = await runtime.tasks()
    for one in known:
        if one.name == name:
            return one
    names = ", ".join(one.name for one in known[:20]) or "none"
    raise ConfigError(f"no task is called {name!r}; there are: {names}")


@made("list")
def listed(given: Given) -> int:
    """List the tasks: when they tick, next and last, and which do not. 1 if there are none."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        tasks = await runtime.tasks()
        if given.as_json:
            output.emit(tasks)
            return 0 if tasks else 1
        rows = [
            (
                one.name, one.schedule, one.timezone, _state(one), output.since(one.next[0].at) if one.next else None,
                *_last(one), len(one.skipped),
            )
            for one in tasks
        ]  # fmt: skip
        skipped = Column("skipped", number=True)
        took = Column("took", number=True)
        columns = ("task", "schedule", "time zone", "state", "next", "last run", "outcome", took, skipped)
        output.table(columns, rows, "no task has ever been registered in this store")
        return 0 if tasks else 1

    return project.ask(given, work)


def short_row(one: Any) -> tuple[Any, ...]:
    """A task in the live view."""
    return one.name, one.schedule, _state(one), output.since(one.next[0].at) if one.next else None, *_last(one)


def _state(task: Any) -> Cell:
    if task.paused:
        return output.state("paused")
    return Cell("ticks", "green") if task.active else Cell(task.why_not or "inactive", "yellow")


def _last(task: Any) -> tuple[Any, Any, Any]:
    """When it ran last, what came of it, and how long it took."""
    return _run(task.runs[0]) if task.runs else (None, None, None)


def _run(run: Any) -> tuple[Any, Any, Any]:
    """When a run began, what came of it, and how long it took."""
    took = (run.ended - run.began).total_seconds() if run.ended and run.began else None
    shown = None if took is None else Cell(words.duration(took), "", f"{took:.3f}")
    return output.since(run.began or run.scheduled), Cell(run.outcome, STYLES.get(run.outcome, "")), shown


@made("show")
@NAME
def show(given: Given, name: str) -> int:
    """Show all that is known of a task: its schedule in words, its last runs and skipped ticks, its next ticks."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        task = await found(runtime, name)
        if given.as_json:
            output.emit(task)
            return 0
        output.details(
            [
                ("task", task.name),
                ("schedule", task.schedule),
                ("in words", task.words),
                ("time zone", task.timezone),
                ("state", _state(task)),
                ("paused", output.since(task.paused_at) if task.paused_at else None),
                ("reason", task.paused_reason or None),
                ("every instance", task.every_instance),
                ("overlap", task.overlap),
                ("misfire", task.misfire),
                ("environments", ", ".join(task.environments) if task.environments else None),
                ("fired by", ", ".join(task.processes) or "no living process"),
            ]
        )
        if task.runs:
            click.echo("\nlast runs")
            last = task.runs[:MOST_RUNS]
            rows = [(*_run(one), one.scheduled, one.process, one.error.partition("\n")[0]) for one in last]
            took, error = Column("took", number=True), Column("error", flexible=True)
            output.table(("began", "outcome", took, "scheduled", "process", error), rows)
        if task.skipped:
            click.echo("\nskipped ticks")
            skipped = [(one.scheduled, one.why, one.text) for one in task.skipped[:MOST_RUNS]]
            output.table(["scheduled", "why", Column("in words", flexible=True)], skipped)
        if task.next:
            click.echo("\nnext ticks")
            _ticks(task.next)
        return 0

    return project.ask(given, work)


@made("next")
@NAME
@click.option("--count", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--zone", "named", metavar="NAME", help="Show them in that time zone; else in the task's own.")
def next_(given: Given, name: str, count: int, named: str | None) -> int:
    """Tell the next ticks of a task, with what changes of the clock do to them."""
    from asyncjobs.declare.definition import zone

    shown = None if named is None else zone(named)

    async def work(queue: Queue, runtime: Runtime) -> int:
        from asyncjobs.operate.schedule import next_ticks

        task = await found(runtime, name)
        ticks = next_ticks(task.schedule, ZoneInfo(task.timezone), count)
        if given.as_json:
            output.emit(ticks)
        else:
            _ticks(ticks, shown)
        return 0 if ticks else 1

    return project.ask(given, work)


def _ticks(ticks: Any, shown: ZoneInfo | None = None) -> None:
    rows = []
    for one in ticks:
        local: datetime = one.local if shown is None else one.at.astimezone(shown)
        text = f"{local:%a} {local.day:>2} {local:%b %Y}  {local:%H:%M:%S %Z}"
        rows.append(
            (
                Cell(text, "", local.isoformat()),
                Cell(f"{one.at:%H:%M:%S} UTC", "dim", output.at(one.at)),
                Cell(one.note, "yellow"),
            )
        )
    output.table(["local", "utc", Column("note", flexible=True)], rows)


# Steering ----------------------------------------------------------------------------------------------------------
@made("run", acts=True)
@NAMES
def run(given: Given, names: tuple[str, ...]) -> int:
    """Run a task now, in one of the processes that have it. 1 if it was skipped because a run goes on."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        code = 0
        for name in names:
            await found(runtime, name)
            answer = "would be started" if given.dry_run else await runtime.run_task(name)
            code = max(code, int(answer == "skipped"))
            more = "; its last run has not ended" if answer in ("skipped", "queued") else ""
            _tell(given, name, f"{answer}{more}")
        return code

    return project.ask(given, work)


def _each(given: Given, names: tuple[str, ...], done: str, act: Callable[[Runtime, str], Awaitable[Any]]) -> int:
    async def work(queue: Queue, runtime: Runtime) -> int:
        for name in names:
            await found(runtime, name)
            if not given.dry_run:
                await act(runtime, name)
            _tell(given, name, f"would be {done}" if given.dry_run else done)
        return 0

    return project.ask(given, work)


def _tell(given: Given, name: str, done: str) -> None:
    if given.as_json:
        output.emit({"task": name, "done": done})
    else:
        click.echo(f"{words.one_line(name)}{'  ' if output.is_terminal() else chr(9)}{done}")


@made("pause", acts=True)
@NAMES
def pause(given: Given, names: tuple[str, ...]) -> int:
    """Keep tasks from ticking, in all processes and over restarts."""
    return _each(given, names, "paused", lambda runtime, name: runtime.pause_task(name, given.reason))


@made("resume", acts=True)
@NAMES
def resume(given: Given, names: tuple[str, ...]) -> int:
    """Let tasks tick again."""
    return _each(given, names, "resumed", lambda runtime, name: runtime.resume_task(name))


command = noun(
    "tasks",
    "Look at tasks, over all processes, and run, pause and resume them.",
    listed, show, next_, run, pause, resume,
)  # fmt: skip
