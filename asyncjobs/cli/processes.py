"""``asyncjobs processes [list|drain|resume]``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from asyncjobs import words
from asyncjobs.cli import output, project
from asyncjobs.cli.command import Given, made, noun
from asyncjobs.cli.output import Cell, Column

if TYPE_CHECKING:
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

COLUMNS = (
    Column("process"), Column("host"), Column("pid", number=True), Column("state"), Column("slots", number=True),
    Column("lag", number=True), Column("memory", number=True), Column("beat"), Column("since"), Column("release"),
    Column("jobs", flexible=True),
)  # fmt: skip
STYLES = {"alive": "green", "draining": "yellow", "gone": "red"}


@made("list")
@click.option("--running", is_flag=True, help="Also what each of them runs, a line a job.")
def listed(given: Given, running: bool) -> int:
    """List the processes that work, and where they are. 1 if there are none."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        found = await runtime.processes()
        if given.as_json:
            output.emit(found)
            return 0 if found else 1
        if running:
            rows = [
                (one.host, one.pid, job.name, job.group_id, job.id, output.since(job.since))
                for one in found
                for job in one.running
            ]
            output.table(["host", Column("pid", number=True), "job", "group", "id", "began"], rows, "nothing runs")
            return 0 if found else 1
        output.table(COLUMNS, map(row, found), "no process works here: python -m asyncjobs run")
        return 0 if found else 1

    return project.ask(given, work)


def row(one: Any) -> tuple[Any, ...]:
    slots = None if one.slots is None else Cell(f"{one.slots_used}/{one.slots}")
    lag = None if one.loop_lag is None else Cell(words.duration(one.loop_lag), "", f"{one.loop_lag:.4f}")
    memory = None if one.memory is None else Cell(f"{one.memory / 2**20:.0f} MiB", "", str(one.memory))
    state = Cell(one.state, STYLES.get(one.state, ""))
    return (
        one.id.rpartition(".")[2], one.host, None if one.pid is None else Cell(str(one.pid)), state, slots, lag, memory,
        output.since(one.seen_at), output.since(one.since), one.version or one.release,
        ", ".join((*one.names, *(f"{task} (task)" for task in one.tasks))) or None,
    )  # fmt: skip


@made("drain", acts=True)
@click.argument("process")
def drain(given: Given, process: str) -> int:
    """Ask a process to take nothing more: what runs there goes on, others take the rest."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        if not given.dry_run:
            await runtime.drain_process(process, given.reason)
        _tell(given, process, "would be asked to drain" if given.dry_run else "was asked to drain")
        return 0

    return project.ask(given, work)


@made("resume", acts=True)
@click.argument("process")
def resume(given: Given, process: str) -> int:
    """Let a process take jobs again that was asked to drain."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        if not given.dry_run:
            await runtime.resume_process(process)
        _tell(given, process, "would take jobs again" if given.dry_run else "takes jobs again")
        return 0

    return project.ask(given, work)


def _tell(given: Given, process: str, done: str) -> None:
    if given.as_json:
        output.emit({"process": process, "done": done})
    else:
        click.echo(f"{words.one_line(process)}{'  ' if output.is_terminal() else chr(9)}{done}")


command = noun(
    "processes", "Look at the processes that work, and ask one to take nothing more.", listed, drain, resume,
    default="list",
)  # fmt: skip
