"""Looking at all queues now and then, whether there was news or not, asks for those alone that hold something."""

from __future__ import annotations

import pytest

from asyncjobs import Retention
from tests.helpers import eventually

NAMES = [f"job-{i}" for i in range(9)]


async def test_only_what_holds_a_job_is_looked_at(make_runtime):
    adder = make_runtime(consume=False)
    for name in NAMES:
        adder.job(name, limiter=None)(lambda data: None)
    async with adder:
        broker = adder._assembly.broker
        queues = {name: broker.queue_keys(name, None) for name in NAMES}
        assert await broker.stirring(list(queues.values())) == []
        await adder.queue.add(NAMES[2])
        await adder.queue.add(NAMES[8], delay=3600)
        assert await broker.stirring(list(queues.values())) == [queues[NAMES[2]], queues[NAMES[8]]]
        assert await broker.stirring([queues[NAMES[8]]]) == [queues[NAMES[8]]]
        assert await broker.stirring([]) == []
        assert await broker.ended(list(queues.values())) == []


async def test_retention_by_timer_visits_only_names_that_keep_something(make_runtime, redis):
    """Of a hundred idle names it asks once for all; else a minute after its start a process asks hundreds of times."""
    runtime = make_runtime()
    for name in NAMES:
        runtime.job(name, limiter=None)(lambda data: data)
    async with runtime:
        await (await runtime.queue.add(NAMES[4], 1)).wait(10)
        await runtime.wait_idle(10)
        broker = runtime._assembly.broker
        trimmed: list[str] = []

        async def trim(keys, retention, *, real=broker.trim):
            trimmed.append(keys.tag)
            await real(keys, retention)

        broker.trim = trim
        await runtime._assembly.trimmer.trim_everything()
        assert trimmed == [broker.queue_keys(NAMES[4], None).tag]


async def test_a_job_whose_news_was_lost_is_found(make_runtime, redis):
    """Its channel is another's: the add tells nobody who listens."""
    worker, adder = make_runtime(sweep_interval=0.2), make_runtime(consume=False)
    ran: list[int] = []
    for runtime in (worker, adder):
        for name in NAMES:
            runtime.job(name, limiter=None)(lambda data: ran.append(data))
    async with worker, adder:
        await worker.wait_idle(10)
        broker = adder._assembly.broker
        for name in NAMES:
            broker._places[name] = broker.place(name, None)._replace(news="nobody:listens")
        await adder.queue.add(NAMES[5], 5)
        await eventually(lambda: ran)
        assert ran == [5]


@pytest.mark.parametrize(("age", "pause"), [(1, 1), (3600, 60), (30 * 86400, 3600)])
async def test_the_timer_of_retention_follows_the_shortest_age(make_runtime, age, pause):
    runtime = make_runtime()
    runtime.job("kept", remove_on_complete=Retention(age=age))(lambda data: data)
    async with runtime:
        assert runtime._assembly.trimmer._trim_interval() == pause
