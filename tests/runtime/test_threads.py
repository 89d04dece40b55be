"""Sync handlers and sync tasks: what they are given works in their thread, and a thread that cannot be stopped is
neither forgotten nor run beside itself, nor does it keep the process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import os
import signal
import textwrap
import threading
import time

import aiohttp
import pytest

from asyncjobs import (
    ConfigError,
    JobFailedError,
    JobTimeoutError,
    NotRunningError,
    PayloadError,
    Runtime,
    UnknownJobError,
)
from asyncjobs.active_job import current
from asyncjobs.guests.crossing import Crossing, FromThread
from asyncjobs.job import Job
from tests.helpers import LOOPS, Process, Watcher, eventually, free_port, ledger, run_on, write

on_both_loops = pytest.mark.parametrize("loop", LOOPS)


# What a sync function is given ------------------------------------------------------------------------------------
def add_and_wait(given):
    return given.queue.add("echo", 1).wait(5)


def add_in_bulk_and_wait(given):
    return [job.wait(5) for job in given.queue.add_bulk([("echo", n) for n in range(3)])]


def read_what_was_added(given):
    added = given.queue.add("echo", "read")
    added.wait(5)
    read = given.queue.get_job("echo", added.id)
    return [read.state, read.result, isinstance(read, Job), read.wait(5)]


def read_what_is_not_there(given):
    return given.queue.get_job("echo", "none")


def count(given):
    return sorted(given.queue.counts("echo"))


def steer(given):
    steering = given.queue.job("held")
    steering.pause()
    paused = steering.info()["paused"]
    steering.set(weight=3)
    steering.resume()
    return [paused, steering.info()["paused"], steering.info()["weight"]]


def steer_a_group(given):
    group = given.queue.group("grouped", "acme")
    group.pause()
    paused = group.info()["paused"]
    group.clear()
    return [paused, group.info()["paused"]]


def emit(given):
    given.io.emit("hello", 1)
    given.io.to("room").emit("hello", 2)
    given.io.sockets.in_("room").emit("hello", 3)
    return given.io.accepted >= 3


def use_a_method_kept_aside(given):
    add = given.queue.add
    return add("echo", 2).wait(5)


def use_threads_of_its_own(given):
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        return sorted(threads.map(lambda n: given.queue.add("echo", n).wait(5), range(3)))


def use_a_loop_of_its_own(given):
    async def inside():
        job = await given.queue.add("echo", 3)
        results = [await job.wait(5)]
        results.extend(await asyncio.gather(*(one.wait(5) for one in await given.queue.add_bulk([("echo", 4)]))))
        return results

    return asyncio.run(inside())


def add_by_reference(given):
    return given.echo.add(5).wait(5)


def add_through_the_runtime(given):
    given.runtime.io.emit("hello", 1)
    return given.runtime.queue.add("echo", 6).wait(5)


USES = {
    add_and_wait: 1,
    add_in_bulk_and_wait: [0, 1, 2],
    read_what_was_added: ["completed", "read", True, "read"],
    read_what_is_not_there: None,
    count: ["active", "completed", "delayed", "failed", "waiting"],
    steer: [True, False, 3],
    steer_a_group: [True, False],
    emit: True,
    use_a_method_kept_aside: 2,
    use_threads_of_its_own: [0, 1, 2],
    use_a_loop_of_its_own: [3, 4],
    add_by_reference: 5,
    add_through_the_runtime: 6,
}


class Given:
    """What a function under test may use."""

    def __init__(self, runtime, echo, **given):
        self.runtime, self.echo = runtime, echo
        self.__dict__.update(given)


def app(server, prefix, **options):
    """A runtime with a few jobs that others use."""
    runtime = Runtime(server.url, prefix=prefix, **options)

    @runtime.job("echo", limiter=None)
    async def echo(data):
        return data

    runtime.job("held", limiter=None)(lambda data: data)
    runtime.job("grouped", group=True)(lambda data: data)
    return runtime, echo


@on_both_loops
def test_what_a_sync_handler_is_given_works_in_its_thread(server, prefix, loop):
    async def scenario():
        runtime, echo = app(server, prefix)

        @runtime.job("use", limiter=None, attempts=1)
        def use(data, job, queue, io):
            job.log("began")
            job.update_progress({"at": data})
            given = Given(runtime, echo, queue=queue, io=io)
            return [named[data](given), job.attempts_made, job.data, threading.current_thread().daemon]

        named = {one.__name__: one for one in USES}
        async with runtime:
            jobs = await runtime.queue.add_bulk([("use", name) for name in named])
            for job, (one, expected) in zip(jobs, USES.items(), strict=True):
                name = one.__name__
                assert await job.wait(10) == [expected, 0, name, True]
                record = await runtime.queue.get_job("use", job.id)
                assert (record.logs, record.progress) == (("began",), {"at": name})

    run_on(loop, scenario())


@on_both_loops
@pytest.mark.parametrize("form", ["arguments", "factory"])
def test_what_a_sync_task_is_given_works_in_its_thread(server, prefix, tmp_path, loop, form):
    if form == "arguments":
        text = """
            cron_time, is_active = "* * * * * *", True
            def task(queue, io):
                io.to("room").emit("tick")
                queue.add("echo", queue.add("echo", 1).wait(5) + 1)
        """
    else:
        text = """
            from asyncjobs import TaskDefinition
            def define(queue, io):
                add = queue.add
                def task():
                    io.to("room").emit("tick")
                    add("echo", queue.add("echo", 1).wait(5) + 1)
                return TaskDefinition(task=task, cron_time="* * * * * *", is_active=True)
        """
    write(tmp_path, {"tasks/tick.py": text})

    async def scenario():
        runtime, _ = app(server, prefix, tasks=tmp_path / "tasks")
        ran = []
        runtime.on("job.completed", lambda event: ran.append(event.data))
        seen = Watcher(runtime)
        async with runtime:
            await seen("job.completed", count=2)
        assert runtime.io.accepted >= 1
        assert not seen.all("task.failed")
        assert {1, 2} <= {event.data for event in seen.all("job.completed")}

    run_on(loop, scenario())


@on_both_loops
def test_a_factory_may_be_given_to_either_kind_of_handler(server, prefix, tmp_path, loop):
    """What `define` got is as good as the queue itself on the loop, and blocks in a thread."""
    text = """
        from asyncjobs import JobDefinition, WorkerOptions
        def define(queue, io):
            {0}def handle(data):
                io.emit("hello", data)
                job = {1}queue.add("echo", data)
                return {1}job.wait(5)
            return JobDefinition(handle=handle, worker_options=WorkerOptions(limiter=None))
    """
    write(tmp_path, {"jobs/sync.py": text.format("", ""), "jobs/on_loop.py": text.format("async ", "await ")})

    async def scenario():
        runtime, _ = app(server, prefix, jobs=tmp_path / "jobs")
        async with runtime:
            jobs = await runtime.queue.add_bulk([("sync", 1), ("on-loop", 2)])
            assert [await job.wait(5) for job in jobs] == [1, 2]

    run_on(loop, scenario())


@on_both_loops
def test_errors_pass_into_the_thread_with_their_type(server, prefix, loop):
    def unknown(queue, job):
        queue.add("ecko", 1)

    def no_json(queue, job):
        queue.add("echo", object())

    def bad_option(queue, job):
        queue.add("echo", 1, delay=-1)

    def no_text(queue, job):
        job.log(5)

    def failed(queue, job):
        queue.add("fails", 1).wait(5)

    def too_slow(queue, job):
        queue.add("echo", 1, delay=60).wait(0.05)

    def never_ends(queue, job):
        queue.add("one-by-one", "inner").wait()

    expected = {
        unknown: UnknownJobError, no_json: PayloadError, bad_option: ConfigError, no_text: PayloadError,
        failed: JobFailedError, too_slow: JobTimeoutError, never_ends: ConfigError,
    }  # fmt: skip

    async def scenario():
        runtime, _ = app(server, prefix)
        found = {}
        named = {one.__name__: one for one in expected}

        @runtime.job("fails", limiter=None, attempts=1)
        async def fails(data):
            raise LookupError("no such thing")

        @runtime.job("one-by-one", limiter=None, attempts=1, concurrency=1)
        def one_by_one(data, queue, job):
            if data != "inner":
                try:
                    named[data](queue, job)
                except Exception as error:
                    found[named[data]] = type(error)

        async with runtime:
            await runtime.queue.add_bulk([("one-by-one", name) for name in named])
            await eventually(lambda: len(found) == len(expected))
        assert found == expected

    run_on(loop, scenario())


class Sub:
    """Things that part of an API may give: an async context manager, an async iterator, an awaitable with both."""

    __module__ = "asyncjobs"

    def __init__(self):
        self.log = []

    async def __aenter__(self):
        await asyncio.sleep(0)
        self.log.append("entered")
        return self

    async def __aexit__(self, *error):
        await asyncio.sleep(0)
        self.log.append(f"left {error[0] and error[0].__name__}")
        return error[0] is KeyError

    async def numbers(self):
        for n in range(3):
            await asyncio.sleep(0)
            yield n

    async def nested(self):
        return {"one": [Sub()], "two": (Sub(), 2), "three": [[{"deep": Sub()}]]}

    async def value(self):
        await asyncio.sleep(0)
        return 7

    def future(self):
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.01, future.set_result, 8)
        return future

    async def echo(self, value):
        return value

    async def same(self, others):
        return all(type(one) is Sub for one in others)


@on_both_loops
def test_whatever_an_api_gives_works_in_a_thread(loop):
    async def scenario():
        sub = Sub()
        seen = FromThread(sub, Crossing())

        def in_thread():
            with seen as inside:
                values = list(inside.numbers())
            with seen:
                raise KeyError
            nested = seen.nested()
            deep = [nested["one"][0].value(), nested["two"][0].value(), nested["three"][0][0]["deep"].value()]
            same = seen.same([seen, nested["one"][0]])
            return values, deep, seen.future(), same, isinstance(seen, Sub), seen == sub, hash(seen) == hash(sub)

        assert await asyncio.to_thread(in_thread) == ([0, 1, 2], [7, 7, 7], 8, True, True, True, True)
        assert sub.log == ["entered", "left None", "entered", "left KeyError"]
        async with seen as inside:
            assert [n async for n in inside.numbers()] == [0, 1, 2]
        assert await seen.value() == 7

    run_on(loop, scenario())


@on_both_loops
def test_what_holds_nothing_of_the_loop_passes_as_it_is(loop):
    """However deep it is, and though it holds itself."""

    async def scenario():
        seen = FromThread(Sub(), Crossing())
        deep: list = []
        for _ in range(100_000):
            deep = [deep]
        loops: list = []
        loops += [loops, {"again": loops}]
        mixed = [seen, loops, (loops, seen)]

        def in_thread():
            passed = [seen.echo(one) is one for one in (deep, loops, {"a": loops}, frozenset([1]))]
            sub, same, (also, other) = seen.echo(mixed)
            return passed, sub.value(), other.value(), same is loops, also is loops

        passed, *rest = await asyncio.to_thread(in_thread)
        assert (passed, rest) == ([True] * 4, [7, 7, False, False])
        while deep:
            deep = deep.pop()

    run_on(loop, scenario())


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

        runtime.job("late", limiter=None, attempts=1, timeout=0.05)(decorated(hangs))
        async with runtime:
            job = await runtime.queue.add("late", 1)
            with pytest.raises(JobFailedError, match=r"ran longer than its timeout of 0.05 s"):
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


# Threads that go on -----------------------------------------------------------------------------------------------
class Blocked:
    """A sync handler that blocks until the test lets it go; counts how many run at once, over all runtimes."""

    def __init__(self):
        self.go = threading.Event()
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.began, self.errors = [], []

    def __call__(self, data, job, queue, io):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.began.append(data)
        try:
            assert self.go.wait(20)
        finally:
            with self.lock:
                self.now -= 1
        return "done"


@pytest.fixture
def blocked():
    made = Blocked()
    yield made
    made.go.set()


WAYS = {
    "the last try": {"attempts": 1},
    "more tries": {"attempts": 3, "backoff": None},
    "ordered": {"attempts": 1, "ordered": True},
    "ordered, more tries": {"attempts": 3, "backoff": 0.01, "ordered": True},
    "a group": {"attempts": 1, "group": True},
    "a group, more tries": {"attempts": 2, "backoff": 0.01, "group": True},
}


@on_both_loops
@pytest.mark.parametrize("way", WAYS)
def test_a_thread_keeps_its_slot_after_a_timeout(server, prefix, loop, way, blocked):
    """At concurrency 1 never two run at once: in one process, and where the store counts the slots, in several."""
    options = {"limiter": None, "concurrency": 1, "timeout": 0.05, **WAYS[way]}
    grouped = options.get("group", False)

    async def scenario():
        runtimes = [Runtime(server.url, prefix=prefix) for _ in range(2 if grouped or "ordered" in options else 1)]
        for runtime in runtimes:
            runtime.job("block", **options)(blocked.__call__)
            await runtime.start()
        group = {"group_id": "acme"} if grouped else {}
        jobs = await runtimes[0].queue.add_bulk([("block", n, group) for n in range(4)])
        await eventually(lambda: len(blocked.began) == 1)
        await asyncio.sleep(0.4)  # many timeouts
        if way == "the last try":
            with pytest.raises(JobFailedError, match=r"ran longer than its timeout of 0.05 s"):
                await jobs[0].wait(5)
        assert len(blocked.began) == 1
        blocked.go.set()
        for job in jobs[1:]:
            assert await job.wait(10) == "done"
        for runtime in runtimes:
            await runtime.wait_idle(5)
            await runtime.stop()
        assert blocked.most == 1

    run_on(loop, scenario())


@on_both_loops
def test_a_try_that_took_too_long_in_a_thread_is_a_failure_and_the_next_begins_after_it(server, prefix, loop, blocked):
    async def scenario():
        runtime = Runtime(server.url, prefix=prefix)
        runtime.job("block", limiter=None, timeout=0.05, attempts=2, backoff=None)(blocked.__call__)
        async with runtime:
            job = await runtime.queue.add("block", 1)
            await eventually(lambda: blocked.began == [1])
            await asyncio.sleep(0.2)
            assert (await runtime.queue.get_job("block", job.id)).state == "active"
            blocked.go.set()
            assert await job.wait(5) == "done"
            record = await runtime.queue.get_job("block", job.id)
        assert [one.text for one in record.error] == [
            f"JobTimeoutError: block {job.id} ran longer than its timeout of 0.05 s"
        ]
        assert (record.attempts_made, blocked.most) == (2, 1)

    run_on(loop, scenario())


@on_both_loops
@pytest.mark.parametrize("ends", ["well", "badly"])
def test_stop_does_not_hand_back_what_a_thread_runs(server, prefix, loop, blocked, ends):
    """Also not when its lease has run out since: the heartbeat goes on until the thread has ended."""
    options = {"limiter": None, "lease": 0.5, "attempts": 1}

    def handle(data, job, queue, io):
        blocked(data, job, queue, io)
        if ends == "badly" and len(blocked.began) == 1:
            raise LookupError
        return len(blocked.began)

    async def scenario():
        first, second = (Runtime(server.url, prefix=prefix, sweep_interval=0.1) for _ in range(2))
        for runtime in (first, second):
            runtime.job("block", **options)(handle)
            runtime.job("tenant", group=True, **options)(handle)
        await first.start()
        job = await first.queue.add("block", 1)
        await eventually(lambda: blocked.now == 1)
        await second.start()
        began = time.monotonic()
        await first.stop(grace=0.1)
        assert time.monotonic() - began < 5.1
        assert first.health()["status"] == "stopped"
        await asyncio.sleep(1.5)  # three leases
        assert blocked.began == [1]
        assert (await second.queue.get_job("block", job.id)).state == "active"
        blocked.go.set()
        # Its outcome counts, or it goes back uncounted: attempts is 1.
        assert await (await second.queue.get_job("block", job.id)).wait(5) == (1 if ends == "well" else 2)
        record = await second.queue.get_job("block", job.id)
        assert (record.attempts_made, record.stalled_count) == (1, 0)
        await second.stop()
        assert blocked.most == 1
        await eventually(lambda: not [one for one in asyncio.all_tasks() if "threads that go on" in one.get_name()])

    run_on(loop, scenario())


@on_both_loops
def test_a_stopped_runtime_starts_again_while_its_thread_goes_on(server, prefix, loop, blocked):
    async def scenario():
        runtime, _ = app(server, prefix)
        runtime.job("block", limiter=None, lease=0.5)(blocked.__call__)
        await runtime.start()
        first = await runtime.queue.add("block", 1)
        await eventually(lambda: blocked.now == 1)
        await runtime.stop(grace=0)
        async with runtime:
            assert await (await runtime.queue.add("echo", 1)).wait(5) == 1
            await asyncio.sleep(0.8)
            blocked.go.set()
            assert await (await runtime.queue.get_job("block", first.id)).wait(5) == "done"
        assert blocked.began == [1]

    run_on(loop, scenario())


@on_both_loops
def test_a_sync_task_that_goes_on_after_stop_does_not_overlap(server, prefix, loop, blocked):
    def tick(queue, io):
        blocked("tick", None, queue, io)

    async def scenario():
        first, second = (Runtime(server.url, prefix=prefix) for _ in range(2))
        for runtime in (first, second):
            runtime.task("* * * * * *", name="tick")(tick)
        await first.start()
        await eventually(lambda: blocked.now == 1)
        seen = Watcher(second)
        await second.start()
        await first.stop(grace=0.1)
        await seen("task.skipped", count=2)
        assert blocked.began == ["tick"]
        blocked.go.set()
        await seen("task.fired")
        await second.stop()
        assert blocked.most == 1

    run_on(loop, scenario())


@on_both_loops
def test_a_thread_goes_on_when_the_app_cancels_everything(server, prefix, loop, blocked):
    """Its job is settled when it ends, and its slot comes free; a task ticks again."""

    def tick(queue, io):
        if len(blocked.began) < 2:
            blocked("tick", None, queue, io)

    async def scenario():
        runtime, _ = app(server, prefix)
        runtime.job("block", limiter=None, concurrency=1, attempts=1)(blocked.__call__)
        runtime.task("* * * * * *", name="tick")(tick)
        seen = Watcher(runtime)
        async with runtime:
            jobs = await runtime.queue.add_bulk([("block", 1), ("block", 2)])
            await eventually(lambda: blocked.now == 2)
            for job in runtime._assembly.queues.consumers["block"].attempts.running.values():
                job.aio_task.cancel()
            for run in runtime._assembly.scheduler._runs:
                run.aio_task.cancel()
            await asyncio.sleep(0.2)
            assert (await runtime.queue.get_job("block", jobs[0].id)).state == "active"
            fired = len(seen.all("task.fired"))
            blocked.go.set()
            assert [await job.wait(5) for job in jobs] == ["done", "done"]
            await seen("task.fired", count=fired + 1)

    run_on(loop, scenario())


# Threads that come too late ---------------------------------------------------------------------------------------
async def disconnect(runtime):
    """A loop that ends without a stop; uvloop would wait for its connections when it is closed."""
    await runtime._assembly.supervisor.stop()
    await runtime._assembly.lifeline.stop()
    await runtime._assembly.broker.close()


def call_after(blocked, calls, errors):
    def handle(data, job, queue, io):
        job_of_another = queue.add("echo", 1, delay=60)
        blocked(data, job, queue, io)
        for call in (
            lambda: queue.add("echo", 1),
            lambda: job_of_another.wait(),
            lambda: job.log("late"),
            lambda: job.update_progress(1),
            lambda: queue.job("echo").pause(),
            lambda: queue.counts("echo"),
            lambda: io.emit("late", 1),
        ):
            try:
                calls.append(call())
            except BaseException as error:
                errors.append(error)
        errors.append(None)

    return handle


@on_both_loops
@pytest.mark.parametrize("late", ["timeout", "last timeout", "stop", "taken over", "loop closed"])
def test_a_thread_that_comes_too_late_is_told_so(server, prefix, loop, blocked, late):
    calls, errors = [], []

    async def scenario():
        runtime, _ = app(server, prefix)
        attempts = 1 if late == "last timeout" else 2
        limit = 0.05 if "timeout" in late else None
        runtime.job("late", limiter=None, attempts=attempts, timeout=limit)(call_after(blocked, calls, errors))
        await runtime.start()
        job = await runtime.queue.add("late", 1)
        await eventually(lambda: blocked.now == 1)
        (active,) = runtime._assembly.queues.consumers["late"].attempts.running.values()
        if late == "loop closed":
            await disconnect(runtime)
            return
        if late == "stop":
            await runtime.stop(grace=0)
        elif late == "taken over":
            runtime._assembly.queues.consumers["late"].attempts.cancel(active, "lost")
        else:
            await eventually(lambda: active.leaving)
        blocked.go.set()
        await eventually(lambda: None in errors)
        assert job.id in str(errors[0]) or late == "stop"
        await runtime.stop(grace=0)

    run_on(loop, scenario())
    blocked.go.set()
    run_on("asyncio", eventually(lambda: None in errors))
    kind = JobTimeoutError if "timeout" in late else NotRunningError
    assert {type(one) for one in errors[:7]} == {kind}
    assert calls == []


@on_both_loops
@pytest.mark.parametrize("late", ["timeout", "stop", "loop closed"])
def test_a_thread_that_waits_for_the_loop_is_let_go(server, prefix, loop, late):
    """What it waits for can be cancelled, although the thread cannot."""
    errors = []

    async def scenario():
        runtime, _ = app(server, prefix)
        waiting = threading.Event()

        @runtime.job("waits", limiter=None, attempts=1, timeout=0.1 if late == "timeout" else None)
        def waits(data, queue):
            job = queue.add("echo", 1, delay=60)
            waiting.set()
            try:
                job.wait()
            except BaseException as error:
                errors.append(error)
                raise

        await runtime.start()
        job = await runtime.queue.add("waits", 1)
        await eventually(waiting.is_set)
        if late == "timeout":
            with pytest.raises(JobFailedError, match="ran longer than its timeout"):
                await job.wait(5)
            await runtime.stop()
        elif late == "stop":
            await runtime.stop(grace=0.1)
            async with Runtime(server.url, prefix=prefix, consume=False) as other:
                other.job("waits")(lambda data: None)
                counts = await other.queue.counts("waits")
                assert (counts["waiting"], counts["active"]) == (1, 0), "it went back, uncounted"
        else:
            await disconnect(runtime)

    run_on(loop, scenario())
    run_on("asyncio", eventually(lambda: errors))
    assert type(errors[0]) is (JobTimeoutError if late == "timeout" else NotRunningError)


# The end of the process -------------------------------------------------------------------------------------------
SLEEPS = {
    "jobs/sleeps.py": """
        import asyncio, threading, time
        from concurrent.futures import ThreadPoolExecutor
        from asyncjobs import WorkerOptions
        worker_options = WorkerOptions(limiter=None, lease=1)
        def note(text):
            with open("ledger", "a") as file:
                print(text, file=file)
        {handle}
    """,
    "main.py": """
        import asyncio, sys
        from asyncjobs import Runtime
        from tests.helpers import eventually, ledger
        from pathlib import Path
        async def main():
            async with Runtime(jobs="jobs", grace=0.2) as runtime:
                await runtime.queue.add("sleeps", 1)
                await eventually(lambda: ledger(Path("ledger")))
            print("stopped")
        asyncio.run(main())
    """,
    "asgi.py": """
        from asyncjobs import Runtime
        from fastapi import FastAPI
        runtime = Runtime(jobs="jobs", grace=0.2)
        app = FastAPI(lifespan=runtime.lifespan)
        @app.get("/")
        async def add():
            await runtime.queue.add("sleeps", 1)
    """,
}
HANDLES = {
    "a sync handler": """
        def handle(data):
            note("began")
            time.sleep(60)
    """,
    "to_thread": """
        async def handle(data):
            note("began")
            await asyncio.to_thread(time.sleep, 60)
    """,
    "an executor of its own": """
        threads = ThreadPoolExecutor(1)
        def handle(data):
            threads.submit(time.sleep, 60)
            note("began")
            time.sleep(60)
    """,
    "a thread of its own": """
        def handle(data):
            threading.Thread(target=time.sleep, args=(60,)).start()
            note("began")
    """,
}


@pytest.fixture
def process(tmp_path):
    made = []

    def start(*args, module=True, handle="a sync handler"):
        indented = textwrap.indent(textwrap.dedent(HANDLES[handle]), " " * 8).strip()
        write(tmp_path, {name: text.replace("{handle}", indented) for name, text in SLEEPS.items()})
        env = {"PYTHONPATH": os.pathsep.join([os.getcwd(), str(tmp_path)])}
        made.append(Process(tmp_path, *args, module=module, env=env))
        return made[-1]

    yield start
    for one in made:
        one.kill()


@pytest.mark.parametrize("handle", HANDLES)
async def test_run_ends_whatever_runs_in_threads(process, tmp_path, handle):
    running = process("run", "--grace", "0.2", handle=handle)
    await running.says("ready")
    async with Runtime(jobs=tmp_path / "jobs", data_dir=tmp_path / ".asyncjobs", consume=False) as adder:
        await adder.queue.add("sleeps", 1)
        await eventually(lambda: ledger(tmp_path / "ledger"))
        running.signal(signal.SIGTERM)
        began = time.monotonic()
        assert await running.ended(15) == 0
    assert time.monotonic() - began < 9  # grace and five seconds, and three for the interpreter
    assert "stopped" in running.output


async def test_a_program_ends_although_a_sync_handler_does_not(process):
    program = process("main.py", module=False)
    assert await program.ended(15) == 0, program.output
    assert "stopped" in program.output


async def test_uvicorn_ends_although_a_sync_handler_does_not(process, tmp_path):
    port = free_port()
    serving = process("-m", "uvicorn", "asgi:app", "--port", str(port), module=False)
    await serving.says("Uvicorn running")
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as answer:
        assert answer.status == 200
    await eventually(lambda: ledger(tmp_path / "ledger"))
    serving.signal(signal.SIGTERM)
    await serving.ended(15)
    assert "Application shutdown complete" in serving.output


async def test_what_a_thread_ran_comes_back_when_its_process_has_ended(process, tmp_path):
    program = process("main.py", module=False)
    assert await program.ended(15) == 0, program.output
    running = process("run")
    await eventually(lambda: len(ledger(tmp_path / "ledger")) == 2, 10)
    assert running.popen.poll() is None
