"""Guests cannot harm the host: whatever they raise, however long they hang, and if they swallow a cancellation."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import warnings

import pytest

from asyncjobs import ConfigError, JobFailedError, RateLimited, RetryLater
from asyncjobs.events import EVENT_TYPES, MOST_RUNNING, MOST_WAITING, Event, EventBus
from asyncjobs.guests.calls import leave_behind
from asyncjobs.live_updates import MOST_STUCK, LiveUpdates
from asyncjobs.supervisor import Supervisor
from tests.helpers import BOUND, Watcher, eventually


class Unreadable(Exception):
    """Neither its text nor its name can be had."""

    def __str__(self) -> str:
        raise SystemExit("in __str__")

    __repr__ = __str__


class Own(BaseException):
    pass


RAISED = {
    "Exception": lambda: ValueError("boom"),
    "CancelledError": asyncio.CancelledError,
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration(1),
    "StopAsyncIteration": StopAsyncIteration,
    "RecursionError": lambda: RecursionError("deep"),
    "MemoryError": MemoryError,
    "a BaseException of its own": Own,
    "a group": lambda: BaseExceptionGroup("many", [KeyboardInterrupt(), ValueError()]),
    "unreadable": Unreadable,
    "a text of 2 MB": lambda: ValueError("x" * 2_000_000),
}
raised = pytest.mark.parametrize("error", RAISED.values(), ids=RAISED)


@pytest.fixture(autouse=True)
def nothing_is_forgotten():
    """No coroutine is left unawaited, whatever a test does."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        gc.collect()


def log_is_short(caplog) -> None:
    assert sum(len(record.getMessage()) for record in caplog.records) < 100_000


@raised
@pytest.mark.parametrize("kind", ["sync", "async", "awaitable"])
async def test_a_subscriber_may_raise_anything_at_every_event(runtime, error, kind, caplog):
    class Awaitable:
        def __await__(self):
            raise error()
            yield

    def sync(event):
        raise error()

    async def asynchronous(event):
        await asyncio.sleep(0)
        raise error()

    for event_type in EVENT_TYPES:
        runtime.on(event_type, {"sync": sync, "async": asynchronous, "awaitable": lambda event: Awaitable()}[kind])

    @runtime.job("echo", limiter=None, attempts=2, backoff=0.01, group=True, group_idle=0.2)
    async def echo(data, job):
        await job.update_progress(1)
        if data == "fail" or job.attempts_made == 0:
            raise ValueError
        return data

    @runtime.task("* * * * * *")
    async def tick():
        raise ValueError

    async with runtime:
        seen = Watcher(runtime)
        for n in range(3):
            assert await (await echo.add(n, group_id="a")).wait(BOUND) == n
        with pytest.raises(JobFailedError):
            await (await echo.add("fail", group_id="a")).wait(BOUND)
        await seen("task.failed")
        await seen("group.reaped")
        health = runtime.health()
        assert (health["status"], health["loops_down"]) == ("ok", [])
        assert health["events"]["failed"] >= 15
    assert {event.type for event in seen.events} >= {
        "job.added",
        "job.active",
        "job.retrying",
        "job.failed",
        "job.progress",
    }
    log_is_short(caplog)


@raised
async def test_socketio_may_raise_anything_called_or_awaited(make_runtime, error, caplog):
    class Rude:
        def emit(self, event, data, **options):
            if data["n"] % 2:
                raise error()
            return self._emit()

        async def _emit(self):
            await asyncio.sleep(0)
            raise error()

    runtime = make_runtime(io=Rude())

    @runtime.job("notify", limiter=None)
    async def notify(data, io):
        for n in range(10):
            await io.to("a").emit("x", {"n": n})

    async with runtime:
        for _ in range(3):
            await (await notify.add()).wait(BOUND)
        await eventually(lambda: runtime.io.dropped == 30)
        assert runtime.health()["loops_down"] == []
        assert runtime.health()["status"] == "ok"
    assert runtime.io.sent == 0
    log_is_short(caplog)


