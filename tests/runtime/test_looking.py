"""Looking at all queues now and then, whether there was news or not, asks for those alone that hold something."""

from __future__ import annotations

from tests.helpers import eventually

NAMES = [f"job-{i}" for i in range(9)]


async def test_only_what_holds_a_job_is_looked_at(make_runtime):
    adder = make_runtime(consume=False)
    for name in NAMES:
        adder.job(name, limiter=None)(lambda data: None)
    async with adder:
        broker = adder._parts.broker
        queues = {name: broker.queue_keys(name, None) for name in NAMES}
        assert await broker.stirring(list(queues.values())) == []
        await adder.queue.add(NAMES[2])
        await adder.queue.add(NAMES[8], delay=3600)
        assert await broker.stirring(list(queues.values())) == [queues[NAMES[2]], queues[NAMES[8]]]
        assert await broker.stirring([queues[NAMES[8]]]) == [queues[NAMES[8]]]
        assert await broker.stirring([]) == []


async def test_a_job_whose_news_was_lost_is_found(make_runtime, redis):
    """Its channel is another's: the add tells nobody who listens."""
    worker, adder = make_runtime(sweep_interval=0.2), make_runtime(consume=False)
    ran: list[int] = []
    for runtime in (worker, adder):
        for name in NAMES:
            runtime.job(name, limiter=None)(lambda data: ran.append(data))
    async with worker, adder:
        await worker.wait_idle(10)
        broker = adder._parts.broker
        for name in NAMES:
            broker._places[name] = broker.place(name, None)._replace(news="nobody:listens")
        await adder.queue.add(NAMES[5], 5)
        await eventually(lambda: ran)
        assert ran == [5]
