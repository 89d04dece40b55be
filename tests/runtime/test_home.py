"""A runtime lives in one event loop at a time: in the next one it starts anew, and from elsewhere it is not called."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
import warnings

import pytest

from asyncjobs import NotRunningError, Runtime
from tests.helpers import BOUND, LOOPS, eventually, run_on


@pytest.fixture
def url(server):
    return getattr(server, "url", None) or server.data[0].url


class Sink:
    def __init__(self):
        self.got = []

    async def emit(self, event, data, **options):
        self.got.append(data)


def make(url, prefix):
    sink = Sink()
    runtime = Runtime(url, prefix=prefix, io=sink)
    seen = []

    @runtime.job("echo", limiter=None)
    async def echo(data, io):
        await io.emit("x", data)
        return data

    async def subscriber(event):
        seen.append(event.job_id)

    runtime.on("job.completed", subscriber)
    return runtime, sink, seen


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped between", "the loop closed without a stop"])
@pytest.mark.parametrize("loop", LOOPS)
def test_one_runtime_in_one_loop_after_another(url, prefix, loop, stopped, caplog):
    runtime, sink, seen = make(url, prefix)
    threads = threading.active_count()

    async def life(n):
        before = asyncio.all_tasks()
        await runtime.start()
        assert runtime.health()["status"] != "stopped"
        began = time.monotonic()
        jobs = await asyncio.gather(*(runtime.queue.add("echo", n) for _ in range(20)))
        assert [await job.wait(BOUND) for job in jobs] == [n] * 20
        await eventually(lambda: len(seen) == 20 * n)
        await eventually(lambda: sink.got.count(n) == 20)
        assert time.monotonic() - began < BOUND
        if stopped:
            await asyncio.gather(runtime.stop(), runtime.stop())
            assert asyncio.all_tasks() == before

    with warnings.catch_warnings():
        if loop == "uvloop" and not stopped:
            # uvloop warns of each connection while it closes its loop, and closes it never if that is an error.
            warnings.simplefilter("ignore", ResourceWarning)
        for n in range(1, 5):
            run_on(loop, life(n))
            if not stopped:
                assert runtime.state == "running"
        run_on(loop, runtime.stop())
        gc.collect()
    assert runtime.state == "stopped"
    assert caplog.text.count("was closed without a stop") == (0 if stopped else 4)
    deadline = time.monotonic() + BOUND
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "Event loop is closed" not in caplog.text


CALLS = {
    "queue.add": lambda runtime, job: runtime.queue.add("echo", 1),
    "queue.add_bulk": lambda runtime, job: runtime.queue.add_bulk([("echo", 1)]),
    "queue.get_job": lambda runtime, job: runtime.queue.get_job("echo", job.id),
    "queue.counts": lambda runtime, job: runtime.queue.counts("echo"),
    "wait_idle": lambda runtime, job: runtime.wait_idle(1),
    "job.wait": lambda runtime, job: job.wait(1),
    "queue.job": lambda runtime, job: runtime.queue.job("echo").pause(),
    "runtime.start": lambda runtime, job: runtime.start(),
    "runtime.stop": lambda runtime, job: runtime.stop(),
    "autorun": lambda runtime, job: asyncio.sleep(0, runtime.job("late", autorun=True)(lambda data: data)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("loop", LOOPS)
async def test_calls_from_another_loop_are_refused_and_harm_nothing(url, prefix, call, loop):
    runtime, _, _ = make(url, prefix)
    async with runtime:
        job = await runtime.queue.add("echo", 1)

        def elsewhere():
            async def main():
                async with asyncio.timeout(5):
                    await CALLS[call](runtime, job)

            run_on(loop, main())

        for _ in range(3):
            with pytest.raises(NotRunningError, match="another event loop"):
                await asyncio.to_thread(elsewhere)
        assert await (await runtime.queue.add("echo", 2)).wait(BOUND) == 2
        assert runtime.state == "running"
        assert "late" not in runtime.queue.names


async def test_in_a_thread_without_a_loop_it_is_refused_too_and_io_works_from_anywhere(url, prefix):
    runtime, sink, _ = make(url, prefix)
    async with runtime:

        def elsewhere():
            for _ in range(50):
                runtime.io.emit("x", "from a thread")
            with pytest.raises(NotRunningError, match="a thread without an event loop"):
                runtime.queue.job("echo")

        began = time.monotonic()
        await asyncio.to_thread(elsewhere)
        await eventually(lambda: len(sink.got) == 50)
        assert time.monotonic() - began < 2


async def test_a_handle_of_an_earlier_life_says_so(url, prefix):
    runtime, _, _ = make(url, prefix)
    async with runtime:
        job = await runtime.queue.add("echo", 1, delay=60)

    async def ask():
        async with runtime:
            with pytest.raises(NotRunningError, match="has been stopped"):
                await job.wait(1)

    await ask()
    await asyncio.to_thread(asyncio.run, ask())


@pytest.mark.parametrize("waiters", [1, 50])
async def test_whoever_waits_for_a_job_at_stop_is_told(url, prefix, waiters):
    runtime, _, _ = make(url, prefix)
    await runtime.start()
    job = await runtime.queue.add("echo", 1, delay=60)
    waiting = [asyncio.create_task(job.wait()) for _ in range(waiters)]
    await eventually(lambda: runtime._assembly.broker._watched)
    await asyncio.sleep(0.05)
    await runtime.stop()
    done, late = await asyncio.wait(waiting, timeout=5)
    assert not late
    for one in done:
        assert isinstance(one.exception(), NotRunningError)


async def test_a_start_that_is_cancelled_leaves_nothing(prefix):
    async def never(reader, writer):
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    hole = await asyncio.start_server(never, "127.0.0.1", 0)
    runtime = Runtime(f"redis://127.0.0.1:{hole.sockets[0].getsockname()[1]}", prefix=prefix, connect_timeout=30)
    for _ in range(3):
        starting = asyncio.create_task(runtime.start())
        await eventually(lambda: runtime._assembly is not None)
        await asyncio.sleep(0.05)
        began = time.monotonic()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert time.monotonic() - began < 3
        assert runtime.state == "stopped"
    hole.close()


def test_a_process_forked_off_a_running_runtime_starts_anew_and_harms_the_parent_not(url, prefix):
    runtime, _, _ = make(url, prefix)

    async def parent():
        async with runtime:
            child = os.fork()
            if child == 0:  # pragma: no cover - another process
                code = 1
                try:
                    threading.Thread(target=asyncio.run, args=(in_child(),)).run()
                    code = 0
                finally:
                    os._exit(code)
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert await (await runtime.queue.add("echo", 1)).wait(BOUND) == 1
            assert runtime.health()["status"] == "ok"

    async def in_child():
        with pytest.raises(NotRunningError, match="forked"):
            await runtime.queue.add("echo", 1)
        async with runtime:
            assert await (await runtime.queue.add("echo", 3)).wait(BOUND) == 3

    asyncio.run(parent())
