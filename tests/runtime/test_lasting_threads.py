"""A thread that cannot be stopped is neither forgotten nor run beside itself, and one that comes late is told so."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from asyncjobs import (
    JobFailedError,
    JobTimeoutError,
    NotRunningError,
    Runtime,
)
from tests.helpers import LOOPS, Watcher, app, eventually, run_on

on_both_loops = pytest.mark.parametrize("loop", LOOPS)


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
