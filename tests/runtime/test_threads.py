"""Sync handlers and sync tasks: what they are given works in their thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import pytest

from asyncjobs import (
    ConfigError,
    JobFailedError,
    JobTimeoutError,
    PayloadError,
    UnknownJobError,
)
from asyncjobs.guests.crossing import Crossing, FromThread
from asyncjobs.job import Job
from tests.helpers import LOOPS, Watcher, app, eventually, run_on, write

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
