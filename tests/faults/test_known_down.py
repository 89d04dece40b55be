"""A store that is known to be down: nobody waits for it, and it is back as soon as it answers."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncjobs import Runtime
from asyncjobs.broker import connection as link
from asyncjobs.errors import BrokerUnavailableError
from benchmarks.servers import Cluster
from tests.helpers import eventually

TIMEOUT = 1.0
AT_ONCE = 0.6  # seconds, on a busy machine; a call that waits takes `TIMEOUT`
WAYS = ("refuse", "black-hole")


async def down(proxy, way, runtime):
    """Take the store away, and wait until it has been known for as long as a call waits."""
    proxy.mode = way
    if way == "refuse":
        proxy.cut_all()
    with pytest.raises(BrokerUnavailableError):
        await runtime.queue.add("job", 0)
    lane = runtime._assembly.broker._misc
    await eventually(lambda: lane.known_down())


CALLS = {
    "add": lambda queue: queue.add("job", 1),
    "add a group": lambda queue: queue.add("grouped", 1, group_id="a"),
    "add in bulk": lambda queue: queue.add_bulk([("job", 1), ("grouped", 2, {"group_id": "a"})]),
    "get_job": lambda queue: queue.get_job("job", "x"),
    "counts": lambda queue: queue.counts("job"),
    "counts of groups": lambda queue: queue.counts("grouped"),
    "groups": lambda queue: queue.groups("grouped"),
    "set": lambda queue: queue.job("job").set(concurrency=2),
    "pause": lambda queue: queue.group("grouped", "a").pause(),
    "resume": lambda queue: queue.group("grouped", "a").resume(),
    "info": lambda queue: queue.job("job").info(),
}


@pytest.fixture
async def started(proxy, prefix, monkeypatch):
    monkeypatch.setattr(link, "REPLY_TIMEOUT", 0.5)
    runtime = Runtime(proxy.url, prefix=prefix, connect_timeout=TIMEOUT, consume=False)
    runtime.job("job")(lambda data: None)
    runtime.job("grouped", group=True)(lambda data: None)
    async with runtime:
        yield runtime
        proxy.mode = "pass"


@pytest.mark.parametrize("way", WAYS)
async def test_each_call_fails_at_once_and_works_at_once_when_the_store_is_back(started, proxy, way):
    await started.queue.add("job", "before")
    await down(proxy, way, started)
    slow = {}
    for name, call in CALLS.items():
        began = time.monotonic()
        with pytest.raises(BrokerUnavailableError):
            await call(started.queue)
        if time.monotonic() - began > AT_ONCE:
            slow[name] = time.monotonic() - began
    assert slow == {}
    proxy.mode = "pass"
    began = time.monotonic()
    await started.queue.add("job", "after")
    for call in CALLS.values():
        await call(started.queue)
    assert time.monotonic() - began < TIMEOUT


async def test_the_ids_are_told_and_each_job_is_there_once_or_not_at_all(started, proxy):
    await down(proxy, "black-hole", started)
    before = time.monotonic()
    told = await asyncio.gather(*(started.queue.add("job", i) for i in range(200)), return_exceptions=True)
    assert time.monotonic() - before < AT_ONCE
    assert {type(one) for one in told} == {BrokerUnavailableError}
    ids = [job_id for one in told for job_id in one.job_ids]
    assert len(set(ids)) == 200
    proxy.mode = "pass"
    again = await started.queue.add_bulk([("job", i, {"job_id": job_id}) for i, job_id in enumerate(ids)])
    assert len(again) == 200
    counts = await started.queue.counts("job")
    assert 200 <= counts["waiting"] <= 201, "and the one by which it was known"


async def test_a_call_from_before_waits_as_long_as_it_was_promised(started, proxy):
    """An outage that is shorter than the timeout costs nobody an error."""
    proxy.mode = "refuse"
    proxy.cut_all()
    calls = [asyncio.ensure_future(started.queue.add("job", i)) for i in range(20)]
    await asyncio.sleep(TIMEOUT / 2)
    calls += [asyncio.ensure_future(started.queue.add("job", i)) for i in range(20)]
    assert not any(call.done() for call in calls)
    proxy.mode = "pass"
    assert all(job.added for job in await asyncio.gather(*calls))


@pytest.mark.parametrize("way", WAYS)
async def test_a_call_is_not_kept_for_longer_than_its_timeout(started, proxy, way):
    proxy.mode = way
    if way == "refuse":
        proxy.cut_all()
    began = time.monotonic()
    calls = [CALLS[name](started.queue) for name in ("add", "counts", "get_job", "groups")]
    told = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(one) for one in told} == {BrokerUnavailableError}
    assert time.monotonic() - began < 2 * TIMEOUT


async def test_a_store_that_says_not_now_for_long_is_no_better(started, tcp_server):
    client = tcp_server.client()
    await client.execute_command("CONFIG", "SET", "min-replicas-to-write", "1")
    with pytest.raises(BrokerUnavailableError):
        await started.queue.add("job", 0)
    await eventually(lambda: started._assembly.broker._adds.connection.known_down())
    began = time.monotonic()
    with pytest.raises(BrokerUnavailableError, match="busy"):
        await started.queue.add("job", 1)
    assert time.monotonic() - began < AT_ONCE
    await client.execute_command("CONFIG", "SET", "min-replicas-to-write", "0")
    assert (await started.queue.add("job", 2)).added
    await client.aclose()


async def test_an_outage_in_which_nobody_calls_is_known_too(started, proxy):
    """The connection that listens has noticed."""
    proxy.mode = "refuse"
    proxy.cut_all()
    await eventually(lambda: started._assembly.broker._misc.known_down())
    began = time.monotonic()
    with pytest.raises(BrokerUnavailableError):
        await started.queue.add("job", 1)
    assert time.monotonic() - began < AT_ONCE


@pytest.mark.slow
async def test_of_a_cluster_the_queues_of_a_node_that_is_down_alone(prefix, monkeypatch):
    cluster = Cluster(replicas=False)
    await cluster.start()
    try:
        for node in cluster.data:
            await cluster.clients[node.port].execute_command("CONFIG", "SET", "cluster-require-full-coverage", "no")
        async with Runtime(cluster.url, prefix=prefix, connect_timeout=TIMEOUT, consume=False) as runtime:
            names = [f"job{i}" for i in range(30)]
            for name in names:
                runtime.job(name)(lambda data: None)
                await runtime.queue.add(name)
            owners = {name: (await cluster.owner(f"{{{prefix}:{name}}}:s"))[1] for name in names}
            dead = cluster.data[1]
            gone, there = (
                next(name for name in names if (owners[name] is dead) == is_dead) for is_dead in (True, False)
            )
            dead.kill()
            with pytest.raises(BrokerUnavailableError):
                await runtime.queue.add(gone)
            adds, stream = runtime._assembly.broker._adds, f"{{{prefix}:{gone}}}:s"
            await eventually(lambda: adds.connection.known_down(stream))
            for _ in range(5):
                began = time.monotonic()
                with pytest.raises(BrokerUnavailableError):
                    await runtime.queue.add(gone)
                assert time.monotonic() - began < AT_ONCE
                assert (await runtime.queue.add(there)).added
    finally:
        await cluster.stop()
