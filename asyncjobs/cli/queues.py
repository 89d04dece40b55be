"""``asyncjobs queues list|show|pause|resume|release|set|unset|drain|clean|obliterate``"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import click

from asyncjobs import words
from asyncjobs.cli import asking, output, project, reasons, steering
from asyncjobs.cli.acting import acting_queue
from asyncjobs.cli.choosing import States
from asyncjobs.cli.command import Given, made, noun
from asyncjobs.cli.figures import info_of
from asyncjobs.cli.output import Cell, Column
from asyncjobs.cli.when import Length

if TYPE_CHECKING:
    from asyncjobs.declare.definition import JobSpec
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

NAMES: Final = click.argument("names", nargs=-1, required=True)
NAME: Final = click.argument("name")


def spec_of(queue: Queue, name: str) -> JobSpec | None:
    """What is registered here under a name."""
    return queue.spec(name) if name in queue.names else None


# Looking -----------------------------------------------------------------------------------------------------------
@made("list")
def listed(given: Given) -> int:
    """List the job names, with what waits, runs and has failed, their limits, and which are paused or held."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        names = await queue.all_names()
        found = {name: await _info(queue, name, counts) for name, counts in names.items()}
        if given.as_json:
            output.emit([{**one, "registered": project.is_here(queue, name)} for name, one in found.items()])
            return 0 if found else 1
        rows = [row(queue, name, one) for name, one in found.items()]
        numbers = [
            Column(one, number=True) for one in ("waiting", "running", "delayed", "failed", "completed", "groups")
        ]
        columns = [Column("job"), *numbers, Column("limit"), Column("state")]
        output.table(columns, rows, "no job has ever been registered in this store")
        return 0 if found else 1

    return project.ask(given, work)


async def _info(queue: Queue, name: str, counts: dict[str, int]) -> dict[str, Any]:
    """What holds for a name now, and how many groups of it are open."""
    spec = spec_of(queue, name)
    groups = len(await queue.groups(name)) if spec is not None and spec.grouped else None
    return {**await info_of(queue, name, counts), "groups": groups}


def row(queue: Queue, name: str, info: dict[str, Any]) -> tuple[Any, ...]:
    spec = spec_of(queue, name)
    shown = name if project.is_here(queue, name) else Cell(f"{name} (not registered)", "yellow", name)
    slots = steering.slots(info, spec)
    failed = Cell(words.number(info["failed"]), "red", str(info["failed"])) if info["failed"] else 0
    return (
        shown, info["waiting"], Cell(slots, "dim" if slots == "0" else "", slots), info["delayed"], failed,
        info["completed"], info["groups"], steering.limit(info, spec), steering.standing(info),
    )  # fmt: skip


@made("show")
@NAME
def show(given: Given, name: str) -> int:
    """Show what holds for a job name now, and why its next job does not run."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        controls = queue.job(name)
        info, found = await controls.info(), await controls.why()
        if given.as_json:
            output.emit({**info, "registered": project.is_here(queue, name), "why": list(found)})
            return 0
        steering.details(info, spec_of(queue, name))
        if found or info["waiting"]:
            click.echo("\nwhy the next job does not run")
            reasons.show(found, "nothing holds it back")
        return 0

    return project.ask(given, work)


# Steering ----------------------------------------------------------------------------------------------------------
def _each(given: Given, names: tuple[str, ...], done: str, act: Callable[[Any], Awaitable[Any]]) -> int:
    """Do something that can be undone to each of some names."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        acting = acting_queue(queue)
        for name in names:
            controls = acting.job(name)
            if given.dry_run:
                steering.tell(given, name, None, f"would be {done}")
                continue
            await act(controls)
            steering.tell(given, name, None, done)
        return 0

    return project.ask(given, work)


@made("pause", acts=True)
@NAMES
def pause(given: Given, names: tuple[str, ...]) -> int:
    """Start nothing more of a job name, in any process; what runs goes on, adds are taken and wait."""
    return _each(given, names, "paused", lambda controls: controls.pause(**reason(given, controls.pause)))


@made("resume", acts=True)
@NAMES
def resume(given: Given, names: tuple[str, ...]) -> int:
    """Go on with a job name."""
    return _each(given, names, "resumed", lambda controls: controls.resume(**reason(given, controls.resume)))


@made("release", acts=True)
@NAMES
def release(given: Given, names: tuple[str, ...]) -> int:
    """End the rest that a handler has asked for with RateLimited."""
    return _each(given, names, "released", lambda controls: controls.release(**reason(given, controls.release)))


