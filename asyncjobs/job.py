"""Jobs as they are seen: `Job`, the handle that `add` and `get_job` return, and `ActiveJob`, a handler's view."""

from __future__ import annotations

import contextvars
import itertools
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias, get_args

import msgspec

from asyncjobs import clock
from asyncjobs.broker import Keys, TakenJob
from asyncjobs.declare import payload
from asyncjobs.declare.definition import JobSpec, limits
from asyncjobs.declare.options import (
    FOREVER,
    Backoff,
    BackoffType,
    JobOptions,
    Retention,
    Seconds,
    duration,
    seconds,
    shown,
)
from asyncjobs.errors import ConfigError, JobFailedError, JobTimeoutError, PayloadError, named, visible

if TYPE_CHECKING:
    import asyncio

    from asyncjobs.broker import Broker
    from asyncjobs.guests.threads import InThread

JobState: TypeAlias = Literal["waiting", "active", "delayed", "completed", "failed"]
STATES: Final = ("waiting", "active", "delayed", "completed", "failed")
NUMBERED: Final = re.compile(r"[el]([0-9]{1,15})", re.ASCII)
LONGEST_LINE: Final = 8192  # bytes of a log line
BACKOFF: Final = frozenset(one.name for one in fields(Backoff))
LOOK_EVERY: Final = 2.0  # seconds between two looks of a wait() that hears nothing

current: contextvars.ContextVar[ActiveJob] = contextvars.ContextVar("asyncjobs_current_job")

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
    _broker: Broker | None = None
    _keys: Keys | None = None
    _spec: JobSpec | None = None

    def __repr__(self) -> str:
        return f"<Job {named(self.name, self.id, self.group_id)} {self.state or 'not added'}>"

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
        assert self._spec is not None
        waiting = current.get(None)
        if waiting is not None and waiting.keys.stream == self._keys.stream and self._spec.concurrency == 1:
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
    spec: JobSpec,
    keys: Keys,
    group_id: str | None,
    job_id: str,
    due: float | None,
    record: dict[str, bytes],
) -> Job:
    """A `Job` from the fields that `Broker.read` returned."""
    marks: dict[bytes, JobState] = {b"a": "active", b"c": "completed", b"f": "failed"}
    state = marks.get(record.get("x", b""), "waiting" if due is None else "delayed")
    overrides = NO_OVERRIDES
    with suppress(Exception):  # what cannot be read cannot be run either, and its error says so
        overrides = Overrides.decode(record.get("o", b""))
    errors = (_try_error(number, value) for number, value in _numbered(record, "e"))
    return Job(
        id=job_id,
        name=spec.name,
        group_id=group_id,
        data=_value(record.get("d")),
        state=state,
        result=_value(record.get("v")),
        error=TryErrors(one for one in errors if one is not None),
        progress=_value(record.get("p")),
        logs=tuple(value.decode(errors="replace") for _, value in _numbered(record, "l")),
        attempts_made=_number(record.get("a")),
        attempts=overrides.attempts(spec.job_options),
        stalled_count=_number(record.get("s")),
        added_at=_instant(record.get("t")),
        started_at=_instant(record.get("u")),
        finished_at=_instant(record.get("F")),
        due_at=_instant(due),
        _broker=broker,
        _keys=keys,
        _spec=spec,
    )


# A record is read whatever it holds: another release may have written it, or an operator, or a fault of ours.
def _number(value: bytes | None) -> int:
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


def _try_error(attempt: int, raw: bytes) -> TryError | None:
    with suppress(Exception):
        stored = msgspec.json.decode(raw, type=StoredError)
        return TryError(attempt, stored.text, stored.stack, clock.from_ms(stored.at_ms))
    return None


