"""A caller that is cancelled, wherever it waits, leaves every connection usable at once, to it and to all others."""

from __future__ import annotations

import asyncio
import time
import types

import pytest

from asyncjobs.broker.connection import Connection
from asyncjobs.errors import BrokerUnavailableError, NotRunningError
from tests.helpers import eventually

AT_ONCE = 2.0  # seconds; a connection that stands still does so for five


def cancelled_at(awaitable, place: int):
    """An aio_task that is cancelled at its `place`-th await; it ends by itself where it has fewer."""

    @types.coroutine
    def steps():
        inner = awaitable.__await__()
        done, step = 0, lambda: inner.send(None)
        while True:
            try:
                future = step()
            except StopIteration as end:
                return end.value
            if done == place:
                asyncio.get_running_loop().call_soon(aio_task.cancel)
            done += 1
            try:
                value = yield future
                step = lambda value=value: inner.send(value)  # noqa: E731
            except BaseException as error:
                step = lambda error=error: inner.throw(error)  # noqa: E731

    async def run():
        return await steps()

    aio_task = asyncio.ensure_future(run())
    return aio_task


VERBS = {
    "add": lambda queue, job, active: queue.add("job", 1),
    "add by id": lambda queue, job, active: queue.add("job", 1, job_id="mine", delay=60),
    "add to a group": lambda queue, job, active: queue.add("grouped", 1, group_id="a"),
    "add_bulk": lambda queue, job, active: queue.add_bulk(
        [("job", i) for i in range(600)] + [("grouped", i, {"group_id": str(i)}) for i in range(30)]
    ),
    "get_job": lambda queue, job, active: queue.get_job("job", job.id),
    "get_job of none": lambda queue, job, active: queue.get_job("grouped", "none", "a"),
    "counts": lambda queue, job, active: queue.counts("job"),
    "counts of all groups": lambda queue, job, active: queue.counts("grouped"),
    "counts of a group": lambda queue, job, active: queue.counts("grouped", "a"),
    "groups": lambda queue, job, active: queue.groups("grouped"),
    "set": lambda queue, job, active: queue.job("job").set(concurrency=3),
    "set of a group": lambda queue, job, active: queue.group("grouped", "a").set(weight=2),
    "pause": lambda queue, job, active: queue.job("grouped").pause(),
    "resume": lambda queue, job, active: queue.job("grouped").resume(),
    "clear": lambda queue, job, active: queue.job("job").clear(),
    "info": lambda queue, job, active: queue.job("grouped").info(),
    "wait": lambda queue, job, active: job.wait(),
    "wait with a timeout": lambda queue, job, active: job.wait(30),
    "log": lambda queue, job, active: active.log("line"),
    "update_progress": lambda queue, job, active: active.update_progress({"at": 1}),
}


@pytest.fixture
async def running(runtime):
    """A queue, a job that does not end, and that job as its handler sees it."""
    seen: list = []

    @runtime.job("job", limiter=None, concurrency=1)
    async def job(data, job):
        seen.append(job)
        await asyncio.Event().wait()

    runtime.job("grouped", limiter=None, group=True)(lambda data: None)
    async with runtime:
        added = await job.add(0)
        for i in range(30):
            await runtime.queue.add("grouped", i, group_id=f"g{i}")
        await eventually(lambda: seen)
        yield runtime.queue, added, seen[0]
        await runtime.stop(grace=0)


async def usable_at_once(queue, active, told: str) -> None:
    """Each connection that a caller may share answers."""
    try:
        async with asyncio.timeout(AT_ONCE):
            await asyncio.gather(queue.counts("job"), queue.add("job", 2), active.log("after"))
    except TimeoutError:
        pytest.fail(f"a connection stands still, {told}")


@pytest.mark.parametrize("beside", ["alone", "beside others"])
@pytest.mark.parametrize("verb", VERBS)
async def test_whatever_it_calls_and_wherever_it_waits(running, verb, beside):
    queue, job, active = running
    for place in range(2 if verb.startswith("wait") else 100):  # the job that is waited for does not end
        others = [asyncio.ensure_future(queue.counts("job")) for _ in range(5)] if beside != "alone" else []
        caller = cancelled_at(VERBS[verb](queue, job, active), place)
        async with asyncio.timeout(AT_ONCE):
            await asyncio.wait([caller])
            assert len(await asyncio.gather(*others)) == len(others)
        await usable_at_once(queue, active, f"after {verb} was cancelled at its await {place}")
        if not caller.cancelled():
            assert place, "it has waited for nothing"
            return
    assert verb.startswith("wait"), "it waits without an end"


@pytest.mark.parametrize("verb", VERBS)
async def test_all_of_those_that_share_a_pipeline(running, verb):
    """Before it is sent, and when it is on its way: one whose callers are all gone is nobody's."""
    queue, job, active = running
    for turns in range(6):
        callers = [asyncio.ensure_future(VERBS[verb](queue, job, active)) for _ in range(10)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for caller in callers:
            caller.cancel()
        async with asyncio.timeout(AT_ONCE):
            await asyncio.wait(callers)
        await usable_at_once(queue, active, f"after {turns} turns")


async def test_an_exchange_of_nothing_is_answered_with_nothing(running):
    queue, _, _ = running
    broker = queue._broker
    lanes: list[Connection] = [*broker._work, broker._misc, broker._beats, broker._adds.connection]
    async with asyncio.timeout(AT_ONCE):
        for lane in lanes:
            assert await lane.run([]) == []
            assert all(one == [] for one in await lane.everywhere([]))
            replies, reached = await lane.run_and_wait([], [], 1, 10)
            assert (replies, reached) == ([], [])
        wire = broker._misc._wire
        if wire is not None:  # a Cluster's has one for each node
            assert await wire.exchange([], 5) == []
        assert await broker.add([]) == []


async def test_an_add_that_was_cancelled_before_it_was_sent_is_not_sent(running):
    queue, _, _ = running
    caller = asyncio.ensure_future(queue.add("job", 1, job_id="never", delay=60))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    assert (await queue.add("job", 1, job_id="after", delay=60)).added
    assert await queue.get_job("job", "never") is None


@pytest.mark.parametrize("way", ["pass", "refuse", "black-hole"])
async def test_who_adds_while_the_runtime_stops_is_told(make_runtime, proxy, way):
    runtime = make_runtime(proxy.url, consume=False, connect_timeout=30)
    runtime.job("job", limiter=None)(lambda data: None)
    runtime.job("grouped", limiter=None, group=True)(lambda data: None)
    told: list = []

    async def adder(n: int) -> None:
        while True:
            try:
                await (runtime.queue.add("job", n) if n % 2 else runtime.queue.add("grouped", n, group_id=str(n)))
                told.append("added")
            except (BrokerUnavailableError, NotRunningError) as error:
                told.append(type(error))
                return

    await runtime.start()
    await runtime.queue.add("job", 0)
    proxy.mode = way
    if way == "refuse":
        proxy.cut_all()
    adders = [asyncio.ensure_future(adder(n)) for n in range(100)]
    await asyncio.sleep(0.05)
    began = time.monotonic()
    async with asyncio.timeout(15):
        await runtime.stop(grace=0)
        stopped = time.monotonic() - began
        proxy.mode = "pass"
        await asyncio.gather(*adders)
    assert stopped < 8
    assert [one for one in told if one != "added"] != []
    assert len([one for one in asyncio.all_tasks() if "send_waiting" in repr(one)]) == 0
    async with runtime:
        assert (await runtime.queue.add("job", 1)).added