@made("unset", acts=True)
@NAMES
def unset(given: Given, names: tuple[str, ...]) -> int:
    """Take back all that was set, a pause too: as the code has it."""
    return _each(given, names, "as the code has it", lambda controls: controls.clear(**reason(given, controls.clear)))


def reason(given: Given, method: Any) -> dict[str, Any]:
    """`reason` as a keyword, where it was given and the method keeps it."""
    import inspect

    return {"reason": given.reason} if given.reason and "reason" in inspect.signature(method).parameters else {}


@made("set", acts=True)
@NAME
@steering.options
@click.option("--preview", is_flag=True, help="Only say what it would do to the backlog; as --dry-run.")
def set_(given: Given, name: str, preview: bool, **values: Any) -> int:
    """Limit a job name while it runs, in every process. What is left out stays as it is."""
    return apply(given, name, None, preview, steering.settings(**values))


def apply(given: Given, name: str, group: str | None, preview: bool, values: dict[str, Any]) -> int:
    """Set values of a name, or of one group; or say what they would do."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        acting = acting_queue(queue)
        controls = acting.job(name) if group is None else acting.group(name, group)
        if preview or given.dry_run:
            await _preview(given, controls, values)
            return 0
        await controls.set(**values, **reason(given, controls.set))
        info = await controls.info()
        holds = {"limit": steering.limit(info, spec_of(queue, name)), "concurrency": info["concurrency"] or "default"}
        steering.tell(given, name, group, "set", **holds)
        return 0

    return project.ask(given, work)


async def _preview(given: Given, controls: Any, values: dict[str, Any]) -> None:
    wanted = {key: value for key, value in values.items() if key in ("limiter", "concurrency")}
    found = await controls.preview(**wanted)
    if given.as_json:
        output.emit(found)
    else:
        click.echo(words.lines(str(found)))


# What cannot be undone ---------------------------------------------------------------------------------------------
@made("drain", acts=True)
@NAME
@click.option("--group", help="Of that group alone.")
def drain(given: Given, name: str, group: str | None) -> int:
    """Remove all jobs that wait or are delayed; what runs goes on."""
    return destroy(given, name, group, "drain", "of those that wait or are delayed", {})


@made("clean", acts=True)
@NAME
@click.argument("state", type=States())
@click.option("--older-than", type=Length(), default=0.0, help="Only those that are older: 7d.")
@click.option("--group", help="Of that group alone.")
def clean(given: Given, name: str, state: tuple[str, ...], older_than: float, group: str | None) -> int:
    """Remove jobs of a state: completed, failed, cancelled, waiting or delayed."""
    if len(state) != 1:
        raise click.UsageError("STATE: one at a time")
    what = f"that are {state[0]}" + (f" for longer than {words.duration(older_than)}" if older_than else "")
    return destroy(given, name, group, "clean", what, {"state": state[0], "older_than": older_than})


@made("obliterate", acts=True)
@NAME
@click.option("--force", is_flag=True, help="Although jobs run.")
def obliterate(given: Given, name: str, force: bool) -> int:
    """Remove a job name with all its jobs, groups and settings. Refused while jobs run."""
    return destroy(given, name, None, "obliterate", "of every state, its groups and its settings", {"force": force})


def destroy(given: Given, name: str, group: str | None, verb: str, what: str, options: dict[str, Any]) -> int:
    async def work(queue: Queue, runtime: Runtime) -> int:
        acting = acting_queue(queue)
        controls = acting.job(name) if group is None else acting.group(name, group)
        which = name if group is None else f"{name} in group {group!r}"
        info = await controls.info()
        number = info.get(options.get("state", ""), info["waiting"] + info["delayed"] if verb == "drain" else None)
        about = f"{verb} {which}: jobs {what}" + ("" if number is None else f", at most {words.number(number)} now")
        if not asking.may(given, about, "Remove them?", name if verb == "obliterate" else ""):
            return 0 if given.dry_run else 1
        method = getattr(controls, verb)
        done = await method(**options, **reason(given, method))
        number = done if isinstance(done, int) else getattr(done, "done", None)
        more = {} if number is None else {"removed": number}
        steering.tell(given, name, group, {"drain": "drained", "clean": "cleaned"}.get(verb, "obliterated"), **more)
        return 0

    return project.ask(given, work)


command = noun(
    "queues",
    "Look at the queue of a job name, limit it, pause it, empty it, while it runs and in every process.",
    listed, show, pause, resume, release, set_, unset, drain, clean, obliterate,
)  # fmt: skip
