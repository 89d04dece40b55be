"""How a function of the user is called, on the loop or in a thread, and what leaves it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import threading
import time

import pytest

from asyncjobs import (
    JobFailedError,
)
from asyncjobs.active_job import current
from tests.helpers import LOOPS, Watcher, app, run_on

on_both_loops = pytest.mark.parametrize("loop", LOOPS)


# How a function is called -----------------------------------------------------------------------------------------
tenant = contextvars.ContextVar("tenant", default="nobody")


async def plain(data, job, queue, io):
    io.emit("hello", 1)
    await job.log("on the loop")
    added = await queue.add("echo", data)
    return [await added.wait(5), threading.current_thread() is threading.main_thread(), tenant.get()]


def decorated(function):
    @functools.wraps(function)
    def wrapper(**given):
        tenant.set("decorator")
        return function(**given)

    return wrapper


class Callable:
    async def __call__(self, data, job, queue, io):
        return await plain(data, job, queue, io)


class SyncCallable:
    def __call__(self, data, job, queue, io):
        return plain(data, job, queue, io)


class Methods:
    async def method(self, data, job, queue, io):
        return await plain(data, job, queue, io)

    def sync(self, data, job, queue, io):
        return plain(data, job, queue, io)

    @staticmethod
    def static(data, job, queue, io):
        return plain(data, job, queue, io)


async def with_more(data, job, queue, io, more):
    return await plain(data, job, queue, io)


class Awaitable:
    def __init__(self, coroutine):
        self.coroutine = coroutine

    def __await__(self):
        return self.coroutine.__await__()


SHAPES = {
    "async def": plain,
    "decorated": decorated(plain),
    "decorated twice": decorated(decorated(plain)),
    "partial": functools.partial(with_more, more=1),
    "partial of a partial": functools.partial(functools.partial(with_more), more=1),
    "partial of an object": functools.partial(Callable()),
    "partial of a decorated": functools.partial(decorated(plain)),
    "object": Callable(),
    "object that returns a coroutine": SyncCallable(),
    "method": Methods().method,
    "sync method": Methods().sync,
    "static method": Methods.static,
    "lambda": lambda data, job, queue, io: plain(data, job, queue, io),
    "awaitable": lambda data, job, queue, io: Awaitable(plain(data, job, queue, io)),
}


@on_both_loops
def test_whatever_gives_a_coroutine_runs_on_the_loop(server, prefix, loop):
    async def scenario():
        runtime, _ = app(server, prefix)
        for number, shape in enumerate(SHAPES.values()):
            runtime.add_job(f"shape-{number}", {"handle": shape, "worker_options": {"limiter": None}})
        async with runtime:
            jobs = await runtime.queue.add_bulk([(f"shape-{number}", number) for number in range(len(SHAPES))])
            for number, (job, name) in enumerate(zip(jobs, SHAPES, strict=True)):
                by = "decorator" if "decorated" in name else "nobody"
                assert (name, await job.wait(5)) == (name, [number, True, by])

    run_on(loop, scenario())


@on_both_loops
def test_what_a_sync_function_left_to_the_loop_is_cancelled_there(server, prefix, loop):
    async def scenario():
        runtime, _ = app(server, prefix)
        ended = []

        async def hangs(data):
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(data)

        # Time enough for a busy machine to begin with what the thread has left to the loop.
        runtime.job("late", limiter=None, attempts=1, timeout=0.5)(decorated(hangs))
        async with runtime:
            job = await runtime.queue.add("late", 1)
            with pytest.raises(JobFailedError, match=r"ran longer than its timeout of 0.5 s"):
                await job.wait(5)
            assert ended == [1]

    run_on(loop, scenario())


@on_both_loops
def test_a_thread_knows_its_job_and_the_variables_of_its_context(server, prefix, loop):
    async def scenario():
        runtime, _ = app(server, prefix)

        @runtime.job("who", limiter=None, concurrency=5, attempts=1)
        def who(data, job):
            before = tenant.get()
            tenant.set(f"tenant {data}")
            time.sleep(0.01)
            return [current.get() == job, current.get().id == job.id, before, tenant.get()]

        async with runtime:
            jobs = await runtime.queue.add_bulk([("who", n) for n in range(20)])
            for n, job in enumerate(jobs):
                assert await job.wait(5) == [True, True, "nobody", f"tenant {n}"]

    run_on(loop, scenario())


# What leaves a thread ---------------------------------------------------------------------------------------------
RAISED = (
    StopIteration, StopAsyncIteration, GeneratorExit, SystemExit, KeyboardInterrupt, asyncio.CancelledError,
    concurrent.futures.CancelledError, concurrent.futures.InvalidStateError, TimeoutError, RecursionError, MemoryError,
    LookupError,
)  # fmt: skip


@on_both_loops
def test_whatever_a_thread_raises_is_kept_as_it_is(server, prefix, loop):
    def raiser(kind):
        def raises():
            raise kind("of the thread")

        return raises

    async def scenario():
        runtime, _ = app(server, prefix)
        seen = Watcher(runtime)
        for number, kind in enumerate(RAISED):
            runtime.job(f"job-{number}", limiter=None, attempts=1)(raiser(kind))
            runtime.task("* * * * * *", name=f"task-{number}")(raiser(kind))
        async with runtime:
            await runtime.queue.add_bulk([(f"job-{number}", 1) for number in range(len(RAISED))])
            for number, kind in enumerate(RAISED):
                (failed, *_) = await seen("job.failed", name=f"job-{number}")
                (ticked, *_) = await seen("task.failed", name=f"task-{number}")
                assert (type(failed.error), type(ticked.error)) == (kind, kind)

    run_on(loop, scenario())
