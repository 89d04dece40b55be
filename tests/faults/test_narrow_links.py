"""Links on which bytes take their time: whatever moves goes on, whatever stands still is given up."""

from __future__ import annotations

import asyncio

import pytest

from asyncjobs import Runtime
from asyncjobs.broker import adds
from asyncjobs.broker import connection as link
from asyncjobs.broker.address import Address
from asyncjobs.broker.cluster import ClusterConnection, Topology
from asyncjobs.broker.connection import Connection
from asyncjobs.errors import BrokerUnavailableError
from benchmarks.proxy import Proxy
from tests.helpers import LOOPS, eventually, run_on

RATE = 1_000_000
SHORT = 0.25  # seconds without a byte that are allowed here, so that no test takes long


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(link, "REPLY_TIMEOUT", SHORT)
    monkeypatch.setattr(link, "BYTES_A_PIPELINE", 400_000)
    monkeypatch.setattr(adds, "BYTES_A_PIPELINE", 400_000)


def lanes(proxy: Proxy, kind: str) -> Connection:
    address = Address(proxy.url, 5)
    if kind == "one server":
        return Connection(address, 5)
    lane = ClusterConnection(address, 5, Topology(address, 5))
    lane._topology._nodes = [("127.0.0.1", proxy.port)] * 16384
    return lane


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["one server", "a node of a Cluster"])
@pytest.mark.parametrize("way", ["up", "down"])
def test_an_exchange_lasts_as_long_as_its_bytes_take(tcp_server, prefix, loop, kind, way):
    async def scenario():
        async with Proxy(tcp_server.port, RATE) as proxy:
            lane = lanes(proxy, kind)
            size = int(2.5 * SHORT * RATE)
            assert await lane.run([("SET", "k", "x" * (size if way != "down" else 1))]) == [b"OK"]
            if way == "down":
                await lane.run([("SETRANGE", "k", size - 1, "x")])
            if way != "up":
                assert [len(reply) for reply in await lane.run([("GET", "k")])] == [size]
            await lane.shut()

    run_on(loop, scenario())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["one server", "a node of a Cluster"])
@pytest.mark.parametrize("way", ["up", "down"])
def test_one_whose_bytes_stop_half_way_is_given_up_soon(tcp_server, prefix, loop, kind, way):
    async def scenario():
        async with Proxy(tcp_server.port, RATE) as proxy:
            lane = lanes(proxy, kind)
            size = int(4 * SHORT * RATE)
            await lane.run([("SETRANGE", "k", size - 1, "x")])
            passed = proxy.passed
            asking = asyncio.ensure_future(lane.run([("GET", "k") if way == "down" else ("SET", "k", "x" * size)]))
            await eventually(lambda: proxy.passed > passed + 20)
            proxy.mode = "black-hole"
            async with asyncio.timeout(5):
                if kind == "one server":
                    with pytest.raises(BrokerUnavailableError):
                        await asking
                else:
                    assert [type(one) for one in await asking] == [BrokerUnavailableError]
            proxy.mode = "pass"
            await lane.shut()

    run_on(loop, scenario())


@pytest.mark.parametrize("how", ["in bulk", "one by one", "from elsewhere"])
async def test_jobs_that_are_large_for_their_link_are_added_and_run(tcp_server, prefix, how):
    """Each way takes several times as long as a reply may, or a caller waits."""
    ran: list[int] = []
    async with Proxy(tcp_server.port, RATE) as proxy:
        runtime = Runtime(proxy.url, prefix=prefix, connect_timeout=1)
        elsewhere = Runtime(tcp_server.url, prefix=prefix, consume=False)

        @runtime.job("large", limiter=None, concurrency=10)
        @elsewhere.job("large")
        async def large(data):
            ran.append(data[0])

        async with runtime, elsewhere:
            queue = elsewhere.queue if how == "from elsewhere" else runtime.queue
            payloads = [[i, "x" * 100_000] for i in range(30)]
            if how == "one by one":
                small = asyncio.gather(*(queue.add("large", one) for one in payloads))
            else:
                small = queue.add_bulk([("large", one) for one in payloads])
            jobs = await small
            assert all(job.added for job in jobs)
            await eventually(lambda: len(ran) == 30, 30)
            await runtime.wait_idle(5)
    assert sorted(ran) == list(range(30))


async def test_a_small_add_behind_a_large_one_waits_for_its_turn(tcp_server, prefix):
    """It is not out of patience with a store that does nothing but answer."""
    options = {"prefix": prefix, "connect_timeout": 1, "consume": False}
    async with Proxy(tcp_server.port, RATE) as proxy, Runtime(proxy.url, **options) as runtime:
        runtime.job("large", limiter=None)(lambda data: None)
        runtime.job("small", limiter=None)(lambda data: None)
        bulk = asyncio.ensure_future(runtime.queue.add_bulk([("large", "x" * 100_000)] * 30))
        await asyncio.sleep(0)
        assert (await runtime.queue.add("small")).added
        assert len(await bulk) == 30


async def test_what_a_lost_reply_would_have_brought_is_adopted_piece_by_piece(tcp_server, prefix):
    ran: list[int] = []
    async with Proxy(tcp_server.port, RATE) as proxy:
        runtime = Runtime(proxy.url, prefix=prefix, connect_timeout=5)
        elsewhere = Runtime(tcp_server.url, prefix=prefix, consume=False)

        @runtime.job("large", limiter=None, concurrency=20)
        @elsewhere.job("large")
        async def large(data):
            ran.append(data[0])

        async with elsewhere, runtime:
            for _ in range(3):
                proxy.drop("drop-reply", 2)
                await elsewhere.queue.add_bulk([("large", [i, "x" * 150_000]) for i in range(6)])
                await runtime.wait_idle(20)
    assert sorted(ran) == sorted(list(range(6)) * 3)


async def test_large_calls_share_a_pipeline_by_their_size(tcp_server, prefix):
    """Fifty notes of a megabyte are not one pipeline."""
    async with Proxy(tcp_server.port) as proxy:
        lane = Connection(Address(proxy.url, 5), 5)
        sent: list[int] = []
        run = lane.run

        async def counted(commands, needs=()):
            sent.append(sum(len(command[2]) for command in commands))
            return await run(commands, needs)

        lane.run = counted
        text = b"x" * 150_000
        assert await asyncio.gather(*(lane.call(("SET", f"{prefix}{i}", text)) for i in range(20))) == [b"OK"] * 20
        assert max(sent) <= 450_000
        await lane.shut()
