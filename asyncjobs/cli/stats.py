"""``asyncjobs stats``"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from asyncjobs.cli import output, project
from asyncjobs.cli.command import Given, made
from asyncjobs.cli.output import Cell, Column
from asyncjobs.errors import BrokerError

if TYPE_CHECKING:
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

STATES = ("waiting", "active", "delayed", "completed", "failed")
EVERY = 1.0  # seconds between two lines


@made("stats")
@click.option("--watch", is_flag=True, help="A live view of the whole terminal; with --json a line a second.")
def command(given: Given, watch: bool) -> int:
    """Count the jobs of a project by name and state, also of names that are registered nowhere here."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        if watch and not given.as_json:
            from asyncjobs.cli.watch import watch as watched

            return await watched(queue, runtime)
        while True:
            _show(given, await _counts(queue))
            if not watch:
                return 0
            await asyncio.sleep(EVERY)

    return project.ask(given, work, announce=True, stand_ins=watch)


def _show(given: Given, counts: dict[str, dict[str, int]]) -> None:
    if given.as_json:
        output.emit(counts)
        return
    shown = [*STATES, *(["cancelled"] if any(one.get("cancelled") for one in counts.values()) else [])]
    rows = [
        (
            name if one.get("registered", True) else Cell(f"{name} (not registered)", "yellow"),
            *(one.get(state, 0) for state in shown),
            one.get("groups"),
        )
        for name, one in counts.items()
    ]
    output.table([Column("job"), *(Column(state, number=True) for state in (*shown, "groups"))], rows)


async def _counts(queue: Queue) -> dict[str, dict[str, int]]:
    counts = {name: await queue.counts(name) for name in queue.names}
    for name in queue.names:
        if queue.spec(name).grouped:
            counts[name]["groups"] = len(await queue.groups(name))
    with suppress(BrokerError):
        for name, left in (await queue.strangers()).items():
            if any(left.values()):
                counts[name] = {**left, "registered": False}
    return counts
