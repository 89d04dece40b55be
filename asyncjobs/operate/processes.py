"""Processes: what each says of itself with its heartbeat, and how one is asked to take nothing more."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final, Literal, TypeAlias, TypeVar

import msgspec

from asyncjobs import clock
from asyncjobs.broker import Broker, Described
from asyncjobs.declare.values import shown
from asyncjobs.errors import ConfigError

LEASE_MS: Final = 30_000.0  # of an earlier release, which tells none
MOST_NAMED: Final = 10  # processes in an error text
LONGEST_REASON: Final = 500  # characters

_T = TypeVar("_T")
ProcessState: TypeAlias = Literal["alive", "draining", "gone"]


class RunningJob(msgspec.Struct, frozen=True):
    """A job that a process runs. `since`: when its try began there."""

    name: str
    group_id: str | None
    id: str
    since: datetime


class ProcessInfo(msgspec.Struct, frozen=True):
    """One process of an installation, as its last heartbeat has it; None for what it does not say.

    Attributes:
        id: under which it takes jobs, and by which it is asked something.
        state: ``gone`` once its lease is over: what it ran is given back, and then it leaves the list.
        host, pid: where it runs.
        release: of asyncjobs; None: one from before processes said so.
        version: of the app, from ``ASYNCJOBS_VERSION``.
        names, tasks: jobs that it consumes, and tasks that it fires; empty where it does not say.
        slots_used, slots: jobs that run, and that may run at once.
        loop_lag: seconds by which its event loop was late at the last look.
        memory: bytes that are resident.
        seen_at, since: of its last heartbeat; when it started.
        lease: seconds of silence after which the first of its jobs count as stalled.
        running: what it runs, at most twenty.
        gone_since: when it was heard last, of one that is gone.
    """

    id: str
    state: ProcessState
    host: str | None = None
    pid: int | None = None
    release: str | None = None
    version: str | None = None
    environment: str | None = None
    names: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    slots_used: int | None = None
    slots: int | None = None
    loop_lag: float | None = None
    memory: int | None = None
    seen_at: datetime | None = None
    since: datetime | None = None
    lease: float | None = None
    running: tuple[RunningJob, ...] = ()
    gone_since: datetime | None = None
    draining_reason: str = ""

    @property
    def says_names(self) -> bool:
        """Whether it says what it runs; an earlier release does not."""
        return self.release is not None


class About(msgspec.Struct, omit_defaults=True):
    """What a process says of itself with each heartbeat. `running`: name, group, id and since when, in ms, of each."""

    host: str = ""
    pid: int = 0
    release: str = ""
    version: str = ""
    environment: str = ""
    since: float = 0
    used: int = 0
    slots: int = 0
    lag: float | None = None
    rss: int | None = None
    running: list[tuple[str, str | None, str, float]] = []


class Names(msgspec.Struct):
    """What a process runs."""

    jobs: list[str] = []
    tasks: list[str] = []


class Order(msgspec.Struct, omit_defaults=True):
    """What an operator has asked for: when, in ms, and why."""

    at: float = 0
    reason: str = ""


def order(reason: str) -> bytes:
    """An order as the store keeps it.

    Raises:
        ConfigError: a reason that is no text.
    """
    if not isinstance(reason, str):
        raise ConfigError(f"reason={shown(reason)}: expected a text")
    text = reason[:LONGEST_REASON].encode(errors="replace").decode()
    return msgspec.json.encode(Order(round(clock.wall() * 1000), text))


def read_order(raw: bytes) -> Order:
    """An order as it was kept; an empty one where another release has written something else."""
    try:
        return msgspec.json.decode(raw, type=Order)
    except msgspec.MsgspecError:
        return Order()


async def processes(broker: Broker) -> list[ProcessInfo]:
    """All processes that show signs of life, or did until a moment ago; those that started first come first."""
    now, found = await broker.describe(sorted(await broker.living()))
    every = [_info(one, now) for one in found]
    return sorted(every, key=lambda one: (one.since is None, one.since or one.seen_at, one.id))


def _info(found: Described, now: float) -> ProcessInfo:
    """A process from what the store has of it."""
    about, names = _decoded(found.about, About), _decoded(found.names, Names)
    leases = _decoded(found.leases, dict[str, float]) or {}
    lease = min(leases.values(), default=None)
    due = found.due_ms if found.due_ms is not None else found.beat_ms + (lease or LEASE_MS)
    gone = due <= now
    state: ProcessState = "gone" if gone else "draining" if found.draining else "alive"
    seen = _at(found.beat_ms)
    told = about or About()
    return ProcessInfo(
        id=found.process,
        state=state,
        host=told.host or None,
        pid=told.pid or _pid(found.process),
        release=told.release or None,
        version=told.version or None,
        environment=told.environment or None,
        names=tuple(sorted(names.jobs)) if names else (),
        tasks=tuple(sorted(names.tasks)) if names else (),
        slots_used=told.used if about else None,
        slots=told.slots if about else None,
        loop_lag=told.lag,
        memory=told.rss,
        seen_at=seen,
        since=_at(told.since) if told.since else None,
        lease=None if lease is None else lease / 1000,
        running=tuple(RunningJob(*one[:3], _at(one[3]) or clock.now()) for one in told.running),
        gone_since=seen if gone else None,
        draining_reason=read_order(found.draining).reason if found.draining else "",
    )


def _decoded(raw: bytes, kind: type[_T]) -> _T | None:
    """What a process says; None where it says nothing that can be read."""
    try:
        return msgspec.json.decode(raw, type=kind) if raw else None
    except (msgspec.MsgspecError, RecursionError):
        return None


def _at(ms: float) -> datetime | None:
    try:
        return clock.from_ms(ms)
    except (ValueError, OverflowError, OSError):
        return None


def _pid(process: str) -> int | None:
    """Of a process of an earlier release, whose name alone tells it: ``host.pid.started.random``."""
    parts = process.split(".")
    return int(parts[1]) if len(parts) == 4 and parts[1].isdigit() and len(parts[1]) < 12 else None


async def meant(broker: Broker, process_id: str) -> str:
    """The process that an operator means by its id, or by the last part of it.

    Raises:
        ConfigError: there is none, or there are several.
    """
    return _meant(process_id, await broker.living())


async def ask(broker: Broker, process: str, given: bytes) -> None:
    """Ask a process to take nothing more; b'' to go on."""
    if not await broker.ask_to_drain(process, given):
        raise ConfigError(f"process={shown(process)} has gone meanwhile; {_known(await broker.living())}")


def _meant(process_id: str, living: Iterable[str]) -> str:
    """The one of those that are there."""
    if not isinstance(process_id, str) or not process_id:
        raise ConfigError(f"process={shown(process_id)}: expected the id of a process; {_known(living)}")
    meant = [one for one in living if one == process_id] or [one for one in living if one.endswith(f".{process_id}")]
    if len(meant) != 1:
        what = "no process has this id" if not meant else f"{len(meant)} processes have an id that ends so"
        raise ConfigError(f"process={shown(process_id)}: {what}; {_known(living)}")
    return meant[0]


def _known(living: Iterable[str]) -> str:
    names = sorted(living)
    more = f", and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"there are {', '.join(names[:MOST_NAMED])}{more}" if names else "none shows a sign of life"
