"""``asyncjobs ops [list|show|stop|resume]``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from asyncjobs import words
from asyncjobs.cli import output, project
from asyncjobs.cli.acting import acting_queue
from asyncjobs.cli.command import Given, made, noun
from asyncjobs.cli.output import Cell, Column

if TYPE_CHECKING:
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

STYLES = {"running": "blue", "done": "green", "stopped": "yellow", "failed": "red"}
ID = click.argument("operation", metavar="ID")


@made("list")
def listed(given: Given) -> int:
    """List the acts on many jobs that are kept in the store, newest first. 1 if there are none."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        found = await queue.operations.all()
        if given.as_json:
            output.emit(found)
            return 0 if found else 1
        rows = [
            (
                one.id, one.what, Cell(one.state, STYLES.get(one.state, "")), one.done, one.of,
                sum(one.skipped.values()), output.since(one.began), one.by, one.scope,
            )
            for one in found
        ]  # fmt: skip
        numbers = [Column(one, number=True) for one in ("done", "of", "skipped")]
        columns = [Column("id"), Column("what"), Column("state"), *numbers, Column("began"), Column("by")]
        output.table([*columns, Column("which", flexible=True)], rows, "no act on many jobs is kept")
        return 0 if found else 1

    return project.ask(given, work)


def _show(given: Given, one: Any) -> None:
    if given.as_json:
        output.emit(one)
        return
    skipped = ", ".join(f"{words.number(count)} {why}" for why, count in one.skipped.items())
    output.details(
        [
            ("id", one.id), ("what", one.what), ("which", one.scope),
            ("state", Cell(one.state, STYLES.get(one.state, ""))),
            ("done", f"{words.number(one.done)} of {words.number(one.of)}"), ("skipped", skipped or None),
            ("began", output.since(one.began)), ("ended", output.since(one.ended) if one.ended else None),
            ("by", one.by or None), ("from", one.source or None), ("reason", one.reason or None),
            ("problem", one.problem or None),
        ]
    )  # fmt: skip


@made("show")
@ID
def show(given: Given, operation: str) -> int:
    """Show how far one has come."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        _show(given, await queue.operations.read(operation))
        return 0

    return project.ask(given, work)


@made("stop", acts=True)
@ID
def stop(given: Given, operation: str) -> int:
    """Let one go no further; what it has done stays done."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        operations = acting_queue(queue).operations
        _show(given, await (operations.read(operation) if given.dry_run else operations.stop(operation)))
        return 0

    return project.ask(given, work)


@made("resume", acts=True)
@ID
def resume(given: Given, operation: str) -> int:
    """Drive one to its end that no other process drives any more; a process that works does so by itself."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        operations = acting_queue(queue).operations
        found = await (operations.read(operation) if given.dry_run else operations.drive(operation))
        _show(given, found)
        return 0 if given.dry_run or found.state == "done" else 1

    return project.ask(given, work)


command = noun(
    "ops", "Acts on many jobs, which go on in the store step by step.", listed, show, stop, resume, default="list"
)
