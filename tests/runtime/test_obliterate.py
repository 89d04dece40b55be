"""Obliterating a queue while others use it: nothing is left half, nothing that runs is lost, a repeat goes on."""

from __future__ import annotations

import asyncio

import pytest

from asyncjobs import BrokerUnavailableError, JobFailedError, StateError
from tests.helpers import Watcher, eventually

LEFT = (":n", ":b", ":groups")  # what expires by itself, and what is reaped


@pytest.fixture(params=[False, True], ids=["plain", "grouped"])
async def desk(request, make_runtime):
    runtime = make_runtime(consume=False)
    runtime.job("send", limiter=None, group=request.param)(lambda data: None)
    async with runtime:
        yield runtime


def options(desk, n: int) -> dict:
    group = {"group_id": f"g{n % 3}"} if desk.queue.spec("send").grouped else {}
    return {**group, "delay": (None, 3600)[n % 2]}


async def fill(desk, number: int) -> None:
    await desk.queue.add_bulk([("send", n, options(desk, n)) for n in range(number)])


async def test_what_is_added_meanwhile_stays_or_goes_as_a_whole(desk, redis, prefix, keys_left):
    added, over = 0, False

    async def add() -> None:
        nonlocal added
        while not over:
            await fill(desk, 10)
            added += 10

    adding = asyncio.ensure_future(add())
    await eventually(lambda: added >= 100)
    for _ in range(10):
        before = added
        await desk.queue.job("send").obliterate()
        await eventually(lambda before=before: added > before)
    over = True
    await adding
    counts = await desk.queue.counts("send")
    records = [key for key in await keys_left() if ":j:" in key]
    assert len(records) == counts["waiting"] + counts["delayed"], "no record without a place, and no place without one"
    assert not (await desk.queue.job("send").info())["paused"]
    await desk.queue.job("send").obliterate()
    assert [key for key in await keys_left() if ":send" in key and not key.endswith(LEFT)] == []


async def test_one_that_was_interrupted_is_repeated(desk, keys_left, monkeypatch):
    await fill(desk, 1700)
    broker, real, calls = desk._assembly.broker, desk._assembly.broker.raze, 0

    async def breaks(keys, force):
        nonlocal calls
        calls += 1
        if calls == 1:
            raise BrokerUnavailableError("no")
        return await real(keys, force)

    monkeypatch.setattr(broker, "raze", breaks)
    with pytest.raises(BrokerUnavailableError):
        await desk.queue.job("send").obliterate(reason="a test")
    assert (await desk.queue.job("send").info())["paused"]
    await desk.queue.job("send").obliterate(reason="a test")
    assert sum((await desk.queue.counts("send")).values()) == 0
    assert [key for key in await keys_left() if ":send" in key and not key.endswith(LEFT)] == []
    trail = [one async for one in desk.queue.audit() if one.what != "remove"]
    assert [(one.what, one.reason) for one in trail] == [("obliterate", "a test")] * 2, "one that was paused, too"


async def test_who_waits_for_a_job_is_told(desk):
    job = await desk.queue.add("send", 1, **options(desk, 1))
    waiting = asyncio.ensure_future(job.wait(20))
    await eventually(lambda: desk._assembly.broker._watched)
    await desk.queue.job("send").obliterate()
    with pytest.raises(JobFailedError, match="gone"):
        await waiting


async def test_a_job_that_began_meanwhile_is_not_taken_from_under_its_handler(make_runtime, monkeypatch):
    runtime, go = make_runtime(), asyncio.Event()

    @runtime.job("send", limiter=None, remove_on_complete=10)
    async def send(data):
        await go.wait()
        return "ran"

    async with runtime:
        seen = Watcher(runtime)
        controls = runtime.queue.job("send")
        job = await runtime.queue.add("send", 1)
        await seen("job.active")

        async def none() -> int:
            return 0

        with pytest.raises(StateError, match="1 jobs"):
            await controls.obliterate()
        monkeypatch.setattr(controls, "_active", none)  # it looked a moment before the job began
        with pytest.raises(StateError, match="began meanwhile"):
            await controls.obliterate()
        go.set()
        assert await job.wait(20) == "ran"
        monkeypatch.undo()
        await controls.obliterate()
        assert sum((await runtime.queue.counts("send")).values()) == 0


async def test_of_a_group_its_finished_jobs_leave_the_counts_of_the_name(make_runtime):
    runtime = make_runtime()
    runtime.job("send", group=True, limiter=None, remove_on_complete=100)(lambda data: None)
    async with runtime:
        seen = Watcher(runtime)
        await runtime.queue.add_bulk([("send", n, {"group_id": "ab"[n % 2]}) for n in range(10)])
        await seen("job.completed", count=10)
        await runtime.queue.group("send", "a").obliterate()
        assert (await runtime.queue.counts("send"))["completed"] == 5
        assert (await runtime.queue.counts("send", "b"))["completed"] == 5
