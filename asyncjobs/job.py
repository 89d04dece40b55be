"""The Job: the handle that `add` and `get_job` return."""

from __future__ import annotations

import itertools
import os
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
from asyncjobs.declare.values import Seconds, flag, seconds
from asyncjobs.errors import (
    BrokerError,
    ConfigError,
    JobCancelledError,
    JobFailedError,
    JobGoneError,
    JobTimeoutError,
    PayloadError,
    StateError,
    named,
    visible,
)
from asyncjobs.operate.why import Place, Reason, why_job
from asyncjobs.operator import CancelAnswer, Operator, Spot

if TYPE_CHECKING:
    from asyncjobs.broker import Broker
    from asyncjobs.broker.reading import Finish
from asyncjobs.job_record import (
    NO_ERRORS,
    Cancellation,
    JobAct,
    Origin,
    TryErrors,
    cancellation,
    history_of,
    instant_of,
    number_of,
    numbered,
    try_error,
    try_error_before,
    value_of,
)

JobState: TypeAlias = Literal["waiting", "active", "delayed", "completed", "failed", "cancelled"]
STATES: Final = ("waiting", "active", "delayed", "completed", "failed", "cancelled")
MARKS: Final[Mapping[bytes, JobState]] = {
    b"a": "active", b"c": "completed", b"f": "failed", b"k": "cancelled"
}  # fmt: skip
UNKNOWN_OPTIONS: Final = JobOptions(attempts=None)  # of a name that is not registered here


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


NEEDED: Final = {
    "retry": "only a failed or cancelled job is retried; rerun() makes a new one of any",
    "promote": "only a delayed job is promoted",
    "remove": "cancel() it first",
}


OF_AN_END: Final = (
    "state", "result", "error", "finished_at", "cancelled_by",
    "started_at", "attempts_made", "stalled_count", "progress", "logs", "_record",
)  # fmt: skip


