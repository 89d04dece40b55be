"""One bad record, settlement or reply concerns one job: the others of its queue, and of the process, go on."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest

from asyncjobs.broker import Broker, WorkCall
from tests.helpers import eventually

grouped = pytest.mark.parametrize("group", [None, "g 1"])
DAMAGE = [
    ("a", b"many"), ("a", b""), ("a", b"-1"), ("a", b"1e3"), ("a", b"9" * 30), ("a", b"\xff"),
    ("s", b"often"), ("s", b"1.5"), ("t", b"today"), ("t", b"9" * 30), ("t", b"9" * 5000), ("t", b"\xff\xfe"),
]  # fmt: skip


async def take_as(runtime: Any, group: str | None, process: str) -> list[Any]:
    """Take all that waits as `process`, on a connection of its own, as if a reply had never come."""
    spec = runtime.queue._specs["job"]
    broker = Broker(runtime._redis, prefix=runtime.config.prefix, process="x", connect_timeout=5)
    try:
        keys = broker.queue_keys("job", group)
        call = WorkCall("job", keys, spec.grouped, b"taken", 100, 0, "", 0, 0, spec.retention, [])
        (reply,), _ = await broker.work(0, process, [call])
        return reply.jobs  # type: ignore[union-attr]
    finally:
        await broker.close()


def consumer_of(runtime: Any, group: str | None) -> Any:
    parts = runtime._assembly
    return parts.queues.consumers["job"] if group is None else parts.queues.registries["job"].open[group]


async def state_of(runtime: Any, job: Any, *states: str) -> Any:
    """The job as it is read, once it is in one of `states`."""

    async def there() -> Any:
        found = await runtime.queue.get_job("job", job.id, group_id=job.group_id)
        return found if found is not None and found.state in states else None

    return await eventually(there, 15, f"{job.id} in {states}")


@grouped
@pytest.mark.parametrize("by", ["take", "adopt", "sweep"])
async def test_a_record_whose_counts_are_no_numbers_fails_that_job_alone(make_runtime, redis, group, by, caplog):
    caplog.set_level(logging.CRITICAL)
    runtime = make_runtime(sweep_interval=0.2)
    ran: list[Any] = []
    options = {"group_id": group} if group else {}
    runtime.job("job", limiter=None, attempts=5, group=bool(group))(lambda data: ran.append(data))
    runtime.job("other", limiter=None)(lambda data: data)

    async def damage(jobs: list[Any]) -> None:
        keys = runtime.queue._broker.queue_keys("job", group)
        for (field, value), job in zip(DAMAGE, jobs, strict=False):
            await redis.hset(keys.job(job.id), field, value)

    adding = [("job", n, options) for n in range(len(DAMAGE) + 1)]
    if by == "adopt":
        async with runtime:
            if group:
                await (await runtime.queue.add("job", "first", **options)).wait(10)
            consumer_ = consumer_of(runtime, group)
            await eventually(lambda: consumer_.idle)
            consumer_.resting_until = float("inf")
            jobs = await runtime.queue.add_bulk(adding)
            await take_as(runtime, group, runtime._assembly.heartbeat.process)
            await damage(jobs)
            consumer_.lost_reply, consumer_.resting_until = True, 0.0
            consumer_.look_again()
            await self_consistent(runtime, jobs, by)
    else:
        async with runtime.only_adding():
            jobs = await runtime.queue.add_bulk(adding)
            if by == "sweep":
                await take_as(runtime, group, "dead")
            await damage(jobs)
        async with runtime:
            await self_consistent(runtime, jobs, by)
    assert len(DAMAGE) in ran


async def self_consistent(runtime: Any, jobs: list[Any], by: str) -> None:
    assert await (await runtime.queue.add("other", 1)).wait(10) == 1
    for (field, _), job in zip(DAMAGE, jobs, strict=False):
        swept = by == "sweep" and field == "s"  # a stall is counted anew
        found = await state_of(runtime, job, "completed" if swept else "failed")
        if not swept:
            assert f"its field {field!r}" in found.error[-1].text
            assert "no number" in found.error[-1].text
    await state_of(runtime, jobs[-1], "completed")
    await eventually(lambda: runtime._assembly.pump.running == 0)


async def test_an_entry_whose_id_is_no_text_holds_up_nothing(make_runtime, redis):
    runtime = make_runtime()
    runtime.job("job", limiter=None)(lambda data: data)
    async with runtime.only_adding():
        keys = runtime.queue._broker.queue_keys("job", None)
        job = await runtime.queue.add("job", 1)
        raw = keys.job("").encode() + b"\xff\xfe"
        await redis.hset(raw, mapping={"d": b"1", "t": b"1"})
        await redis.xadd(keys.stream, {"j": b"\xff\xfe"})
    async with runtime:
        await state_of(runtime, job, "completed")
        await runtime.wait_idle(10)
        assert await redis.hget(raw, "x") == b"f"
        assert (await runtime.queue.counts("job"))["active"] == 0


NEWER = {
    "an option": {"z": [1, 2], "a": 2},
    "a backoff": {"b": {"type": "linear", "delay": 1, "step": 2}},
    "a field of a backoff": {"b": {"type": "fixed", "delay": 1, "max_delay": None, "jitter": 0.0, "step": 2}},
    "both": {"b": {"type": {"of": 3}}, "z": None},
}


@grouped
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("case", NEWER)
async def test_what_a_newer_release_has_added_is_run_all_the_same(make_runtime, redis, group, raises, case, caplog):
    runtime = make_runtime()

    @runtime.job("job", limiter=None, attempts=5, backoff=60, concurrency=1, group=bool(group))
    async def handle(data):
        if data and raises:
            raise ValueError

    async with runtime.only_adding():
        job = await runtime.queue.add("job", 1, group_id=group)
        record = runtime.queue._broker.queue_keys("job", group).job(job.id)
        await redis.hset(record, "o", msgspec.json.encode(NEWER[case]))
    async with runtime:
        await state_of(runtime, job, "delayed" if raises else "completed")
        assert "newer release" in caplog.text
        await (await runtime.queue.add("job", 0, group_id=group)).wait(10)
        assert runtime._assembly.pump.running == 0


@grouped
@pytest.mark.parametrize(
    "options",
    [
        b"{", b"[]", b'{"a":"three"}', b'{"b":{"type":"fixed","delay":"soon"}}', b'{"b":7}', b'{"t":[]}',
        b'{"c":1}', b"[" * 100_000, b"\xff", b'{"b":{"type":"fixed","jitter":5}}',
    ],
)  # fmt: skip
async def test_options_that_cannot_be_read_fail_that_job_alone(make_runtime, redis, group, options, caplog):
    caplog.set_level(logging.CRITICAL)
    runtime = make_runtime()
    runtime.job("job", limiter=None, attempts=5, concurrency=1, group=bool(group))(lambda data: data)
    async with runtime.only_adding():
        job = await runtime.queue.add("job", 1, group_id=group)
        await redis.hset(runtime.queue._broker.queue_keys("job", group).job(job.id), "o", options)
    async with runtime:
        found = await state_of(runtime, job, "failed")
        assert "options" in found.error[0].text
        assert await (await runtime.queue.add("job", 2, group_id=group)).wait(10) == 2
        assert runtime._assembly.pump.running == 0


@pytest.mark.parametrize("field", ["w", "c", "g", "p", "h"])
@pytest.mark.parametrize("value", [b"\xff", b"many", b"7:", b"1:2:3"])
@grouped
async def test_settings_that_cannot_be_read_stop_no_queue(make_runtime, redis, group, field, value, caplog):
    caplog.set_level(logging.CRITICAL)
    runtime = make_runtime()
    runtime.job("job", limiter=None, group=bool(group))(lambda data: data)
    runtime.job("other", limiter=None)(lambda data: data)
    async with runtime:
        keys = runtime._assembly.broker.queue_keys("job", group)
        await redis.hset(keys.settings, field, value)
        job = await runtime.queue.add("job", 1, group_id=group)
        if field != "p":  # paused, whatever it says
            assert await job.wait(10) == 1
        assert await (await runtime.queue.add("other", 1)).wait(10) == 1


@grouped
@pytest.mark.parametrize("what", ["deleted", "overwritten"])
@pytest.mark.parametrize("outcome", ["returns", "raises", "retries"])
async def test_a_record_that_goes_while_its_job_runs_leaves_nothing_active(
    make_runtime, redis, group, what, outcome, caplog
):
    caplog.set_level(logging.CRITICAL)
    runtime = make_runtime()
    begun, go_on = asyncio.Event(), asyncio.Event()

    @runtime.job("job", limiter=None, concurrency=1, attempts=1 if outcome == "raises" else 2, group=bool(group))
    async def handle(data):
        if data:
            begun.set()
            await go_on.wait()
            if outcome != "returns":
                raise ValueError

    async with runtime:
        job = await runtime.queue.add("job", 1, group_id=group)
        await begun.wait()
        record = runtime._assembly.broker.queue_keys("job", group).job(job.id)
        await redis.delete(record)
        if what == "overwritten":
            await redis.set(record, "somebody else's")
        go_on.set()
        await (await runtime.queue.add("job", 0, group_id=group)).wait(10)
        await eventually(lambda: runtime._assembly.queues.unsettled() == 0)
        assert (await runtime.queue.counts("job", group_id=group))["active"] == 0


# Taken again ---------------------------------------------------------------------------------------------------
async def forget_the_take(redis: Any, keys: Any, job_id: str) -> None:
    """What a failover makes of a take that had not been replicated."""
    for entry, fields in await redis.xrange(keys.stream):
        if fields[b"j"] == job_id.encode():
            await redis.xack(keys.stream, "w", entry)
            await redis.xdel(keys.stream, entry)
    await redis.hdel(keys.job(job_id), "x", "r")
    await redis.xadd(keys.stream, {"j": job_id})


@grouped
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("by", ["forgotten", "swept", "adopted"])
async def test_a_job_that_is_taken_again_by_the_process_that_runs_it_is_settled(make_runtime, redis, group, raises, by):
    runtime = make_runtime()
    ran: list[int] = []
    begun, go_on = asyncio.Event(), asyncio.Event()

    @runtime.job("job", limiter=None, concurrency=4, attempts=1, group=bool(group))
    async def handle(data):
        ran.append(data)
        begun.set()
        await go_on.wait()
        if raises:
            raise ValueError

    async with runtime:
        job = await runtime.queue.add("job", 1, group_id=group)
        await begun.wait()
        keys, process = runtime._assembly.broker.queue_keys("job", group), runtime._assembly.heartbeat.process
        consumer_ = consumer_of(runtime, group)
        await eventually(lambda: not consumer_.turns)
        running = consumer_.attempts.running[job.id]
        token = running.token
        if by == "swept":
            back, _ = await runtime._assembly.broker.sweep("job", keys, process, "other", b"swept", 5)
            assert back == [job.id]
        elif by == "forgotten":
            await forget_the_take(redis, keys, job.id)
        else:
            await forget_the_take(redis, keys, job.id)
            assert [taken.job_id for taken in await take_as(runtime, group, process)] == [job.id]
            consumer_.lost_reply = True
        consumer_.look_again()
        await eventually(lambda: running.token != token)
        assert await redis.hget(keys.job(job.id), "r") == running.token
        go_on.set()
        await state_of(runtime, job, "failed" if raises else "completed")
        assert (await runtime.queue.counts("job", group_id=group))["active"] == 0
        await eventually(lambda: runtime._assembly.pump.free_slots() == runtime.config.concurrency)
    assert ran == [1]


async def test_a_try_that_was_lost_and_is_ours_again_goes_back(make_runtime, redis):
    """It was cancelled because another process owned its job; by now this one does, and must not forget it."""
    runtime = make_runtime()
    ran: list[int] = []
    cancelled, go_on = asyncio.Event(), asyncio.Event()

    @runtime.job("job", limiter=None, concurrency=4, attempts=1)
    async def handle(data):
        ran.append(data)
        if len(ran) == 1:
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()
                await go_on.wait()

    async with runtime:
        job = await runtime.queue.add("job", 1)
        await eventually(lambda: ran)
        keys = runtime._assembly.broker.queue_keys("job", None)
        consumer_ = consumer_of(runtime, None)
        running = consumer_.attempts.running[job.id]
        token = running.token
        consumer_.attempts.cancel(running, "lost")
        await cancelled.wait()
        await forget_the_take(redis, keys, job.id)
        consumer_.look_again()
        await eventually(lambda: running.token != token)
        go_on.set()
        await job.wait(10)
    assert ran == [1, 1]


async def test_an_outcome_that_was_not_settled_is_settled_as_what_was_taken_last(make_runtime, redis):
    runtime = make_runtime()
    ran: list[int] = []

    @runtime.job("job", limiter=None, concurrency=1)
    async def handle(data):
        ran.append(data)
        consumer_.resting_until = float("inf")  # it is not settled yet

    async with runtime:
        consumer_ = consumer_of(runtime, None)
        job = await runtime.queue.add("job", 1)
        await eventually(lambda: consumer_.outbox)
        await forget_the_take(redis, consumer_.keys, job.id)
        await take_as(runtime, None, runtime._assembly.heartbeat.process)
        consumer_.lost_reply, consumer_.resting_until = True, 0.0
        consumer_.look_again()
        await state_of(runtime, job, "completed")
    assert ran == [1]


# Errors --------------------------------------------------------------------------------------------------------
@grouped
@pytest.mark.parametrize("ordered", [False, True])
async def test_of_many_failed_tries_the_first_and_the_last_ten_are_kept(make_runtime, redis, group, ordered, caplog):
    caplog.set_level(logging.WARNING, "asyncjobs")
    runtime = make_runtime()

    @runtime.job("job", limiter=None, backoff=None, attempts=40, group=bool(group), ordered=ordered)
    async def handle(job):
        raise ValueError(f"no {job.attempts_made + 1} " + "x" * 100_000)

    async with runtime:
        job = await state_of(runtime, await runtime.queue.add("job", 1, group_id=group), "failed")
        record = await redis.hgetall(runtime._assembly.broker.queue_keys("job", group).job(job.id))
    assert [one.attempt for one in job.error] == [1, *range(31, 41)]
    assert job.error.left_out == 29
    assert "29 more failed tries" in str(job.error)
    assert all(one.text.startswith(f"ValueError: no {one.attempt} ") for one in job.error)
    assert sum(len(value) for value in record.values()) < 11 * 9000
    mine = [one for one in caplog.records if "failed" in one.getMessage() and "try" in one.getMessage()]
    assert len(mine) == 40
    assert all(len(logging.Formatter().format(one)) < 11_000 for one in mine)
    with_stack = [n for n, one in enumerate(mine, 1) if "raise ValueError(f" in logging.Formatter().format(one)]
    assert with_stack == [1, 40]
