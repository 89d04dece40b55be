"""Run one handler once. Whatever happens in it becomes an `Outcome`; nothing gets out but our own cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeAlias

from asyncjobs import payload
from asyncjobs.config import seconds
from asyncjobs.errors import Discard, JobTimeoutError, PayloadError, RateLimited, RetryLater, named
from asyncjobs.job import ActiveJob

DATA_ALONE: Final = ("data",)


class Completed(NamedTuple):
    body: bytes  # the result as JSON, empty for None


class Failed(NamedTuple):
    error: BaseException
    final: bool = False  # no further try, whatever the options say


class Later(NamedTuple):
    delay: float


class Held(NamedTuple):
    """Back to the head of the queue, uncounted, and the queue waits."""

    delay: float


class Released(NamedTuple):
    """Cancelled because the process stops: back to the head of the queue, uncounted."""


class Lost(NamedTuple):
    """Cancelled because another process owns the job by now: nothing is recorded."""


Outcome: TypeAlias = Completed | Failed | Later | Held | Released | Lost


async def execute(job: ActiveJob, environment: Mapping[str, Any], threads: Executor) -> Outcome:
    """One try of `job`.

    A handler's own `CancelledError`, `SystemExit` or `KeyboardInterrupt` is a failure like any other; only
    `job.leaving` says that the cancellation was ours.
    """
    call = job.spec.call
    try:
        job.data = job.spec.codec.decode(job.raw)
    except PayloadError as error:
        return Failed(error, final=True)
    try:
        if call.wants == DATA_ALONE and call.is_async:  # most of them; the rest is a microsecond more
            result = await call.function(data=job.data)
        elif call.is_async:
            result = await call({**environment, "job": job, "data": job.data})
        else:
            result = await call.run(_for_threads({**environment, "job": job, "data": job.data}), threads)
        return Completed(b"" if result is None else payload.encode_result(result, "result", job.spec.max_result))
    except PayloadError as error:
        return Failed(error, error.final or job.discarded)
    except Discard as why:
        return Failed(why, final=True)
    except RetryLater as again:
        try:
            return Later(seconds(again.delay, "RetryLater.delay"))
        except Exception as error:
            return Failed(error, job.discarded)
    except RateLimited as told:
        try:
            return Held(seconds(told.retry_after, "RateLimited.retry_after"))
        except Exception as error:
            return Failed(error, job.discarded)
    except asyncio.CancelledError as error:
        if job.leaving == "stop":
            return Released()
        if job.leaving == "lost":
            return Lost()
        if job.leaving == "timeout":
            return Failed(timed_out(job), job.discarded)
        return Failed(error, job.discarded)
    except GeneratorExit:
        raise
    except BaseException as error:
        return Failed(error, job.discarded)


def timed_out(job: ActiveJob) -> JobTimeoutError:
    """The error of a try that ran longer than its timeout."""
    limit = job.overrides.timeout(job.spec.job_options)
    return JobTimeoutError(f"{named(job.name, job.id, job.group_id)} ran longer than its timeout of {limit:g} s")


class FromThread:
    """An object of the loop as a sync handler in a thread sees it: its coroutine methods block until they are done."""

    __slots__ = ("_loop", "_target")

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target, self._loop = target, loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == getattr(self._loop, "_thread_id", None):
                return value(*args, **kwargs)

            async def on_loop() -> Any:
                result = value(*args, **kwargs)
                return await result if isinstance(result, Coroutine) else result

            result = asyncio.run_coroutine_threadsafe(on_loop(), self._loop).result()
            return FromThread(result, self._loop) if hasattr(result, "emit") else result

        return call


def _for_threads(given: Mapping[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    return {name: FromThread(value, loop) if name in ("job", "queue", "io") else value for name, value in given.items()}


def new_threads(most: int) -> ThreadPoolExecutor:
    """Threads for sync handlers, made when needed: as many as jobs may run at once."""
    return ThreadPoolExecutor(max_workers=most, thread_name_prefix="asyncjobs")
