"""A job that is added where its queue is idle starts in the same round trip: a turn travels behind the add."""

from __future__ import annotations

import asyncio

import pytest

from tests.helpers import Watcher, eventually


async def at_rest(runtime) -> None:
    """Its first looks are done: whatever moves from now on was added."""
    await eventually(lambda: runtime.health()["connected"])
    consumers = runtime._assembly.queues.consumers.values()
    await eventually(lambda: all(one.idle and not one.queued for one in consumers))


def trips(runtime) -> list[tuple[str, int]]:
    """From now on, which script goes by which lane: 'adds' or 'work', in order."""
    seen: list[tuple[str, int]] = []
    broker = runtime._assembly.broker
    for name, lane in (("adds", broker._adds.connection), *(("work", lane) for lane in broker._work)):

        async def run(commands, needs=(), *, send=lane.run, name=name):
            seen.append((name, len(commands)))
            return await send(commands, needs)

        lane.run = run
    return seen


@pytest.fixture
def started():
    return asyncio.Event()


async def test_an_idle_queue_takes_what_is_added_here_in_one_trip(runtime, started):
    @runtime.job("quick", limiter=None)
    async def quick(data):
        started.set()
        await asyncio.sleep(0.2)

    async with runtime:
        await at_rest(runtime)
        seen = trips(runtime)
        job = await quick.add(1)
        async with asyncio.timeout(5):
            await started.wait()
        assert seen[0] == ("adds", 2), "the add, and the turn behind it"
        assert ("work", 1) not in seen, "nobody had to be told"
        await job.wait(5)


async def test_what_the_turn_leaves_is_told_to_the_others(make_runtime):
    """The add itself told nobody, since a turn followed it that had one free slot only."""
    here, there = make_runtime(), make_runtime(sweep_interval=3600)
    both = asyncio.Event()
    running: set[str] = set()

    def handler(name):
        async def handle(data):
            running.add(name)
            if len(running) == 2:
                both.set()
            async with asyncio.timeout(10):
                await both.wait()

        return handle

    here.job("slow", limiter=None, concurrency=1)(handler("here"))
    there.job("slow", limiter=None, concurrency=1)(handler("there"))
    async with here, there:
        await at_rest(here)
        await at_rest(there)
        await here.queue.add_bulk([("slow", 1), ("slow", 2)])
        async with asyncio.timeout(5):
            await both.wait()
        await here.wait_idle(10)
    assert running == {"here", "there"}


async def test_a_job_is_told_as_added_before_it_is_told_as_active(runtime):
    runtime.job("quick", limiter=None)(lambda data: None)
    seen = Watcher(runtime)
    async with runtime:
        await at_rest(runtime)
        await (await runtime.queue.add("quick")).wait(5)
    order = [event.type for event in seen.events if event.type in ("job.added", "job.active")]
    assert order == ["job.added", "job.active"]


async def test_none_for_a_job_whose_record_would_be_gone_before_anybody_could_wait_for_it(runtime):
    runtime.job("forgotten", limiter=None, remove_on_complete=True)(lambda data: data)
    runtime.job("kept", limiter=None)(lambda data: data)
    async with runtime:
        await at_rest(runtime)
        seen = trips(runtime)
        await runtime.queue.add("forgotten", 1)
        await runtime.queue.add("kept", 2, remove_on_complete=True)
        await eventually(lambda: len([one for one in seen if one[0] == "adds"]) == 2)
        assert [one for one in seen if one[0] == "adds"] == [("adds", 1), ("adds", 1)]
        await runtime.wait_idle(10)


async def test_limits_and_order_hold_for_what_starts_that_way(runtime):
    order: list[int] = []

    @runtime.job("line", limiter=None, concurrency=1)
    async def line(data):
        order.append(data)

    async with runtime:
        for i in range(200):
            await line.add(i)
        await runtime.wait_idle(10)
    assert order == list(range(200))
