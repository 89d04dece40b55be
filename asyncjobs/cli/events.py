"""``asyncjobs events``"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from asyncjobs import words
from asyncjobs.cli import output, project
from asyncjobs.cli.command import Given, made
from asyncjobs.cli.output import Cell
from asyncjobs.cli.when import Length

if TYPE_CHECKING:
    from asyncjobs.events import Event
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

STYLES = {
    "completed": "green", "failed": "red", "retrying": "yellow", "stalled": "red", "cancelled": "magenta",
    "active": "blue", "skipped": "yellow",
}  # fmt: skip


@made("events")
@click.option("--type", "types", multiple=True, help="Only of that type, job.failed say.")
@click.option("--name", help="Only of that job or task.")
@click.option("--group", help="Only of that group.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many.")
@click.option("--for", "length", type=Length(), help="End after so long.")
@click.option("--follow", "-f", is_flag=True, help="Go on until it is interrupted, as without it.")
def command(
    given: Given, types: tuple[str, ...], name: str | None, group: str | None, count: int | None,
    length: float | None, follow: bool,
) -> int:  # fmt: skip
    """Show what happens in all processes, as it happens; fifty events a second of each process at most."""

    def wanted(event: Event) -> bool:
        return name in (None, event.name) and group in (None, event.group_id)

    async def work(queue: Queue, runtime: Runtime) -> int:
        try:
            async with asyncio.timeout(length):
                return await _show(runtime, types, wanted, count, given.as_json)
        except TimeoutError:
            return 0

    return project.ask(given, work)


async def _show(
    runtime: Runtime, types: tuple[str, ...], wanted: Callable[[Event], bool], count: int | None, as_json: bool
) -> int:
    following, shown, dropped = runtime.follow(types or None), 0, 0
    async for event in following:
        if following.dropped > dropped:
            output.say(f"… and {words.number(following.dropped - dropped)} more, which are not told")
            dropped = following.dropped
        if not wanted(event):
            continue
        _print(event, as_json)
        shown += 1
        if shown == count:
            break
    await following.aclose()
    return 0


def _print(event: Event, as_json: bool) -> None:
    if as_json:
        output.emit(
            {
                "at": event.at, "type": event.type, "name": event.name, "group": event.group_id, "id": event.job_id,
                "attempts_made": event.attempts_made, "duration": event.duration, "delay": event.delay,
                "scheduled_at": event.scheduled_at, "error": event.error, "process": event.process,
            }
        )  # fmt: skip
        return
    cells = _cells(event)
    if not output.is_terminal():
        click.echo("\t".join(map(output.plain, cells)))
        return
    kind = event.type.partition(".")[2]
    parts = [
        click.style(f"{event.at.astimezone():%H:%M:%S}", dim=True),
        click.style(f"{event.type:<14}", fg=STYLES.get(kind)),
        *(words.one_line(str(one)) for one in (event.name, event.group_id, event.job_id) if one is not None),
        *(output.shown(one).text for one in cells[5:] if one is not None),
    ]
    click.echo("  ".join(parts))


def _cells(event: Event) -> list[Any]:
    duration = None if event.duration is None else Cell(words.duration(event.duration), "", f"{event.duration:.4f}")
    delay = None if event.delay is None else Cell(f"again in {words.duration(event.delay)}", "", f"{event.delay:g}")
    error = None if event.error is None else str(event.error)
    return [event.at, event.type, event.name, event.group_id, event.job_id, duration, delay, error]
