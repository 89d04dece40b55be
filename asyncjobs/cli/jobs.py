"""``asyncjobs jobs list|show|why|logs|tail|retry|rerun|promote|cancel|remove``"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from asyncjobs import redaction, words
from asyncjobs.cli import acting, choosing, output, project, reasons, showing
from asyncjobs.cli.acting import Act
from asyncjobs.cli.add import data_of
from asyncjobs.cli.choosing import Chosen
from asyncjobs.cli.command import Given, made, noun
from asyncjobs.errors import JobGoneError

if TYPE_CHECKING:
    from asyncjobs.job import Job
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

MOST: Final = 1_000_000
LOOK_EVERY: Final = 0.5  # seconds between two looks at a job that is followed
ENDED: Final = ("completed", "failed", "cancelled")
NAME: Final = click.option("--name", help="Of that job name.")
REVEAL: Final = click.option("--reveal", is_flag=True, help="Show also what looks like a secret.")


# Looking -----------------------------------------------------------------------------------------------------------
@made("list")
@click.argument("name", required=False)
@choosing.options
@click.option("--limit", type=click.IntRange(1, MOST), default=50, show_default=True, help="How many at most.")
@click.option("--after", metavar="CURSOR", help="Go on where a list before has ended.")
@click.option("--oldest-first", is_flag=True, help="The other way round.")
@click.option("--columns", metavar="LIST", help=f"Which columns, with commas between: {', '.join(showing.COLUMNS)}.")
@REVEAL
def listed(
    given: Given,
    name: str | None,
    limit: int,
    after: str | None,
    oldest_first: bool,
    columns: str | None,
    reveal: bool,
    **chosen: Any,
) -> int:
    """List jobs, newest first: of a name, or of all names. 1 if there are none."""
    wanted = Chosen(name, **chosen)
    shown = _columns(columns, wanted)

    async def work(queue: Queue, runtime: Runtime) -> int:
        jobs, cursor, scope, looked_at = await _read(wanted.selection(queue, (), not oldest_first), limit, after)
        if given.as_json:
            found = [showing.as_dict(job, reveal) for job in jobs]
            output.emit({"jobs": found, "next": cursor, "scope": scope, "looked_at": looked_at})
        else:
            showing.table(jobs, shown, reveal, f"none: {words.one_line(scope)}")
            if cursor is not None:
                output.say(f"{len(jobs)} shown, and there are more: --after {cursor}, or --limit")
        return 0 if jobs else 1

    return project.ask(given, work)


def _columns(given: str | None, wanted: Chosen) -> list[str]:
    if given is None:
        name = [] if wanted.name is not None else ["name"]
        return ["id", *name, "group", "state", "when", "tries", "about"]
    asked = [one.strip() for one in given.split(",") if one.strip()]
    unknown = [one for one in asked if one not in showing.COLUMNS]
    if unknown or not asked:
        raise click.UsageError(
            f"--columns {given!r}: expected some of {', '.join(showing.COLUMNS)}, with commas between"
        )
    return asked


async def _read(selection: Any, limit: int, after: str | None) -> tuple[list[Job], str | None, str, int]:
    """Pages until there are enough; says meanwhile how far a search has come."""
    jobs: list[Job] = []
    looked_at, told = 0, False
    while True:
        page = await selection.page(after=after, limit=min(1000, limit - len(jobs)))
        jobs += page.jobs
        looked_at += page.looked_at
        after = page.next
        if after is None or len(jobs) >= limit:
            break
        if sys.stderr.isatty():
            click.echo(f"\r{words.number(looked_at)} looked at, {words.number(len(jobs))} found …", err=True, nl=False)
            told = True
    if told:
        click.echo("\r\x1b[K", err=True, nl=False)
    return jobs, after, page.scope, looked_at


@made("show")
@click.argument("ids", nargs=-1, required=True)
@NAME
@click.option("--group", help="Of that group.")
@REVEAL
def show(given: Given, ids: tuple[str, ...], name: str | None, group: str | None, reveal: bool) -> int:
    """Show all that is known of a job: its data, its tries with their stacks, its log. 1 if there is none."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        found, code = await _jobs(queue, choosing.ids(ids), name, group)
        if given.as_json:
            output.emit([showing.as_dict(job, reveal) for job in found])
            return code
        for number, job in enumerate(found):
            if number:
                click.echo()
            showing.show(job, reveal)
        return code

    return project.ask(given, work)


