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
            used = lambda: sum(one.attempts.slots_used for one in worker._assembly.queues.all())  # noqa: E731
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


@pytest.mark.parametrize("most", [0, 5])
async def test_where_the_first_stall_fails_a_job_none_is_charged_before_its_handler_has_begun(
    make_runtime, redis, most
):
    runtime = make_runtime()
    go, began = asyncio.Event(), []

    @runtime.job("charge", limiter=None, concurrency=1, max_stalled_count=most)
    async def charge(data, job):
        began.append(job.id)
        if data == 20:
            await go.wait()

    async with runtime:
        keys = runtime.queue._broker.queue_keys("charge", None)
        jobs = await runtime.queue.add_bulk([("charge", n) for n in range(40)])
        await eventually(lambda: len(began) == 21)
        for job in jobs:
            state, mark = await redis.hmget(keys.job(job.id), "x", "z")
            if state == b"a" and job.id not in began:
                assert (mark is not None) == (most == 0), "it was fetched ahead"
            elif state == b"a":
                assert mark is None
        go.set()
        await runtime.wait_idle(20)
        assert (await runtime.queue.counts("charge"))["completed"] == 40
