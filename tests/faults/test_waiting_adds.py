"""Adds that wait for an answer to older ones: each is looked at a few times, however often others come and go."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from asyncjobs import Runtime
from asyncjobs.broker.add_calls import AddCall, Place
from asyncjobs.broker.address import Address
from asyncjobs.broker.adds import AddBatcher
from asyncjobs.broker.connection import Connection
from asyncjobs.broker.keys import Keys
from asyncjobs.errors import BrokerUnavailableError
from tests.helpers import eventually


class HalfDown(Connection):
    """A connection over which one queue gets no answer, as from one node of a Cluster; `lost`: after it was applied."""

    def __init__(self, *args, tag: str) -> None:
        super().__init__(*args)
        self.tag, self.down, self.applies = tag, True, True

    async def run(self, commands, needs=()):
        def is_lost(command) -> bool:
            return self.down and str(command[3]).startswith(self.tag)

        sent = [command for command in commands if self.applies or not is_lost(command)]
        replies = iter(await super().run(sent))
        answers = [next(replies) if self.applies or not is_lost(command) else None for command in commands]
        lost = BrokerUnavailableError("lost")
        return [lost if is_lost(command) else answer for command, answer in zip(commands, answers, strict=True)]


def calls(prefix, name, ids):
    place = Place(Keys(prefix, name), name, f"{prefix}:news:{name}", "")
    return [AddCall(place, one, "in", 0, b"{}", b"", True) for one in ids]


@pytest.mark.parametrize("applies", [True, False])
async def test_those_that_wait_are_not_looked_at_whenever_others_are_sent(tcp_server, prefix, applies):
    lane = HalfDown(Address(tcp_server.url, 5), 5, tag=Keys(prefix, "down").tag)
    lane.applies = applies
    batcher = AddBatcher(lane, "me", 30, 0)
    looked_at = 0
    take = batcher._take

    def counted(held):
        nonlocal looked_at
        looked_at += len(batcher._waiting)
        return take(held)

    batcher._take = counted
    first = asyncio.ensure_future(batcher.add(calls(prefix, "down", ["first"])))
    await eventually(lambda: batcher._unknown)
    behind = [asyncio.ensure_future(batcher.add(calls(prefix, "down", [f"b{i}"]))) for i in range(3000)]
    await asyncio.sleep(0)
    for i in range(300):
        assert (await batcher.add(calls(prefix, "up", [f"u{i}"])))[0].added
    assert looked_at < 3 * 3301
    assert not first.done()
    assert not any(one.done() for one in behind)
    lane.down = False
    replies = await asyncio.gather(first, *behind)
    assert all(reply.added for (reply,) in replies)
    client = tcp_server.client()
    entries = await client.xrange(Keys(prefix, "down").stream)
    assert [fields[b"j"].decode() for _, fields in entries] == ["first", *(f"b{i}" for i in range(3000))], "in order"
    await client.aclose()
    await batcher.close()
    assert batcher._size == 0
    assert not batcher._behind


@pytest.mark.parametrize("lost", ["the store", "one queue"])
async def test_each_is_told_when_its_own_time_is_up_and_memory_is_free(tcp_server, proxy, prefix, lost):
    timeout = 0.5
    lane = HalfDown(Address(proxy.url, 5), timeout, tag=Keys(prefix, "down").tag)
    lane.applies = False
    batcher = AddBatcher(lane, "me", timeout, 0)
    if lost == "the store":
        await batcher.add(calls(prefix, "up", ["before"]))
        proxy.mode = "black-hole"
    late = []

    async def one(n: int) -> None:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailableError) as told:
            await batcher.add(calls(prefix, "down", [f"j{n}"]))
        assert told.value.job_ids == (f"j{n}",)
        late.append(time.monotonic() - began)

    adding = []
    for n in range(100):
        adding += [asyncio.ensure_future(one(3 * n + k)) for k in range(3)]
        await asyncio.sleep(0.01)
    await asyncio.gather(*adding)
    assert max(late) < 2 * timeout + 0.5
    assert len(batcher._open) == 0
    proxy.mode, lane.down = "pass", False
    await eventually(lambda: batcher._drain is None or not (batcher._waiting or batcher._behind or batcher._unknown))
    assert (await batcher.add(calls(prefix, "down", ["last"])))[0].added
    await batcher.close()


@pytest.mark.parametrize("timeout", [0.5, 10, 59, 61, 600, 86_400])
async def test_what_was_added_is_recognised_for_as_long_as_it_may_be_sent_again(tcp_server, prefix, timeout):
    client = tcp_server.client()
    async with Runtime(tcp_server.url, prefix=prefix, consume=False, connect_timeout=timeout) as runtime:
        runtime.job("job")(lambda data: None)
        for size in (1, 1200):
            await runtime.queue.add_bulk([("job", i) for i in range(size)])
            batcher = runtime._assembly.broker._adds
            left = await client.pttl(Keys(prefix, "job").senders) / 1000
            assert left > batcher._resent_for + timeout + 5, "it may take as long as that to connect"
            assert batcher._resent_for > timeout, "whoever waits is not let down for it"
        marks = await client.hgetall(Keys(prefix, "job").senders)
        now = (await client.time())[0]
        assert all(int(mark.split()[1]) / 1000 - now > 3 * timeout for mark in marks.values())
    await client.aclose()


async def test_an_add_that_would_not_be_recognised_any_more_is_not_sent_again(tcp_server, prefix):
    lane = HalfDown(Address(tcp_server.url, 5), 5, tag=Keys(prefix, "down").tag)
    batcher = AddBatcher(lane, "me", 30, 0)
    batcher._resent_for = 0.2
    with pytest.raises(BrokerUnavailableError) as told:
        await batcher.add(calls(prefix, "down", ["a"]))
    assert told.value.job_ids == ("a",)
    lane.down = False
    assert not (await batcher.add(calls(prefix, "down", ["a"])))[0].added, "it was there"
    await batcher.close()


async def test_a_thousand_processes_on_a_busy_queue_leave_a_bounded_number_of_marks(tcp_server, prefix, monkeypatch):
    """Their marks are over at once here."""
    client = tcp_server.client()
    lane = Connection(Address(tcp_server.url, 5), 5)
    ids = (f"j{i}" for i in itertools.count())
    alive = AddBatcher(lane, "alive", 10, 0)
    for n in range(300):
        one = AddBatcher(lane, f"gone{n}", 10, 0)
        one._marked_for = 1
        await one.add(calls(prefix, "job", [next(ids)]))
        await alive.add(calls(prefix, "job", [next(ids)]))
    assert await client.hlen(Keys(prefix, "job").senders) < 40
    assert await client.xlen(Keys(prefix, "job").stream) == 600
    await client.aclose()
    await lane.shut()