class Overrides(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """The options that one `add` gave, as the record of the job holds them; UNSET: the job's own apply."""

    newer: ClassVar[bool] = False  # a newer release gave others too, which are not known here

    a: int | msgspec.UnsetType | None = msgspec.UNSET  # attempts
    b: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET  # backoff
    t: float | msgspec.UnsetType | None = msgspec.UNSET  # timeout
    c: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET  # remove_on_complete: count, age in ms
    f: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET  # remove_on_fail

    @classmethod
    def of(cls, given: Mapping[str, Any], checked: JobOptions) -> Overrides:
        """What `given` names, with the values that `checked` made of them."""
        made = cls()
        if "attempts" in given:
            made.a = checked.attempts
        if "backoff" in given:
            rule = checked.backoff
            if rule is not None and not isinstance(rule, Backoff):
                raise ConfigError("backoff: a function cannot travel with one job; give it to the job's JobOptions")
            made.b = (
                None if rule is None else {one: getattr(rule, one) for one in ("type", "delay", "max_delay", "jitter")}
            )
        if "timeout" in given:
            made.t = None if checked.timeout is None else duration(checked.timeout)
        if "remove_on_complete" in given:
            made.c = limits(checked.remove_on_complete)
        if "remove_on_fail" in given:
            made.f = limits(checked.remove_on_fail)
        return made

    @classmethod
    def decode(cls, raw: bytes) -> Overrides:
        """The inverse of `encode`; what a newer release has added to it is left out, and `newer` set.

        Raises:
            msgspec.MsgspecError: it cannot be read.
        """
        return _overrides(raw) if raw else NO_OVERRIDES

    def encode(self) -> bytes:
        raw = msgspec.json.encode(self)
        return b"" if raw == b"{}" else raw

    def attempts(self, options: JobOptions) -> int | None:
        return options.attempts if isinstance(self.a, msgspec.UnsetType) else self.a

    def backoff(self, options: JobOptions) -> Any:
        if isinstance(self.b, msgspec.UnsetType):
            return options.backoff
        return None if self.b is None else _backoff(self.b)

    def timeout(self, options: JobOptions) -> float | None:
        given = options.timeout if isinstance(self.t, msgspec.UnsetType) else self.t
        return None if given is None else duration(given)

    def keep(self, options: JobOptions, op: str) -> str:
        """How `lua/work.lua` is told what to keep of a finished job: '' by the defaults, '0' none, 'count:age'."""
        given = self.c if op == "c" else self.f
        if isinstance(given, msgspec.UnsetType):
            rule = options.remove_on_complete if op == "c" else options.remove_on_fail
            assert isinstance(rule, Retention)
            return "0" if rule.keeps_none else ""
        return "0" if 0 in given else f"{given[0]}:{given[1]}"


class NewerOverrides(Overrides, forbid_unknown_fields=False):
    """The same from a newer release: the options that are known here."""

    newer: ClassVar[bool] = True


NO_OVERRIDES: Final = Overrides()


@lru_cache(maxsize=256)
def _overrides(raw: bytes) -> Overrides:
    made: Overrides
    try:
        made = msgspec.json.decode(raw, type=Overrides)
    except msgspec.ValidationError:
        made = msgspec.json.decode(raw, type=NewerOverrides)
    rule = made.b
    if not isinstance(rule, dict):
        return made
    if rule.get("type", "fixed") not in get_args(BackoffType):
        made = NewerOverrides(made.a, msgspec.UNSET, made.t, made.c, made.f)
    else:
        known = {key: value for key, value in rule.items() if key in BACKOFF}
        if len(known) < len(rule):
            made = NewerOverrides(made.a, known, made.t, made.c, made.f)
        try:
            _backoff(known)
        except ConfigError as error:
            raise msgspec.ValidationError(str(error)) from error
    return made


def _backoff(rule: Mapping[str, Any]) -> Backoff:
    """A backoff as a record holds it. As timedeltas, since a plain number is warned of that looks like milliseconds."""

    def pause(value: Any) -> Any:
        plain = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= FOREVER
        return timedelta(seconds=value) if plain else value

    return Backoff(**{key: pause(value) if "delay" in key else value for key, value in rule.items()})


class ActiveJob:
    """The job that a handler is running.

    Attributes:
        attempts_made: finished tries before this one: 0 on the first.
        attempts: the most tries in all; None: no bound.
        stalled_count: how often its process died.
    """

    __slots__ = (
        "_broker", "_notify", "added_ms", "aio_task", "attempts_made", "began", "began_at", "context", "data",
        "discarded", "ended", "entered", "entry", "group_id", "id", "keys", "leaving", "name", "overrides", "raw",
        "spec", "stalled_count", "stored_id", "thread", "timer", "token", "unreadable",
    )  # fmt: skip

    def __init__(self, broker: Broker, notify: Any, spec: JobSpec, keys: Keys, taken: TakenJob) -> None:
        self._broker = broker
        self._notify = notify
        self.spec = spec
        self.keys = keys
        self.name = spec.name
        self.group_id = keys.group or None
        (
            self.id,
            self.entry,
            self.raw,
            self.attempts_made,
            self.stalled_count,
            self.added_ms,
            options,
            self.token,
            fault,
        ) = taken
        self.overrides = NO_OVERRIDES
        self.unreadable: PayloadError | None = None
        self.stored_id: str | bytes = self.id
        if fault is not None:
            self.stored_id = fault.stored_id
            self.unreadable = PayloadError(f"the record of {named(self.name, self.id)} is damaged: {fault.text}")
        elif options:
            try:
                self.overrides = Overrides.decode(options)
            except Exception as error:  # not only msgspec's: what is nested too deeply is a RecursionError
                self.unreadable = PayloadError(f"the options of {named(self.name, self.id)} cannot be read: {error}")
        self.data: Any = None
        self.discarded = False
        # Kept by the consumer:
        self.aio_task: asyncio.Task[None] | None = None
        self.context: Any = None  # what integrations keep with this try
        self.began = False
        self.entered = False  # its handler is called, or is about to be
        self.began_at = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.leaving: Literal["", "timeout", "stop", "lost"] = ""  # why we cancelled it
        self.thread: InThread | None = None  # while one runs its handler
        self.ended = False  # an outcome was recorded; whatever the handler still does no longer counts

    @property
    def attempts(self) -> int | None:
        return self.overrides.attempts(self.spec.job_options)

    @property
    def added_at(self) -> datetime:
        return clock.from_ms(self.added_ms)

    def discard(self) -> None:
        """From now on no further try: a raise fails the job for good, a return completes it."""
        self.discarded = True

    async def update_progress(self, value: Any) -> None:
        """Record how far the job is, any JSON; the event `job.progress` carries it.

        Raises:
            PayloadError: `value` cannot be written, or is larger than `max_result`; a handler that ends with this error
                is not tried again.
        """
        body = payload.encode_result(value, "progress", self.spec.max_result)
        await self._broker.note(self.keys, self.id, self.token, "progress", body)
        self._notify("job.progress", self.name, job_id=self.id, group_id=self.group_id, data=value)

    async def log(self, text: str) -> None:
        """Keep a line with the job, its first 8192 bytes of UTF-8; the last 1000 stay."""
        if not isinstance(text, str):
            raise PayloadError(f"job.log({shown(text)}): expected text")
        line = text[:LONGEST_LINE].encode(errors="replace")
        if len(line) > LONGEST_LINE:
            line = line[:LONGEST_LINE].decode(errors="ignore").encode()  # not within a character
        await self._broker.note(self.keys, self.id, self.token, "log", line)

    def __repr__(self) -> str:
        return f"<ActiveJob {named(self.name, self.id, self.group_id)} try {self.attempts_made + 1}>"
