"""``asyncjobs add NAME JSON``"""

from __future__ import annotations

import sys

import click
import msgspec

from asyncjobs.cli import project
from asyncjobs.declare import payload
from asyncjobs.errors import visible
from asyncjobs.runtime import Runtime


@click.command("add")
@click.argument("name")
@click.argument("json", default="null")
@click.option("--group", help="The group id of a grouped job.")
@click.option("--delay", type=click.FloatRange(min=0), help="Seconds until it is due.")
@click.option("--id", "job_id", help="An id of your own: a job that has it already is not added again.")
@project.options
def command(
    name: str,
    json: str,
    group: str | None,
    delay: float | None,
    job_id: str | None,
    jobs: str | None,
    tasks: str | None,
    app: str | None,
    redis: str | None,
) -> int:
    """Add one job and print its id. JSON is its data; a dash reads it from standard input."""
    text = sys.stdin.read() if json == "-" else json
    try:
        data = payload.decode(text.encode())
    except msgspec.DecodeError as error:
        raise click.UsageError(f"the data is not JSON: {error}") from None
    runtime = project.runtime(jobs, tasks, app, redis)
    code: int = project.run_loop(_add(runtime, name, data, group, delay, job_id))
    return code


async def _add(
    runtime: Runtime, name: str, data: object, group: str | None, delay: float | None, job_id: str | None
) -> int:
    async with project.looking(runtime) as queue:
        job = await queue.add(name, data, group_id=group, delay=delay, job_id=job_id)
    click.echo(job.id if job.added else f"{visible(job.id)} exists already; nothing was added")
    return 0
