"""Where a waiting job stands: the id of its entry in its record, however it came to wait."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from asyncjobs.broker import scripts
from tests.lua.test_scripts import Desk, settle


@pytest.fixture
def desk(redis, prefix):
    return Desk(redis, prefix)


async def stands(desk: Desk, job_id: str) -> bool:
    """Whether the entry that the record names is that of the job, and the only one."""
    entry = (await desk.record(job_id))[b"i"]
    found = await desk.redis.xrange(desk.keys.stream, entry, entry)
    every = [one for one in await desk.redis.xrange(desk.keys.stream) if one[1][b"j"] == job_id.encode()]
    return found == every and [(at, fields[b"j"]) for at, fields in found] == [(entry, job_id.encode())]


@pytest.mark.parametrize("named", ["1", ""])
async def test_an_added_job_knows_its_entry_and_a_delayed_one_has_none(desk, named):
    assert await desk.add("a", "b", named=named) == "11"
    assert await desk.add("later", when=60_000, named=named) == "1"
    assert await stands(desk, "a")
    assert await stands(desk, "b")
    assert b"i" not in await desk.record("later")


async def test_a_job_that_came_due_knows_its_entry(desk):
    await desk.add("a", when=1)
    await desk.redis.zadd(desk.keys.delayed, {"a": 1})
    await desk.work(free=1, slots=0, bucket=(1, 60_000_000, 1000))
    await desk.add("b", when=1)
    await desk.redis.zadd(desk.keys.delayed, {"b": 1})
    await desk.work(free=1, slots=0, token="t2", bucket=(1, 60_000_000, 1000))
    assert (await desk.counts())[:3] == [1, 1, 0]
    assert await stands(desk, "b")


async def test_a_promoted_job_whose_record_was_deleted_leaves_nothing(desk):
    await desk.add("a", when=1)
    await desk.redis.zadd(desk.keys.delayed, {"a": 1})
    await desk.redis.delete(desk.keys.job("a"))
    _, _, rows = await desk.work()
    assert rows == {}
    assert not await desk.redis.exists(desk.keys.job("a"), desk.keys.stream)


async def test_a_job_that_is_to_run_again_at_once_knows_its_entry(desk):
    await desk.add("a")
    _, _, rows = await desk.work()
    await desk.work(settle("r", "a", rows, keep="1"), free=0)
    assert await stands(desk, "a")


@pytest.mark.parametrize("op", ["b", "h"])
async def test_a_job_at_the_head_knows_its_entry_also_where_its_stream_was_deleted(desk, op):
    await desk.add("a", "b")
    _, _, rows = await desk.work()
    await desk.work(settle(op, "a", rows), free=0)
    assert await stands(desk, "a")
    await desk.redis.delete(desk.keys.stream)
    await desk.work(settle(op, "b", rows), free=0)
    assert await stands(desk, "b")


async def test_a_record_that_the_store_refuses_takes_its_entry_with_it(desk, keys_left):
    await desk.redis.set(desk.keys.job("a"), "not a hash")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await desk.add("a", named="")
    assert await keys_left() == [desk.keys.job("a")]
    await desk.add("b")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await desk.add("a", named="")
    assert (await desk.counts())[:2] == [1, 0]
    assert await stands(desk, "b")


async def test_cancelled_jobs_are_counted_only_where_there_are_some(desk):
    await desk.add("a")
    assert await desk.counts() == [1, 0, 0, 0, 0]
    await desk.redis.zadd(desk.keys.cancelled, {"x": 1, "y": 2})
    assert await desk.counts() == [1, 0, 0, 0, 0, 2]
    keys = desk.keys
    bounds = (-1, -1, -1, -1, 1, -1)
    zsets = (keys.completed, keys.failed, keys.cancelled, keys.jobs)
    assert await desk.run(scripts.TRIM, *zsets, *bounds) == 1
    assert await desk.redis.zrange(keys.cancelled, 0, -1) == [b"y"]
