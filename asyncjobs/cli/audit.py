"""``asyncjobs audit [list|revert]``"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from asyncjobs.cli import output, project
from asyncjobs.cli.acting import acting_queue
from asyncjobs.cli.command import Given, made, noun
from asyncjobs.cli.output import Column
from asyncjobs.cli.when import Instant

if TYPE_CHECKING:
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime


@made("list")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most.")
@click.option("--by", help="By whom.")
@click.option("--what", help="Which act: retry, pause, set, …")
@click.option("--name", help="On that job name.")
@click.option("--since", type=Instant(), help="Since then: 1h, 2d, 2026-12-01T09:00Z.")
def listed(given: Given, limit: int, by: str | None, what: str | None, name: str | None, since: datetime | None) -> int:
    """List who has done what, newest first. 1 if there is nothing."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        found = []
        async for one in queue.audit():
            if since is not None and one.at < since:
                break
            if by in (None, one.by) and what in (None, one.what) and name in (None, one.target.get("name")):
                found.append(one)
            if len(found) >= limit:
                break
        if given.as_json:
            output.emit(found)
            return 0 if found else 1
        rows = [
            (one.id, one.at, one.by, one.source, one.what, target(one.target), change(one), one.reason)
            for one in found
        ]  # fmt: skip
        changed = Column("change", flexible=True)
        output.table(("id", "when", "by", "from", "what", "target", changed, "reason"), rows, "nothing was done")
        return 0 if found else 1

    return project.ask(given, work)


def target(found: Mapping[str, Any]) -> str:
    """What was acted on, in words."""
    name, group, ids = found.get("name"), found.get("group_id"), found.get("ids") or []
    parts = [str(name)] if name else []
    parts += [str(group)] if group is not None else []
    if len(ids) == 1:
        parts.append(str(ids[0]))
    elif found.get("number"):
        parts.append(f"{found['number']} jobs")
    more = {key: value for key, value in found.items() if key not in ("name", "group_id", "ids", "number") and value}
    return " · ".join(parts) or " ".join(f"{key} {value}" for key, value in more.items())


def change(one: Any) -> str:
    """What it has changed: before and after."""
    if one.before is None and one.after is None:
        return ""
    before, after = one.before or {}, one.after or {}
    keys = dict.fromkeys((*before, *after))
    return ", ".join(f"{key}: {_said(before.get(key))} → {_said(after.get(key))}" for key in keys)


def _said(value: Any) -> str:
    return "–" if value in (None, "") else str(value)


@made("revert", acts=True)
@click.argument("entry", metavar="ID")
def revert(given: Given, entry: str) -> int:
    """Undo a setting: as it was before that act."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        if not given.dry_run:
            acting: Any = acting_queue(queue)
            await acting.revert(entry)
        done = "would be reverted" if given.dry_run else "reverted"
        if given.as_json:
            output.emit({"id": entry, "done": done})
        else:
            click.echo(f"{entry}\t{done}")
        return 0

    return project.ask(given, work)


command = noun("audit", "Who has done what, and how to undo a setting.", listed, revert, default="list")
