"""What an operator sets while it runs: for one group or a whole name, from any process, kept in the store."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncjobs import Backoff, ConfigError, Limiter, QueueFullError, RateLimited, Runtime, WorkerOptions
from tests.helpers import Watcher, eventually, most_in_window


@pytest.fixture
def two(make_runtime):
    """A process that works and one that only adds and steers, with a grouped and a plain job; what ran, and when."""
    worker, operator = make_runtime(), make_runtime(consume=False)
    starts: dict[str, list[float]] = {}
    active: dict[str, int] = {}
    most: dict[str, int] = {}

    async def handle(data, job):
        queue = job.group_id or job.name
        starts.setdefault(queue, []).append(time.monotonic())
        active[queue] = active.get(queue, 0) + 1
        most[queue] = max(most.get(queue, 0), active[queue])
        await asyncio.sleep(data if isinstance(data, float) else 0)
        active[queue] -= 1

    for runtime in (worker, operator):
        runtime.job("tenant", limiter=None, group=True, group_idle=0.3)(handle)
        runtime.job("plain", limiter=None, concurrency=10)(handle)
    worker.starts, worker.most = starts, most
    return worker, operator


def queues(operator: Runtime):
    return {
        "acme": (operator.queue.group("tenant", "acme"), {"group_id": "acme"}),
        "plain": (operator.queue.job("plain"), {}),
    }


@pytest.mark.parametrize("which", ["acme", "plain"])
async def test_concurrency_and_limit_are_set_from_another_process_and_cleared_again(two, which):
    worker, operator = two
    async with worker, operator:
        steering, options = queues(operator)[which]
        name = steering.name
        before = 1 if which == "acme" else 10
        await steering.set(concurrency=3, limiter=None)
        await operator.queue.add(name, 0.0, **options)
        await worker.wait_idle(5)
        await operator.queue.add_bulk([(name, 0.05, options) for _ in range(12)])
        await worker.wait_idle(10)
        assert worker.most[which] == 3
        await steering.set(limiter=Limiter(4, 0.5))
        worker.starts[which].clear()
        await operator.queue.add_bulk([(name, 0.0, options) for _ in range(12)])
        await worker.wait_idle(10)
        assert most_in_window(worker.starts[which], 0.5) <= 4
        assert worker.starts[which][-1] - worker.starts[which][0] > 0.9
        info = await steering.info()
        assert (info["concurrency"], info["limiter"], info["paused"], info["completed"]) == (3, "4:500000", False, 25)
        await steering.clear()
        worker.most.clear()
        worker.starts[which].clear()
        await operator.queue.add_bulk([(name, 0.05, options) for _ in range(12)])
        await worker.wait_idle(10)
        assert worker.most[which] == before


@pytest.mark.parametrize("which", ["acme", "plain"])
async def test_a_pause_holds_everywhere_keeps_everything_and_ends(two, which):
    worker, operator = two
    async with worker, operator:
        steering, options = queues(operator)[which]
        await steering.pause()
        jobs = await operator.queue.add_bulk([(steering.name, 0.0, options) for _ in range(5)])
        other = await operator.queue.add("tenant", 0.0, group_id="other")
        await other.wait(5)
        assert await steering.info() | {"paused": True, "waiting": 5, "completed": 0} == await steering.info()
        assert which not in worker.starts
    async with worker, operator:  # a pause outlives every process
        steering, _ = queues(operator)[which]
        await (await operator.queue.add("tenant", 0.0, group_id="another")).wait(5)
        assert which not in worker.starts
        began = time.monotonic()
        await steering.resume()
        for job in jobs:
            await (await operator.queue.get_job(steering.name, job.id, **options)).wait(5)
        assert time.monotonic() - began < 2


async def test_what_is_set_for_a_grouped_name_holds_for_every_group_of_it(two):
    worker, operator = two
    async with worker, operator:
        name = operator.queue.job("tenant")
        await name.pause()
        await eventually(lambda: worker._assembly.queues.registries["tenant"].limits.paused)
        await operator.queue.add_bulk([("tenant", 0.02, {"group_id": g}) for g in ("a", "b") for _ in range(8)])
        await (await operator.queue.add("plain", 0.0)).wait(5)
        assert "a" not in worker.starts
        assert (await name.info())["waiting"] == 16
        await name.set(concurrency=2)
        await operator.queue.group("tenant", "b").set(concurrency=4)
        await name.resume()
        await worker.wait_idle(10)
        assert worker.most == {"a": 2, "b": 4, "plain": 1}, "a group's own settings go first"
        await name.clear()
        await eventually(lambda: worker._assembly.queues.registries["tenant"].limits.concurrency == 1, 1)
        worker.most.clear()
        await operator.queue.add_bulk([("tenant", 0.02, {"group_id": g}) for g in ("a", "b") for _ in range(8)])
        await worker.wait_idle(10)
        assert worker.most == {"a": 1, "b": 4}


async def test_a_full_queue_refuses_and_says_which(two):
    worker, operator = two
    async with operator:
        await operator.queue.group("tenant", "acme").set(max_waiting=3)
        await operator.queue.job("tenant").set(max_waiting=5)
        await operator.queue.job("plain").set(max_waiting=2)
        for _ in range(3):
            await operator.queue.add("tenant", 0.0, group_id="acme")
        with pytest.raises(QueueFullError, match=r"tenant, group 'acme', is full: max_waiting=3") as caught:
            await operator.queue.add("tenant", 0.0, group_id="acme", job_id="mine")
        assert caught.value.job_ids == ("mine",)
        assert await operator.queue.get_job("tenant", "mine", "acme") is None

        async def bound_is_known():
            try:
                await operator.queue.add_bulk([("tenant", 0.0, {"group_id": "other", "delay": 9}) for _ in range(6)])
            except QueueFullError as error:
                return error
            return None

        assert (await eventually(bound_is_known, 5)).max_waiting == 5
        await operator.queue.add("plain", 0.0, delay=60)
        await operator.queue.add("plain", 0.0)
        with pytest.raises(QueueFullError, match="plain is full"):
            await operator.queue.add("plain", 0.0)
        await operator.queue.job("plain").set(max_waiting=None)
        await operator.queue.add("plain", 0.0)
        async with worker:
            await operator.queue.group("tenant", "acme").set(max_waiting=None)
            await eventually(lambda: len(worker.starts.get("acme", ())) == 3)


async def test_settings_outlive_a_reaped_group_and_a_hold_does_not(two, redis):
    worker, operator = two
    seen = Watcher(worker)
    async with worker, operator:
        steering = operator.queue.group("tenant", "acme")
        await steering.set(weight=7)
        await (await operator.queue.add("tenant", 0.0, group_id="acme")).wait(5)
        await seen("group.reaped", group_id="acme")
        assert (await steering.info())["weight"] == 7
        key = operator.queue._broker.queue_keys("tenant", "acme").settings
        assert await redis.hgetall(key) == {b"g": b"7"}
        await steering.clear()
        assert not await redis.exists(key)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "set\\(\\) was given nothing"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"weight": 0}, "weight=0"),
        ({"weight": 1001}, "from 1 to 1000"),
        ({"max_waiting": -1}, "max_waiting=-1"),
        ({"limiter": 5}, "limiter=5"),
        ({"limiter": [Limiter(1, n + 1) for n in range(5)]}, "4 windows at most"),
        ({"limiter": Limiter(1, 1, name="shared")}, "cannot be set here"),
    ],
)
async def test_what_cannot_be_is_refused(two, given, text):
    _, operator = two
    async with operator:
        with pytest.raises(ConfigError, match=text):
            await operator.queue.group("tenant", "acme").set(**given)
        assert await operator.queue._broker.settings(operator.queue._broker.queue_keys("tenant", "acme")) == {}
    with pytest.raises(ConfigError, match="has no groups"):
        async with operator:
            operator.queue.group("plain", "acme")


async def test_weights_share_a_crowded_process(make_runtime):
    adder, worker = make_runtime(consume=False), make_runtime(concurrency=4)
    order: list[str] = []

    async def handle(data, job):
        order.append(job.group_id)
        await asyncio.sleep(0.002)

    for runtime in (adder, worker):
        runtime.job("tenant", limiter=None, group=True, concurrency=4)(handle)
    async with adder:
        await adder.queue.group("tenant", "heavy").set(weight=3)
        await adder.queue.add_bulk(
            [("tenant", n, {"group_id": g}) for g in ("light", "heavy", "other") for n in range(150)]
        )
        async with worker:
            await eventually(lambda: order.count("heavy") == 150)
            heavy = len(order) - order[::-1].index("heavy")
            await worker.wait_idle(20)
    served = {group: order[:heavy].count(group) for group in ("light", "other")}
    assert all(30 <= count <= 75 for count in served.values()), served


async def test_a_handler_that_is_told_to_slow_down_holds_its_queue_uncounted(runtime, seen):
    starts: list[tuple[str, object, float]] = []

    async def handle(data, job):
        starts.append((job.group_id, data, time.monotonic()))
        if data == "429" and len([one for one in starts if one[1] == "429"]) == 1:
            raise RateLimited(0.5)

    runtime.job("call", limiter=None, group=True)(handle)
    async with runtime:
        first = await runtime.queue.add("call", "429", group_id="acme")
        await runtime.queue.add_bulk([("call", n, {"group_id": "acme"}) for n in range(3)])
        await seen("job.retrying")
        assert (await runtime.queue.group("call", "acme").info())["held_until"] is not None
        await (await runtime.queue.add("call", "free", group_id="other")).wait(2)
        await runtime.wait_idle(5)
        record = await runtime.queue.get_job("call", first.id, "acme")
        assert (record.state, record.attempts_made) == ("completed", 1)
    acme = [(data, at) for group, data, at in starts if group == "acme"]
    assert [data for data, _ in acme] == ["429", "429", 0, 1, 2], "it is back at the head"
    assert acme[1][1] - acme[0][1] >= 0.49
    assert next(at for _, data, at in starts if data == "free") < acme[1][1], "other groups go on"


async def test_ordered_holds_everything_behind_a_job_that_fails(make_runtime):
    runtimes = [make_runtime() for _ in range(2)]
    order: list[tuple[str, int, int]] = []

    async def handle(data, job):
        order.append((job.group_id or "", data, job.attempts_made))
        if data == 1 and job.attempts_made < 2:
            raise ValueError("not yet")

    for runtime in runtimes:
        options = {"limiter": None, "ordered": True, "attempts": 5, "backoff": Backoff("fixed", 0.15)}
        runtime.job("ledger", group=True, **options)(handle)
        runtime.job("line", **options)(handle)
    async with runtimes[0], runtimes[1]:
        await runtimes[0].queue.add_bulk([("ledger", n, {"group_id": "acme"}) for n in range(4)])
        await runtimes[0].queue.add_bulk([("line", n) for n in range(4)])
        await runtimes[0].wait_idle(10)
        record = (await runtimes[0].queue.counts("line"))["completed"]
    wanted = [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0)]
    assert [one[1:] for one in order if one[0]] == wanted
    assert [one[1:] for one in order if not one[0]] == wanted, "over both processes"
    assert record == 4


async def test_ordered_that_fails_for_good_lets_the_next_one_go(runtime):
    ran: list[int] = []

    @runtime.job("line", limiter=None, ordered=True, attempts=2, backoff=0.05)
    async def line(data):
        ran.append(data)
        if data == 0:
            raise ValueError("never")

    async with runtime:
        await runtime.queue.add_bulk([("line", n) for n in range(3)])
        await runtime.wait_idle(5)
        counts = await runtime.queue.counts("line")
    assert ran == [0, 0, 1, 2]
    assert (counts["completed"], counts["failed"]) == (2, 1)


def test_order_needs_concurrency_one():
    with pytest.raises(ConfigError, match="order needs concurrency 1"):
        WorkerOptions(ordered=True, concurrency=2)
