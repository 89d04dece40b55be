"""Limits over several queues are shared by those that have work, and cost nothing while nobody has any."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis.asyncio import Redis

from asyncjobs import BrokerError, Limiter, Runtime
from asyncjobs.invariants import of_runtime, of_store
from benchmarks.servers import Server
from tests.helpers import eventually

SHARED = Limiter(2, 0.2, name="mailbox")
# Each way of limiting, and whether the job is grouped.
LIMITS: dict[str, tuple[bool, dict[str, Any]]] = {
    "none": (False, {"limiter": None}),
    "one window": (False, {"limiter": Limiter(2, 1)}),
    "several windows": (False, {"limiter": [Limiter(1, 0.2), Limiter(5, 10)]}),
    "one at a time": (False, {"limiter": None, "concurrency": 1}),
    "ordered": (False, {"limiter": None, "ordered": True}),
    "named": (False, {"limiter": Limiter(2, 1, name="mailbox")}),
    "named and own": (False, {"limiter": [Limiter(1, 1), Limiter(2, 1, name="both")]}),
    "groups": (True, {"limiter": None}),
    "groups, a window each": (True, {"limiter": Limiter(2, 1)}),
    "groups, total window": (True, {"limiter": None, "total_limiter": Limiter(2, 1)}),
    "groups, total concurrency": (True, {"limiter": None, "total_concurrency": 2}),
    "groups, both": (True, {"limiter": None, "total_concurrency": 2, "total_limiter": Limiter(2, 1)}),
}


CONNECTING = ("script|load", "client|setinfo", "hello", "auth", "select", "info", "subscribe")


async def commands(url: str) -> int:
    """Commands that the server has run, those within scripts too, and what a new connection needs left out."""
    client = Redis.from_url(url)
    try:
        stats = await client.info("commandstats")
        return sum(row["calls"] for name, row in stats.items() if name.removeprefix("cmdstat_") not in CONNECTING)
    finally:
        await client.aclose()


async def rate(url: str, seconds: float) -> float:
    """Commands a second that the server counts, those within scripts too."""
    before = await commands(url)
    await asyncio.sleep(seconds)
    return (await commands(url) - before) / seconds


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
async def test_a_limit_costs_nothing_while_nothing_is_to_do(own_server: Server, limit: str):
    """Three names of each kind, two processes, some groups that had work: below ten commands a second for both."""
    grouped, options = LIMITS[limit]
    runtimes = [Runtime(own_server.url, alerts=None) for _ in range(2)]
    for runtime in runtimes:
        for n in range(3):
            runtime.job(f"job-{n}", group=grouped, **options)(lambda data: data)
    async with AsyncExitStack() as stack:
        for runtime in runtimes:
            await stack.enter_async_context(runtime)
        for n in range(3):
            jobs = [(f"job-{n}", i, {"group_id": f"g{i}"} if grouped else {}) for i in range(2)]
            await runtimes[0].queue.add_bulk(jobs)
        await runtimes[0].wait_idle(20)
        for runtime in runtimes:
            await runtime._assembly.recorder.flush()  # of what has happened
        await eventually(lambda: _calm(own_server.url), what="what waited for a token has looked once more")
        # A beat, which comes every few seconds, falls into one of the two.
        assert min([await rate(own_server.url, 2) for _ in range(2)]) < 10
        for runtime in runtimes:
            assert of_runtime(runtime) == []
        assert await of_store(runtimes[0], settled=True) == []


async def _calm(url: str) -> bool:
    return await rate(url, 1.5) < 10


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["one window", "named", "groups, total window", "groups, both", "several windows"])
async def test_work_that_waits_for_a_token_asks_a_few_times_a_token(own_server: Server, limit: str):
    grouped, options = LIMITS[limit]
    runtime = Runtime(own_server.url)
    started = 0

    @runtime.job("call", group=grouped, **options)
    async def call(data):
        nonlocal started
        started += 1

    @runtime.job("idle", group=grouped, **options)
    async def idle(data): ...

    async with runtime:
        await runtime.queue.add_bulk([("call", n, {"group_id": f"g{n % 9}"} if grouped else {}) for n in range(200)])
        await eventually(lambda: started >= 3)
        before, began = await commands(own_server.url), started
        await eventually(lambda: started >= began + 4)
        # For a token a process asks twice, takes and settles, each a script of a dozen or two commands.
        assert await commands(own_server.url) - before < 200 * (started - began)
        assert of_runtime(runtime) == []


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
async def test_a_shared_limit_is_fair_to_those_that_have_work(make_runtime, processes):
    """Three names with much to do and one with nothing; the idle one takes no token away from the others."""
    ran: Counter[str] = Counter()
    runtimes = [make_runtime() for _ in range(processes)]
    for runtime in runtimes:
        for name in ("a", "b", "c", "idle"):

            @runtime.job(name, limiter=SHARED)
            async def handle(data, job):
                ran[job.name] += 1

    async with AsyncExitStack() as stack:
        for runtime in runtimes:
            await stack.enter_async_context(runtime)
        await runtimes[0].queue.add_bulk([(name, n) for n in range(60) for name in "abc"])
        await eventually(lambda: sum(ran.values()) >= 36)
    least, most = min(ran[name] for name in "abc"), max(ran[name] for name in "abc")
    assert least >= 8, ran
    assert most - least <= 8, ran


@pytest.mark.slow
async def test_a_limit_whose_key_is_broken_holds_nobody_else_up(runtime, redis, prefix):
    """The jobs that it limits wait, and start as soon as it is mended."""
    ran: list[str] = []

    @runtime.job("mail", limiter=Limiter(50, 1, name="mailbox"))
    async def mail(data):
        ran.append("mail")

    @runtime.job("plain", limiter=None)
    async def plain(data):
        ran.append("plain")

    await redis.set(f"{{{prefix}}}:gate:mailbox", "no hash")
    async with runtime:
        await runtime.queue.add("mail")
        for n in range(20):
            await asyncio.wait_for((await runtime.queue.add("plain", n)).wait(5), 3)
        assert ran == ["plain"] * 20
        assert of_runtime(runtime) == []
        await redis.delete(f"{{{prefix}}}:gate:mailbox")
        await eventually(lambda: "mail" in ran)


async def test_a_question_that_is_never_answered_is_given_up_after_a_second(runtime, monkeypatch):
    ran: list[str] = []

    @runtime.job("mail", limiter=Limiter(50, 1, name="mailbox"))
    async def mail(data):
        ran.append("mail")

    @runtime.job("plain", limiter=None)
    async def plain(data):
        ran.append("plain")

    async with runtime:
        broker = runtime._assembly.broker
        asked = asyncio.Event()

        async def silence(*args: object) -> object:
            asked.set()
            await asyncio.Event().wait()
            raise BrokerError("never")

        monkeypatch.setattr(broker, "admit", silence)
        await runtime.queue.add("mail")
        await asyncio.wait_for(asked.wait(), 5)
        for n in range(10):
            await asyncio.wait_for((await runtime.queue.add("plain", n)).wait(5), 3)
        monkeypatch.undo()
        await eventually(lambda: "mail" in ran)
