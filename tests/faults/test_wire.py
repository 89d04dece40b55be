"""The connection that redis-py makes and we read: what it answers, and what becomes of it."""

from __future__ import annotations

import asyncio

import pytest

from asyncjobs.broker.address import Address
from asyncjobs.broker.cluster import ClusterConnection, Topology
from asyncjobs.broker.connection import Connection
from asyncjobs.broker.subscriber import Subscriber
from asyncjobs.broker.wire import PIECE
from asyncjobs.errors import BrokerUnavailableError
from benchmarks.servers import Cluster
from tests.helpers import eventually


@pytest.fixture
async def lane(proxy):
    one = Connection(Address(proxy.url, 5), 5)
    yield one
    await one.shut()


async def test_replies_come_in_order_whatever_their_size(lane, prefix):
    texts = [b"x" * size for size in (0, 1, PIECE - 1, PIECE, 3 * PIECE, 7)]
    keys = [f"{prefix}:{i}" for i in range(len(texts))]
    commands = [("SET", key, text, "EX", 60) for key, text in zip(keys, texts, strict=True)]
    replies = await lane.run([*commands, ("NONSENSE",), *(("GET", key) for key in keys), ("TIME",)])
    assert replies[: len(keys)] == [b"OK"] * len(keys)
    assert "unknown command" in str(replies[len(keys)])
    assert replies[len(keys) + 1 : -1] == texts
    assert len(replies[-1]) == 2


async def test_a_connection_that_was_lost_while_idle_costs_nobody_an_error(lane, proxy):
    assert await lane.run([("PING",)]) == [b"PONG"]
    proxy.cut_all()
    await eventually(lambda: lane._wire.lost)
    assert await lane.run([("PING",)]) == [b"PONG"]
    assert proxy.connected == 2


async def test_one_that_is_lost_under_way_is_an_error_at_once(lane, proxy):
    await lane.run([("PING",)])
    proxy.drop("drop-reply")
    async with asyncio.timeout(2):  # far less than a reply may take
        with pytest.raises(BrokerUnavailableError):
            await lane.run([("PING",)])
    assert await lane.run([("PING",)]) == [b"PONG"]


class Broken:
    """uvloop's transport once the socket has gone under it: it raises, where asyncio's says nothing."""

    def __init__(self, closing: bool) -> None:
        self.closing = closing

    def write(self, data: bytes) -> None:
        raise RuntimeError("unable to perform operation; the handler is closed")

    def is_closing(self) -> bool:
        return self.closing


async def test_a_socket_that_has_gone_unnoticed_is_a_lost_connection(lane):
    await lane.run([("PING",)])
    lane._wire._transport = Broken(closing=False)
    with pytest.raises(BrokerUnavailableError):
        await lane.run([("PING",)])
    assert await lane.run([("PING",)]) == [b"PONG"]


@pytest.mark.parametrize("closing", [True, False])
async def test_listening_to_more_on_a_lost_connection_is_nobodys_error(proxy, prefix, closing):
    """All channels are asked for anew when the subscriber is back."""
    subscriber = Subscriber(Address(proxy.url, 5))
    running = asyncio.ensure_future(subscriber.run())
    try:
        await eventually(lambda: subscriber.connected)
        wire, real = subscriber._wire, subscriber._wire._transport
        wire._transport = Broken(closing)
        await subscriber.listen(f"{prefix}:one", lambda message: None)
        wire._transport = real
        proxy.cut_all()
        async with asyncio.timeout(5):
            await subscriber.confirmed(f"{prefix}:one")
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_two_that_connect_at_once_leave_no_connection_behind(lane, proxy):
    await asyncio.gather(*(lane.run([("PING",)]) for _ in range(5)), return_exceptions=True)
    assert await lane.run([("PING",)]) == [b"PONG"]
    await lane.shut()
    await eventually(lambda: not proxy._writers, what="every connection is closed")


@pytest.mark.slow
async def test_of_a_cluster_every_node_has_answered_or_failed_when_a_call_to_all_ends():
    cluster = Cluster(replicas=False)
    await cluster.start()
    try:
        address = Address(cluster.url, 5)
        every = ClusterConnection(address, 5, Topology(address, 5))
        assert await every.everywhere([("PING",)]) == [[b"PONG"]] * 3
        await every.close()
        await every._topology.primaries()
        cluster.data[1].kill()
        running = asyncio.all_tasks()
        with pytest.raises(BrokerUnavailableError):
            await every.everywhere([("PING",)])
        assert asyncio.all_tasks() == running
        await every.shut()
    finally:
        await cluster.stop()
