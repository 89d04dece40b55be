"""Tasks: what is known of each over all processes, and how one is run now, paused and resumed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, Literal, TypeAlias
from zoneinfo import ZoneInfo

import msgspec

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.declare.definition import TaskSpec, zone
from asyncjobs.declare.values import shown
from asyncjobs.errors import ConfigError, StateError
from asyncjobs.operate.processes import ProcessInfo, processes, read_order
from asyncjobs.operate.schedule import NextTick, in_words, next_ticks

RUN_PATIENCE: Final = 10.0  # seconds in which a process must take a run that is asked for
FIRST_PAUSE: Final = 0.005
LONGEST_PAUSE: Final = 0.25
ASKED_AGAIN: Final = 1.0  # seconds; the message may have been lost
MOST_NAMED: Final = 20  # tasks in an error text

RunOutcome: TypeAlias = Literal["running", "completed", "failed", "cancelled", "lost"]
Asked: TypeAlias = Literal["started", "queued", "skipped"]
VERDICTS: Final[dict[str, Asked]] = {"fire": "started", "queued": "queued", "overlap": "skipped"}


class TaskRun(msgspec.Struct, frozen=True):
    """One run of a task.

    Attributes:
        scheduled: the instant of its tick, or the one at which it was asked for.
        outcome: ``lost`` where the process died in it, or could not say how it ended; ``cancelled`` where the process
            stopped.
        process: that ran it.
        by_hand: an operator asked for it.
    """

    scheduled: datetime
    began: datetime | None
    ended: datetime | None
    outcome: RunOutcome
    error: str
    process: str
    by_hand: bool = False


class SkippedTick(msgspec.Struct, frozen=True):
    """A tick that a task did not run on.

    Attributes:
        why: ``overlap``, the last run had not ended; ``missed``, while nothing ran; ``paused``; ``store_away``.
        text: the same in words, with what is known of it.
        at: when it was noted.
    """

    scheduled: datetime
    why: str
    text: str
    at: datetime


class TaskInfo(msgspec.Struct, frozen=True):
    """A task as all processes know it.

    Attributes:
        schedule, words: its cron expression, as written and in English.
        active: it ticks, unless it is paused; `why_not` says why it does not.
        paused_at, paused_reason: since when and why an operator keeps it from ticking.
        processes: those that fire it.
        runs, skipped: the last fifty of each, newest first.
        next: its next ten ticks.
    """

    name: str
    schedule: str
    words: str
    timezone: str
    active: bool
    why_not: str
    paused: bool
    paused_at: datetime | None
    paused_reason: str
    every_instance: bool
    overlap: str
    misfire: str
    environments: tuple[str, ...] | None
    processes: tuple[str, ...]
    runs: tuple[TaskRun, ...]
    skipped: tuple[SkippedTick, ...]
    next: tuple[NextTick, ...]


class Facts(msgspec.Struct, omit_defaults=True):
    """A task as a process has left it in the store."""

    schedule: str = ""
    zone: str = "UTC"
    active: bool = False
    why: str = ""
    each: bool = False
    overlap: str = "skip"
    misfire: str = "skip"
    environments: list[str] | None = None


class StoredRun(msgspec.Struct):
    """A run, or a tick without one, as ``lua/include/task_runs.lua`` has it."""

    s: int
    p: str = ""
    m: int = 0
    b: int | None = None
    e: int | None = None
    o: str = ""
    x: str = ""
    w: str = ""
    a: int = 0


TEXTS: Final = {"overlap": "the last run had not ended", "paused": "it was paused", "missed": "nothing ran"}


def facts(spec: TaskSpec, environment: str) -> bytes:
    """A task as this process leaves it in the store."""
    one = spec.definition
    where = None if one.environments is None else list(one.environments)
    why = ""
    if one.is_active is not True:
        why = "is_active is not True"
    elif not spec.runs_in(environment):
        why = f"it runs in {', '.join(where or ()) or 'no environment'}, and this is {environment}"
    return msgspec.json.encode(
        Facts(one.cron_time, str(spec.zone), not why, why, one.every_instance, one.overlap, one.misfire, where)
    )


async def declare(broker: Broker, specs: Iterable[TaskSpec], environment: str) -> None:
    """Leave the tasks of this process in the store."""
    await broker.declare_tasks({spec.name: facts(spec, environment) for spec in specs})


async def tasks(broker: Broker) -> list[TaskInfo]:
    """Every task that any process has known, sorted by name."""
    stored, living = await asyncio.gather(broker.stored_tasks(), processes(broker))
    names = sorted(stored.known)
    noted = await broker.task_runs(names)
    alive = [one for one in living if one.state != "gone"]
    found = []
    for name, (runs, skips) in zip(names, noted, strict=True):
        found.append(_info(name, _facts(stored.known[name]), stored.paused.get(name), alive, runs, skips))
        await broker.loop.breathe()
    return found


def _info(
    name: str,
    known: Facts,
    paused: bytes | None,
    alive: Sequence[ProcessInfo],
    runs: Sequence[bytes],
    skips: Sequence[bytes],
) -> TaskInfo:
    here = tuple(one.id for one in alive if name in one.tasks)
    firing = any(one.state == "alive" and name in one.tasks for one in alive)
    unsure = any(not one.says_names for one in alive)
    held = read_order(paused) if paused is not None else None
    active = known.active or bool(here)
    if held is not None:
        why_not = f"it is paused{f': {held.reason}' if held.reason else ''}"
    elif not active:
        why_not = known.why or "it is not active"
    else:
        why_not = "" if firing or unsure else "no process that fires it is alive"
    lives = {one.id for one in alive}
    return TaskInfo(
        name=name,
        schedule=known.schedule,
        words=in_words(known.schedule),
        timezone=known.zone,
        active=active,
        why_not=why_not,
        paused=held is not None,
        paused_at=_at(held.at) if held is not None and held.at else None,
        paused_reason=held.reason if held is not None else "",
        every_instance=known.each,
        overlap=known.overlap,
        misfire=known.misfire,
        environments=None if known.environments is None else tuple(known.environments),
        processes=here,
        runs=tuple(_run(one, lives) for one in _stored(runs)),
        skipped=tuple(_skipped(one) for one in _stored(skips)),
        next=tuple(next_ticks(known.schedule, _zone(known.zone))) if active else (),
    )


def _run(stored: StoredRun, lives: set[str]) -> TaskRun:
    outcomes: dict[str, RunOutcome] = {"completed": "completed", "failed": "failed", "cancelled": "cancelled"}
    open_ended: RunOutcome = "running" if stored.p in lives else "lost"
    return TaskRun(
        scheduled=clock.from_ms(stored.s),
        began=_at(stored.b),
        ended=_at(stored.e),
        outcome=outcomes.get(stored.o, "lost") if stored.e is not None else open_ended,
        error=stored.x,
        process=stored.p,
        by_hand=bool(stored.m),
    )


def _skipped(stored: StoredRun) -> SkippedTick:
    text = stored.x or TEXTS.get(stored.w, stored.w)
    return SkippedTick(clock.from_ms(stored.s), stored.w, text, clock.from_ms(stored.a))


def _at(ms: float | None) -> datetime | None:
    return None if ms is None else clock.from_ms(ms)


def _facts(raw: bytes) -> Facts:
    try:
        return msgspec.json.decode(raw, type=Facts)
    except msgspec.MsgspecError:
        return Facts()


def _stored(raws: Iterable[bytes]) -> list[StoredRun]:
    """What can be read of a list: another release, or an operator, may have written something else."""
    found = []
    for raw in raws:
        try:
            one = msgspec.json.decode(raw, type=StoredRun)
            for ms in (one.s, one.b, one.e, one.a):
                _at(ms)
        except (msgspec.MsgspecError, ValueError, OverflowError, OSError):
            continue
        found.append(one)
    return found


def _zone(name: str) -> ZoneInfo:
    try:
        return zone(name)
    except ConfigError:
        return ZoneInfo("UTC")


# Acting ---------------------------------------------------------------------------------------------------------
async def check(broker: Broker, name: str) -> None:
    """See that there is such a task.

    Raises:
        ConfigError: there is not; the text names those that there are.
    """
    known = (await broker.stored_tasks()).known
    if not isinstance(name, str) or name not in known:
        raise _unknown(name, known)


async def pause(broker: Broker, name: str, given: bytes) -> None:
    """Keep a task from ticking; b'' lets it tick again."""
    if not await broker.pause_task(name, given):
        raise _unknown(name, (await broker.stored_tasks()).known)


async def run(broker: Broker, name: str) -> Asked:
    """Have one process run a task now, that there is; what came of it.

    Raises:
        StateError: no living process fires it, or none took the run within some seconds.
    """
    every = await processes(broker)
    if not any(one.state == "alive" and (name in one.tasks or not one.says_names) for one in every):
        raise StateError(f"no living process fires the task {name}, so none can run it; {_why_none(every, name)}")
    request = os.urandom(8).hex()
    deadline, pause_for = clock.monotonic() + RUN_PATIENCE, FIRST_PAUSE
    asked_at = float("-inf")
    while clock.monotonic() < deadline:
        verdict = ""
        if clock.monotonic() - asked_at >= ASKED_AGAIN:
            verdict, asked_at = await broker.ask_run(name, request), clock.monotonic()
        else:
            verdict = await broker.asked_run(request)
        if verdict:
            return VERDICTS.get(verdict, "skipped")
        await asyncio.sleep(pause_for)
        pause_for = min(pause_for * 1.5, LONGEST_PAUSE)
    verdict = await broker.ask_run(name, request, last=True)
    if verdict:
        return VERDICTS.get(verdict, "skipped")
    raise StateError(f"no process took the run of {name} within {RUN_PATIENCE:g} s; it was withdrawn")


def _why_none(every: Sequence[ProcessInfo], name: str) -> str:
    draining = [one.id for one in every if one.state == "draining" and name in one.tasks]
    return f"{draining[0]} is draining" if draining else "start one that has it"


def _unknown(name: object, known: Iterable[str]) -> ConfigError:
    names = sorted(known)
    more = ", …" if len(names) > MOST_NAMED else ""
    there = f"known tasks: {', '.join(names[:MOST_NAMED])}{more}" if names else "no process has left any"
    return ConfigError(f"task={shown(name)}: no task is called so; {there}")
