"""Jobs as they are seen: `Job`, the handle that `add` and `get_job` return, and `ActiveJob`, a handler's view."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from asyncjobs import clock
from asyncjobs.active_job import current
from asyncjobs.broker import Keys
from asyncjobs.declare import payload
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.options import JobOptions
from asyncjobs.declare.overrides import NO_OVERRIDES, Overrides
from asyncjobs.declare.values import Seconds, seconds
from asyncjobs.errors import ConfigError, JobFailedError, JobGoneError, JobTimeoutError, PayloadError, named, visible

if TYPE_CHECKING:
    from asyncjobs.broker import Broker

JobState: TypeAlias = Literal["waiting", "active", "delayed", "completed", "failed", "cancelled"]
STATES: Final = ("waiting", "active", "delayed", "completed", "failed", "cancelled")
MARKS: Final[Mapping[bytes, JobState]] = {
    b"a": "active", b"c": "completed", b"f": "failed", b"k": "cancelled"
}  # fmt: skip
UNKNOWN_OPTIONS: Final = JobOptions(attempts=None)  # of a name that is not registered here
NUMBERED: Final = re.compile(r"[el]([0-9]{1,15})", re.ASCII)


LOOK_EVERY: Final = 2.0  # seconds between two looks of a wait() that hears nothing


class Counts(dict[str, int]):
    """How many jobs are in each state. `cancelled` is a key only where some are; a state that is missing counts 0."""

    __slots__ = ()

    def __missing__(self, state: str) -> int:
        if state in STATES:
            return 0
        raise KeyError(state)


def counts_of(numbers: Sequence[int]) -> Counts:
    """What the store has counted."""
    return Counts(zip(STATES, numbers, strict=False))


_boot = os.urandom(4).hex()
_counter = itertools.count(int.from_bytes(os.urandom(2), "big"))


def new_id() -> str:
    """A new job id: 11 hex digits of ms, 8 of this process, 5 of a counter; ordered in time, unique over processes."""
    return f"{int(clock.wall() * 1000):011x}{_boot}{next(_counter) & 0xFFFFF:05x}"


def _new_boot() -> None:
    global _boot
    _boot = os.urandom(4).hex()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_boot)


class TryError(msgspec.Struct, frozen=True):
    """One failed try: which one, what was raised, and where."""

    attempt: int
    text: str
    stack: str
    at: datetime

    def __str__(self) -> str:
        return f"try {self.attempt} at {self.at:%Y-%m-%d %H:%M:%S}Z: {self.text}\n{self.stack}"


class TryErrors(tuple[TryError, ...]):
    """The failed tries of a job, oldest first: the first one and the last ten; as text, each with its stack."""

    __slots__ = ()

    @property
    def left_out(self) -> int:
        """How many failed tries between the first and the last ten are not kept."""
        return max(0, self[-1].attempt - self[0].attempt + 1 - len(self)) if self else 0

    def __str__(self) -> str:
        texts = [str(one) for one in self]
        if self.left_out:
            texts.insert(1, f"… {self.left_out} more failed tries, which are not kept …")
        return "\n".join(texts)


NO_ERRORS: Final = TryErrors()


class Cancellation(msgspec.Struct, frozen=True):
    """Who asked for the cancel of a job, why, when, and from where.

    Attributes:
        by: who did it, '' where nobody said so.
        source: what it was done with: 'python' for code that calls `Job.cancel`.
    """

    by: str
    reason: str
    at: datetime
    source: str = ""


class StoredCancellation(msgspec.Struct):
    """A `Cancellation` as the record of the job holds it; `at` in ms."""

    by: str = ""
    reason: str = ""
    at: int = 0
    source: str = ""


class StoredError(msgspec.Struct, rename={"text": "t", "stack": "s", "at_ms": "a"}):
    """A `TryError` as the record of the job holds it."""

    text: str
    stack: str
    at_ms: int


@dataclass(slots=True, eq=False, repr=False)
class Job:
    """A job as it stood when it was added or read; read it again with `queue.get_job` for news.

    Attributes:
        added: False on the handle of an `add` whose `job_id` existed already.
        state: None on the handle of an `add` that added nothing.
        error: the failed tries, oldest first; empty for none. Of many the first and the last ten are kept.
        due_at: when a delayed job comes due.
        cancelled_by: who cancelled it, or has asked for that while it runs; None: nobody.
    """

    id: str
    name: str
    group_id: str | None
    data: Any
    added: bool = True
    state: JobState | None = None
    result: Any = None
    error: TryErrors = NO_ERRORS
    progress: Any = None
    logs: tuple[str, ...] = ()
    attempts_made: int = 0
    attempts: int | None = None
    stalled_count: int = 0
    added_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    due_at: datetime | None = None
    cancelled_by: Cancellation | None = None
    _broker: Broker | None = None
    _keys: Keys | None = None
    _spec: JobSpec | None = None
    _record: Mapping[str, bytes] | None = None

    def __repr__(self) -> str:
        return f"<Job {named(self.name, self.id, self.group_id)} {self.state or 'not added'}>"

    async def refresh(self) -> Job:
        """Read the job again: this object says how it stands now, and is returned.

        Raises:
            JobGoneError: its record is gone: it was removed, or let go by retention, or never added.
        """
        assert self._broker is not None
        assert self._keys is not None
        due, record = await self._broker.read(self._keys, self.id)
        if "d" not in record:
            raise JobGoneError(
                f"the record of {named(self.name, self.id, self.group_id)} is gone: it was removed, let go by "
                "retention, or never added"
            )
        now = read_job(self._broker, self._spec, self.name, self._keys, self.group_id, self.id, due, record)
        for one in fields(self):
            if one.name != "added":
                setattr(self, one.name, getattr(now, one.name))
        return self

    @property
    def tags(self) -> tuple[str, ...]:
        """What it was tagged with; no job has tags yet."""
        return ()

    @property
    def queue_name(self) -> str:
        """The queue as it is shown: the name, and the group behind a dash."""
        return self.name if self.group_id is None else f"{self.name}-{self.group_id}"

    async def wait(self, timeout: Seconds | None = None) -> Any:
        """Wait until the job has finished, in whatever process, and return its result.

        Raises:
            JobFailedError: it failed for good.
            JobTimeoutError: not finished after `timeout` seconds; it goes on all the same.
            ConfigError: called in a handler of the same queue at concurrency 1, where it could never end.
        """
        import asyncio

        assert self._broker is not None
        assert self._keys is not None
        waiting, spec = current.get(None), self._spec
        here = waiting is not None and waiting.keys.stream == self._keys.stream
        if here and spec is not None and spec.concurrency == 1:
            raise ConfigError(
                f"{visible(self.queue_name)} runs one job at a time, so waiting for {visible(self.id)} in its handler "
                "can never end; "
                "chain it, or raise the concurrency"
            )
        limit = None if timeout is None else seconds(timeout, "timeout")
        try:
            async with asyncio.timeout(limit):
                finish = await self._broker.finished(self._keys, self.id, LOOK_EVERY)
        except TimeoutError:
            who = named(self.name, self.id, self.group_id)
            raise JobTimeoutError(f"job {who} had not finished after {limit:g} s") from None
        if finish.op == "c":
            return self._result(finish.body)
        if finish.op == "f":
            stored = _try_error(0, finish.body)
            raise JobFailedError(self.name, self.id, "no reason kept" if stored is None else stored.text)
        raise JobFailedError(self.name, self.id, "its record is gone: it was removed on completion, or never added")

    def _result(self, body: bytes) -> Any:
        try:
            return payload.decode(body) if body else None
        except Exception as error:
            who = named(self.name, self.id, self.group_id)
            raise PayloadError(f"{who} has completed, but its stored result cannot be read: {error}") from error


def read_job(
    broker: Broker,
    spec: JobSpec | None,
    name: str,
    keys: Keys,
    group_id: str | None,
    job_id: str,
    due: float | None,
    record: Mapping[str, bytes],
    state: JobState | None = None,
) -> Job:
    """A `Job` from the fields of its record.

    Args:
        spec: of its name; None: that is not registered here.
        state: where the job was found; None: as the record and `due` say.
    """
    if state is None:
        state = MARKS.get(record.get("x", b""), "waiting" if due is None else "delayed")
    overrides = NO_OVERRIDES
    with suppress(Exception):  # what cannot be read cannot be run either, and its error says so
        overrides = Overrides.decode(record.get("o", b""))
    errors = (_try_error(number, value) for number, value in _numbered(record, "e"))
    return Job(
        id=job_id,
        name=name,
        group_id=group_id,
        data=_value(record.get("d")),
        state=state,
        result=_value(record.get("v")),
        error=TryErrors(one for one in errors if one is not None),
        progress=_value(record.get("p")),
        logs=tuple(value.decode(errors="replace") for _, value in _numbered(record, "l")),
        attempts_made=number_of(record.get("a")),
        attempts=overrides.attempts(spec.job_options if spec is not None else UNKNOWN_OPTIONS),
        stalled_count=number_of(record.get("s")),
        added_at=_instant(record.get("t")),
        started_at=_instant(record.get("u")),
        finished_at=_instant(record.get("F")),
        due_at=_instant(due),
        cancelled_by=None if state in ("completed", "failed") else cancellation(record.get("k")),
        _broker=broker,
        _keys=keys,
        _spec=spec,
        _record=record,
    )


# A record is read whatever it holds: another release may have written it, or an operator, or a fault of ours.
def number_of(value: bytes | None) -> int:
    """A count of a record; 0 where it is none."""
    return int(value) if value is not None and value.isdigit() and len(value) < 16 else 0


def _value(raw: bytes | None) -> Any:
    """JSON of a record; None where it is none."""
    with suppress(Exception):  # not only msgspec's: what is nested too deeply is a RecursionError
        return None if raw is None else payload.decode(raw)
    return None


def _instant(ms: bytes | float | None) -> datetime | None:
    """An instant of a record; None where it is none, or lies beyond the calendar."""
    with suppress(ValueError, OverflowError, OSError):
        return None if ms is None else clock.from_ms(ms)
    return None


def _numbered(record: Mapping[str, bytes], kind: str) -> list[tuple[int, bytes]]:
    """The fields `kind`1, `kind`2, … of a record, in this order."""
    found = [(NUMBERED.fullmatch(field), value) for field, value in record.items() if field.startswith(kind)]
    return sorted((int(match[1]), value) for match, value in found if match is not None)


def cancellation(raw: bytes | None) -> Cancellation | None:
    """The mark of a record; None where there is none, or somebody has made something else of it."""
    if raw is None:
        return None
    with suppress(Exception):
        stored = msgspec.json.decode(raw, type=StoredCancellation)
        return Cancellation(stored.by, stored.reason, clock.from_ms(stored.at), stored.source)
    return Cancellation("", "", clock.from_ms(0), "")


def _try_error(attempt: int, raw: bytes) -> TryError | None:
    with suppress(Exception):
        stored = msgspec.json.decode(raw, type=StoredError)
        return TryError(attempt, stored.text, stored.stack, clock.from_ms(stored.at_ms))
    return None
