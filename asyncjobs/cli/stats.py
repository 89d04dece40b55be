"""``asyncjobs stats``"""

from __future__ import annotations

import json
from contextlib import suppress

import click

from asyncjobs import terminal
from asyncjobs.cli import project
from asyncjobs.errors import BrokerError
from asyncjobs.runtime import Runtime


@click.command("stats")
@project.options
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="One JSON object: job name → state → count; registered: false for a name that only the store knows.",
)
def command(jobs: str | None, tasks: str | None, app: str | None, redis: str | None, as_json: bool) -> int:
    """Count the jobs of a project by state."""
    runtime = project.runtime(jobs, tasks, app, redis)
    counts = project.run_loop(_counts(runtime))
    if as_json:
        click.echo(json.dumps(counts))
    else:
        states = ("waiting", "active", "delayed", "completed", "failed")
        rows = [
            (
                name if one.get("registered", True) else f"{name} (not registered)",
                *(one.get(state, 0) for state in states),
                one.get("groups", ""),
            )
            for name, one in counts.items()
        ]
        terminal.console().print(terminal.table("", ("job", *states, "groups"), rows, numbers=(*states, "groups")))
    return 0


async def _counts(runtime: Runtime) -> dict[str, dict[str, int]]:
    async with project.looking(runtime) as queue:
        counts = {name: await queue.counts(name) for name in queue.names}
        for name in queue.names:
            if queue.spec(name).grouped:
                counts[name]["groups"] = len(await queue.groups(name))
        with suppress(BrokerError):
            for name, left in (await queue.strangers()).items():
                if any(left.values()):
                    counts[name] = {**left, "registered": False}
    return counts
