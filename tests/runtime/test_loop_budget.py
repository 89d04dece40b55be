"""The budget of the loop: what runs between two looks at the app's sockets is counted, not timed."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from asyncjobs import ConfigError, Limiter, Runtime
from asyncjobs.broker import Broker
from asyncjobs.invariants import of_runtime
from asyncjobs.loop_budget import LoopBudget
from asyncjobs.work.prefetch import Prefetch, Prefetched
from asyncjobs.work.pump import FEW_TURNS
from asyncjobs.work.queues import Queues
from tests.helpers import LOOPS, Process, Watcher, eventually, run_on, write


class LoopRounds:
    """Counts the rounds of the loop, and what happens in each."""

    def __init__(self) -> None:
        self.number = 0
        self.begun: Counter[int] = Counter()
        self._on = True

    def _next(self) -> None:
        self.number += 1
        if self._on:
            asyncio.get_running_loop().call_soon(self._next)

    def mark(self) -> None:
        self.begun[self.number] += 1

    @property
    def most(self) -> int:
        return max(self.begun.values(), default=0)


@asynccontextmanager
async def rounds() -> AsyncIterator[LoopRounds]:
    counted = LoopRounds()
    counted._next()
    yield counted
    counted._on = False


def compute(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def adding(runtime: Runtime, name: str, count: int) -> list[tuple[str, int]]:
    return [(name, i) for i in range(count)]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_job_that_computes_for_longer_than_the_budget_is_alone_in_its_round(server, prefix, loop):
    async def scenario():
        runtime = Runtime(server.url, prefix=prefix)
        ran = []

        @runtime.job("greedy", limiter=None, concurrency=100)
        async def greedy(data):
            counted.mark()
            compute(0.02)
            ran.append(data)

        async with runtime, rounds() as counted:
            await runtime.queue.add_bulk(adding(runtime, "greedy", 40))
            await runtime.wait_idle()
        assert sorted(ran) == list(range(40))
        assert counted.most == 1

    run_on(loop, scenario())


async def test_as_many_begin_in_a_round_as_fit_its_slice_whatever_they_cost(make_runtime):
    runtime = make_runtime(loop_budget=0.02)

    @runtime.job("each", limiter=None, concurrency=100)
    async def each(data):
        if data:
            counted.mark()
            compute(data)

    async with runtime, rounds() as counted:
        # A slice is a tenth of the budget: 2 ms. The quick ones must not let many of the slow ones begin together.
        await runtime.queue.add_bulk([("each", 0)] * 500 + [("each", 0.001)] * 100)
        await runtime.wait_idle()
    assert sum(counted.begun.values()) == 100
    assert counted.most <= 3


async def test_jobs_run_back_to_back_until_the_slice_is_used_up(make_runtime):
    """A slice is a tenth of the budget, however few or many jobs fit into it; then the loop has its turn."""
    runtime, longest, many = make_runtime(loop_budget=0.05), 0.0, 0
    since = time.thread_time()
    begun = 0

    @runtime.job("each", limiter=None, concurrency=1)
    async def each(data):
        nonlocal begun, longest, many
        begun += 1
        compute(data)
        longest, many = max(longest, time.thread_time() - since), max(many, begun)

    async def look():
        nonlocal since, begun
        while True:
            since, begun = time.thread_time(), 0
            await asyncio.sleep(0)

    async with runtime:
        looking = asyncio.create_task(look())
        await runtime.queue.add_bulk([("each", 0)] * 300 + [("each", 0.0005)] * 300)
        await runtime.wait_idle()
        looking.cancel()
    assert many > 8, "as many as fit, and no fixed number"
    assert longest <= 0.05, "far from a budget"


async def test_jobs_on_their_way_are_hardly_seen_by_the_garbage_collector(make_runtime):
    """What is seen and outlives a moment counts as what lives for long, until all that the app holds is looked through.

    A collection of the youngest comes when 700 more objects that can be seen have been made than have gone.
    """
    runtime, ran, looked = make_runtime(), 0, 0

    @runtime.job("each", limiter=None, concurrency=100)
    async def each(data):
        nonlocal ran
        ran += 1

    def collected(phase, info):
        nonlocal looked
        looked += phase == "start" and ran > 2000

    async with runtime:
        jobs = adding(runtime, "each", 20_000)
        gc.callbacks.append(collected)
        try:
            await runtime.queue.add_bulk(jobs)
            await eventually(lambda: ran == 20_000)
        finally:
            gc.callbacks.remove(collected)
    assert looked < 20, "one in a thousand jobs"


async def test_a_trip_carries_as_many_turns_as_the_slice_has_time_for(make_runtime, monkeypatch):
    runtime, carried, ran = make_runtime(loop_budget=0.0005), [], Counter()

    @runtime.job("grouped", limiter=None, group=True)
    async def grouped(data):
        ran[data] += 1

    work = Broker.work

    async def counted_work(self, connection, process, calls):
        carried.append(len(calls))
        return await work(self, connection, process, calls)

    monkeypatch.setattr(Broker, "work", counted_work)
    async with runtime:
        await runtime.queue.add_bulk([("grouped", i, {"group_id": f"g{i}"}) for i in range(600)])
        await runtime.wait_idle()
    assert len(ran) == 600
    assert 1 < max(carried) <= FEW_TURNS + 1, "a slice is 50 µs here, in which no trip can be made up"


@pytest.mark.parametrize("limit", ["tokens", "places", "slots of the process"])
async def test_what_a_turn_leaves_is_free_while_the_next_turns_wait_for_room(make_runtime, monkeypatch, limit):
    """The turns of a trip are read in slices. Between two slices each slot and each start is counted where it is."""
    options = {"tokens": {"total_limiter": Limiter(4, 0.1)}, "places": {"total_concurrency": 4}}.get(limit)
    runtime, broken, ran = make_runtime(concurrency=100 if options else 6), [], Counter()

    async def count(data):
        ran[data] += 1

    runtime.job("grouped", group=True, limiter=None, **options or {})(count)
    for i in range(12):
        runtime.job(f"wide-{i}", limiter=None, concurrency=3)(count)

    async def look():
        while True:
            broken.extend(of_runtime(runtime))
            await asyncio.sleep(0)

    async with runtime:
        monkeypatch.setattr(LoopBudget, "spent", lambda self: self.now() >= 0)
        looking = asyncio.create_task(look())
        for _ in range(3):
            await runtime.queue.add_bulk([("grouped", i, {"group_id": f"g{i}"}) for i in range(12)])
            await runtime.queue.add_bulk([(f"wide-{i}", f"wide-{i}") for i in range(12)])
        await runtime.wait_idle()
        looking.cancel()
    assert len(ran) == 24
    assert set(ran.values()) == {3}
    assert list(dict.fromkeys(broken)) == []


async def test_health_looks_at_no_queue(make_runtime, monkeypatch):
    """It is asked by a probe every few seconds, on the loop, however many groups are open."""
    runtime, held = make_runtime(), asyncio.Event()

    @runtime.job("grouped", limiter=None, group=True)
    async def grouped(data):
        await held.wait()

    async with runtime:
        await runtime.queue.add_bulk([("grouped", i, {"group_id": f"g{i}"}) for i in range(20)])
        await eventually(lambda: runtime.health()["running"] == 20)
        with monkeypatch.context() as patched:
            patched.setattr(Queues, "all", lambda self: pytest.fail("it looks at each queue"))
            found = runtime.health()
        assert (found["running"], found["unsettled"], found["groups"]) == (20, 0, {"grouped": 20})
        held.set()
        await runtime.wait_idle()
        found = runtime.health()
        assert (found["running"], found["unsettled"], found["invariants"]) == (0, 0, [])


async def test_without_a_budget_nothing_waits(make_runtime):
    runtime = make_runtime(loop_budget=None)

    @runtime.job("each", limiter=None, concurrency=100)
    async def each(data):
        counted.mark()
        compute(0.002)

    async with runtime, rounds() as counted:
        await runtime.queue.add_bulk(adding(runtime, "each", 200))
        await runtime.wait_idle()
        assert runtime._assembly.pump.rounds.until == float("inf")
    assert counted.most > 8


async def test_nothing_is_lost_and_nothing_runs_twice(make_runtime, all_in_place):
    runtime, ran = make_runtime(loop_budget=0.0005), Counter()

    @runtime.job("plain", limiter=None, concurrency=50)
    async def plain(data):
        ran["plain", data] += 1
        await asyncio.sleep(0.001 if data % 3 else 0)

    @runtime.job("grouped", limiter=None, group=True)
    async def grouped(data):
        ran["grouped", data] += 1
        compute(0.0001)

    @runtime.job("thread", limiter=None, concurrency=4)
    def thread(data):
        ran["thread", data] += 1

    async with runtime:
        await asyncio.gather(
            runtime.queue.add_bulk([("plain", i) for i in range(1500)]),
            runtime.queue.add_bulk([("grouped", i, {"group_id": f"g{i % 300}"}) for i in range(900)]),
            runtime.queue.add_bulk([("thread", i) for i in range(100)]),
        )
        await runtime.wait_idle()
        assert len(ran) == 2500
        assert set(ran.values()) == {1}
        assert await all_in_place(runtime) == []


async def test_order_within_a_queue_stays_beside_neighbours_that_compute(make_runtime):
    runtime, ran = make_runtime(loop_budget=0.001), []

    @runtime.job("noise", limiter=None, concurrency=100)
    async def noise(data):
        compute(0.0005)

    @runtime.job("ordered", limiter=None, concurrency=1)
    async def ordered(data):
        ran.append(data)
        await asyncio.sleep(0 if data % 2 else 0.001)

    async with runtime:
        await asyncio.gather(
            runtime.queue.add_bulk(adding(runtime, "noise", 600)),
            runtime.queue.add_bulk(adding(runtime, "ordered", 200)),
        )
        await runtime.wait_idle()
    assert ran == list(range(200))


async def test_what_waits_for_room_goes_back_uncounted_when_the_runtime_stops(make_runtime):
    first, second, ran, tries = make_runtime(), make_runtime(), [], []

    def jobs(runtime):
        @runtime.job("each", limiter=None, concurrency=100, lease=5)
        async def each(data, job):
            compute(0.01)
            ran.append(data)
            tries.append((job.attempts_made, job.stalled_count))

        return each

    jobs(first)
    jobs(second)
    async with first:
        await first.queue.add_bulk(adding(first, "each", 200))
        await eventually(lambda: len(ran) >= 10)
        await first.stop(grace=0.05)
    assert len(ran) < 200
    async with second:
        await second.wait_idle()
    assert sorted(ran) == list(range(200))
    assert set(tries) == {(0, 0)}


async def test_the_loop_goes_on_while_much_is_added_at_once(make_runtime):
    runtime = make_runtime(consume=False)
    runtime.job("each", limiter=None)(lambda data: None)
    async with runtime, rounds() as counted:
        before = counted.number
        jobs = await runtime.queue.add_bulk(adding(runtime, "each", 20_000))
        assert counted.number - before > 50
        assert [job.data for job in jobs] == list(range(20_000))
        assert all(job.added for job in jobs)
        assert (await runtime.queue.counts("each"))["waiting"] == 20_000


async def test_an_add_of_many_that_is_given_up_leaves_the_way_free(make_runtime):
    runtime = make_runtime(consume=False)
    runtime.job("each", limiter=None)(lambda data: None)
    async with runtime:
        adding_many = asyncio.ensure_future(runtime.queue.add_bulk(adding(runtime, "each", 20_000)))
        await asyncio.sleep(0)
        adding_many.cancel()
        await asyncio.wait([adding_many])
        again = asyncio.ensure_future(runtime.queue.add_bulk(adding(runtime, "each", 20_000)))
        await eventually(lambda: runtime._assembly.broker._adds._waiting or again.done())
        again.cancel()
        await asyncio.wait([again])
        assert (await runtime.queue.add("each", 1)).added
        assert not runtime._assembly.broker._adds._queueing


@pytest.mark.parametrize("wrong", [0, -1, 0.0001, "5ms", float("nan"), True])
def test_a_budget_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match="loop_budget"):
        Runtime(loop_budget=wrong)


async def test_health_tells_how_late_the_loop_is_and_which_job_made_it_so(make_runtime, caplog):
    runtime = make_runtime(blocking_warning=0.05)
    seen = Watcher(runtime)

    @runtime.job("greedy", limiter=None)
    async def greedy(data):
        compute(0.3)

    async with runtime:
        assert set(runtime.health()["loop"]) == {"now", "longest", "by", "collection"}
        job = await greedy.add({})
        await seen("job.completed")
        found = await eventually(lambda: "greedy" in runtime.health()["loop"]["by"] and runtime.health()["loop"])
    assert job.id in found["by"]
    assert found["longest"] >= 0.05
    assert f"{job.id} try 1> blocks the event loop" in caplog.text


async def test_a_process_of_its_own_has_no_budget(tmp_path, server, prefix):
    write(
        tmp_path,
        {
            "app.py": f"""
                from asyncjobs import Runtime
                runtime = Runtime({server.url!r}, prefix={prefix!r}, loop_budget=0.01)
                @runtime.job("tell", limiter=None)
                async def tell(data):
                    print("budget", runtime.config.loop_budget)
            """
        },
    )
    adder = Runtime(server.url, prefix=prefix, consume=False)
    adder.job("tell", limiter=None)(lambda data: None)
    async with adder:
        await adder.queue.add("tell")
    process = Process(tmp_path, "run", "--app", "app:runtime", "--burst")
    try:
        await process.says("budget None")
    finally:
        process.kill()


def test_jobs_that_wait_for_their_share_of_the_loop_do_not_go_back_for_that(monkeypatch):
    """Where the loop is the app's in between, even quick jobs take a while; handed back, they cost a turn each."""
    now = 100.0
    monkeypatch.setattr("asyncjobs.clock.monotonic", lambda: now)
    prefetch = Prefetch(4)
    prefetch.hold([Prefetched(None, 0.0, 0.0)])
    now += 0.006
    assert prefetch.lingers(alone=True)
    assert not prefetch.lingers(alone=True, governed=True)
    now += 0.1
    assert prefetch.lingers(alone=True, governed=True), "for a while"
