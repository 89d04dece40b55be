"""Limits over many queues: several windows at once, all groups of a job together, one limiter for several jobs."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncjobs import BrokerUnavailableError, ConfigError, Limiter, Runtime
from asyncjobs.invariants import of_runtime
from tests.helpers import eventually, most_in_window


async def test_several_windows_hold_at_once(make_runtime):
    runtimes = [make_runtime() for _ in range(2)]
    starts: list[float] = []
    for runtime in runtimes:

        @runtime.job("call", limiter=[Limiter(5, 0.1), Limiter(12, 1)], concurrency=None)
        async def call(data):
            starts.append(time.monotonic())

    async with runtimes[0], runtimes[1]:
        await runtimes[0].queue.add_bulk([("call", n) for n in range(30)])
        await eventually(lambda: len(starts) == 30)
    assert most_in_window(starts, 0.1) <= 5
    assert most_in_window(starts, 1) <= 12
    assert most_in_window(starts, 0.1) >= 4
    assert 2.0 <= starts[-1] - starts[0] < 4


@pytest.mark.slow
async def test_a_total_limit_holds_over_all_groups_and_processes_and_is_used(make_runtime):
    runtimes = [make_runtime() for _ in range(3)]
    starts: list[float] = []
    for runtime in runtimes:

        @runtime.job("sync", group=True, limiter=None, total_limiter=Limiter(20, 0.5))
        async def sync(data):
            starts.append(time.monotonic())

    async with runtimes[0], runtimes[1], runtimes[2]:
        await runtimes[0].queue.add_bulk([("sync", n, {"group_id": f"g{n % 40}"}) for n in range(120)])
        await eventually(lambda: len(starts) == 120, 20)
        await runtimes[0].wait_idle(5)
    assert most_in_window(starts, 0.5) <= 20
    assert max(starts) - min(starts) < 2 * 5 * 0.5, "most of the allowed rate is used"


@pytest.mark.slow
async def test_a_total_concurrency_holds_over_all_groups_and_processes(make_runtime):
    runtimes = [make_runtime() for _ in range(3)]
    active = most = ran = 0
    for runtime in runtimes:

        @runtime.job("sync", group=True, limiter=None, total_concurrency=5, lease=1)
        async def sync(data):
            nonlocal active, most, ran
            active += 1
            most = max(most, active)
            await asyncio.sleep(0.01)
            active -= 1
            ran += 1

    async with runtimes[0], runtimes[1], runtimes[2]:
        await runtimes[0].queue.add_bulk([("sync", n, {"group_id": f"g{n % 30}"}) for n in range(300)])
        await eventually(lambda: ran == 300, 20)
        began = time.monotonic()
        await runtimes[0].queue.add("sync", 1, group_id="later")
        await eventually(lambda: ran == 301, 5)
        assert time.monotonic() - began < 0.5
    assert most == 5


@pytest.mark.slow
async def test_the_places_of_a_process_that_died_are_free_after_a_lease(make_runtime):
    held, free = make_runtime(), make_runtime()
    ran: list[object] = []
    for runtime in (held, free):

        @runtime.job("sync", group=True, limiter=None, total_concurrency=2, lease=0.6)
        async def sync(data):
            ran.append(data)

    async with free:
        shared_limit = free._assembly.shared.shared_limits["sync"][0]
        broker = free._assembly.broker
        key = shared_limit._key
        # As a process that was killed while it ran two.
        broker._process, alive = "somebody-dead", broker._process
        await shared_limit._broker.admit(key, "sync", 0, 2, 2, 0.6, "", 0, "t", ())
        broker._process = alive
        began = time.monotonic()
        await free.queue.add("sync", 1, group_id="acme")
        await eventually(lambda: ran == [1], 5)
        assert 0.3 < time.monotonic() - began < 2.5


@pytest.mark.slow
async def test_a_named_limiter_is_shared_by_all_jobs_that_name_it(make_runtime):
    runtimes = [make_runtime() for _ in range(2)]
    starts: list[float] = []
    alone: list[float] = []
    shared = Limiter(15, 0.5, name="mailgun")
    for runtime in runtimes:

        @runtime.job("welcome", limiter=shared)
        async def welcome(data):
            starts.append(time.monotonic())

        @runtime.job("digest", limiter=[shared, Limiter(8, 0.5)], group=True)
        async def digest(data):
            starts.append(time.monotonic())

        @runtime.job("other", limiter=Limiter(100, 0.5))
        async def other(data):
            alone.append(time.monotonic())

    async with runtimes[0], runtimes[1]:
        await runtimes[0].queue.add_bulk(
            [("welcome", n) for n in range(30)]
            + [("digest", n, {"group_id": f"g{n % 5}"}) for n in range(30)]
            + [("other", n) for n in range(30)]
        )
        await eventually(lambda: len(starts) == 60, 20)
    assert len(alone) == 30
    assert most_in_window(starts, 0.5) <= 15
    assert most_in_window(starts, 0.5) >= 12


async def test_a_lone_total_is_refused_with_a_reason(runtime):
    with pytest.raises(ConfigError, match="hold over all groups of a job; this one has none"):
        runtime.job("plain", total_concurrency=3)(lambda data: data)
    with pytest.raises(ConfigError, match="it has no name"):
        runtime.job("plain", group=True, total_limiter=Limiter(1, 1, name="x"))(lambda data: data)
    with pytest.raises(ConfigError, match=r"limiter\.name='a b'"):
        Limiter(1, 1, name="a b")


async def test_stop_while_a_gate_is_shut_leaves_everything_waiting(runtime: Runtime):
    ran: list[int] = []

    @runtime.job("sync", group=True, limiter=None, total_limiter=Limiter(2, 3600))
    async def sync(data):
        ran.append(data)

    async with runtime:
        await runtime.queue.add_bulk([("sync", n, {"group_id": f"g{n}"}) for n in range(6)])
        await eventually(lambda: len(ran) == 2)

        async def nobody_holds_what_may_not_start():
            counts = await runtime.queue.counts("sync")
            return (counts["waiting"], counts["active"]) == (4, 0)

        await eventually(nobody_holds_what_may_not_start)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert len(ran) == 2


async def test_whoever_waits_at_a_gate_that_opens_while_it_is_asked_is_let_in(make_runtime):
    """A question had no answer, so the shared limit is full for a moment; while the next one is on its way it opens."""
    runtime = make_runtime()

    @runtime.job("sync", group=True, limiter=None, total_concurrency=2, lease=60)
    async def sync(data):
        return data

    async with runtime:
        assert await (await runtime.queue.add("sync", 1, group_id="a")).wait(5) == 1
        (shared_limit,) = runtime._assembly.queues.shared_limits.values()
        admit, asked, broken = runtime._assembly.broker.admit, [], []

        async def slow_admit(key, name, running, want, *rest):
            asked.append(want)
            if len(asked) == 1:
                raise BrokerUnavailableError("the reply was lost")
            if want == 0:
                await eventually(lambda: not shared_limit.full, what="it opens while this question is on its way")
            return await admit(key, name, running, want, *rest)

        async def look():
            while True:
                broken.extend(of_runtime(runtime))
                await asyncio.sleep(0)

        looking = asyncio.create_task(look())
        runtime._assembly.broker.admit = slow_admit
        first = await runtime.queue.add("sync", 2, group_id="b")
        await eventually(lambda: shared_limit.full)
        second = await runtime.queue.add("sync", 3, group_id="c")
        assert [await job.wait(5) for job in (first, second)] == [2, 3]
        looking.cancel()
    assert 0 in asked, "another queue has met the shared_limit while it was full"
    assert broken == []
