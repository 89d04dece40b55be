"""Behind three real Sentinels: found by the service's name, and followed when the primary changes."""

from __future__ import annotations

import asyncio

import pytest

from asyncjobs import BrokerUnavailableError, Runtime
from benchmarks.servers import Sentinels
from tests.faults.load import Load
from tests.helpers import eventually


@pytest.fixture
async def trio():
    trio = Sentinels()
    try:
        yield await trio.start()
    finally:
        await trio.stop()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["graceful", "kill -9"])
async def test_a_failover_under_load_is_followed_and_loses_nothing_confirmed(trio, how):
    runtime = Runtime(trio.url, durability="replicated", connect_timeout=20)
    load = Load(runtime)
    async with runtime, load:
        await load.goes_on()
        before = await trio.primary()
        if how == "graceful":
            await trio.failover()
        else:
            before.kill()

        async def changed():
            return await trio.primary() is not before

        await eventually(changed, 20, "the Sentinels have chosen another primary")
        await load.goes_on(within=10)
        await load.end()
    assert load.lost == []
    assert load.twice == []


@pytest.mark.slow
async def test_an_add_that_no_replica_confirms_says_so_and_may_be_sent_again(trio):
    replicas = trio.data[1:]
    runtime = Runtime(trio.url, durability="replicated", connect_timeout=5)
    runtime.job("echo", limiter=None)(lambda data: data)
    async with runtime:
        assert await (await runtime.queue.add("echo", 1)).wait(10) == 1
        for replica in replicas:
            replica.freeze(True)
        with pytest.raises(BrokerUnavailableError, match="no replica confirmed it") as caught:
            await runtime.queue.add("echo", 2)
        for replica in replicas:
            replica.freeze(False)
        (job_id,) = caught.value.job_ids
        again = await asyncio.wait_for(runtime.queue.add("echo", 2, job_id=job_id), 15)
        assert not again.added, "it was there already"
        assert await again.wait(10) == 2
