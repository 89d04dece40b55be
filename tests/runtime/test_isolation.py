"""Nothing of one job is left in the next, though they may run one after the other in the same aio_task."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from asyncjobs.slot import IN_A_ROW
from tests.helpers import eventually

JOBS = 300
tenant: ContextVar[str] = ContextVar("tenant", default="")

kinds = pytest.mark.parametrize(("concurrency", "waits"), [(1, False), (10, False), (10, True)])


async def add_and_run(runtime, jobs: int = JOBS) -> None:
    async with runtime:
        await runtime.queue.add_bulk([("job", n) for n in range(jobs)])
        await runtime.wait_idle(20)


@kinds
async def test_what_a_handler_sets_in_a_context_variable_is_not_there_for_the_next(make_runtime, concurrency, waits):
    runtime = make_runtime()
    seen: list[str] = []

    @runtime.job("job", limiter=None, concurrency=concurrency, attempts=1)
    async def handle(data):
        seen.append(tenant.get())
        if data % 3:
            tenant.set(f"of {data}")
        if waits:
            await asyncio.sleep(0.001)

    await add_and_run(runtime)
    assert seen == [""] * JOBS


async def test_what_the_adding_request_has_in_a_context_variable_is_not_there_for_the_job(make_runtime):
    """Else it would depend on which process takes a job, and on whose request came first."""
    runtime = make_runtime()
    seen: list[str] = []

    @runtime.job("job", limiter=None)
    async def handle(data):
        seen.append(tenant.get())

    async with runtime:
        for n in range(5):
            tenant.set(f"request {n}")
            await runtime.queue.add("job", n)
            await eventually(lambda n=n: len(seen) == n + 1)
    assert seen == [""] * 5


@kinds
async def test_an_aio_task_is_used_again(make_runtime, concurrency, waits):
    runtime = make_runtime()
    names: list[str] = []

    @runtime.job("job", limiter=None, concurrency=concurrency, attempts=1)
    async def handle(data):
        names.append(asyncio.current_task().get_name())
        if waits:
            await asyncio.sleep(0.001)

    await add_and_run(runtime, 5 * JOBS)  # how many are held beyond the slots has to be learned first
    assert len(names) == 5 * JOBS
    assert len(set(names)) < 2.5 * JOBS


@kinds
async def test_who_keeps_its_aio_task_has_it_alone(make_runtime, concurrency, waits):
    """Sessions are kept by aio_task, and one that is cancelled too late must not take another job with it."""
    runtime = make_runtime()
    kept: list[asyncio.Task] = []
    cancelled: list[int] = []

    @runtime.job("job", limiter=None, concurrency=concurrency, attempts=1)
    async def handle(data):
        assert asyncio.current_task() not in kept
        try:
            await asyncio.sleep(0.001 if waits else 0)
        except asyncio.CancelledError:
            cancelled.append(data)
            raise
        for aio_task in kept:
            aio_task.cancel()
        kept.clear()
        if data % 2:
            kept.append(asyncio.current_task())

    await add_and_run(runtime)
    assert cancelled == []


@kinds
async def test_a_cancellation_that_comes_with_the_last_step_is_not_the_next_ones(make_runtime, concurrency, waits):
    runtime = make_runtime()
    cancelled: list[int] = []
    ran: list[int] = []

    @runtime.job("job", limiter=None, concurrency=concurrency, attempts=1)
    async def handle(data):
        try:
            await asyncio.sleep(0.001 if waits else 0)
        except asyncio.CancelledError:
            cancelled.append(data)
            raise
        ran.append(data)
        if data % 3 == 0:
            asyncio.current_task().cancel()

    await add_and_run(runtime)
    assert cancelled == []
    assert sorted(ran) == list(range(JOBS))


async def test_the_loop_has_its_turn_after_a_few_jobs_that_do_not_wait(make_runtime):
    runtime = make_runtime()
    since = most = 0

    @runtime.job("job", limiter=None, concurrency=1, attempts=1)
    async def handle(data):
        nonlocal since, most
        since += 1
        most = max(most, since)

    async def look():
        nonlocal since
        while True:
            since = 0
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    await add_and_run(runtime)
    looking.cancel()
    assert 1 < most <= IN_A_ROW
