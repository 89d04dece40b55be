"""The events of all processes, for a viewer in another one: only while it asks, bounded, and without payloads."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from asyncjobs import ConfigError
from asyncjobs import following as module
from tests.helpers import eventually


async def collect(runtime, found, *types):
    following = runtime.follow(types or None)
    try:
        async for event in following:
            found.append(event)
    finally:
        await following.aclose()


@contextlib.asynccontextmanager
async def followed(runtime, *types):
    """What a viewer hears, from when others have heard of it."""
    found = []
    aio_task = asyncio.ensure_future(collect(runtime, found, *types))
    try:
        yield found
    finally:
        aio_task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await aio_task


async def test_a_viewer_hears_what_happens_elsewhere_without_payloads(make_runtime):
    worker, viewer = make_runtime(), make_runtime(consume=False)

    @worker.job("charge", limiter=None, group=True, attempts=1)
    async def charge(data):
        if data != 1:
            raise ValueError("no \x1b[31m such card")

    async with worker, viewer, followed(viewer) as found:
        await eventually(lambda: worker._bus.wants("job.completed"))
        good = await charge.add(1, group_id="a\nb")
        bad = await charge.add({"secret": "payload"}, group_id="a\nb")
        await eventually(lambda: {one.type for one in found} >= {"job.completed", "job.failed"})
        (done,) = [one for one in found if one.type == "job.completed"]
        assert (done.name, done.group_id, done.job_id) == ("charge", "a\nb", good.id)
        assert done.duration >= 0
        assert done.process
        (failed,) = [one for one in found if one.type == "job.failed"]
        assert (failed.job_id, failed.error) == (bad.id, "ValueError: no ?[31m such card")
        assert failed.data is None


async def test_nobody_publishes_while_nobody_asks(make_runtime, monkeypatch):
    monkeypatch.setattr(module, "ASKED_FOR", 1)
    worker, viewer = make_runtime(), make_runtime(consume=False)
    worker.job("work", limiter=None)(lambda data: None)
    async with worker, viewer:
        assert not worker._bus.wants("job.completed")
        async with followed(viewer):
            await eventually(lambda: worker._bus.wants("job.completed"))
        await eventually(lambda: not worker._bus.wants("job.completed"), what="the watch lapses")


async def test_thousands_are_counted_and_not_told(make_runtime):
    worker, viewer = make_runtime(), make_runtime(consume=False)
    worker.job("work", limiter=None, concurrency=100)(lambda data: None)
    async with worker, viewer:
        following = viewer.follow("job.completed")
        first = asyncio.ensure_future(anext(following))
        await eventually(lambda: worker._bus.wants("job.completed"))
        assert not worker._bus.wants("job.added"), "nobody asks for those"
        began = time.monotonic()
        await worker.queue.add_bulk([("work", n) for n in range(2000)])
        await first
        heard = 1
        while True:
            try:
                async with asyncio.timeout(2.5):
                    await anext(following)
                heard += 1
            except TimeoutError:
                break
        await following.aclose()
        seconds = time.monotonic() - began
        assert heard <= module.MOST * (seconds + 1)
        assert 2000 - module.MOST <= heard + following.dropped <= 2000, "what came last may not be counted yet"


async def test_a_message_that_is_none_harms_nobody(make_runtime, redis, prefix):
    worker = make_runtime()
    worker.job("work", limiter=None)(lambda data: None)
    async with worker:
        for body in (b"", b"x", b"-1", b"99999", b"0", b"5 job.eaten", b"\xff"):
            await redis.execute_command("PUBLISH", f"{prefix}:watch", body)
        job = await worker.queue.add("work", 1)
        await job.wait(10)
        assert not worker._bus.wants("job.completed")


async def test_failures_are_told_among_thousands_that_are_well(make_runtime):
    worker, viewer = make_runtime(), make_runtime(consume=False)
    worker.job("work", limiter=None, concurrency=100)(lambda data: None)

    @worker.job("bad", limiter=None, attempts=1)
    async def bad(data):
        raise ValueError

    async with worker, viewer, followed(viewer) as found:
        await eventually(lambda: worker._bus.wants("job.completed"))
        await worker.queue.add_bulk([*(("work", n) for n in range(2000)), ("bad", 1)])
        await eventually(lambda: any(one.type == "job.failed" for one in found))


def test_a_type_that_there_is_not_is_refused(runtime):
    with pytest.raises(ConfigError, match="no event is called so"):
        runtime.follow("job.eaten")
