"""What one script call may bring in bytes, each job once and in order; and what must be there before it does that."""

from __future__ import annotations

import pytest
from redis.asyncio import RedisCluster
from redis.exceptions import ClusterError, ResponseError, TryAgainError

from asyncjobs.broker import scripts
from tests.lua.test_scripts import Desk, settle


@pytest.mark.parametrize("budget", [1, 999, 1000, 1001, 2500, 50_000, 1 << 30])
@pytest.mark.parametrize("sizes", [[1000] * 60, [10] * 40 + [5000] * 20, [5000, 10] * 30, [0] * 60])
async def test_takes_bring_every_job_once_and_in_order_within_the_budget(redis, prefix, budget, sizes):
    desk = Desk(redis, prefix)
    names = [f"{i:03}" for i in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        await desk.add(name, data="x" * size)
    came, turns = [], 0
    while len(came) < len(names):
        turns += 1
        _, wait, rows = await desk.work(token=f"t{turns}", free=40, size=budget)
        assert rows, "at least one"
        taken = [len(row[2]) for row in rows.values()]
        assert sum(taken[:-1]) < budget, "no further one behind the last byte"
        came += rows
        assert await desk.counts() == [len(names) - len(came), len(came), 0, 0, 0]
        assert (wait == 0) == (len(came) < len(names) and sum(taken) >= budget), "the rest is told at once"
    assert came == names


async def test_what_goes_back_keeps_its_place_before_what_others_wait_for(redis, prefix):
    """Two processes take in turn, each less than it asked for; a limiter is charged for what it got."""
    desk = Desk(redis, prefix)
    names = [f"{i:03}" for i in range(50)]
    await desk.add(*names, data="x" * 1000)
    came = []
    for turn in range(50):
        _, _, rows = await desk.work(me=f"p{turn % 2}", token=f"t{turn}", size=1000, bucket=(50, 60_000_000, 0))
        came += rows
    assert came == names, "fifty tokens, one spent for each job"


@pytest.mark.parametrize("budget", [1, 1000, 2500, 1 << 30])
async def test_adoption_brings_every_job_once_within_the_budget(redis, prefix, budget):
    desk = Desk(redis, prefix)
    names = [f"{i:03}" for i in range(30)]
    await desk.add(*names, data="x" * 1000)
    await desk.work(free=100)
    came, after = [], "-"
    while after != b"":
        after, rows = await desk.run(scripts.OWN, desk.keys.stream, desk.keys.jobs, "p1", after, budget)
        assert len(rows) // 8 * 1000 < budget + 1000
        came += [row.decode() for row in rows[::8]]
    assert came == names


@pytest.mark.parametrize("size", [0, 300_000])
async def test_a_sweep_says_that_there_is_more_where_the_doomed_are_large(redis, prefix, size):
    desk = Desk(redis, prefix)
    names = [f"{i:03}" for i in range(20)]
    await desk.add(*names, data="x" * size)
    await desk.work(me="dead", free=100, size=1 << 30)
    doomed, more, calls = [], 1, 0
    while more:
        calls += 1
        args = (desk.keys.stream, desk.keys.jobs, "news", "", "dead", "me", f"s{calls}", -1)
        _, more, rows = await desk.run(scripts.SWEEP, *args)
        doomed += [row.decode() for row in rows[::7]]
    assert doomed == names
    assert calls == (3 if size else 1)


async def test_reading_what_has_no_record_leaves_no_name_on_the_stream(redis, prefix):
    desk = Desk(redis, prefix)
    await desk.add("a", "b", "c")
    await redis.delete(desk.keys.job("a"))
    await desk.work(me="p1", free=1)
    assert [one["name"] for one in await redis.xinfo_consumers(desk.keys.stream, "w")] == []
    _, _, rows = await desk.work(me="p1", free=1)
    await redis.delete(desk.keys.job("c"))
    await desk.work(me="p1", token="t2", free=1)
    assert [one["name"] for one in await redis.xinfo_consumers(desk.keys.stream, "w")] == [b"p1"]
    assert (await desk.work(settle("c", "b", rows), free=0))[0] == "1"


async def test_the_mark_of_an_add_lives_as_long_as_it_may_be_sent_again(redis, prefix):
    """Whoever else adds there, with whatever timeout of its own."""
    desk = Desk(redis, prefix)
    for resent in (1000, 3_000_000, 60_000):
        await desk.add(sender=f"p{resent}.0", resent=resent)
        assert await desk.redis.pttl(desk.keys.senders) > resent - 500
    assert await desk.redis.pttl(desk.keys.senders) > 2_999_000


@pytest.mark.parametrize("named", ["", "1"])
async def test_an_add_that_was_given_up_and_arrives_late_adds_nothing(redis, prefix, named):
    desk = Desk(redis, prefix)
    await desk.add("newer", number=8, named=named)
    await desk.add("given up", number=7, named=named)
    await desk.add("newer", number=8, named=named)
    assert (await desk.counts())[0] == 1


async def test_a_busy_queue_forgets_processes_that_are_gone(redis, prefix):
    """A mark that another release has left is not touched, and garbage stops nobody."""
    desk = Desk(redis, prefix)
    await redis.hset(desk.keys.senders, mapping={"older.0": "17", "me.0": "garbage"})
    await desk.add("k", sender="here.0", resent=60_000)
    for i in range(60):
        await desk.add(f"j{i}", sender=f"gone{i}.0", resent=1)
        await desk.add(f"k{i}", sender="here.0", resent=60_000)
    left = await redis.hgetall(desk.keys.senders)
    assert len(left) < 25
    assert left[b"older.0"] == b"17"
    assert b"here.0" in left
    assert await desk.add("x", number=5) == "1"
    assert (await desk.counts())[0] == 122


@pytest.mark.parametrize("op", ["c", "f"])
async def test_nothing_is_settled_that_is_not_listed(redis, prefix, op):
    desk = Desk(redis, prefix, "acme")
    listing = f"{{{prefix}:job}}:{op}" if not isinstance(redis, RedisCluster) else desk.keys.tag + ":listing"
    await desk.add("a", "b")
    _, _, rows = await desk.work()
    finish = [settle(op, name, rows) for name in "ab"]
    with pytest.raises((TryAgainError, ClusterError)):  # the client of a Cluster tries again, a few times
        await desk.work(*finish, listing=listing, listed="4:acmea")
    assert await desk.counts() == [0, 2, 0, 0, 0]
    await redis.zadd(listing, {"4:acmea": 1})
    assert (await desk.work(*finish, listing=listing, listed="4:acmea"))[0] == "11"


async def test_a_group_that_cannot_be_registered_gets_no_job(redis, prefix):
    desk = Desk(redis, prefix, "acme")
    registry = desk.keys.tag + ":groups"  # in one slot with the queue, for a Cluster
    await redis.set(registry, "not a zset")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await desk.add("a", registry=registry)
    assert await desk.counts() == [0, 0, 0, 0, 0]
    await redis.delete(registry)
    assert await desk.add("a", registry=registry) == "1"
    assert await redis.zrange(registry, 0, -1) == [b"acme"]


async def test_names_of_processes_that_hold_nothing_are_taken_off_and_others_stay(redis, prefix):
    desk = Desk(redis, prefix)
    await desk.add("a", "b", "c", "d")
    _, _, rows = await desk.work(me="gone", free=1)
    await desk.work(settle("b", "a", rows), me="gone", free=0)
    _, _, rows = await desk.work(me="busy", token="t2", free=2)
    stream = desk.keys.stream
    assert await desk.run(scripts.OWNERS, stream, 60_000) == [b"busy"]
    assert {one["name"] for one in await redis.xinfo_consumers(stream, "w")} == {b"busy", b"gone", b"head"}
    assert await desk.run(scripts.OWNERS, stream, 0) == [b"busy"]
    assert {one["name"] for one in await redis.xinfo_consumers(stream, "w")} == {b"busy", b"head"}
    assert sorted(rows) == ["a", "b"]
    assert (await desk.work(*(settle("c", one, rows, token="t2") for one in rows), me="busy"))[0] == "11"
    assert await desk.run(scripts.OWNERS, desk.keys.delayed, 0) == []
