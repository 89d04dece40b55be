"""Token buckets: exact in every window, shared by processes, nobody polls."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncjobs import Backoff, Limiter
from tests.helpers import Process, eventually, ledger, most_in_window, write


async def test_never_more_than_max_starts_in_any_window(runtime):
    starts = []

    @runtime.job("limited", limiter=Limiter(5, 0.5), concurrency=50)
    async def limited(data):
        starts.append(time.monotonic())

    async with runtime:
        await runtime.queue.add_bulk([("limited", i) for i in range(22)])
        counts = await runtime.queue.counts("limited")
        assert counts["waiting"] >= 15, "what the limit holds back stays waiting"
        await runtime.wait_idle(20)
    assert len(starts) == 22
    assert most_in_window(starts, 0.5) == 5
    assert starts[-1] - starts[0] >= 2.0


@pytest.mark.slow
async def test_a_hundred_a_second_over_long_jobs(runtime):
    """400 jobs of 0.7 s at 100 a second: never more than 100 at once, all done under 5 s."""
    active = most = 0

    @runtime.job("burst", limiter=Limiter(100, 1), concurrency=600)
    async def burst(data):
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.7)
        active -= 1

    async with runtime:
        began = time.monotonic()
        await runtime.queue.add_bulk([("burst", i) for i in range(400)])
        await runtime.wait_idle(20)
        took = time.monotonic() - began
    assert most == 100
    assert took < 5


async def test_retries_cost_tokens(runtime):
    starts = []

    @runtime.job("retried", limiter=Limiter(2, 0.4), attempts=3, backoff=Backoff("fixed", 0.01))
    async def retried(data):
        starts.append(time.monotonic())
        raise ValueError

    async with runtime:
        await runtime.queue.add_bulk([("retried", i) for i in range(2)])
        await runtime.wait_idle(20)
    assert len(starts) == 6
    assert most_in_window(starts, 0.4) == 2


async def test_without_a_limiter_nothing_waits(runtime):
    @runtime.job("free", limiter=None, concurrency=100)
    async def free(data):
        await asyncio.sleep(0.05)

    async with runtime:
        began = time.monotonic()
        await runtime.queue.add_bulk([("free", i) for i in range(100)])
        await runtime.wait_idle(20)
        assert time.monotonic() - began < 2


async def test_nobody_polls_for_a_token(make_runtime, redis):
    runtime = make_runtime(alerts=None)

    @runtime.job("slow", limiter=Limiter(1, 60))
    async def slow(data):
        pass

    async def commands():
        return (await redis.info("stats"))["total_commands_processed"]

    async with runtime:
        await runtime.queue.add_bulk([("slow", i) for i in range(10)])
        await eventually(lambda: _one_done(runtime))
        await asyncio.sleep(0.2)
        before = await commands()
        await asyncio.sleep(1.5)
        assert await commands() - before <= 4


async def _one_done(runtime):
    return (await runtime.queue.counts("slow"))["completed"] == 1


async def test_a_start_held_up_by_a_blocked_loop_keeps_its_window(runtime):
    starts = []

    @runtime.job("late", limiter=Limiter(2, 0.3), concurrency=20)
    async def late(data):
        starts.append(time.monotonic())
        if data % 5 == 1:
            time.sleep(0.12)

    async with runtime:
        await runtime.queue.add_bulk([("late", i) for i in range(14)])
        await runtime.wait_idle(20)
    assert len(starts) == 14
    assert most_in_window(starts, 0.3) <= 2


@pytest.mark.slow
async def test_two_processes_share_one_bucket(tmp_path):
    """`2/1 s` over two processes on one embedded store: never 3 starts in any 1 s."""
    write(
        tmp_path,
        {
            "jobs/mail.py": """
                import os, time
                from asyncjobs import Limiter, WorkerOptions
                worker_options = WorkerOptions(limiter=Limiter(2, 1))
                async def handle(data):
                    with open("starts", "a") as file:
                        file.write(f"{time.monotonic()} {os.getpid()}\\n")
            """
        },
    )
    processes = [Process(tmp_path, "run") for _ in range(2)]
    try:
        for process in processes:
            await process.says("ready")
        adding = Process(tmp_path, "-c", ADD_MANY, module=False)
        assert await adding.ended() == 0, adding.output
        lines = await eventually(lambda: len(ledger(tmp_path / "starts")) == 12 and ledger(tmp_path / "starts"))
    finally:
        for process in processes:
            process.kill()
    starts = [float(line.split()[0]) for line in lines]
    assert most_in_window(starts, 1.0) == 2
    assert max(starts) - min(starts) < 6.5


ADD_MANY = """
import asyncio
from asyncjobs import Runtime
async def main():
    async with Runtime(jobs="jobs", consume=False) as runtime:
        await runtime.queue.add_bulk([("mail", i) for i in range(12)])
asyncio.run(main())
"""
