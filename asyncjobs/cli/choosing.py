"""Which jobs a command is about: by id, or by name, state, group, text, error and instant."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from asyncjobs.cli.when import Instant
from asyncjobs.errors import visible

if TYPE_CHECKING:
    from asyncjobs.job import Job
    from asyncjobs.operate.selection import Selection
    from asyncjobs.queue import Queue

STATES: Final = ("waiting", "active", "delayed", "completed", "failed", "cancelled")
OPTIONS: Final = ("group", "state", "text", "error", "tag", "since", "until")


class States(click.ParamType):  # type: ignore[type-arg]
    """One or several states, with commas between."""

    name = "state"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        found = tuple(dict.fromkeys("active" if one == "running" else one for one in value.replace(" ", "").split(",")))
        unknown = [one for one in found if one not in STATES]
        if unknown:
            self.fail(
                f"{unknown[0]!r}: expected one or several of {', '.join(STATES)}, with commas between", param, ctx
            )
        return found


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose jobs. The command takes them as keyword arguments, and gives them to `Chosen`."""
    for option in (
        click.option("--until", type=Instant(), help="The same, before then."),
        click.option(
            "--since", type=Instant(), help="Finished, started, due or added since: 1h, 2d, 2026-12-01T09:00Z."
        ),
        click.option("--tag", help="With that tag."),
        click.option("--error", help="With that in the type or text of the last error."),
        click.option("--q", "--text", "text", help="With that in the payload; key:value looks at that key."),
        click.option("--group", help="Of that group."),
        click.option("--state", type=States(), help=f"In one of: {','.join(STATES)}."),
    ):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was given of `options`."""

    name: str | None
    group: str | None = None
    state: tuple[str, ...] | None = None
    text: str | None = None
    error: str | None = None
    tag: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def anything(self) -> bool:
        """Whether anything was given."""
        return self.name is not None or any(getattr(self, one) is not None for one in OPTIONS)

    def selection(self, queue: Queue, states: Sequence[str] = (), newest_first: bool = True) -> Selection:
        """What it selects. `states`: where none was given."""
        return queue.select(
            self.name,
            state=self.state or states or None,
            group_id=self.group,
            text=self.text,
            error=self.error,
            tag=self.tag,
            since=self.since,
            until=self.until,
            newest_first=newest_first,
        )


async def by_id(queue: Queue, job_id: str, name: str | None, group: str | None) -> list[Job]:
    """The jobs of that id; `name`, `group`: of these alone."""
    if name is not None and (group is not None or (name in queue.names and not queue.spec(name).grouped)):
        job = await queue.get_job(name, job_id, group) if name in queue.names else None
        if job is not None:
            return [job]
    found = await queue.find(job_id)
    return [one for one in found if name in (None, one.name) and group in (None, one.group_id)]


def not_found(job_id: str, name: str | None, group: str | None) -> str:
    where = "" if name is None else f" of {name}"
    where += "" if group is None else f" in group {group!r}"
    return f"no job{where} has the id {visible(job_id)}: its record was let go by retention or removed, or never added"


def ids(given: Sequence[str]) -> list[str]:
    """Ids as they were given; a dash stands for those on standard input, one a line, or first between tabs."""
    found: list[str] = []
    for one in given:
        if one != "-":
            found.append(one)
            continue
        lines = (line.rstrip("\n").partition("\t")[0].strip() for line in sys.stdin)
        found += [line for line in lines if line and line != "id"]
    return list(dict.fromkeys(found))