async def stubborn(*args, **kwargs):
    """Never ends, whatever is done to it."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


async def test_socketio_that_swallows_cancellation_holds_neither_the_next_nor_the_stop(make_runtime, monkeypatch):
    monkeypatch.setattr("asyncjobs.live_updates.SEND_TIMEOUT", 0.05)

    class Stubborn:
        async def emit(self, event, data, **options):
            if data == "stubborn":
                await stubborn()

    runtime = make_runtime(io=Stubborn())
    async with runtime:
        runtime.io.emit("x", "stubborn")
        runtime.io.emit("x", "fine")
        await eventually(lambda: runtime.io.sent == 1)
        assert runtime.io.dropped == 1
        for _ in range(3 * MOST_STUCK):
            runtime.io.emit("x", "stubborn")
        await eventually(lambda: runtime.io.dropped == 3 * MOST_STUCK + 1)
        assert len(runtime.io._stuck) == MOST_STUCK
        began = time.monotonic()
    assert time.monotonic() - began < 5


async def test_what_is_emitted_is_what_it_was_then(make_runtime):
    got = []

    class Slow:
        async def emit(self, event, data, **options):
            got.append((event, data))

    runtime = make_runtime(io=Slow())
    data = {"n": 0, "deep": [{"n": 0}], "file": bytearray(b"0")}
    plain = {"n": 0, "deep": [{"n": 0}]}

    async with runtime:
        for n in range(3):
            data["n"] = data["deep"][0]["n"] = n
            data["file"][:] = str(n).encode()
            plain["n"] = plain["deep"][0]["n"] = n
            runtime.io.emit("binary", data)
            runtime.io.emit("plain", plain)
            runtime.io.emit("many", (plain, n))
        data.clear()
        plain.clear()
        await eventually(lambda: len(got) == 9)
    for n in range(3):
        assert got[3 * n] == ("binary", {"n": n, "deep": [{"n": n}], "file": str(n).encode()})
        assert got[3 * n + 1] == ("plain", {"n": n, "deep": [{"n": n}]})
        assert got[3 * n + 2] == ("many", ({"n": n, "deep": [{"n": n}]}, n))


def endless():
    made = []
    made.append(made)
    return made


@pytest.mark.parametrize("data", [{1, 2}, object(), endless(), {(1, 2): 3}, {"x": b"1", "y": object()}, 1j])
def test_what_cannot_be_sent_is_refused_at_the_emit_by_name(data):
    from asyncjobs.errors import PayloadError

    io = LiveUpdates()
    with pytest.raises(PayloadError, match=r"io\.emit\('shipped'\): the data cannot be sent"):
        io.emit("shipped", data)
    assert io.accepted == 0


async def test_the_outbox_is_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr("asyncjobs.live_updates.OUTBOX_BYTES", 10_000)

    class Never:
        async def emit(self, *args, **kwargs): ...

    io = LiveUpdates(Never())
    for n in range(30):
        io.emit("x", "y" * 1000 if n % 2 else b"y" * 1000)
    assert io.accepted == 30
    assert 15 < io.dropped < 25
    io.emit("x", "y" * 20_000)
    assert not io._outbox
    assert io._bytes == 0


async def test_slow_subscribers_are_bounded_and_lose_the_oldest(runtime):
    release, seen = asyncio.Event(), []

    async def slow(event):
        await release.wait()
        seen.append(event.job_id)

    bus = runtime._bus
    bus.on("job.added", slow)
    total = MOST_RUNNING + MOST_WAITING + 50
    for n in range(total):
        bus.emit("job.added", "x", job_id=str(n))
    assert len([one for one in asyncio.all_tasks() if "contained" in repr(one)]) == MOST_RUNNING
    assert bus.dropped == 50
    release.set()
    await eventually(lambda: len(seen) == total - 50)
    dropped = {str(n) for n in range(total)} - set(seen)
    assert dropped == {str(n) for n in range(MOST_RUNNING, MOST_RUNNING + 50)}
    await eventually(lambda: not bus.busy)


async def test_a_subscriber_that_hangs_is_cancelled_in_time_and_counted(monkeypatch):
    monkeypatch.setattr("asyncjobs.events.TIME_LIMIT", 0.05)
    bus = EventBus()
    bus.on("job.added", lambda event: asyncio.Event().wait())
    for _ in range(3):
        bus.emit("job.added", "x")
    await eventually(lambda: bus.failed == 3)
    assert not bus.busy


async def test_a_subscription_that_has_ended_gets_nothing_and_others_go_on():
    bus, seen = EventBus(), []

    class Odd:
        """Equal to everything."""

        def __init__(self, name):
            self.name = name

        def __eq__(self, other):
            raise SystemExit

        def __call__(self, event: Event):
            seen.append(self.name)

    offs = [bus.on("*", Odd(name)) for name in "abc"]
    offs[1]()
    offs[1]()
    bus.emit("job.added", "x")
    assert seen == ["a", "c"]
    assert bus.wants("job.added")
    offs[0]()
    offs[2]()
    assert not bus.wants("job.added")


@pytest.mark.parametrize("where", ["subscriber", "emit", "handler", "task", "services", "sentry", "all"])
async def test_stop_is_bounded_and_the_loop_can_end_whatever_hangs(own_server, where, caplog):
    """The whole of an app: a loop of its own, that `asyncio.run` must be able to close."""

    def has(one):
        return where in (one, "all")

    took: list[float] = []
    left: list[str] = []

    def app():
        from asyncjobs import Runtime

        class Hanging:
            async def emit(self, *args, **kwargs):
                if has("emit"):
                    await stubborn()

        class Service:
            async def __aenter__(self):
                return self

            async def __aexit__(self, *error):
                if has("services"):
                    await stubborn()

        async def main():
            runtime = Runtime(own_server.url, io=Hanging(), services=Service, prefix="hang", environment="development")
            if has("subscriber"):
                runtime.on("job.active", stubborn)
            if has("sentry"):
                runtime._sentry._sdk = lambda: Sdk

            @runtime.job("work", limiter=None)
            async def work(data, io):
                io.emit("x", 1)
                if has("handler"):
                    await stubborn()

            @runtime.task("* * * * * *")
            async def tick():
                if has("task"):
                    await stubborn()

            seen = Watcher(runtime)
            await runtime.start()
            await work.add()
            await seen("job.active")
            await seen("task.fired")
            began = time.monotonic()
            await runtime.stop(grace=0.2)
            took.append(time.monotonic() - began)
            left.extend(repr(one) for one in asyncio.all_tasks() if one is not asyncio.current_task())
            if left:
                for one in asyncio.all_tasks():
                    leave_behind(one)

        class Sdk:
            @staticmethod
            def flush(timeout):
                time.sleep(60)

            @staticmethod
            def isolation_scope():
                raise SystemExit

            @staticmethod
            def get_client():
                raise SystemExit

        began = time.monotonic()
        asyncio.run(main())
        took.append(time.monotonic() - began)

    await asyncio.wait_for(asyncio.to_thread(app), 30)
    assert not left
    assert took[0] < 5.2
    assert took[1] < 10


@raised
@pytest.mark.parametrize("how", ["raises", "returns", "is cancelled"])
async def test_a_loop_that_ends_by_itself_starts_again_and_health_says_so(error, how, caplog):
    crew, starts, well = Supervisor(), [], asyncio.Event()

    async def loop():
        starts.append(1)
        if len(starts) > 2:
            well.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        if how == "raises":
            raise error()
        if how == "is cancelled":
            asyncio.current_task().cancel()
            await asyncio.sleep(0)

    crew.start("loop", loop)
    await eventually(lambda: crew.down() == ["loop"])
    await asyncio.wait_for(well.wait(), BOUND)
    assert crew.down() == ["loop"], "until it has gone well for a while"
    await eventually(lambda: crew.down() == [])
    assert "the loop loop has ended; it starts again in 0." in caplog.text
    log_is_short(caplog)
    await crew.stop()
    assert len(starts) == 3
    assert crew.down() == []


async def test_a_loop_ends_with_the_apps_own_loop_even_without_a_stop():
    crew, starts = Supervisor(), []

    async def loop():
        starts.append(1)
        await asyncio.Event().wait()

    async def main():
        crew.start("loop", loop)
        await asyncio.sleep(0)

    await asyncio.wait_for(asyncio.to_thread(asyncio.run, main()), BOUND)
    assert starts == [1]


@raised
async def test_an_errand_may_raise_anything_and_errands_of_one_name_never_pile_up(error, caplog):
    crew, runs, release = Supervisor(), [], asyncio.Event()

    async def errand():
        runs.append(1)
        await release.wait()
        raise error()

    for _ in range(1000):
        crew.once("errand", errand)
    release.set()
    await eventually(lambda: not crew._aio_tasks)
    assert len(runs) == 2
    log_is_short(caplog)
    crew.once("errand", errand)
    await crew.stop()  # before its first step: nothing is left unawaited


@raised
@pytest.mark.parametrize("when", ["made", "entered", "left"])
async def test_services_may_raise_anything(make_runtime, error, when, caplog):
    class Service:
        def __init__(self):
            if when == "made":
                raise error()

        async def __aenter__(self):
            if when == "entered":
                raise error()
            return self

        async def __aexit__(self, *error_info):
            if when == "left":
                raise error()

    runtime = make_runtime(services=Service)
    runtime.job("echo", limiter=None)(lambda data: data)
    wrong = error()
    if when == "left":
        async with runtime:
            assert await (await runtime.queue.add("echo", 1)).wait(BOUND) == 1
        assert runtime.state == "stopped"
        assert "the services raised while they were left" in caplog.text
    else:
        expected = (type(wrong), RuntimeError) if isinstance(wrong, Exception) else ConfigError  # of a StopIteration
        with pytest.raises(expected):
            await runtime.start()
        assert runtime.state == "stopped"
    log_is_short(caplog)


async def test_services_are_entered_and_left_in_one_aio_task_and_handlers_see_their_context(make_runtime):
    from contextvars import ContextVar

    where, variable = [], ContextVar("variable", default="unset")

    class Service:
        async def __aenter__(self):
            where.append(asyncio.current_task())
            self.token = variable.set("set")
            return self

        async def __aexit__(self, *error):
            where.append(asyncio.current_task())
            variable.reset(self.token)

    runtime = make_runtime(services=Service)

    @runtime.job("look", limiter=None)
    async def look(data, services):
        return variable.get()

    await runtime.start()
    assert await (await look.add()).wait(BOUND) == "set"
    await asyncio.create_task(runtime.stop())
    assert where[0] is where[1]


@raised
@pytest.mark.parametrize("place", ["client", "scope", "capture", "flush"])
async def test_sentry_may_raise_anything(make_runtime, error, place, monkeypatch, caplog):
    runtime = make_runtime()

    class Scope:
        def __enter__(self):
            if place == "scope":
                raise error()
            return self

        def __exit__(self, *error_info):
            if place == "scope":
                raise error()

        def __getattr__(self, name):
            if place == "scope":
                raise error()
            return lambda *args, **kwargs: self._capture(name)

        def _capture(self, name):
            if place == "capture" and name == "capture_event":
                raise error()

    class Client:
        transport = object()
        options: dict = {}  # noqa: RUF012

        def is_active(self):
            if place == "client":
                raise error()
            return True

    class Sdk:
        get_client = staticmethod(Client)
        isolation_scope = new_scope = Scope

        @staticmethod
        def flush(timeout):
            if place == "flush":
                raise error()

    monkeypatch.setitem(__import__("sys").modules, "sentry_sdk", Sdk)

    @runtime.job("fail", limiter=None, attempts=2, backoff=0.01)
    async def fail(data):
        if data:
            raise ValueError("no")
        return "well"

    async with runtime:
        assert await (await fail.add(0)).wait(BOUND) == "well"
        with pytest.raises(JobFailedError, match="no"):
            await (await fail.add(1)).wait(BOUND)
        assert runtime.health()["status"] == "ok"
    log_is_short(caplog)


@raised
async def test_backoff_functions_and_validators_may_raise_anything(runtime, error, seen, caplog):
    from dataclasses import dataclass

    broken = []

    @dataclass
    class Data:
        n: int

        def __post_init__(self):
            if broken:
                raise error()

    def backoff(attempts_made, failure):
        raise error()

    @runtime.job("retry", limiter=None, attempts=2, backoff=backoff)
    async def retry(data):
        raise ValueError

    @runtime.job("validated", limiter=None, attempts=1)
    async def validated(data: Data):
        return data.n

    async with runtime:
        await retry.add()
        await seen("job.retrying")
        waiting = await runtime.queue.add("validated", {"n": 1}, delay=0.2)
        broken.append(1)
        with pytest.raises(JobFailedError):
            await waiting.wait(BOUND)
        broken.clear()
        assert await (await runtime.queue.add("validated", {"n": 1})).wait(BOUND) == 1
    log_is_short(caplog)


class Rude:
    def __float__(self):
        raise SystemExit

    __repr__ = __str__ = __index__ = __float__


@pytest.mark.parametrize("steer", [RetryLater, RateLimited])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 1e300, 10**400, "soon", None, [], Rude()])
async def test_absurd_pauses_are_failures_like_any_other(runtime, steer, value, caplog):
    @runtime.job("steer", limiter=None, attempts=1)
    async def handler(data):
        made = steer(1)
        made.delay = made.retry_after = value
        raise made

    async with runtime:
        job = await handler.add()
        with pytest.raises(JobFailedError):
            await job.wait(BOUND)
    log_is_short(caplog)


@raised
async def test_what_the_logging_of_the_app_raises_harms_no_job(runtime, error, seen):
    class Broken(logging.Handler):
        def emit(self, record):
            raise error()

    handler = Broken()
    logging.getLogger("asyncjobs").addHandler(handler)
    try:

        @runtime.job("fail", limiter=None, attempts=2, backoff=0.01)
        async def fail(data):
            raise ValueError

        async with runtime:
            job = await fail.add()
            with pytest.raises(JobFailedError):
                await job.wait(BOUND)
    finally:
        logging.getLogger("asyncjobs").removeHandler(handler)