async def _jobs(queue: Queue, ids: Sequence[str], name: str | None, group: str | None) -> tuple[list[Job], int]:
    """The jobs of some ids, and 1 if one of them means none."""
    found, code = [], 0
    for one in ids:
        mine = await choosing.by_id(queue, one, name, group)
        if not mine:
            output.say(f"error: {choosing.not_found(one, name, group)}")
            code = 1
        found += mine
    return found, code


@made("why")
@click.argument("ids", nargs=-1, required=True)
@NAME
@click.option("--group", help="Of that group.")
def why(given: Given, ids: tuple[str, ...], name: str | None, group: str | None) -> int:
    """Say why a job does not run: each reason, until when, and the command that lifts it."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        found, code = await _jobs(queue, choosing.ids(ids), name, group)
        answers = [(job, await job.why()) for job in found]
        if given.as_json:
            keys = ("id", "name", "group", "state")
            output.emit(
                [{**dict(zip(keys, reasons.who(job), strict=True)), "reasons": list(why)} for job, why in answers]
            )
        else:
            for number, (job, why) in enumerate(answers):
                if number:
                    click.echo()
                reasons.show_job(job, why)
        return code

    return project.ask(given, work)


@made("logs")
@click.argument("job_id", metavar="ID")
@NAME
@click.option("--group", help="Of that group.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job ends.")
@REVEAL
def logs(given: Given, job_id: str, name: str | None, group: str | None, follow: bool, reveal: bool) -> int:
    """Print the lines that a job has logged."""
    return project.ask(given, _followed(given, job_id, name, group, follow, reveal, lines_alone=True))


@made("tail")
@click.argument("job_id", metavar="ID")
@NAME
@click.option("--group", help="Of that group.")
@click.option("--follow/--no-follow", "-f", default=True, help="Go on until the job ends.  [default: follow]")
@REVEAL
def tail(given: Given, job_id: str, name: str | None, group: str | None, follow: bool, reveal: bool) -> int:
    """Follow a job to its end: states, progress, failed tries, log. 1 if it does not complete."""
    return project.ask(given, _followed(given, job_id, name, group, follow, reveal, lines_alone=False))


def _followed(
    given: Given, job_id: str, name: str | None, group: str | None, follow: bool, reveal: bool, lines_alone: bool
) -> project.Work:
    async def work(queue: Queue, runtime: Runtime) -> int:
        found, code = await _jobs(queue, [job_id], name, group)
        if code:
            return code
        if len(found) > 1:
            return acting.several(found)
        teller = _Teller(given, reveal, lines_alone)
        (job,) = found
        while True:
            teller.tell(job)
            if not follow or job.state in ENDED:
                return 0 if lines_alone or job.state not in ("failed", "cancelled") else 1
            await asyncio.sleep(LOOK_EVERY)
            try:
                await job.refresh()
            except JobGoneError as error:
                output.say(f"error: {error}")
                return 1

    return work


class _Teller:
    """Tells what is new of a job. State: what has been told."""

    def __init__(self, given: Given, reveal: bool, lines_alone: bool) -> None:
        self._json, self._reveal, self._lines_alone = given.as_json, reveal, lines_alone
        self._state: Any = None
        self._progress: Any = None
        self._errors = 0
        self._logs: tuple[str, ...] = ()

    def tell(self, job: Job) -> None:
        for line in job.logs[_overlap(self._logs, job.logs) :]:
            self._say("log", line)
        self._logs = job.logs
        if self._lines_alone:
            return
        for error in job.error:
            if error.attempt > self._errors:
                self._errors = error.attempt
                self._say("failed try", f"{error.attempt}: {error.text}")
        if job.progress != self._progress:
            self._progress = job.progress
            self._say("progress", showing.compact(job.progress))
        if job.state != self._state:
            self._state = job.state
            self._say("state", str(job.state))
            if job.state == "completed" and job.result is not None:
                self._say("result", showing.compact(job.result if self._reveal else redaction.redacted(job.result)))

    def _say(self, what: str, text: str) -> None:
        text = text if self._reveal else redaction.text(text)
        if self._json:
            output.emit({"what": what, "text": text})
        elif self._lines_alone:
            click.echo(words.one_line(text))
        else:
            click.echo(
                f"{what}\t{words.one_line(text)}" if not output.is_terminal() else f"{what:<10}  {words.one_line(text)}"
            )


def _overlap(before: Sequence[str], now: Sequence[str]) -> int:
    """How many of the lines `now` were there before, where the oldest may have been let go."""
    for start in range(len(before)):
        if tuple(before[start:]) == tuple(now[: len(before) - start]):
            return len(before) - start
    return 0


# Acting ------------------------------------------------------------------------------------------------------------
@made("retry", acts=True)
@acting.options
@click.option("--reset", is_flag=True, help="With all its tries again, instead of one more.")
def retry(given: Given, reset: bool, **chosen: Any) -> int:
    """Run failed or cancelled jobs once more: by id (a dash reads ids from standard input), or all that match."""
    return acting.act(given, Act("retry", "retried", ("failed", "cancelled"), {"reset": reset}), **chosen)


@made("promote", acts=True)
@acting.options
def promote(given: Given, **chosen: Any) -> int:
    """Let delayed jobs run now."""
    return acting.act(given, Act("promote", "promoted", ("delayed",)), **chosen)


@made("cancel", acts=True)
@acting.options
def cancel(given: Given, **chosen: Any) -> int:
    """Cancel jobs: those that wait at once, those that run as soon as their process hears of it."""
    states = ("waiting", "delayed", "active")
    return acting.act(given, Act("cancel", "cancelled", states, careful=True), **chosen)


@made("remove", acts=True)
@acting.options
def remove(given: Given, **chosen: Any) -> int:
    """Remove jobs with all that is kept of them; not those that run."""
    states = ("waiting", "delayed", "completed", "failed", "cancelled")
    return acting.act(given, Act("remove", "removed", states, careful=True), **chosen)


@made("rerun", acts=True)
@acting.options
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="A change of the data: order.id=7; JSON or text."
)
@click.option("--data", metavar="JSON", help="Other data: JSON, @FILE, or a dash.")
@click.option("--to", "to_name", metavar="NAME", help="Under another job name.")
@click.option("--to-group", metavar="GROUP", help="In another group.")
def rerun(
    given: Given, changes: tuple[str, ...], data: str | None, to_name: str | None, to_group: str | None, **chosen: Any
) -> int:
    """Add new jobs made from others, whatever became of those, with changes."""
    if data is not None and changes:
        raise click.UsageError("--data and --set both say what the data are to be; give one of them")
    more: dict[str, Any] = {}
    if data is not None:
        more["data"] = data_of(data)
    if to_name is not None:
        more["name"] = to_name
    if to_group is not None:
        more["group_id"] = to_group
    pairs = [acting.change(one) for one in changes]
    return acting.act(given, Act("rerun", "added anew", ENDED, more, changes=pairs), **chosen)


command = noun(
    "jobs",
    "Look at jobs, and act on them, over all names and groups, whether their code is here or not.",
    listed, show, why, logs, tail, retry, rerun, promote, cancel, remove,
)  # fmt: skip
