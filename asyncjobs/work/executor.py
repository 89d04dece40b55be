"""Run one handler once. Whatever happens in it becomes an `Outcome`; nothing gets out but our own cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from asyncjobs.active_job import ActiveJob
from asyncjobs.declare import payload
from asyncjobs.declare.values import seconds
from asyncjobs.errors import (
    AsyncjobsError,
    Discard,
    JobTimeoutError,
    NotRunningError,
    PayloadError,
    RateLimited,
    RetryLater,
    named,
)
from asyncjobs.guests.threads import InThread, Threads
from asyncjobs.logs import is_closing, said

DATA_ALONE: Final = ("data",)
STEERING: Final = (Discard, RateLimited, RetryLater)


class Completed(NamedTuple):
    body: bytes  # the result as JSON, empty for None


class Failed(NamedTuple):
    error: BaseException
    final: bool = False  # no further try, whatever the options say


class Later(NamedTuple):
    delay: float


class Aside(NamedTuple):
    """It has not begun, since it is not its turn among those that have stalled: again after a while, uncounted."""

    delay: float


class Held(NamedTuple):
    """Back to the head of the queue, uncounted, and the queue waits."""

    delay: float


class Released(NamedTuple):
    """Cancelled because the process stops: back to the head of the queue, uncounted."""


class Lost(NamedTuple):
    """Cancelled because another process owns the job by now: nothing is recorded."""


Outcome: TypeAlias = Completed | Failed | Later | Aside | Held | Released | Lost


async def execute(job: ActiveJob, environment: Mapping[str, Any], threads: Threads) -> Outcome:
    """One try of `job`.

    A handler's own `CancelledError`, `SystemExit`, `KeyboardInterrupt` or `GeneratorExit` is a failure like any other;
    only `job.leaving` says that the cancellation was ours, and then what the handler makes of it does not matter.
    """
    call = job.spec.call
    try:
        job.data = job.spec.codec.decode(job.raw)
    except PayloadError as error:
        return Failed(error, final=True)
    except BaseException as error:  # a validator's own
        return Failed(unfit(job, error), final=True)
    try:
        if call.wants == DATA_ALONE and call.is_async:  # most of them; the rest is a microsecond more
            result = await call.function(data=job.data)
        elif call.is_async:
            result = await call({**environment, "job": job, "data": job.data})
        else:
            result, raised = await call.run({**environment, "job": job, "data": job.data}, threads, ThreadTry(job))
            if raised is not None:
                return outcome_of(job, raised)
    except BaseException as error:
        if issubclass(type(error), GeneratorExit) and is_closing(job.aio_task):
            raise
        return outcome_of(job, error)
    return returned(job, result)


def returned(job: ActiveJob, result: Any) -> Outcome:
    """What it means that a handler has returned `result`."""
    if job.leaving == "stop":
        return Released()
    if job.leaving == "lost":
        return Lost()
    try:
        return Completed(b"" if result is None else payload.encode_result(result, "result", job.spec.max_result))
    except BaseException as error:  # its side effect has happened: once more would be twice
        return Failed(error, final=True)


def unfit(job: ActiveJob, error: BaseException) -> PayloadError:
    """The error of a job whose data were refused by a validator that raised something of its own."""
    made = PayloadError(f"the data of {named(job.name, job.id, job.group_id)} do not fit: {said(error)}")
    made.__cause__ = error
    return made


def outcome_of(job: ActiveJob, error: BaseException) -> Outcome:
    """What it means that a handler raised `error`."""
    if job.leaving == "stop":
        return Released()
    if job.leaving == "lost":
        return Lost()
    try:
        why = steering(error)
        if why is None:
            cancelled = job.leaving == "timeout" and issubclass(type(error), asyncio.CancelledError)
            final = issubclass(type(error), PayloadError) and bool(getattr(error, "final", False))
            return Failed(timed_out(job) if cancelled else error, final or job.discarded)
        if isinstance(why, Discard):
            return Failed(why, final=True)
        if isinstance(why, RateLimited):
            return Held(seconds(why.retry_after, "RateLimited.retry_after"))
        return Later(seconds(why.delay, "RetryLater.delay"))
    except BaseException as wrong:  # a delay that is none, a group that cannot be looked into
        return Failed(wrong, job.discarded)


def steering(error: BaseException) -> Discard | RateLimited | RetryLater | None:
    """What `error` steers to; None: it is a failure.

    A group steers if it holds nothing else, however deep: to a Discard if there is one, else to the longest pause.
    """
    kind = type(error)  # what the class of an exception says of itself may be anything
    if issubclass(kind, STEERING):
        return error  # type: ignore[return-value]
    if not issubclass(kind, BaseExceptionGroup):
        return None
    found: list[Any] = []
    left: list[BaseException] = [error]
    while left:
        one = left.pop()
        if issubclass(type(one), BaseExceptionGroup):
            left += one.exceptions  # type: ignore[attr-defined]
        elif issubclass(type(one), STEERING):
            found.append(one)
        else:
            return None
    for steer, pause in ((Discard, None), (RateLimited, "retry_after"), (RetryLater, "delay")):
        mine = [one for one in found if issubclass(type(one), steer)]
        if mine:
            return max(mine, key=lambda one: seconds(getattr(one, pause), pause)) if pause else mine[0]  # type: ignore[no-any-return]
    return None


class ThreadTry:
    """A try whose handler is a sync function."""

    __slots__ = ("_job",)

    def __init__(self, job: ActiveJob) -> None:
        self._job = job

    @property
    def thread(self) -> InThread | None:
        return self._job.thread

    @thread.setter
    def thread(self, thread: InThread | None) -> None:
        self._job.thread = thread

    def refusal(self) -> AsyncjobsError | None:
        """Why its thread may do nothing more with its queue, job and io; None: it may."""
        job = self._job
        if job.leaving == "timeout":
            return timed_out(job)
        who = named(job.name, job.id, job.group_id)
        if job.leaving == "lost":
            return NotRunningError(f"{who} was taken over by another process; this try no longer counts")
        if job.leaving == "stop":
            return NotRunningError(f"the runtime stops, and the grace of {who} is over")
        return NotRunningError(f"{who} has ended, and its thread with it") if job.ended else None

    def returned(self, awaitable: bool) -> None:
        """Its thread was not cancelled: what it did counts, even if it has ended after the grace."""
        job = self._job
        if job.leaving == "stop" and not awaitable:
            job.leaving = ""
        elif job.leaving:
            raise asyncio.CancelledError


def late(job: ActiveJob, thread: InThread) -> Outcome:
    """The outcome of a try whose aio_task was cancelled by somebody else while its thread went on."""
    try:
        if thread.error is not None:
            return outcome_of(job, thread.error)
        thread.discard_awaitable()
        ThreadTry(job).returned(False)
        return returned(job, thread.value)
    except BaseException as error:
        return outcome_of(job, error)


def timed_out(job: ActiveJob) -> JobTimeoutError:
    """The error of a try that ran longer than its timeout."""
    limit = job.overrides.timeout(job.spec.job_options)
    allowed = "its timeout" if limit is None else f"its timeout of {limit:g} s"
    return JobTimeoutError(f"{named(job.name, job.id, job.group_id)} ran longer than {allowed}")
