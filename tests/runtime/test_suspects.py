"""Jobs that have stalled more than once run one at a time, and take from no other job what it could use."""

from __future__ import annotations

import asyncio

import pytest

from asyncjobs.invariants import of_runtime
from tests.helpers import eventually

NAMES = ("first", "second", "third")


@pytest.mark.parametrize("slots", [3, 100])
@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_suspect_that_runs_for_long_stops_no_healthy_job(make_runtime, redis, slots, concurrency):
    adder, worker = make_runtime(consume=False), make_runtime(concurrency=slots)
    go, running = asyncio.Event(), 0
    most, healthy, suspects = 0, 0, 0

    async def handle(data):
        nonlocal running, most, healthy, suspects
        if data == "healthy":
            healthy += 1
            return
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        suspects += 1

    for runtime in (adder, worker):
        for name in NAMES:
            runtime.job(name, limiter=None, concurrency=concurrency)(handle)
    async with adder:
        for name in NAMES:
            jobs = await adder.queue.add_bulk([(name, "suspect") for _ in range(4)])
            for job in jobs:
                await redis.hset(adder.queue._broker.queue_keys(name, None).job(job.id), "s", 2)
            await adder.queue.add_bulk([(name, "healthy") for _ in range(20)])
        async with worker:
            done = 60 if concurrency > 1 else 40  # the one slot of its own queue the first one keeps
            await eventually(lambda: running == 1 and healthy >= done, 20)
            used = lambda: sum(one.attempts.slots_used for one in worker._assembly.all_consumers())  # noqa: E731
            await eventually(lambda: used() == 1, 5)
            go.set()
            await worker.wait_idle(30)
            assert (most, healthy, suspects) == (1, 60, 12)
            assert of_runtime(worker) == []
        for name in NAMES:
            assert (await adder.queue.counts(name))["completed"] == 24


async def test_suspects_that_are_quick_follow_each_other_at_once(make_runtime, redis):
    adder, worker = make_runtime(consume=False), make_runtime()
    order: list[int] = []
    for runtime in (adder, worker):
        runtime.job("line", limiter=None, ordered=True)(_append(order))
    async with adder:
        jobs = await adder.queue.add_bulk([("line", n) for n in range(50)])
        for job in jobs:
            await redis.hset(adder.queue._broker.queue_keys("line", None).job(job.id), "s", 3)
        async with worker:
            await worker.wait_idle(20)
    assert order == list(range(50))


def _append(order: list[int]):
    async def handle(data):
        order.append(data)

    return handle
