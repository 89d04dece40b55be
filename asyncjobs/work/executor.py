"""Run one handler once. Each end becomes an `Outcome`; only the runtime's own cancellation passes through."""

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
    JobCancelledError,
    JobTimeoutError,
    NotRunningError,
    PayloadError,
    RateLimited,
    RetryLater,
    named,
)
from asyncjobs.guests.threads import InThread, Threads
from asyncjobs.job_record import cancellation
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
    """The job has not begun, because another suspect has the turn. The job comes again after a while, uncounted."""

    delay: float


class Held(NamedTuple):
    """The job goes back to the head of the queue, uncounted, and the queue waits."""

    delay: float


class Released(NamedTuple):
    """The try was cancelled, because the process stops. The job goes back to the head of the queue, uncounted."""


class Cancelled(NamedTuple):
    """An operator has cancelled the job. The job is over, whatever its handler still does."""

    mark: bytes  # who and why, as the record of the job has it


class Lost(NamedTuple):
    """The try was cancelled, because another process owns the job now. Nothing is recorded."""


Outcome: TypeAlias = Completed | Failed | Later | Aside | Held | Released | Cancelled | Lost
AWAY: Final = frozenset(("cancel", "stop", "lost"))  # reasons for which a try is cancelled without a failure of its job


def given_up(job: ActiveJob) -> Cancelled | Released | Lost:
    """The outcome of a try that was cancelled without a failure of its job."""
    if job.leaving == "cancel":
        return Cancelled(job.mark)
    return Lost() if job.leaving == "lost" else Released()


async def execute(job: ActiveJob, environment: Mapping[str, Any], threads: Threads) -> Outcome:
    """Make one try of `job`.

    A handler's own `CancelledError`, `SystemExit`, `KeyboardInterrupt` or `GeneratorExit` is a failure like any other.
    If `job.leaving` is set, the runtime has cancelled the try, and the handler's reaction does not matter.
    """
    call = job.spec.call
    try:
        job.data = job.spec.codec.decode(job.raw)
    except PayloadError as error:
        return Failed(error, final=True)
    except BaseException as error:  # raised by a validator
        return Failed(unfit(job, error), final=True)
    try:
        if call.wants == DATA_ALONE and call.is_async:  # most handlers; the general way takes a microsecond more
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
    """The outcome of a handler that has returned `result`."""
    if job.leaving in AWAY:
        return given_up(job)
    try:
        return Completed(b"" if result is None else payload.encode_result(result, "result", job.spec.max_result))
    except BaseException as error:  # the handler's side effect has happened, and a retry would repeat it
        return Failed(error, final=True)


def unfit(job: ActiveJob, error: BaseException) -> PayloadError:
    """The error of a job whose data a validator refused by raising an error of its own."""
    made = PayloadError(f"the data of {named(job.name, job.id, job.group_id)} do not fit: {said(error)}")
    made.__cause__ = error
    return made


def outcome_of(job: ActiveJob, error: BaseException) -> Outcome:
    """The outcome of a handler that has raised `error`."""
    if job.leaving in AWAY:
        return given_up(job)
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
    except BaseException as wrong:  # the delay is invalid, or the exception group cannot be read
        return Failed(wrong, job.discarded)


def steering(error: BaseException) -> Discard | RateLimited | RetryLater | None:
    """The steering exception in `error`; None: `error` is a failure.

    An exception group steers if it holds steering exceptions alone, at any depth. A Discard comes first, else the
    longest pause.
    """
    kind = type(error)  # an exception may lie about its class
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
    """A try whose handler runs in a thread, because it is a sync function."""

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
        """Why the thread may not use its queue, job and io any more; None: it may."""
        job = self._job
        if job.leaving == "timeout":
            return timed_out(job)
        who = named(job.name, job.id, job.group_id)
        if job.leaving == "cancel":
            known = cancellation(job.mark)
            return JobCancelledError(job.name, job.id, "" if known is None else known.reason)
        if job.leaving == "lost":
            return NotRunningError(f"{who} was taken over by another process; this try no longer counts")
        if job.leaving == "stop":
            return NotRunningError(f"the runtime stops, and the grace of {who} is over")
        return NotRunningError(f"{who} has ended, and its thread with it") if job.ended else None

    def returned(self, awaitable: bool) -> None:
        """The thread has ended. After a stop its result counts, because a thread cannot be cancelled."""
        job = self._job
        if job.leaving == "stop" and not awaitable:
            job.leaving = ""
        elif job.leaving:
            raise asyncio.CancelledError


def late(job: ActiveJob, thread: InThread) -> Outcome:
    """The outcome of a try whose thread went on after the app had cancelled its aio_task."""
    try:
        if thread.error is not None:
            return outcome_of(job, thread.error)
        thread.discard_awaitable()
        ThreadTry(job).returned(False)
        return returned(job, thread.value)
    except BaseException as error:
        return outcome_of(job, error)


def timed_out(job: ActiveJob) -> JobTimeoutError:
    """The error for a try that ran longer than its timeout."""
    limit = job.overrides.timeout(job.spec.job_options)
    allowed = "its timeout" if limit is None else f"its timeout of {limit:g} s"
    return JobTimeoutError(f"{named(job.name, job.id, job.group_id)} ran longer than {allowed}")
