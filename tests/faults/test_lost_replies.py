"""Replies that never arrive: whatever was or was not applied, every job runs, and runs once."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import pytest

from asyncjobs import Backoff, BrokerError, Limiter, Runtime
from asyncjobs.invariants import of_runtime
from tests.helpers import Watcher, eventually, most_in_window


@pytest.mark.slow
@pytest.mark.parametrize("what", ["drop-reply", "drop-request", "cut"])
async def test_without_a_death_every_job_runs_exactly_once(proxy, prefix, what):
    """Not one duplicate: a lost reply is no reason to run anything twice."""
    ran: Counter[int] = Counter()
    runtime = Runtime(proxy.url, prefix=prefix, connect_timeout=20)
    seen = Watcher(runtime)

    @runtime.job("work", limiter=None, concurrency=8, attempts=3, backoff=Backoff("fixed", 0.02), remove_on_complete=5)
    async def work(data, job):
        if data % 5 == 0 and job.attempts_made == 0:
            raise ValueError
        ran[data] += 1

    @runtime.job("tenant", limiter=None, group=True, remove_on_complete=True)
    async def tenant(data):
        ran[data] += 1

    rng = random.Random(11)

    async def misbehave():
        while True:
            # A connection needs half a dozen exchanges before its first command: let some work pass each time.
            enough = proxy.passed + rng.randrange(40, 120)
            await eventually(lambda enough=enough: proxy.passed >= enough)
            if what == "cut":
                proxy.cut_all()
                proxy.happened += 1
            else:
                proxy.drop(what)

    async with runtime:
        trouble = asyncio.create_task(misbehave())
        added = 0
        while proxy.happened < 25:
            await runtime.queue.add("work", added)
            await runtime.queue.add("tenant", added + 1, group_id=f"g{added % 6}")
            added += 2
        trouble.cancel()
        proxy.mode = "pass"
        await eventually(lambda: len(ran) == added, 40, "every job has run")
        await runtime.wait_idle(20)
    assert [number for number, times in ran.items() if times > 1] == []
    assert max(Counter(event.job_id for event in seen.all("job.completed")).values()) == 1


async def test_a_link_that_swallows_everything_is_noticed_and_left(proxy, prefix):
    runtime = Runtime(proxy.url, prefix=prefix, connect_timeout=1)
    runtime.job("echo", limiter=None)(lambda data: data)
    async with runtime:
        assert await (await runtime.queue.add("echo", 1)).wait(5) == 1
        proxy.mode = "black-hole"
        with pytest.raises(BrokerError):
            await asyncio.wait_for(runtime.queue.add("echo", 2), 12)
        proxy.mode = "pass"
        proxy.cut_all()
        assert await (await runtime.queue.add("echo", 3)).wait(15) == 3


async def test_out_of_memory_refuses_adds_and_lets_work_drain(tcp_server, prefix):
    from redis.asyncio import Redis

    runtime = Runtime(tcp_server.url, prefix=prefix)
    go = asyncio.Event()

    @runtime.job("work", limiter=None)
    async def work(data):
        await go.wait()
        return "done"

    redis = Redis.from_url(tcp_server.url)
    async with runtime:
        jobs = await runtime.queue.add_bulk([("work", i) for i in range(30)])
        await redis.config_set("maxmemory", 1)
        with pytest.raises(BrokerError, match="out of memory and took nothing"):
            await runtime.queue.add("work", 99)
        go.set()
        await runtime.wait_idle(10)
        await redis.config_set("maxmemory", 0)
        assert (await runtime.queue.counts("work"))["completed"] == 30
        assert await (await runtime.queue.add("work", 100)).wait(5) == "done"
        assert (await runtime.queue.get_job("work", jobs[0].id)).result == "done"
    await redis.aclose()


async def test_flushed_scripts_are_loaded_again(tcp_server, prefix):
    from redis.asyncio import Redis

    runtime = Runtime(tcp_server.url, prefix=prefix)
    runtime.job("echo", limiter=None)(lambda data: data)
    redis = Redis.from_url(tcp_server.url)
    async with runtime:
        for i in range(30):
            await redis.script_flush()
            assert await (await runtime.queue.add("echo", i)).wait(5) == i
    await redis.aclose()


async def test_what_is_adopted_after_a_lost_reply_counts_towards_the_concurrency(proxy, prefix):
    """At concurrency 1 an adopted job and one that the next turn takes must not run side by side."""
    order: list[int] = []
    active = most = 0
    runtime = Runtime(proxy.url, prefix=prefix, connect_timeout=20)

    @runtime.job("one", limiter=None, concurrency=1)
    async def one(data):
        nonlocal active, most
        active += 1
        most = max(most, active)
        order.append(data)
        await asyncio.sleep(0.02)
        active -= 1

    rng = random.Random(3)
    async with runtime:
        await runtime.queue.add_bulk([("one", i) for i in range(60)])
        while len(order) < 50:
            enough = proxy.passed + rng.randrange(8, 16)
            await eventually(lambda enough=enough: proxy.passed >= enough or len(order) >= 50)
            proxy.drop("drop-reply")
        proxy.mode = "pass"
        await runtime.wait_idle(20)
    assert proxy.happened >= 5
    assert order == list(range(60))
    assert most == 1


@pytest.mark.slow
async def test_what_is_adopted_late_waits_for_a_token_like_any_other(proxy, prefix):
    """The token of the take whose reply was lost may be back by the time its jobs are found."""
    starts: list[float] = []
    runtime = Runtime(proxy.url, prefix=prefix, connect_timeout=20)

    @runtime.job("limited", limiter=Limiter(20, 0.3), concurrency=60)
    async def limited(data):
        starts.append(time.monotonic())

    async with runtime:
        await runtime.queue.add_bulk([("limited", n) for n in range(400)])
        while len(starts) < 330:
            before = len(starts)
            await eventually(lambda before=before: len(starts) >= before + 25)
            proxy.drop("drop-reply")
            await eventually(lambda: proxy.mode == "pass")
            proxy.mode = "refuse"  # a moment without the store: longer than the tokens are out
            proxy.cut_all()
            await asyncio.sleep(0.4)
            proxy.mode = "pass"
        await runtime.wait_idle(30)
    assert len(starts) == 400
    assert most_in_window(starts, 0.3) <= 20


async def test_a_group_that_is_in_doubt_is_not_reaped(proxy, prefix, monkeypatch):
    """What was once lost is asked for again later: by a Consumer that was reaped, it took the jobs of its successor."""
    monkeypatch.setattr("asyncjobs.work.alarms.REPLY_TIMEOUT", 0.4)
    runtime = Runtime(proxy.url, prefix=prefix, connect_timeout=20)
    ran: Counter[str] = Counter()
    seen = Watcher(runtime)

    @runtime.job("tenant", limiter=None, group=True, group_idle=0.01)
    async def tenant(data):
        ran[data] += 1
        if data == "long":
            await asyncio.sleep(1.2)  # longer than it takes until the queue is asked about once more

    async with runtime:
        await runtime.queue.add("tenant", "first", group_id="a")
        await eventually(lambda: seen.all("group.reaped"))
        for turn in range(5):  # which reply it is that gets lost depends on what else is on its way
            lost = proxy.happened
            proxy.drop("drop-reply")
            for number in range(20):
                await runtime.queue.add("tenant", f"short {turn}.{number}", group_id="a")
                if proxy.happened > lost:
                    break
            assert proxy.happened > lost
            await runtime.wait_idle(20)
        reaped = len(seen.all("group.reaped"))
        await eventually(lambda: len(seen.all("group.reaped")) > reaped)
        await (await runtime.queue.add("tenant", "long", group_id="a")).wait(10)
        await runtime.wait_idle(20)
        assert of_runtime(runtime) == []
    assert [one for one, times in ran.items() if times > 1] == []
    assert max(Counter(event.job_id for event in seen.all("job.completed")).values()) == 1


async def test_what_is_adopted_takes_no_slot_that_the_process_has_not(proxy, prefix):
    """While it was unknown to whom the jobs belong, other queues have taken the slots that were meant for them."""
    runtime = Runtime(proxy.url, prefix=prefix, connect_timeout=20, concurrency=3)
    active = most = 0

    async def work(data):
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.002)
        active -= 1

    for name in ("one", "two", "three"):
        runtime.job(name, limiter=None, concurrency=3, remove_on_complete=True)(work)
    runtime.job("tenant", limiter=None, group=True, remove_on_complete=True)(work)
    rng = random.Random(7)
    broken: list[str] = []
    async with runtime:
        while proxy.happened < 25:
            await runtime.queue.add_bulk([(name, 0) for name in ("one", "two", "three") for _ in range(12)])
            await runtime.queue.add_bulk([("tenant", 0, {"group_id": f"g{n}"}) for n in range(8)])
            enough = proxy.passed + rng.randrange(8, 30)
            await eventually(lambda enough=enough: proxy.passed >= enough or not active, 5)
            proxy.drop("drop-reply")
            await eventually(lambda: proxy.mode == "pass")
            broken += of_runtime(runtime)
        await runtime.wait_idle(30)
        broken += of_runtime(runtime)
    assert most == 3
    assert broken == []
