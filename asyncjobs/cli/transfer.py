"""``asyncjobs export`` and ``asyncjobs import``: jobs as lines of JSON, from one store to another, or to a file."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from asyncjobs import words
from asyncjobs.cli import asking, choosing, output, project
from asyncjobs.cli.choosing import Chosen, States
from asyncjobs.cli.command import Given, made
from asyncjobs.errors import ConfigError, visible

if TYPE_CHECKING:
    from asyncjobs.job import Job
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

AT_ONCE: Final = 500  # jobs in one go
OPEN: Final = ("waiting", "active", "delayed")  # what is imported unless others are asked for
LETTERS: Final = {"a": "attempts", "b": "backoff", "t": "timeout", "c": "remove_on_complete", "f": "remove_on_fail"}


# Export ------------------------------------------------------------------------------------------------------------
@made("export")
@click.argument("name", required=False)
@choosing.options
def export(given: Given, name: str | None, **chosen: Any) -> int:
    """Write jobs as lines of JSON, one a job: of a name or of all, by default those that wait, run or are delayed.

    What looks like a secret is written too: `import` reads these lines. 1 if there are none.
    """
    wanted = Chosen(name, **chosen)

    async def work(queue: Queue, runtime: Runtime) -> int:
        number = 0
        async for job in wanted.selection(queue, OPEN, newest_first=False):
            click.echo(line(job))
            number += 1
        output.say(f"{words.number(number)} jobs written")
        return 0 if number else 1

    return project.ask(given, work)


def line(job: Job) -> str:
    """A job as `import` reads it."""
    found: dict[str, Any] = {
        "id": job.id, "name": job.name, "group": job.group_id, "state": job.state, "data": job.data,
        "added_at": output.at(job.added_at), "due_at": output.at(job.due_at), "attempts_made": job.attempts_made,
        "options": options_of(job),
    }  # fmt: skip
    if job.state in ("completed", "failed", "cancelled"):
        found |= {"finished_at": output.at(job.finished_at), "result": job.result}
        found["error"] = job.error[-1].text if job.error else None
    return json.dumps(found, default=output._builtin)


def options_of(job: Job) -> dict[str, Any]:
    """The options that its add has given, as `add` takes them."""
    from asyncjobs.declare.overrides import Overrides

    try:
        own = msgspec.to_builtins(Overrides.decode((job._record or {}).get("o", b"")))
    except (msgspec.MsgspecError, RecursionError):
        return {}
    found = {LETTERS[key]: value for key, value in own.items() if key in LETTERS}
    for keep in ("remove_on_complete", "remove_on_fail"):
        if keep in found:
            count, age = found[keep]
            found[keep] = {key: value for key, value in (("count", count), ("age", age / 1000)) if value >= 0}
    return found


# Import ------------------------------------------------------------------------------------------------------------
@made("import", acts=True)
@click.argument("file", default="-")
@click.option(
    "--state", type=States(), default=OPEN, help=f"Those that were in one of: {','.join(OPEN)} (the default)."
)
@click.option("--name", help="All under that job name.")
@click.option("--group", help="All in that group.")
def add_again(given: Given, file: str, state: tuple[str, ...], name: str | None, group: str | None) -> int:
    """Add jobs from lines of JSON, as `export` writes them: `id`, `name`, `group`, `data`, `due_at`, `options`.

    Each is added once: a job whose id is there already is left as it is. A line without an id is added each time.
    """

    async def work(queue: Queue, runtime: Runtime) -> int:
        counts: Counter[str] = Counter()
        if not given.dry_run and not asking.may(given, f"add the jobs of {file}", "Go on?"):
            return 1
        rows = _rows(file)
        while some := list(itertools.islice(rows, AT_ONCE)):
            wanted = [row for _, row in some if row.get("state", "waiting") in state]
            counts["left out"] += len(some) - len(wanted)
            made = [_job(row, name, group) for row in wanted]
            if given.dry_run:
                for job_name, data, _ in made:
                    queue.spec(job_name).codec.encode(data, runtime.config.max_payload)
                counts["would be added"] += len(made)
                continue
            for job in await queue.add_bulk(made):
                counts["added" if job.added else "there already"] += 1
        if given.as_json:
            output.emit(dict(counts))
        else:
            click.echo(
                ", ".join(f"{words.number(number)} {what}" for what, number in counts.items() if number) or "no lines"
            )
        return 0 if counts["added"] + counts["there already"] + counts["would be added"] else 1

    return project.ask(given, work)


def _rows(file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line by line; a bad one is named by its number."""
    try:
        with nullcontext(sys.stdin) if file == "-" else open(file, encoding="utf-8") as opened:
            for number, text in enumerate(opened, 1):
                if text.strip():
                    yield number, _row(file, number, text)
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file}: {error}") from None


def _row(file: str, number: int, text: str) -> dict[str, Any]:
    try:
        row = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise click.UsageError(f"{file}, line {number}: not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        raise click.UsageError(f"{file}, line {number}: expected an object with a name, such as export writes")
    return row


def _job(row: Mapping[str, Any], name: str | None, group: str | None) -> tuple[str, Any, dict[str, Any]]:
    """A line as `add_bulk` takes it.

    Raises:
        ConfigError: an instant, or options, that are none.
    """
    given = row.get("options") or {}
    if not isinstance(given, dict):
        raise ConfigError(f"the options of {visible(str(row.get('id')))} are {type(given).__name__}, not an object")
    options = dict(given)
    if row.get("id") is not None:
        options["job_id"] = row["id"]
    which = group if group is not None else row.get("group")
    if which is not None:
        options["group_id"] = which
    if row.get("due_at") is not None:
        try:
            options["at"] = datetime.fromisoformat(row["due_at"])
        except (ValueError, TypeError):
            raise ConfigError(
                f"due_at={row['due_at']!r} of {visible(str(row.get('id')))}: expected an instant"
            ) from None
    return name or row["name"], row.get("data"), options
