"""A blocked loop is noticed from outside, and the job that blocks it is named with its stack."""

from __future__ import annotations

import asyncio
import threading
import time

from tests.helpers import Watcher, eventually


def hold_everything_up(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_blocking_job_is_named_with_its_stack_and_the_length_of_the_block(runtime, seen, caplog):
    @runtime.job("greedy", limiter=None, lease=0.6)
    async def greedy(data):
        await asyncio.sleep(0)
        hold_everything_up(1.0)

    async with runtime:
        job = await greedy.add({})
        await seen("job.completed")
        await eventually(lambda: "free again" in caplog.text)
    assert f"<ActiveJob greedy {job.id} try 1> blocks the event loop" in caplog.text
    assert "hold_everything_up(1.0)" in caplog.text
    assert caplog.text.count("blocks the event loop") == 1


async def test_what_blocks_outside_of_a_job_is_shown_too(runtime, caplog):
    runtime.job("quick", limiter=None, lease=0.6)(lambda data: data)
    async with runtime:
        await asyncio.sleep(0.05)
        hold_everything_up(1.0)
        await eventually(lambda: "blocks the event loop" in caplog.text)
    assert "something outside of any job" in caplog.text


async def test_a_job_in_a_thread_blocks_nothing_and_the_watch_ends_with_the_runtime(runtime, seen, caplog):
    @runtime.job("thread", limiter=None, lease=0.6)
    def thread(data):
        time.sleep(0.8)

    async with runtime:
        await thread.add({})
        await Watcher(runtime)("job.completed")
    assert "blocks the event loop" not in caplog.text
    await eventually(lambda: not [one for one in threading.enumerate() if one.name == "asyncjobs watchdog"])
