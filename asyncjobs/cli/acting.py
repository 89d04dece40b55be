"""Acts on jobs: on those that are named, one by one, or on all that match, with a question before."""

from __future__ import annotations

import asyncio
import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from asyncjobs import words
from asyncjobs.cli import asking, choosing, output, project, showing
from asyncjobs.cli.choosing import Chosen
from asyncjobs.errors import AsyncjobsError, visible

if TYPE_CHECKING:
    from asyncjobs.cli.command import Given
    from asyncjobs.job import Job
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

MANY: Final = 100  # jobs, beyond which an act that cannot be undone wants its word typed
SAMPLES: Final = 5
LOOK_EVERY: Final = 1.0  # seconds between two looks at how far it has come


@dataclass(frozen=True, slots=True)
class Act:
    """An act on jobs.

    Attributes:
        verb, done: the method of a job and of a selection; what has been done then.
        states: of the jobs that it is for, where no state was given.
        options: of that method.
        careful: it cannot be undone.
        changes: of the data, each a path and a value.
    """

    verb: str
    done: str
    states: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    careful: bool = False
    changes: Sequence[tuple[list[str], Any]] = ()

    def options_for(self, job: Job) -> dict[str, Any]:
        options = dict(self.options)
        if self.changes:
            options["data"] = changed(job.data, self.changes)
        return options


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ids and the options that choose jobs. The command gives them to `act`."""
    function = click.option("--all", "everything", is_flag=True, help="All that the act is for.")(function)
    function = choosing.options(function)
    function = click.option("--name", help="Of that job name.")(function)
    return click.argument("ids", nargs=-1)(function)


def act(given: Given, what: Act, *, ids: tuple[str, ...], everything: bool, name: str | None, **chosen: Any) -> int:
    """Act on the jobs that were chosen. 1: on none, or one of those named did not allow it."""
    wanted = Chosen(name, **chosen)
    others = [one for one in choosing.OPTIONS if one != "group" and chosen.get(one) is not None]
    if ids and others:
        raise click.UsageError(f"ids and --{others[0]} both say which jobs; give one of them")
    if not ids and not wanted.anything() and not everything:
        raise click.UsageError("say which jobs: ids, or --name, --state, --error, --since and so on, or --all")

    async def work(queue: Queue, runtime: Runtime) -> int:
        named = acting_queue(queue)
        if ids:
            return await _each(given, named, what, choosing.ids(ids), wanted)
        return await _all(given, named, what, wanted)

    return project.ask(given, work)


def acting_queue(queue: Queue) -> Queue:
    """The same queue, whose acts are recorded under the name of who types."""
    import getpass

    try:
        by = getpass.getuser()[:100] or "unknown"
    except (OSError, KeyError, ImportError):
        by = "unknown"
    named: Queue = queue.acting_as(by, source="cli")
    return named


# Named ones --------------------------------------------------------------------------------------------------------
async def _each(given: Given, queue: Queue, what: Act, ids: Sequence[str], wanted: Chosen) -> int:
    rows, code = [], 0
    for one in ids:
        found = await choosing.by_id(queue, one, wanted.name, wanted.group)
        if len(found) > 1:
            return several(found)
        job = found[0] if found else None
        row = {"id": one, "name": job and job.name, "group": job and job.group_id, "outcome": "", "error": ""}
        if job is None:
            row |= {"outcome": "gone", "error": choosing.not_found(one, wanted.name, wanted.group)}
        elif given.dry_run:
            row["outcome"] = "would be " + what.done
        else:
            row |= await _one(job, what, given)
        code = code if not row["error"] else 1
        rows.append(row)
        if not given.as_json:
            _say(row)
    if given.as_json:
        output.emit(rows)
    return code


async def _one(job: Job, what: Act, given: Given) -> dict[str, Any]:
    """What an act on one job has come to."""
    options = what.options_for(job)
    if given.reason:
        options["reason"] = given.reason
    try:
        answer = await getattr(job, what.verb)(**options)
    except AsyncjobsError as error:
        return {"outcome": "refused", "error": str(error)}
    if what.verb == "rerun":
        return {"outcome": what.done, "new_id": answer.id}
    if answer in ("finished", "gone"):
        return {"outcome": answer, "error": "it has ended already" if answer == "finished" else "its record is gone"}
    return {"outcome": answer if answer == "requested" else what.done}


def _say(row: Mapping[str, Any]) -> None:
    if row["error"]:
        output.say(f"error: {visible(row['id'])}: {row['error']}")
        return
    outcome = "cancel was asked for; its process ends it" if row["outcome"] == "requested" else row["outcome"]
    more = f" as {row['new_id']}" if row.get("new_id") else ""
    click.echo(
        f"{visible(row['id'])}\t{outcome}{more}"
        if not output.is_terminal()
        else f"{visible(row['id'])}  {outcome}{more}"
    )


def several(found: Sequence[Job]) -> int:
    """There is more than one job of that id."""
    output.say(f"error: {len(found)} jobs have the id {visible(found[0].id)}; say which with --name and --group:")
    for job in found:
        output.say(f"  --name {job.name}" + ("" if job.group_id is None else f" --group {job.group_id!r}"))
    return 1


# All that match ----------------------------------------------------------------------------------------------------
async def _all(given: Given, queue: Queue, what: Act, wanted: Chosen) -> int:
    selection = wanted.selection(queue, what.states)
    count = await selection.count()
    if count.exact and not count.number:
        return _none(given, selection.scope)
    number = words.number(count.number) if count.exact else f"at least {words.number(count.number)}"
    about = f"{number} jobs: {selection.scope}"
    if given.dry_run:
        return await _would(given, what, selection, about, count)
    word = what.verb if what.careful and (count.number > MANY or not count.exact) else ""
    if not asking.may(given, about, f"{what.verb.capitalize()} them?", word):
        return 0 if given.dry_run else 1
    done = await _done(queue, selection, what, given)
    if given.as_json:
        output.emit({"done": done.done, "skipped": dict(done.skipped)})
    else:
        left = ", ".join(f"{words.number(count)} {reason}" for reason, count in done.skipped.items())
        click.echo(f"{words.number(done.done)} {what.done}" + (f"; left alone: {left}" if left else ""))
    return 0 if done.done else 1


async def _done(queue: Queue, selection: Any, what: Act, given: Given) -> Any:
    """Act on all, and say meanwhile how far it has come. Where there are many, another process can go on."""
    options = {**what.options, **({"reason": given.reason} if given.reason else {})}
    if what.changes:
        raise click.UsageError("--set changes the data of jobs that are named by id; give ids, or --data for all")
    acting = asyncio.ensure_future(getattr(selection, what.verb)(**options))
    try:
        while not (await asyncio.wait([acting], timeout=LOOK_EVERY))[0]:
            await _progress(queue, what)
        return acting.result()
    finally:
        project.UNDO[:] = [one for one in project.UNDO if one is not _goes_on]
        acting.cancel()


async def _progress(queue: Queue, what: Act) -> None:
    running = [one for one in await queue.operations.all() if one.state == "running" and one.what == what.verb]
    if not running:
        return
    if _goes_on not in project.UNDO:
        project.UNDO.append(_goes_on)
    if sys.stderr.isatty():
        one = running[0]
        click.echo(f"\r{words.number(one.done)} of {words.number(one.of)} {what.done} …\x1b[K", err=True, nl=False)
        if one.done >= one.of:
            click.echo("\r\x1b[K", err=True, nl=False)


def _goes_on() -> None:
    """The command is interrupted while an operation goes on."""
    text = "it goes on in another process: `asyncjobs ops` shows it, `asyncjobs ops stop ID` ends it"
    click.echo(f"\n{text}", err=True)


def _none(given: Given, scope: str) -> int:
    if given.as_json:
        output.emit({"done": 0, "skipped": {}})
    else:
        output.say(f"there are none: {scope}")
    return 1


async def _would(given: Given, what: Act, selection: Any, about: str, count: Any) -> int:
    """Show five of the jobs that would be acted on."""
    page = await selection.page(limit=SAMPLES)
    if given.as_json:
        samples = [showing.as_dict(job, False) for job in page.jobs]
        output.emit({"would": what.verb, "number": count.number, "exact": count.exact, "samples": samples})
        return 0
    click.echo(f"would {what.verb} {words.one_line(about)}")
    showing.table(page.jobs, ["id", "name", "group", "state", "when", "about"], False)
    return 0


# Changes of data ---------------------------------------------------------------------------------------------------
def change(text: str) -> tuple[list[str], Any]:
    """``order.id=7`` as a path and a value, which is JSON, or else a text."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip("."):
        raise click.UsageError(f"--set {text!r}: expected KEY=VALUE, such as order.id=7")
    try:
        return path.split("."), msgspec.json.decode(value.encode())
    except (msgspec.DecodeError, UnicodeEncodeError):
        return path.split("."), value


def changed(data: Any, changes: Sequence[tuple[list[str], Any]]) -> Any:
    """A copy of `data` with those changes.

    Raises:
        click.UsageError: a path that leads nowhere.
    """
    made = copy.deepcopy(data)
    for path, value in changes:
        at: Any = made
        for part in path[:-1]:
            at = at.get(part) if isinstance(at, dict) else at[int(part)] if _is_index(at, part) else None
        last = path[-1]
        if isinstance(at, dict):
            at[last] = value
        elif _is_index(at, last):
            at[int(last)] = value
        else:
            raise click.UsageError(f"--set {'.'.join(path)}: the data of the job have no such place")
    return made


def _is_index(value: Any, part: str) -> bool:
    return isinstance(value, list) and part.isdigit() and int(part) < len(value)
