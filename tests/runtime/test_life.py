"""A job's life: tries, backoff, discarding, timeouts, results, retention, threads."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
import time

import pytest

from asyncjobs import Backoff, ConfigError, Discard, JobFailedError, Limiter, PayloadError, Retention, RetryLater
from tests.helpers import Watcher, eventually


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def outcome(job, timeout=10):
    try:
        return await job.wait(timeout)
    except JobFailedError as error:
        return error.reason


async def test_tries_follow_attempts_and_backoff(runtime, seen, caplog):
    starts = []

    @runtime.job("flaky", attempts=4, backoff=Backoff("exponential", 0.1), limiter=None)
    async def flaky(data, job):
        starts.append((time.monotonic(), job.attempts_made, job.attempts))
        if job.attempts_made < 3:
            raise ConnectionError(f"try {job.attempts_made + 1}")
        return "at last"

    async with runtime:
        job = await runtime.queue.add("flaky", {})
        assert await job.wait(10) == "at last"
        record = await runtime.queue.get_job("flaky", job.id)
    assert [made for _, made, _ in starts] == [0, 1, 2, 3]
    assert [most for _, _, most in starts] == [4] * 4
    gaps = [b[0] - a[0] for a, b in itertools.pairwise(starts)]
    assert all(gap >= wait for gap, wait in zip(gaps, (0.1, 0.2, 0.4), strict=True)), gaps
    assert (record.attempts_made, record.state) == (4, "completed")
    assert [error.attempt for error in record.error] == [1, 2, 3]
    assert [error.text for error in record.error] == [f"ConnectionError: try {n}" for n in (1, 2, 3)]
    assert "in flaky" in record.error[0].stack
    assert "ConnectionError: try 2" in str(record.error)
    assert "executor.py" not in str(record.error)
    assert "failed at try 1 of 4, again in 0.1 s: ConnectionError: try 1" in caplog.text
    assert [event.attempts_made for event in seen.all("job.retrying")] == [1, 2, 3]
    assert seen.all("job.completed")[0].attempts_made == 4


async def test_backoff_none_retries_at_once_behind_what_waits(runtime):
    order = []

    @runtime.job("turns", attempts=2, backoff=None, limiter=None, concurrency=1)
    async def turns(data, job):
        order.append((data, job.attempts_made))
        if data == "a" and job.attempts_made == 0:
            raise ValueError

    async with runtime:
        await runtime.queue.add_bulk([("turns", one) for one in "abc"])
        await runtime.wait_idle(10)
    assert order == [("a", 0), ("b", 0), ("c", 0), ("a", 1)]


async def test_a_backoff_function_decides(runtime):
    asked = []

    def decide(attempts_made, error):
        asked.append((attempts_made, str(error)))
        return 0.05

    @runtime.job("custom", attempts=3, backoff=decide, limiter=None)
    async def custom(data):
        raise ValueError("x")

    async with runtime:
        assert await outcome(await runtime.queue.add("custom", 1)) == "ValueError: x"
    assert asked == [(1, "x"), (2, "x")]


async def test_steering(runtime, seen):
    tries = []

    @runtime.job("steer", attempts=5, backoff=0.01, limiter=None)
    async def steer(data, job):
        tries.append((data, job.attempts_made))
        if data == "discard and raise":
            job.discard()
            raise ValueError("for good")
        if data == "discard and return":
            job.discard()
            return "done"
        if data == "Discard":
            raise Discard("why not")
        if data == "later" and len([one for one in tries if one[0] == "later"]) < 3:
            raise RetryLater(0.05)
        if data == "bad later":
            raise RetryLater("soon")
        return "well"

    async with runtime:
        results = {}
        for what in ("discard and raise", "discard and return", "Discard", "later"):
            job = await runtime.queue.add("steer", what)
            results[what] = (await outcome(job), (await runtime.queue.get_job("steer", job.id)).attempts_made)
        assert "expected seconds" in await outcome(await runtime.queue.add("steer", "bad later"))
    assert results == {
        "discard and raise": ("ValueError: for good", 1),
        "discard and return": ("done", 1),
        "Discard": ("Discard: why not", 1),
        "later": ("well", 1),
    }
    assert [made for what, made in tries if what == "later"] == [0, 0, 0]


async def test_a_failure_is_logged_with_its_stack_from_the_handler_on(runtime, caplog):
    @runtime.job("thread", attempts=1, limiter=None)
    def thread(data):
        raise LookupError("nothing there")

    async with runtime:
        job = await runtime.queue.add("thread", {})
        await outcome(job)
        record = await runtime.queue.get_job("thread", job.id)
    assert f"thread {job.id} failed for good at try 1: LookupError: nothing there" in caplog.text
    for text in (caplog.text, str(record.error)):
        assert "in thread" in text
        assert "definition.py" not in text
        assert "concurrent" not in text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (asyncio.CancelledError("mine"), "CancelledError: mine"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (RecursionError("deep"), "RecursionError: deep"),
        (ValueError(), "ValueError"),
        (Unspeakable(), "Unspeakable: <its text cannot be read>"),
    ],
)
async def test_whatever_a_handler_raises_is_a_failure_and_no_more(runtime, error, text):
    @runtime.job("raises", attempts=1, limiter=None)
    async def raises(data):
        if data:
            raise error
        return "alive"

    async with runtime:
        assert await outcome(await runtime.queue.add("raises", 1)) == text
        assert await outcome(await runtime.queue.add("raises", 0)) == "alive"


async def test_a_result_that_has_no_json_form_fails_the_try(runtime):
    @runtime.job("odd", attempts=1, limiter=None)
    async def odd(data):
        return {"when": 1j}

    async with runtime:
        assert "result.when is a complex" in await outcome(await runtime.queue.add("odd", 1))


async def test_a_timeout_cancels_for_real_and_counts(runtime):
    state = []

    @runtime.job("long", attempts=2, backoff=0.01, timeout=0.2, limiter=None)
    async def long(data):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            state.append("cancelled")
            raise

    async with runtime:
        began = time.monotonic()
        assert "longer than its timeout of 0.2 s" in await outcome(await runtime.queue.add("long", 1))
        assert time.monotonic() - began < 5
        longer = await runtime.queue.add("long", 1, timeout=None)
        await asyncio.sleep(0.5)
        assert (await runtime.queue.get_job("long", longer.id)).state == "active"
    assert state == ["cancelled", "cancelled", "cancelled"]


async def test_a_handler_that_swallows_cancellation_is_settled_without_it(runtime):
    release = asyncio.Event()

    @runtime.job("stubborn", attempts=1, timeout=0.1, limiter=None, concurrency=2)
    async def stubborn(data):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with runtime:
        began = time.monotonic()
        assert "longer than its timeout" in await outcome(await runtime.queue.add("stubborn", 1))
        assert time.monotonic() - began < 4
        release.set()
        await runtime.wait_idle(5)
        assert (await runtime.queue.counts("stubborn"))["failed"] == 1


async def test_sync_handlers_run_in_threads_side_by_side_with_their_context(runtime):
    where = contextvars.ContextVar("where", default="nowhere")
    where.set("the app")
    barrier = threading.Barrier(3, timeout=5)

    @runtime.job("thread", limiter=None, concurrency=3, attempts=1)
    def thread(data, job, queue, io):
        barrier.wait()
        io.to("room").emit("hello", {"n": data})
        job.update_progress(50)
        job.log(f"line {data}")
        if data < 10:
            queue.add("thread", data + 10)
        return [threading.current_thread() is threading.main_thread(), job.attempts_made]

    async with runtime:
        jobs = await runtime.queue.add_bulk([("thread", i) for i in range(3)])
        assert [await job.wait(10) for job in jobs] == [[False, 0]] * 3
        await runtime.wait_idle(10)
        record = await runtime.queue.get_job("thread", jobs[2].id)
    assert (record.progress, record.logs) == (50, ("line 2",))
    assert runtime.io.accepted == 6


async def test_progress_and_logs_are_seen_while_it_runs(runtime, seen):
    go = asyncio.Event()

    @runtime.job("import", limiter=None)
    async def importing(data, job):
        await job.update_progress({"done": 10, "of": 100})
        await job.log("ten done")
        await job.log("é\nsecond")
        await go.wait()
        with pytest.raises(PayloadError, match="progress is a complex"):
            await job.update_progress(1j)
        with pytest.raises(PayloadError, match="expected text"):
            await job.log(5)

    async with runtime:
        job = await runtime.queue.add("import", 1)
        await seen("job.progress", job_id=job.id)
        record = await eventually(lambda: _with_two_lines(runtime, job))
        assert (record.state, record.progress) == ("active", {"done": 10, "of": 100})
        assert record.logs == ("ten done", "é\nsecond")
        go.set()
        await job.wait(5)
    assert seen.all("job.progress")[0].data == {"done": 10, "of": 100}


async def _with_two_lines(runtime, job):
    record = await runtime.queue.get_job("import", job.id)
    return record if len(record.logs) == 2 else None


async def test_retention_by_count_and_age_on_finish_and_by_timer(runtime, keys_left):
    @runtime.job("kept", limiter=None, remove_on_complete=Retention(age=1.2, count=5), remove_on_fail=2, attempts=1)
    async def kept(data):
        if data == "fail":
            raise ValueError

    async with runtime:
        await runtime.queue.add_bulk([("kept", i) for i in range(30)] + [("kept", "fail")] * 7)
        await runtime.wait_idle(10)
        counts = await runtime.queue.counts("kept")
        assert (counts["completed"], counts["failed"]) == (5, 2)
        await eventually(lambda: _none_completed(runtime), what="an idle queue is trimmed too")
        assert (await runtime.queue.counts("kept"))["failed"] == 2
        assert len([key for key in await keys_left() if ":j:" in key]) == 2


async def _none_completed(runtime):
    return (await runtime.queue.counts("kept"))["completed"] == 0


async def test_retention_of_groups_is_per_name(runtime, keys_left):
    @runtime.job("grouped", limiter=None, group=True, remove_on_complete=6)
    async def grouped(data):
        pass

    async with runtime:
        await runtime.queue.add_bulk([("grouped", i, {"group_id": f"g{i % 4}"}) for i in range(40)])
        await runtime.wait_idle(10)
        await eventually(lambda: _records(keys_left, 6))
        assert (await runtime.queue.counts("grouped"))["completed"] == 6


async def _records(keys_left, n):
    return len([key for key in await keys_left() if ":j:" in key]) == n


async def test_a_stored_payload_that_no_longer_fits_fails_for_good(runtime, redis):
    import msgspec

    class Order(msgspec.Struct):
        amount: int

    @runtime.job("order", limiter=None)
    async def order(data: Order):
        return data.amount

    async with runtime:
        job = await runtime.queue.add("order", {"amount": 1}, delay=0.3)
        broken = await runtime.queue.add("order", {"amount": 1}, delay=0.3)
        keys = runtime.queue._broker.queue_keys("order", None)
        await redis.hset(keys.job(job.id), "d", b'{"amount": "much"}')
        await redis.hset(keys.job(broken.id), "d", b"\xff garbage")
        assert "amount" in await outcome(job)
        assert "data does not fit" in await outcome(broken)
        assert (await runtime.queue.get_job("order", job.id)).attempts_made == 1


async def test_order_is_first_in_first_out_at_concurrency_one(runtime):
    order = []

    @runtime.job("ordered", limiter=None, concurrency=1)
    async def ordered(data):
        order.append(data)
        await asyncio.sleep(0)

    async with runtime:
        await runtime.queue.add_bulk([("ordered", i) for i in range(200)])
        for i in range(200, 230):
            await runtime.queue.add("ordered", i)
        await runtime.wait_idle(10)
    assert order == list(range(230))


async def test_concurrency_bounds_a_job_and_a_process(make_runtime):
    runtime = make_runtime(concurrency=5)
    active = {"a": 0, "b": 0}
    most = {"a": 0, "b": 0, "both": 0}

    def handler(name):
        async def handle(data):
            active[name] += 1
            most[name] = max(most[name], active[name])
            most["both"] = max(most["both"], sum(active.values()))
            await asyncio.sleep(0.02)
            active[name] -= 1

        return handle

    runtime.job("a", limiter=None, concurrency=2)(handler("a"))
    runtime.job("b", limiter=None, concurrency=10)(handler("b"))
    async with runtime:
        await runtime.queue.add_bulk([("a", i) for i in range(20)] + [("b", i) for i in range(60)])
        await runtime.wait_idle(20)
    assert most["a"] == 2
    assert most["both"] == 5


async def test_services_of_every_kind(make_runtime):
    from contextlib import asynccontextmanager

    events = []

    @asynccontextmanager
    async def factory():
        events.append("open")
        yield {"db": "pool"}
        events.append("closed")

    async def undecorated():
        events.append("open")
        yield {"db": "pool"}
        events.append("closed")

    def sync():
        events.append("open")
        yield {"db": "pool"}
        events.append("closed")

    pool = {"db": "pool"}
    for given, expected in (
        (factory, pool), (undecorated, pool), (sync, pool), ({"a": 1}, {"a": 1}), (None, None),
    ):  # fmt: skip
        runtime = make_runtime(services=given)

        @runtime.job("serve", limiter=None)
        async def serve(services):
            return services

        async with runtime:
            assert await (await runtime.queue.add("serve")).wait(5) == expected
    assert events == ["open", "closed"] * 3


async def test_registering_on_a_running_runtime(runtime, seen):
    async with runtime:

        @runtime.job("late", limiter=None)
        async def late(data):
            return "consumed only after the next start"

        @runtime.job("at-once", limiter=None, autorun=True)
        async def at_once(data):
            return "consumed"

        job = await late.add(1)
        assert await (await at_once.add(1)).wait(5) == "consumed"
        assert (await runtime.queue.get_job("late", job.id)).state == "waiting"
        with pytest.raises(ConfigError, match="registered already"):
            runtime.job("late")(late)
    async with runtime:
        assert await job_result(runtime, job) == "consumed only after the next start"


async def job_result(runtime, job):
    return (await eventually(lambda: _completed(runtime, job))).result


async def _completed(runtime, job):
    record = await runtime.queue.get_job(job.name, job.id)
    return record if record.state == "completed" else None


async def test_a_decorated_function_is_still_the_function(runtime):
    @runtime.job("sum-up", limiter=Limiter(5, 1), attempts=3)
    async def sum_up(data):
        return sum(data)

    assert await sum_up([1, 2, 3]) == 6
    assert runtime.queue.spec("sum-up").limiters == (Limiter(5, 1),)
    assert runtime.queue.spec(sum_up).job_options.attempts == 3
    with pytest.raises(ConfigError, match="no option 'limits'; did you mean 'limiter'"):
        runtime.job("x", limits=3)


async def test_a_subscriber_that_raises_harms_no_job(runtime, caplog):
    async def bad(event):
        raise RuntimeError("async subscriber")

    def worse(event):
        raise RuntimeError("sync subscriber")

    heard = []
    runtime.on("job.completed", bad)
    runtime.on("job.completed", worse)
    off = runtime.on("*", heard.append)

    @runtime.job("echo", limiter=None)
    async def echo(data):
        return data

    async with runtime:
        assert await (await echo.add(1)).wait(5) == 1
        await eventually(lambda: any(event.type == "job.completed" for event in heard))
        off()
        await (await echo.add(2)).wait(5)
    assert sorted(event.type for event in heard) == ["job.active", "job.added", "job.completed"]
    assert "sync subscriber" in caplog.text
    assert "async subscriber" in caplog.text


async def test_two_runtimes_in_one_process_share_the_work(make_runtime):
    done = []
    runtimes = [make_runtime(), make_runtime()]
    for place, runtime in enumerate(runtimes):
        runtime.job("shared", limiter=None, concurrency=1)(_noting(done, place))
    async with runtimes[0], runtimes[1]:
        watchers = [Watcher(runtime) for runtime in runtimes]
        await runtimes[0].queue.add_bulk([("shared", i) for i in range(20)])
        await runtimes[0].wait_idle(10)
    assert sorted(number for _, number in done) == list(range(20))
    assert {place for place, _ in done} == {0, 1}
    assert sum(len(one.all("job.completed")) for one in watchers) == 20


def _noting(done, place):
    async def handle(data):
        done.append((place, data))
        await asyncio.sleep(0.01)

    return handle


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit, ValueError])
async def test_whatever_a_subscriber_raises_harms_no_job(runtime, error):
    def raises(event):
        raise error("of a subscriber")

    for event_type in ("job.added", "job.active", "job.completed"):
        runtime.on(event_type, raises)
    runtime.job("echo", limiter=None)(lambda data: data)
    async with runtime:
        for n in range(3):
            assert await (await runtime.queue.add("echo", n)).wait(10) == n
