"""Quick jobs of a queue with one slot are fetched ahead. Nobody may be able to tell, but by the clock."""

from __future__ import annotations

import asyncio

import pytest

from asyncjobs import RateLimited
from tests.helpers import Watcher, eventually


@pytest.mark.parametrize("grouped", [True, False])
async def test_order_and_the_one_slot_hold_over_processes(make_runtime, grouped):
    runtimes = [make_runtime() for _ in range(3)]
    order: list[int] = []
    active = most = 0

    async def handle(data, job):
        nonlocal active, most
        active += 1
        most = max(most, active)
        order.append(data)
        if data % 40 == 0:
            await asyncio.sleep(0.02)  # now and then one that is not quick
        active -= 1

    for runtime in runtimes if grouped else runtimes[:1]:
        runtime.job("line", limiter=None, group=grouped, concurrency=1, remove_on_complete=True)(handle)
    options = {"group_id": "acme"} if grouped else {}
    async with runtimes[0]:
        if grouped:
            await runtimes[1].start()
            await runtimes[2].start()
        await runtimes[0].queue.add_bulk([("line", n, options) for n in range(600)])
        await runtimes[0].wait_idle(20)
    assert most == 1
    assert order == list(range(600))


async def test_behind_a_slow_one_nothing_looks_started_and_another_queue_can_tell_none(make_runtime):
    runtime = make_runtime()
    go = asyncio.Event()
    ran: list[int] = []

    @runtime.job("tenant", limiter=None, group=True)
    async def tenant(data):
        if data == 20:
            await go.wait()
        ran.append(data)

    async with runtime:
        await runtime.queue.add_bulk([("tenant", n, {"group_id": "acme"}) for n in range(40)])
        await eventually(lambda: len(ran) == 20)

        async def only_one_is_active():
            counts = await runtime.queue.counts("tenant", "acme")
            return (counts["active"], counts["waiting"], counts["completed"]) == (1, 19, 20)

        await eventually(only_one_is_active, 2)
        go.set()
        await runtime.wait_idle(10)
    assert ran == list(range(40))


async def test_what_was_fetched_ahead_survives_a_stop_uncounted(make_runtime):
    first, second = make_runtime(), make_runtime()
    seen: list[tuple[int, int, int]] = []

    async def handle(data, job):
        seen.append((data, job.attempts_made, job.stalled_count))
        if data == 30 and len(seen) == 31:
            await asyncio.sleep(30)

    for runtime in (first, second):
        runtime.job("tenant", limiter=None, group=True)(handle)
    await first.start()
    await first.queue.add_bulk([("tenant", n, {"group_id": "acme"}) for n in range(60)])
    await eventually(lambda: len(seen) == 31)
    await first.stop(grace=0)
    async with second:
        await second.wait_idle(10)
    assert [data for data, _, _ in seen] == [*range(31), *range(30, 60)]
    assert {(attempts, stalled) for _, attempts, stalled in seen} == {(0, 0)}


async def test_a_hold_and_a_pause_hold_what_was_fetched_ahead(runtime):
    ran: list[int] = []

    @runtime.job("tenant", limiter=None, group=True)
    async def tenant(data):
        if data == 25 and 25 not in ran:
            ran.append(25)
            raise RateLimited(0.3)
        ran.append(data)

    seen = Watcher(runtime)
    async with runtime:
        await runtime.queue.add_bulk([("tenant", n, {"group_id": "acme"}) for n in range(40)])
        await seen("job.retrying")
        assert max(ran) == 25, "nothing passes it"
        await runtime.wait_idle(10)
    assert ran == [*range(26), *range(25, 40)]


async def test_retries_go_to_the_back_as_ever(runtime):
    ran: list[tuple[int, int]] = []

    @runtime.job("tenant", limiter=None, group=True, attempts=2, backoff=None)
    async def tenant(data, job):
        ran.append((data, job.attempts_made))
        if data == 12 and not job.attempts_made:
            raise ValueError

    async with runtime:
        await runtime.queue.add_bulk([("tenant", n, {"group_id": "acme"}) for n in range(30)])
        await runtime.wait_idle(10)
    assert ran == [*((n, 0) for n in range(30)), (12, 1)]


