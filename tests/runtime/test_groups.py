"""Groups: opened on demand from anywhere, apart from each other, reaped when idle, nothing left behind."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from asyncjobs import Backoff, Limiter
from asyncjobs.invariants import of_runtime
from tests.helpers import Watcher, eventually, most_in_window

HOSTILE = ["a:b", "{x}", "}{", "sp ace", "é😀", "new\nline", "*", "a:j:1", "~", "%41", "\0", "x" * 512, "1", "..", "-"]


async def test_each_group_has_its_own_order_bucket_and_concurrency(runtime):
    starts, active, most = {}, {}, {}

    @runtime.job("sync", group=True, limiter=Limiter(2, 0.4))
    async def sync(data, job):
        group = job.group_id
        starts.setdefault(group, []).append((time.monotonic(), data))
        active[group] = active.get(group, 0) + 1
        most[group] = max(most.get(group, 0), active[group])
        await asyncio.sleep(0.01)
        active[group] -= 1

    async with runtime:
        began = time.monotonic()
        jobs = [("sync", i, {"group_id": group}) for i in range(6) for group in ("a", "b", "c")]
        await runtime.queue.add_bulk(jobs)
        await runtime.wait_idle(20)
        took = time.monotonic() - began
    for group in "abc":
        assert [data for _, data in starts[group]] == list(range(6))
        assert most_in_window([at for at, _ in starts[group]], 0.4) == 2
        assert most[group] == 1
    assert took < 2.5, "one group never waits for another"


async def test_hostile_group_ids_are_only_ever_data(runtime, seen):
    @runtime.job("sync", group=True, limiter=None)
    async def sync(data, job):
        return job.group_id

    @runtime.job("sync-data", group=True, limiter=None)
    async def sync_data(data, job):
        return "other"

    async with runtime:
        for group in HOSTILE:
            job = await runtime.queue.add("sync", {"g": group}, group_id=group)
            assert await job.wait(5) == group
        assert await (await runtime.queue.add("sync", 1, group_id="data-1")).wait(5) == "data-1"
        assert await (await runtime.queue.add("sync-data", 1, group_id="1")).wait(5) == "other"
        assert await runtime.queue.groups("sync") == sorted([*HOSTILE, "data-1"])
        assert job.queue_name == "sync--"
    assert len(seen.all("group.opened", name="sync")) == len(HOSTILE) + 1


async def test_concurrency_holds_over_all_processes(make_runtime):
    active = most = 0

    async def handle(data):
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.02)
        active -= 1

    runtimes = [make_runtime() for _ in range(3)]
    for runtime in runtimes:
        runtime.job("sync", group=True, limiter=None, concurrency=2)(handle)
    async with runtimes[0], runtimes[1], runtimes[2]:
        await runtimes[0].queue.add_bulk([("sync", i, {"group_id": "one"}) for i in range(40)])
        await runtimes[1].wait_idle(20)
    assert most == 2


async def test_an_idle_group_is_reaped_leaving_only_finished_jobs_and_reopened_by_the_next_add(make_runtime, keys_left):
    runtimes = [make_runtime(history=False), make_runtime(history=False)]
    watchers = [Watcher(runtime) for runtime in runtimes]
    for runtime in runtimes:
        runtime.job("sync", group=True, limiter=Limiter(10, 0.2), group_idle=0.4, remove_on_complete=False)(_nothing)
    async with runtimes[0], runtimes[1]:
        job = await runtimes[0].queue.add("sync", 1, group_id="acme")
        await job.wait(5)
        for watcher in watchers:
            await watcher("group.reaped", group_id="acme")
        record = runtimes[0].queue._broker.queue_keys("sync", "acme")
        index = f"{{{runtimes[0].config.prefix}:sync}}:c"
        own = [
            f"{{{runtimes[0].config.prefix}}}:{key}"
            for key in ("processes", "about", "epoch", "due", "leases", "names")
        ]
        assert await keys_left() == sorted([index, *own, record.completed, record.job(job.id), record.senders])
        assert await runtimes[0].queue.groups("sync") == []
        assert [runtime.health()["groups"] for runtime in runtimes] == [{"sync": 0}] * 2
        again = await runtimes[1].queue.add("sync", 2, group_id="acme")
        await again.wait(5)
        assert (await runtimes[1].queue.counts("sync", "acme"))["completed"] == 2
        await watchers[0]("group.opened", count=2)


async def _nothing(data):
    pass


async def test_delayed_and_retrying_jobs_keep_a_group_from_being_reaped(runtime, seen):
    @runtime.job("sync", group=True, limiter=None, group_idle=0.15, attempts=2, backoff=Backoff("fixed", 0.6))
    async def sync(data, job):
        if data == "retry" and job.attempts_made == 0:
            raise ValueError
        return "ran"

    async with runtime:
        later = await runtime.queue.add("sync", "later", group_id="delayed", delay=0.6)
        again = await runtime.queue.add("sync", "retry", group_id="retrying")
        assert await later.wait(10) == "ran"
        assert await again.wait(10) == "ran"
        done = {event.group_id: event.at for event in await seen("job.completed", count=2)}
        reaped = {event.group_id: event.at for event in await seen("group.reaped", count=2)}
    assert len(seen.all("group.reaped")) == 2
    assert all(reaped[group] > done[group] for group in ("delayed", "retrying"))


async def test_groups_with_work_are_found_at_start_and_on_due_time(make_runtime):
    adder = make_runtime(consume=False)
    adder.job("sync", group=True, limiter=None)(_nothing)
    async with adder:
        jobs = await adder.queue.add_bulk([("sync", i, {"group_id": f"g{i}"}) for i in range(30)])
        due = await adder.queue.add("sync", 1, group_id="due", delay=0.5)
        worker = make_runtime()
        worker.job("sync", group=True, limiter=None)(_nothing)
        async with worker:
            for job in (*jobs, due):
                await job.wait(10)
            assert (await worker.queue.counts("sync"))["completed"] == 31


@pytest.mark.slow
async def test_adds_racing_an_eager_reaper_are_never_lost(make_runtime):
    """1,500 adds at groups that are reaped within milliseconds: every one runs."""
    done = set()
    runtimes = [make_runtime() for _ in range(2)]
    for runtime in runtimes:

        async def handle(data):
            done.add(data)

        runtime.job("sync", group=True, limiter=None, group_idle=0.004, remove_on_complete=True)(handle)
    rng = random.Random(7)
    async with runtimes[0], runtimes[1]:
        for i in range(1500):
            await runtimes[i % 2].queue.add("sync", i, group_id=f"g{rng.randrange(5)}")
            if rng.random() < 0.5:
                await asyncio.sleep(rng.random() * 0.008)
        await eventually(lambda: len(done) == 1500, 30, "all ran")
        await runtimes[0].wait_idle(10)


async def test_many_groups_on_a_handful_of_connections(runtime, redis):
    @runtime.job("sync", group=True, limiter=None)
    async def sync(data):
        pass

    async with runtime:
        await runtime.queue.add_bulk([("sync", i, {"group_id": f"g{i}"}) for i in range(1500)])
        await runtime.wait_idle(30)
        assert runtime.health()["groups"] == {"sync": 1500}
        await eventually(lambda: _kept(runtime, 1000), what="retention is per name")
        assert len(await redis.client_list()) <= 8 + 1, "eight of the process, one of this test"


async def _kept(runtime, count):
    return (await runtime.queue.counts("sync"))["completed"] == count


async def test_a_heavy_group_does_not_hold_up_a_light_one(make_runtime):
    runtime = make_runtime(concurrency=20)
    done = []

    @runtime.job("sync", group=True, limiter=None, concurrency=20)
    async def sync(data, job):
        await asyncio.sleep(0.002)
        done.append(job.group_id)

    async with runtime:
        await runtime.queue.add_bulk([("sync", i, {"group_id": "heavy"}) for i in range(3000)])
        light = await runtime.queue.add("sync", 1, group_id="light")
        await light.wait(10)
        assert done.count("heavy") < 2000
        await runtime.stop(grace=0)


async def test_a_group_that_is_reaped_waits_for_no_slot_any_more(make_runtime):
    """It had a slot, waited for a second one, and found nothing: a slot that it were given would stay empty."""
    runtime = make_runtime(concurrency=2)
    seen = Watcher(runtime)
    go = {group: asyncio.Event() for group in "xde"}

    @runtime.job("long", limiter=None)
    async def long():
        await go["e"].wait()

    @runtime.job("sync", group=True, limiter=None, concurrency=2, group_idle=0.5)
    async def sync(job):
        if job.group_id in go:
            await go[job.group_id].wait()

    async with runtime:
        await runtime.queue.add("long")
        await (await runtime.queue.add("sync", group_id="c")).wait(5)
        await runtime.queue.add("sync", group_id="x")
        await seen("job.active", count=3)
        pump, groups = runtime._assembly.pump, runtime._assembly.queues.registries["sync"].open
        await runtime.queue.add("sync", group_id="d")
        await eventually(lambda: "d" in groups and groups["d"].starving)
        groups["c"].look_again()
        await eventually(lambda: "c" in groups and groups["c"].starving)
        await runtime.queue.add("sync", group_id="e")
        await eventually(lambda: "e" in groups and groups["e"].starving)
        go["x"].set()
        await seen("job.active", group_id="d")
        go["d"].set()
        await seen("job.active", group_id="e")
        assert of_runtime(runtime) == []
        assert "c" not in {one.group_id for one in pump.starved}
        await seen("group.reaped", group_id="c")
        assert of_runtime(runtime) == []
        go["e"].set()
        await runtime.wait_idle(5)
