"""A job that gets groups with a release, or loses them: what was added before is found, told, counted, run and kept."""

from __future__ import annotations

from collections import Counter

import pytest

from asyncjobs.invariants import of_runtime, of_store
from tests.helpers import Watcher, eventually

OPTIONS = {"limiter": None, "remove_on_complete": 5, "remove_on_fail": 5, "attempts": 1}


def register(runtime, group: bool, ran: Counter[object], **options):
    @runtime.job("sync", group=group, **{**OPTIONS, **options})
    async def sync(data, job):
        ran[data] += 1
        if data == "bad":
            raise ValueError(data)
        return job.group_id

    return sync


def some(group: bool, names: str, **options) -> list[tuple[object, ...]]:
    return [("sync", one, {**({"group_id": f"g{n % 3}"} if group else {}), **options}) for n, one in enumerate(names)]


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("live", ["before the start", "while it runs"])
async def test_what_was_added_in_the_other_shape_is_run_once(make_runtime, group, live, caplog):
    """Before the start it is told with its count; a process of the old release may add more while the new one runs."""
    ran: Counter[object] = Counter()
    old, new = make_runtime(consume=False), make_runtime()
    register(old, not group, ran)
    register(new, group, ran)
    await old.start()
    if live == "while it runs":
        await new.start()
        await eventually(lambda: new.health()["connected"])
    await old.queue.add_bulk(some(not group, "abcdef"))
    await old.queue.add_bulk(some(not group, "xyz", delay=0.2))
    await new.start()
    if live == "before the start":
        told = [one.getMessage() for one in caplog.records if one.levelname == "WARNING" and "sync" in one.getMessage()]
        assert any(" 9 of its jobs " in line for line in told), told
    await new.queue.add_bulk(some(group, "123"))
    await eventually(lambda: ran.total() == 12, what=str(ran))
    await new.wait_idle(10)
    assert set(ran.values()) == {1}
    assert of_runtime(new) == []
    assert await of_store(new, settled=True) == []


@pytest.mark.parametrize("group", [True, False])
async def test_what_stands_there_is_counted_and_may_be_turned_back(make_runtime, group):
    ran: Counter[object] = Counter()
    old, looking, again = make_runtime(consume=False), make_runtime(consume=False), make_runtime()
    register(old, not group, ran)
    register(looking, group, ran)
    register(again, not group, ran)
    async with old, looking:
        await old.queue.add_bulk(some(not group, "abcdef"))
        await old.queue.add_bulk(some(not group, "xyz", delay=60))
        await looking.queue.add_bulk(some(group, "12"))
        for runtime in (old, looking):
            counts = await runtime.queue.counts("sync")
            assert (counts["waiting"], counts["delayed"]) == (8, 3)
    async with again:
        await eventually(lambda: ran.total() == 8)
        assert (await again.queue.counts("sync"))["delayed"] == 3


@pytest.mark.parametrize("group", [True, False])
async def test_retention_keeps_its_number_over_both_shapes_and_strands_no_record(make_runtime, redis, prefix, group):
    """Ids that look like listings of a group's jobs included."""
    ran: Counter[object] = Counter()
    first, second = make_runtime(), make_runtime()
    register(first, not group, ran, remove_on_complete=100, remove_on_fail=100)
    register(second, group, ran)
    hostile = ["1:gx", "2:g0abc", "0:x", ":", "99:short", "٣:xyzw", "-1:x", "3:", "12:"]
    async with first:
        for n, job_id in enumerate(hostile):
            group_id = None if group else f"g{n % 3}"
            await first.queue.add("sync", n, job_id=job_id, group_id=group_id)
        await first.queue.add_bulk(some(not group, ["bad"] * 8))
        await first.wait_idle(10)
    async with second:
        await second.queue.add_bulk(some(group, "abc"))
        await second.wait_idle(10)
        await second._assembly.trimmer.trim_everything()
        counts = await second.queue.counts("sync")
        assert (counts["completed"], counts["failed"]) == (5, 5)
        records = [key async for key in redis.scan_iter(match=f"*{prefix}:sync*:j:*", count=1000)]
        assert len(records) == 10, records
        await second._assembly.trimmer.trim_everything()
        assert (await second.queue.counts("sync"))["completed"] == 5


async def test_a_listing_that_is_nothing_of_ours_stops_no_retention(runtime, redis, prefix):
    ran: Counter[object] = Counter()
    register(runtime, True, ran)
    seen = Watcher(runtime)
    async with runtime:
        for member in (b"garbage", b"\xff\xfe", b"7:", b"9999999:x", b"x:y", b""):
            await redis.zadd(f"{{{prefix}:sync}}:c", {member: 1})
        await runtime.queue.add_bulk(some(True, "abcdefghi"))
        await seen("job.completed", count=9)
        await runtime._assembly.trimmer.trim_everything()
        assert await redis.zcard(f"{{{prefix}:sync}}:c") == 5