@dataclass(slots=True, eq=False, repr=False)
class Job:
    """A job as it stood when it was added or read. `queue.get_job` reads its present state.

    Attributes:
        added: False on the handle of an `add` whose `job_id` existed already.
        state: None on the handle of an `add` that added nothing.
        error: the failed tries, oldest first; empty for none. Only the first and the last ten are kept.
        due_at: the instant at which a delayed job is due.
        history: what has befallen the job, oldest first: failed tries, its cancel, and the last 20 acts of operators.
        copied_from: the job of which this one is a rerun.
        cancelled_by: who has cancelled the job, or has asked for that while it runs; None: it was not cancelled.
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
    history: tuple[JobAct, ...] = ()
    copied_from: Origin | None = None
    _broker: Broker | None = None
    _keys: Keys | None = None
    _spec: JobSpec | None = None
    _record: Mapping[str, bytes] | None = None
    _operator: Operator | None = None

    def __repr__(self) -> str:
        return f"<Job {named(self.name, self.id, self.group_id)} {self.state or 'not added'}>"

    async def refresh(self) -> Job:
        """Read the job again: this object says how it stands now, and is returned.

        Raises:
            JobGoneError: its record is gone: it was removed, or let go by retention, or never added.
        """
        broker, keys, _ = self._place()
        due, record = await broker.read(keys, self.id)
        if "d" not in record:
            raise JobGoneError(
                f"the record of {named(self.name, self.id, self.group_id)} is gone: it was removed, let go by "
                "retention, or never added"
            )
        now = self._read(due, record)
        for one in fields(self):
            if one.name != "added":
                setattr(self, one.name, getattr(now, one.name))
        return self

    async def why(self) -> list[Reason]:
        """What holds this job back, each reason with the command that lifts it; empty: nothing does.

        Raises:
            JobGoneError: its record is gone.
        """
        broker, keys, _ = self._place()
        return await why_job(broker, Place(self.name, self.group_id, keys, self.id), self._spec)

    def _read(self, due: float | None, record: Mapping[str, bytes], state: JobState | None = None) -> Job:
        broker, keys, _ = self._place()
        where = (self.name, keys, self.group_id, self.id)
        return read_job(broker, self._spec, *where, due, record, state, self._operator)

    @property
    def tags(self) -> tuple[str, ...]:
        """What it was tagged with; no job has tags yet."""
        return ()

    @property
    def queue_name(self) -> str:
        """The name of the queue in texts: the job's name, and the group behind a dash."""
        return self.name if self.group_id is None else f"{self.name}-{self.group_id}"

    async def wait(self, timeout: Seconds | None = None) -> Any:
        """Wait until the job has finished, in any process, and return its result.

        Raises:
            JobFailedError: the job failed for good.
            JobCancelledError: the job was cancelled; a JobFailedError, too.
            JobTimeoutError: the job has not finished after `timeout` seconds. It goes on all the same.
            ConfigError: the caller is a handler of the same queue at concurrency 1, so the wait could never end.
        """
        import asyncio

        broker, keys, _ = self._place()
        waiting, spec = current.get(None), self._spec
        here = waiting is not None and waiting.keys.stream == keys.stream
        if here and spec is not None and spec.concurrency == 1:
            raise ConfigError(
                f"{visible(self.queue_name)} runs one job at a time, so waiting for {visible(self.id)} in its handler "
                "can never end; chain it, or raise the concurrency"
            )
        limit = None if timeout is None else seconds(timeout, "timeout")
        try:
            async with asyncio.timeout(limit):
                finish = await broker.finished(keys, self.id, LOOK_EVERY)
        except TimeoutError:
            who = named(self.name, self.id, self.group_id)
            raise JobTimeoutError(f"job {who} had not finished after {limit:g} s") from None
        await self._take_end(finish)
        if finish.op == "c":
            return self._result(finish.body)
        if finish.op == "f":
            stored = try_error(0, finish.body)
            raise JobFailedError(self.name, self.id, "no reason kept" if stored is None else stored.text)
        if finish.op == "k":
            known = cancellation(finish.body)
            raise JobCancelledError(self.name, self.id, "" if known is None else known.reason)
        raise JobFailedError(self.name, self.id, "its record is gone: it was removed on completion, or never added")

    async def _take_end(self, finish: Finish) -> None:
        """This object says how the job has ended: as its record tells it, or, where none is kept, as the news did."""
        broker, keys, _ = self._place()
        op = finish.op.encode()
        record: dict[str, bytes] = {}
        state = MARKS.get(op)
        if state is None:
            return
        with suppress(BrokerError):  # the job has finished, and that is known
            _, record = await broker.read(keys, self.id)
        if record.get("x") != op:
            field = {b"c": "v", b"f": "e1"}.get(op, "k")
            record = {"x": op, field: finish.body, "F": b"%d" % (clock.wall() * 1000)}
        end = self._read(None, record, state)
        for name in OF_AN_END if "d" in record else OF_AN_END[:5]:
            setattr(self, name, getattr(end, name))

    # Acts -------------------------------------------------------------------------------------------------
    async def cancel(self, reason: str = "") -> CancelAnswer:
        """Cancel the job, from any process: at once where it waits, else as soon as the process it runs in hears of it.

        The handler of a job that runs gets an `asyncio.CancelledError` and may clean up; one in a thread sees
        `job.cancelled`. After a second its job is settled without it. What has finished first has finished.

        Args:
            reason: in words, for those who wait for the job or look at it; its first 500 characters are kept.
        Returns:
            "cancelled": it is, or was before. "requested": it runs, and its process was told. "finished": it has
            completed or failed. "gone": there is no record of it.
        Raises:
            ConfigError: the reason is no text.
            BrokerUnavailableError: no answer; to call again is safe.
        """
        broker, keys, operator = self._place()
        spot = Spot(self.name, self.group_id, keys)
        (answer,) = await operator.cancel(broker, spot, self._spec, [self.id], reason)
        return answer

    async def retry(self, reset: bool = False, reason: str = "") -> None:
        """Let a failed or cancelled job wait again, at the back of its queue. Its errors stay.

        Args:
            reset: its attempts count from 0 again; else they go on, and it gets one more at least.
        Raises:
            StateError: it is in another state, which the text names.
            JobGoneError: its record is gone.
        """
        await self._act("retry", reason, reset=flag(reset, "reset"))
        self.state, self.finished_at = "waiting", None

    async def promote(self, reason: str = "") -> None:
        """Let a delayed job wait from now on.

        Raises:
            StateError, JobGoneError: as for `retry`.
        """
        await self._act("promote", reason)
        self.state, self.due_at = "waiting", None

    async def remove(self, reason: str = "") -> None:
        """Delete a job that does not run, with all that it owns. One that is gone already is no error.

        Raises:
            StateError: it runs; cancel it first.
        """
        with suppress(JobGoneError):
            await self._act("remove", reason)

    async def rerun(self, reason: str = "", **changes: Any) -> Job:
        """Add a new job that is a copy of this one, whatever state this one is in; `copied_from` says so.

        Args:
            changes: what differs: `data`, `name`, `group_id`, `job_id`, `delay`, `at`, and the other options of `add`.
        Raises:
            JobGoneError: the record of this one is gone.
            UnknownJobError, PayloadError, ConfigError: as for `add`; nothing was added.
        """
        broker, _, operator = self._place()
        copy: Job = await operator.rerun(broker, self, changes, reason)
        return copy

    async def _act(self, what: str, reason: str, reset: bool = False) -> None:
        broker, keys, operator = self._place()
        spot = Spot(self.name, self.group_id, keys)
        (state,) = await operator.act(broker, what, spot, [self.id], reason=reason, reset=reset)
        who = named(self.name, self.id, self.group_id)
        if state == "gone":
            raise JobGoneError(f"the record of {who} is gone: it was removed, or is no longer kept")
        if state != "done":
            raise StateError(f"{who} is {state}; {NEEDED[what]}")

    def _place(self) -> tuple[Broker, Keys, Operator]:
        assert self._broker is not None
        assert self._keys is not None
        assert self._operator is not None
        return self._broker, self._keys, self._operator

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
    operator: Operator | None = None,
) -> Job:
    """A `Job` from the fields of its record.

    Args:
        spec: of its name; None: that is not registered here.
        state: where the job was found; None: as the record and `due` say.
    """
    if state is None:
        state = MARKS.get(record.get("x", b""), "waiting" if due is None else "delayed")
    overrides = NO_OVERRIDES
    with suppress(Exception):  # a job with unreadable options cannot run, and its error says so
        overrides = Overrides.decode(record.get("o", b""))
    errors = [try_error_before(value) for _, value in numbered(record, "E")]
    errors += (try_error(number, value) for number, value in numbered(record, "e"))
    return Job(
        id=job_id,
        name=name,
        group_id=group_id,
        data=value_of(record.get("d")),
        state=state,
        result=value_of(record.get("v")),
        error=TryErrors(one for one in errors if one is not None),
        progress=value_of(record.get("p")),
        logs=tuple(value.decode(errors="replace") for _, value in numbered(record, "l")),
        attempts_made=number_of(record.get("a")),
        attempts=overrides.attempts(spec.job_options if spec is not None else UNKNOWN_OPTIONS),
        stalled_count=number_of(record.get("s")),
        added_at=instant_of(record.get("t")),
        started_at=instant_of(record.get("u")),
        finished_at=instant_of(record.get("F")),
        due_at=instant_of(due),
        cancelled_by=None if state in ("completed", "failed") else cancellation(record.get("k")),
        history=history_of(record, errors),
        copied_from=None if isinstance(overrides.n, msgspec.UnsetType) else Origin(*overrides.n),
        _broker=broker,
        _keys=keys,
        _spec=spec,
        _record=record,
        _operator=operator,
    )


def in_the_name_of(operator: Operator, jobs: list[Job]) -> list[Job]:
    """The same jobs, to be acted on by `operator`."""
    for job in jobs:
        job._operator = operator
    return jobs