async def test_with_several_slots_too_what_is_behind_slow_ones_goes_back(make_runtime):
    runtime = make_runtime()
    go = asyncio.Event()
    ran: list[int] = []
    held = slow = 0

    @runtime.job("mixed", limiter=None, concurrency=4)
    async def mixed(data):
        nonlocal held, slow
        held = max(held, len(runtime._assembly.queues.consumers["mixed"].ahead))
        if data >= 3000:
            slow += 1
            await go.wait()
        ran.append(data)

    async with runtime:
        await runtime.queue.add_bulk([("mixed", n) for n in range(3040)])
        await eventually(lambda: slow == 4)  # what went back before, on a busy machine, may still be behind them

        async def only_the_running_are_active():
            counts = await runtime.queue.counts("mixed")
            return (counts["active"], counts["waiting"]) == (4, 3036 - len(ran))

        await eventually(only_the_running_are_active, 5)
        assert held > 0, "nothing was fetched ahead, so this has shown nothing"
        go.set()
        await runtime.wait_idle(10)
    assert sorted(ran) == list(range(3040))


@pytest.mark.parametrize("behind", [1, 4])
async def test_what_has_ended_is_not_settled_only_when_a_long_job_behind_it_has(runtime, behind):
    """Outcomes are kept for the last of the jobs that were fetched together; that one may run for hours."""
    release = asyncio.Event()

    @runtime.job("line", limiter=None, concurrency=1)
    async def line(data):
        if data == "long":
            await release.wait()
        return data

    async with runtime:
        await runtime.queue.add_bulk([("line", n) for n in range(60)])
        await runtime.wait_idle(10)
        jobs = await runtime.queue.add_bulk([("line", n) for n in range(behind)] + [("line", "long")])
        for n, job in enumerate(jobs[:-1]):
            assert await job.wait(5) == n
        release.set()
        assert await jobs[-1].wait(5) == "long"


async def test_what_is_fetched_ahead_takes_no_slot_of_the_process(make_runtime):
    """The queue has slots of its own to spare, and the process has not: what a reply brings beyond them waits."""
    runtime = make_runtime(concurrency=3)
    active = most = 0

    async def work(data):
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(data)
        active -= 1

    runtime.job("long", limiter=None)(work)
    runtime.job("quick", limiter=None, concurrency=20, remove_on_complete=True)(work)
    async with runtime:
        await runtime.queue.add_bulk([("long", 1.0), ("long", 1.0)])
        await eventually(lambda: active == 2)
        await runtime.queue.add_bulk([("quick", 0) for _ in range(2000)])
        await runtime.wait_idle(20)
    assert most == 3


@pytest.mark.slow
async def test_nor_does_it_where_a_handler_keeps_the_slot_of_a_job_that_was_settled_without_it(make_runtime):
    runtime = make_runtime(concurrency=3)
    active = most = 0
    stubborn = True

    @runtime.job("work", limiter=None, concurrency=20, attempts=1, remove_on_complete=True)
    async def work(data):
        nonlocal active, most, stubborn
        active += 1
        most = max(most, active)
        try:
            await asyncio.sleep(60 if data == "stubborn" else 0.0005)
        except asyncio.CancelledError:
            await eventually(lambda: not stubborn, 10)
        active -= 1

    async with runtime:
        seen = Watcher(runtime)
        job = await runtime.queue.add("work", "stubborn", timeout=0.01)
        await eventually(lambda: active == 1)
        while not seen.all("job.failed", job_id=job.id):
            await runtime.queue.add_bulk([("work", n) for n in range(200)])
            await eventually(lambda: len(seen.all("job.completed")) >= len(seen.all("job.added")) - 100)
        await eventually(lambda: len(seen.all("job.completed")) == len(seen.all("job.added")) - 1)
        stubborn = False
        await runtime.wait_idle(10)
    assert most == 3
