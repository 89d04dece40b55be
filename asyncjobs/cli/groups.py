"""``asyncjobs groups list|show|set|pause|resume|release|clear``"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import click

from asyncjobs import words
from asyncjobs.cli import output, project, queues, reasons, steering
from asyncjobs.cli.acting import acting_queue
from asyncjobs.cli.command import Given, made, noun
from asyncjobs.cli.output import Cell, Column

if TYPE_CHECKING:
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

NAME: Final = click.argument("name")
GROUP: Final = click.argument("group")
GROUPS: Final = click.argument("groups", nargs=-1, required=True)
AT_ONCE: Final = 200  # groups that are asked for together
SORTS: Final = ("backlog", "running", "delayed", "failed", "id")
FILTERS: Final = ("paused", "limited", "held")


@made("list")
@NAME
@click.option("--sort", type=click.Choice(SORTS), default="backlog", show_default=True)
@click.option("--filter", "filters", type=click.Choice(FILTERS), multiple=True, help="Only those.")
@click.option("--limit", "most", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most.")
def listed(given: Given, name: str, sort: str, filters: tuple[str, ...], most: int) -> int:
    """List the groups of a job name that are not reaped, the largest backlog first. 1 if there are none."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        ids = await queue.groups(name)
        found = [one for one in await infos(queue, name, ids) if all(_is(one, kind) for kind in filters)]
        found.sort(key=_key(sort))
        shown = found[:most]
        if given.as_json:
            output.emit({"groups": shown, "number": len(ids), "matching": len(found)})
            return 0 if found else 1
        spec = queues.spec_of(queue, name)
        rows = [
            (
                one["group_id"], one["waiting"], Cell(steering.slots(one, spec)), one["delayed"], one["failed"],
                steering.limit(one, spec), one["weight"], steering.standing(one),
            )
            for one in shown
        ]  # fmt: skip
        numbers = [Column(one, number=True) for one in ("waiting", "running", "delayed", "failed")]
        columns = [Column("group"), *numbers, Column("limit"), Column("weight", number=True), Column("state")]
        output.table(columns, rows, f"no group of {name} is open")
        if len(found) > most:
            output.say(f"{most} shown of {words.number(len(found))}; --limit shows more")
        return 0 if found else 1

    return project.ask(given, work)


async def infos(queue: Queue, name: str, ids: list[str]) -> list[dict[str, Any]]:
    """What holds for each group, some hundred at a time."""
    found: list[dict[str, Any]] = []
    for start in range(0, len(ids), AT_ONCE):
        some = ids[start : start + AT_ONCE]
        found += await asyncio.gather(*(queue.group(name, group_id).info() for group_id in some))
    return found


def _is(info: dict[str, Any], kind: str) -> bool:
    if kind == "paused":
        return bool(info["paused"])
    return info["held_until"] is not None if kind == "held" else info["limiter"] is not None


def _key(sort: str) -> Callable[[dict[str, Any]], Any]:
    field = {"backlog": "waiting", "running": "active"}.get(sort, sort)
    if sort == "id":
        return lambda one: one["group_id"]
    return lambda one: (-one[field], one["group_id"])


@made("show")
@NAME
@GROUP
def show(given: Given, name: str, group: str) -> int:
    """Show what holds for a group now, and why its next job does not run."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        controls = queue.group(name, group)
        info, found = await controls.info(), await controls.why()
        if given.as_json:
            output.emit({**info, "why": list(found)})
            return 0
        steering.details(info, queues.spec_of(queue, name))
        if found or info["waiting"]:
            click.echo("\nwhy the next job does not run")
            reasons.show(found, "nothing holds it back")
        return 0

    return project.ask(given, work)


@made("set", acts=True)
@NAME
@GROUP
@steering.options
@click.option("--preview", is_flag=True, help="Only say what it would do to the backlog; as --dry-run.")
def set_(given: Given, name: str, group: str, preview: bool, **values: Any) -> int:
    """Limit a group while it runs, in every process. What is left out stays as it is."""
    return queues.apply(given, name, group, preview, steering.settings(**values))


def _each(given: Given, name: str, groups: tuple[str, ...], done: str, act: Callable[[Any], Awaitable[Any]]) -> int:
    async def work(queue: Queue, runtime: Runtime) -> int:
        acting = acting_queue(queue)
        for group in groups:
            controls = acting.group(name, group)
            if not given.dry_run:
                await act(controls)
            steering.tell(given, name, group, f"would be {done}" if given.dry_run else done)
        return 0

    return project.ask(given, work)


@made("pause", acts=True)
@NAME
@GROUPS
def pause(given: Given, name: str, groups: tuple[str, ...]) -> int:
    """Start nothing more of a group, in any process; what runs goes on, adds are taken and wait."""
    return _each(given, name, groups, "paused", lambda one: one.pause(**queues.reason(given, one.pause)))


@made("resume", acts=True)
@NAME
@GROUPS
def resume(given: Given, name: str, groups: tuple[str, ...]) -> int:
    """Go on with a group."""
    return _each(given, name, groups, "resumed", lambda one: one.resume(**queues.reason(given, one.resume)))


@made("release", acts=True)
@NAME
@GROUPS
def release(given: Given, name: str, groups: tuple[str, ...]) -> int:
    """End the rest that a handler has asked for with RateLimited, or that an ordered job takes before its next try."""
    return _each(given, name, groups, "released", lambda one: one.release(**queues.reason(given, one.release)))


@made("clear", acts=True)
@NAME
@GROUPS
def clear(given: Given, name: str, groups: tuple[str, ...]) -> int:
    """Take back all that was set of a group, a pause too: as its name and the code have it."""
    return _each(given, name, groups, "as the code has it", lambda one: one.clear(**queues.reason(given, one.clear)))


command = noun(
    "groups",
    "Look at the groups of a job name, and limit and pause them one by one.",
    listed, show, set_, pause, resume, release, clear,
)  # fmt: skip
