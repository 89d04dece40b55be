"""``asyncjobs add NAME JSON``"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from asyncjobs.cli import output, project
from asyncjobs.cli.command import Given, made
from asyncjobs.cli.when import Instant, Length
from asyncjobs.errors import AsyncjobsError, visible

if TYPE_CHECKING:
    from asyncjobs.job import Job
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

AT_ONCE: Final = 500  # jobs in one go
LINES: Final = (".ndjson", ".jsonl")


@made("add", acts=True)
@click.argument("name")
@click.argument("json", default="null")
@click.option("--group", help="The group id of a grouped job.")
@click.option("--delay", type=Length(), help="How long until it is due: 90 (seconds), 15m, 2h.")
@click.option("--at", type=Instant(ahead=True), help="When it is due: 2026-12-01T09:00Z.")
@click.option("--id", "job_id", help="An id of your own: a job that has it already is not added again.")
@click.option("--attempts", type=click.IntRange(min=1), help="Most tries in all, instead of the definition's.")
@click.option("--lines", is_flag=True, help="A job for each line of the file, as with a name in .ndjson or .jsonl.")
@click.option("--wait", is_flag=True, help="Wait for its end and print the result as JSON; 1 if it failed.")
@click.option("--timeout", type=Length(), help="With --wait: for so long at most.")
def command(
    given: Given, name: str, json: str, lines: bool, job_id: str | None, wait: bool, timeout: float | None, **own: Any
) -> int:
    """Add a job and print its id.

    JSON is its data; @FILE reads it from a file, and a dash from standard input.
    """
    lines = lines or (json.startswith("@") and json.endswith(LINES))
    if lines and job_id:
        raise click.UsageError("--id names one job, and each line is one")
    if own["delay"] is not None and own["at"] is not None:
        raise click.UsageError("--delay and --at both say when it is due; give one of them")
    options = {key: value for key, value in own.items() if value is not None and key != "group"}
    options |= {} if own["group"] is None else {"group_id": own["group"]}
    options |= {} if job_id is None else {"job_id": job_id}
    found = data_of_lines(json) if lines else iter([data_of(json)])

    async def work(queue: Queue, runtime: Runtime) -> int:
        if given.dry_run:
            return _would_add(queue, runtime, name, found)
        if name in queue.names and not project.is_here(queue, name):
            output.say(f"{name} is known from the store alone, so its data are not checked")
        code = added = 0
        while some := _some(found, added):
            jobs = await queue.add_bulk([(name, data, options) for data in some])
            added += len(jobs)
            for job in jobs:
                if not wait:
                    _tell(given, job)
                else:
                    code = max(code, await _wait(given, job, timeout))
        return code

    return project.ask(given, work, announce=not given.dry_run)


def _some(found: Iterator[Any], before: int) -> list[Any]:
    """The data of the next jobs; `before`: how many have been added."""
    try:
        return list(itertools.islice(found, AT_ONCE))
    except click.UsageError as error:
        if before:
            raise click.UsageError(f"{error.message}; {before} jobs of the lines before were added") from None
        raise


def _would_add(queue: Queue, runtime: Runtime, name: str, found: Iterable[Any]) -> int:
    """Check everything and add nothing."""
    spec, count = queue.spec(name), 0
    for data in found:
        spec.codec.encode(data, runtime.config.max_payload)
        count += 1
    click.echo(f"would add {count} job{'s' * (count != 1)} of {name}")
    return 0


def _tell(given: Given, job: Job) -> None:
    if given.as_json:
        output.emit(_seen(job))
    else:
        click.echo(visible(job.id) if job.added else f"{visible(job.id)} exists already; nothing was added")


def _seen(job: Job) -> dict[str, Any]:
    due: datetime | None = job.due_at
    return {"id": job.id, "name": job.name, "group": job.group_id, "added": job.added, "due_at": due}


async def _wait(given: Given, job: Job, timeout: float | None) -> int:
    """Print what a job comes to; 1: it has not completed."""
    try:
        result = await job.wait(timeout)
    except AsyncjobsError as error:
        if not given.as_json:
            output.say(f"error: {error}")
        else:
            output.emit({**_seen(job), "error": f"{type(error).__name__}: {error}"})
        return 1
    output.emit({**_seen(job), "result": result} if given.as_json else result)
    return 0


def text_of(given: str) -> str:
    """What `given` stands for: itself, a file for ``@FILE``, standard input for a dash."""
    if given == "-" or given == "@-":
        return sys.stdin.read()
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{given}: {error}") from None


def data_of(given: str) -> Any:
    return _decoded(text_of(given), "the data is not JSON")


def data_of_lines(given: str) -> Iterator[Any]:
    """The data of each line that is not empty, read as they are needed."""
    name = given.removeprefix("@")
    if not given.startswith("@") and given != "-":
        raise click.UsageError("--lines: say @FILE, or a dash for standard input")
    try:
        with sys.stdin if name == "-" else open(name, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _decoded(line, f"{name}, line {number}: not JSON")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{name}: {error}") from None


def _decoded(text: str, wrong: str) -> Any:
    import msgspec

    from asyncjobs.declare import payload

    try:
        return payload.decode(text.encode())
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise click.UsageError(f"{wrong}: {error}") from None
