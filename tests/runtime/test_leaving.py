"""Whatever leaves a try becomes an outcome: every exception that a guest may raise, at every place it may raise it.

After each the job is in the state that the contract names, its slot is free, and the next job runs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pydantic
import pytest

from asyncjobs import Discard, Limiter, RateLimited, RetryLater
from tests.helpers import eventually


class Unspeakable(Exception):
    """Its text, its repr and its class raise, and each of them something else."""

    def __str__(self) -> str:
        raise KeyboardInterrupt

    def __repr__(self) -> str:
        raise SystemExit(3)

    @property
    def __class__(self) -> Any:
        raise asyncio.CancelledError

    @property
    def __notes__(self) -> Any:
        raise GeneratorExit


class Kind(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise GeneratorExit


class Nameless(Exception, metaclass=Kind):
    """Not even its name can be had."""


class Untraceable(Exception):
    @property
    def __traceback__(self) -> Any:
        raise SystemExit(4)

    @property
    def __cause__(self) -> Any:
        raise KeyboardInterrupt


class Liar(Exception):
    """It says that it is a Discard; what it is decides."""

    __class__ = Discard  # type: ignore[assignment]


def cyclic() -> BaseException:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


def chained() -> BaseException:
    last: BaseException = ValueError("the first")
    for n in range(3000):
        then = ValueError(n)
        then.__cause__ = last
        last = then
    return last


def nested(inner: BaseException, depth: int = 3000) -> BaseException:
    for _ in range(depth):
        inner = BaseExceptionGroup("of one", [inner])
    return inner


FAILURES: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("no"),
    "StopIteration": lambda: StopIteration(1),
    "StopAsyncIteration": StopAsyncIteration,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "futures.CancelledError": concurrent.futures.CancelledError,
    "TimeoutError": TimeoutError,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(1),
    "RecursionError": RecursionError,
    "MemoryError": MemoryError,
    "BaseException": BaseException,
    "ExceptionGroup": lambda: ExceptionGroup("two", [ValueError(1), KeyError(2)]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("two", [SystemExit(1), asyncio.CancelledError()]),
    "mixed group": lambda: ExceptionGroup("two", [Discard("no"), ValueError(2)]),
    "deep group": lambda: nested(ValueError("deep")),
    "Unspeakable": Unspeakable,
    "Nameless": Nameless,
    "Untraceable": Untraceable,
    "Liar": Liar,
    "huge": lambda: ValueError("é\0\ud800" * 1_000_000),
    "huge lines": lambda: ValueError("line\n" * 2_000_000),
    "cyclic": cyclic,
    "chained": chained,
    "weird delay": lambda: RetryLater("soon"),  # type: ignore[arg-type]
    "endless delay": lambda: RetryLater(float("inf")),
    "negative delay": lambda: RetryLater(-1),
    "unspeakable delay": lambda: RetryLater(Weird()),  # type: ignore[arg-type]
    "weird wait": lambda: RateLimited(None),  # type: ignore[arg-type]
    "endless wait": lambda: RateLimited(float("nan")),
    "unspeakable wait": lambda: RateLimited(Weird()),  # type: ignore[arg-type]
}


class Weird:
    """A number that is none; its text is asked for where the exception is made, and raises from the third time on."""

    asked = 0

    def __str__(self) -> str:
        return "weird"

    def __repr__(self) -> str:
        raise KeyboardInterrupt

    def __float__(self) -> float:
        raise SystemExit(5)


def raised(kind: str) -> None:
    if kind:
        raise FAILURES[kind]()


@dataclasses.dataclass
class Record:
    kind: str

    def __post_init__(self) -> None:
        raised(self.kind if Record.strict else "")

    strict = False


class Struct(msgspec.Struct):
    kind: str

    def __post_init__(self) -> None:
        raised(self.kind if Record.strict else "")


class Model(pydantic.BaseModel):
    kind: str

    @pydantic.field_validator("kind")
    @classmethod
    def check(cls, value: str) -> str:
        raised(value if Record.strict else "")
        return value


class Result(pydantic.BaseModel):
    kind: str

    @pydantic.model_serializer
    def dump(self) -> Any:
        raised(self.kind)
        return {}


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """Validators are strict in the worker, and were not where the job was added: another release has added it."""
    Record.strict = False
    yield
    Record.strict = False


def in_an_async_handler(runtime: Any, **options: Any) -> None:
    @runtime.job("job", **options)
    async def handle(data):
        raised(data["kind"])


def in_an_async_handler_that_has_waited(runtime: Any, **options: Any) -> None:
    @runtime.job("job", **options)
    async def handle(data):
        await asyncio.sleep(0.001)
        raised(data["kind"])


def in_a_sync_handler(runtime: Any, **options: Any) -> None:
    @runtime.job("job", **options)
    def handle(data):
        raised(data["kind"])


def in_a_dataclass(runtime: Any, **options: Any) -> None:
    @runtime.job("job", **options)
    async def handle(data: Record):
        """Never with anything but an empty kind."""


def in_a_struct(runtime: Any, **options: Any) -> None:
    @runtime.job("job", **options)
    async def handle(data: Struct):
        """The same."""


def in_a_model(runtime: Any, **options: Any) -> None:
    @runtime.job("job", **options)
    async def handle(data: Model):
        """The same."""


def in_the_encoding_of_a_result(runtime: Any, **options: Any) -> None:
    @runtime.job("job", **options)
    async def handle(data):
        return Result(kind=data["kind"])


PLACES = (
    in_an_async_handler,
    in_an_async_handler_that_has_waited,
    in_a_sync_handler,
    in_a_dataclass,
    in_a_struct,
    in_a_model,
    in_the_encoding_of_a_result,
)
grouped = pytest.mark.parametrize("group", [None, "g 1"])
limited = pytest.mark.parametrize("limiter", [None, Limiter(500, 0.5)], ids=["free", "limited"])


async def add_one_of_each(runtime: Any, group: str | None) -> list[Any]:
    """A job for each failure, named after it."""
    options = {"group_id": group} if group else {}
    return await runtime.queue.add_bulk([("job", {"kind": kind}, {"job_id": kind, **options}) for kind in FAILURES])


async def all_in_state(runtime: Any, jobs: list[Any], state: str, group: str | None) -> list[Any]:
    """The jobs as they are read, once all are in `state`."""
    found: list[Any] = []

    async def there() -> bool:
        found[:] = [await runtime.queue.get_job("job", job.id, group_id=group) for job in jobs]
        return all(job.state == state for job in found)

    try:
        await eventually(there, 15)
    except AssertionError:
        wrong = {kind: job.state for kind, job in zip(FAILURES, found, strict=False) if job.state != state}
        raise AssertionError(f"not {state}: {wrong}") from None
    return found


async def the_next_one_runs(runtime: Any, group: str | None) -> None:
    job = await runtime.queue.add("job", {"kind": ""}, group_id=group)
    await job.wait(15)
    assert runtime.health()["running"] == 0
    assert runtime._assembly.pump.running == 0
    await eventually(lambda: runtime._assembly.pump.free_slots() == runtime.config.concurrency)


@grouped
@limited
@pytest.mark.parametrize("place", PLACES)
async def test_whatever_is_raised_is_a_failure_and_the_next_job_runs(make_runtime, place, group, limiter, caplog):
    caplog.set_level(logging.CRITICAL)
    desk, runtime = make_runtime(consume=False), make_runtime()
    for one in (desk, runtime):
        place(one, attempts=1, limiter=limiter, group=group is not None, concurrency=1)
    async with desk:
        jobs = await add_one_of_each(desk, group)
    Record.strict = True
    async with runtime:
        found = await all_in_state(runtime, jobs, "failed", group)
        for kind, job in zip(FAILURES, found, strict=True):
            assert job.attempts_made == 1, kind
            assert len(job.error) == 1, kind
            assert len(job.error[0].text.encode()) + len(job.error[0].stack.encode()) <= 8192, kind
        await the_next_one_runs(runtime, group)


@grouped
async def test_a_backoff_function_may_raise_anything(make_runtime, group, caplog):
    """The job waits a minute instead."""
    caplog.set_level(logging.CRITICAL)
    runtime = make_runtime()

    def backoff(made: int, error: BaseException) -> Any:
        raised(error.args[0])

    @runtime.job("job", limiter=None, concurrency=1, attempts=3, backoff=backoff, group=bool(group))
    async def handle(data):
        if data["kind"]:
            raise ValueError(data["kind"])

    async with runtime:
        jobs = await add_one_of_each(runtime, group)
        for job in await all_in_state(runtime, jobs, "delayed", group):
            assert job.attempts_made == 1
        await the_next_one_runs(runtime, group)


@pytest.mark.parametrize("given", [float("inf"), "soon", Weird(), None, 1e300, [], -float("inf"), float("nan")])
async def test_a_backoff_function_may_return_anything(make_runtime, given, caplog):
    caplog.set_level(logging.CRITICAL)
    runtime = make_runtime()

    @runtime.job("job", limiter=None, concurrency=1, attempts=3, backoff=lambda made, error: given)
    async def handle(data):
        if data["kind"]:
            raise ValueError

    async with runtime:
        await all_in_state(runtime, [await runtime.queue.add("job", {"kind": "x"})], "delayed", None)
        await the_next_one_runs(runtime, None)


@grouped
@limited
@pytest.mark.parametrize("when", ["made", "entered", "left"])
async def test_what_surrounds_a_try_may_raise_anything_and_harms_no_job(make_runtime, group, limiter, when, caplog):
    caplog.set_level(logging.CRITICAL)
    runtime = make_runtime()

    class Scope:
        def __init__(self, kind: str) -> None:
            self.kind = kind

        def __enter__(self) -> None:
            raised(self.kind if when == "entered" else "")

        def __exit__(self, *exc_info: object) -> None:
            raised(self.kind if when == "left" else "")

    def scope(job: Any) -> Any:
        kind = msgspec.json.decode(job.raw)["kind"]
        raised(kind if when == "made" else "")
        return Scope(kind)

    runtime._sentry.scope = scope

    @runtime.job("job", limiter=limiter, concurrency=1, attempts=3, group=bool(group))
    async def handle(data):
        return 7

    async with runtime:
        jobs = await add_one_of_each(runtime, group)
        for job in await all_in_state(runtime, jobs, "completed", group):
            assert (job.result, job.attempts_made) == (7, 1)
        await the_next_one_runs(runtime, group)


@grouped
@limited
@pytest.mark.parametrize("event", ["job.active", "job.completed", "job.failed", "job.retrying"])
async def test_a_subscriber_may_raise_anything_and_harms_no_job(make_runtime, group, limiter, event, caplog):
    caplog.set_level(logging.CRITICAL)
    runtime = make_runtime()
    runtime.on(event, lambda told: raised(told.job_id if told.job_id in FAILURES else ""))

    @runtime.job("job", limiter=limiter, concurrency=1, attempts=2, backoff=None, group=bool(group))
    async def handle(data):
        if data["kind"] and event != "job.completed":
            raise ValueError

    state = "completed" if event == "job.completed" else "failed"
    async with runtime:
        jobs = await add_one_of_each(runtime, group)
        for job in await all_in_state(runtime, jobs, state, group):
            assert job.attempts_made == (1 if state == "completed" else 2)
        await the_next_one_runs(runtime, group)


async def test_what_writes_the_log_may_raise_anything_and_harms_no_job(make_runtime):
    runtime = make_runtime()

    def refuse(record: logging.LogRecord) -> bool:
        for kind in FAILURES:
            if f" {kind} " in record.getMessage():
                raised(kind)
        return False

    @runtime.job("job", limiter=None, concurrency=1, attempts=2, backoff=None)
    async def handle(data):
        if data["kind"]:
            raise ValueError

    logger = logging.getLogger("asyncjobs")
    logger.addFilter(refuse)
    try:
        async with runtime:
            await all_in_state(runtime, await add_one_of_each(runtime, None), "failed", None)
            await the_next_one_runs(runtime, None)
    finally:
        logger.removeFilter(refuse)


# What steers -----------------------------------------------------------------------------------------------
def group_of(*errors: BaseException) -> BaseException:
    return BaseExceptionGroup("a group", list(errors))


STEERING = {
    "discard": (lambda: Discard("no"), "failed", 1),
    "later": (lambda: RetryLater(60), "delayed", 0),
    "limited": (lambda: RateLimited(60), "waiting", 0),
    "discards": (lambda: group_of(Discard("a"), Discard("b")), "failed", 1),
    "nested": (lambda: nested(RetryLater(60)), "delayed", 0),
    "nested twice": (lambda: group_of(group_of(RetryLater(60)), group_of(group_of(RetryLater(50)))), "delayed", 0),
    "discard and later": (lambda: group_of(RetryLater(60), Discard("no")), "failed", 1),
    "limited and later": (lambda: group_of(RetryLater(60), group_of(RateLimited(60))), "waiting", 0),
    "mixed": (lambda: group_of(RetryLater(60), ValueError()), "failed", 2),
    "mixed deep": (lambda: group_of(Discard("no"), group_of(ValueError())), "failed", 2),
}


@grouped
@pytest.mark.parametrize("case", STEERING)
async def test_a_group_of_nothing_but_steering_steers(make_runtime, case, group, caplog):
    caplog.set_level(logging.CRITICAL)
    runtime = make_runtime()
    make, state, attempts_made = STEERING[case]
    raise_it = True

    @runtime.job("job", limiter=None, concurrency=1, attempts=2, backoff=None, group=bool(group))
    async def handle(data):
        if raise_it:
            raise make()

    async with runtime:
        job = await runtime.queue.add("job", {"kind": ""}, group_id=group)

        async def there() -> Any:
            found = await runtime.queue.get_job("job", job.id, group_id=group)
            return found if found.state == state and found.started_at else None

        found = await eventually(there, 10)
        assert found.attempts_made == attempts_made
        assert runtime.health()["running"] == 0


async def test_a_discard_in_a_task_group_discards(make_runtime):
    runtime = make_runtime()

    @runtime.job("job", limiter=None)
    async def handle(data):
        async def one() -> None:
            raise Discard("not worth it")

        async with asyncio.TaskGroup() as group:
            group.create_task(one())
            group.create_task(asyncio.sleep(10))

    async with runtime:
        job = await runtime.queue.add("job", {})
        (found,) = await all_in_state(runtime, [job], "failed", None)
        assert found.attempts_made == 1
        assert "not worth it" in found.error[0].text


@pytest.mark.parametrize("result", [object(), {1, 2, (3, object())}, "x" * 2_000_000, 1 + 2j, float("nan")])
async def test_a_result_that_cannot_be_kept_fails_its_job_for_good_at_the_first_try(make_runtime, result):
    """Its side effect has happened; to run it again would not help either."""
    runtime = make_runtime()
    ran: list[Any] = []

    @runtime.job("job", limiter=None, attempts=5, backoff=None, concurrency=1)
    async def handle(data):
        ran.append(data)
        return result if data["kind"] else None

    async with runtime:
        (job,) = await all_in_state(runtime, [await runtime.queue.add("job", {"kind": "x"})], "failed", None)
        assert (job.attempts_made, len(job.error)) == (1, 1)
        assert "result" in job.error[0].text
        await the_next_one_runs(runtime, None)
    assert len(ran) == 2


async def test_discard_and_then_a_return_completes(make_runtime):
    runtime = make_runtime()

    @runtime.job("job", limiter=None)
    async def handle(job):
        job.discard()
        return 3

    async with runtime:
        added = await runtime.queue.add("job", {})
        assert await added.wait(10) == 3
        assert (await runtime.queue.get_job("job", added.id)).attempts_made == 1


async def test_a_discard_is_told_as_no_error(make_runtime, caplog):
    caplog.set_level(logging.DEBUG, "asyncjobs")
    runtime = make_runtime()

    @runtime.job("job", limiter=None)
    async def handle():
        raise Discard("not worth it")

    async with runtime:
        job = await runtime.queue.add("job", {})
        await all_in_state(runtime, [job], "failed", None)
        await eventually(lambda: "not worth it" in caplog.text)
    mine = [record for record in caplog.records if "not worth it" in record.getMessage()]
    assert [record.levelno < logging.ERROR and not record.exc_info for record in mine] == [True]


# Stopping --------------------------------------------------------------------------------------------------
async def swallows() -> None:
    for _ in range(3):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1.5)


async def returns() -> Any:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return "late"


async def turns_it_into(error: BaseException) -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        raise error from None


LEAVING = {
    "swallows": swallows,
    "returns": returns,
    "late": lambda: returns(),
    **{
        kind: (lambda kind=kind: turns_it_into(FAILURES[kind]()))
        for kind in FAILURES
        if kind not in ("huge", "huge lines", "KeyboardInterrupt", "SystemExit")
    },
    "KeyboardInterrupt": lambda: turns_it_into(KeyboardInterrupt()),
    "SystemExit": lambda: turns_it_into(SystemExit()),
    "discard": lambda: turns_it_into(Discard("no")),
    "later": lambda: turns_it_into(RetryLater(60)),
    "limited": lambda: turns_it_into(RateLimited(60)),
}


@pytest.mark.parametrize("timeout", [None, 100])
@grouped
async def test_whatever_a_handler_makes_of_a_stop_its_job_goes_back_uncounted(make_runtime, timeout, group, caplog):
    caplog.set_level(logging.CRITICAL)
    runtime = make_runtime()
    begun: set[str] = set()

    options = {"limiter": None, "concurrency": 100, "attempts": 1, "timeout": timeout, "group": bool(group)}

    @runtime.job("job", **options)
    async def handle(data):
        begun.add(data)
        return await LEAVING[data]()

    await runtime.start()
    jobs = await runtime.queue.add_bulk([("job", kind, {"group_id": group} if group else {}) for kind in LEAVING])
    await eventually(lambda: len(begun) == len(LEAVING))
    await eventually(lambda: not any(consumer.turns for consumer in runtime._assembly.queues.all()))
    await runtime.stop(grace=0)

    other = make_runtime(consume=False)
    other.job("job", **options)(handle)
    async with other:
        for kind, job in zip(LEAVING, jobs, strict=True):
            found = await other.queue.get_job("job", job.id, group_id=group)
            assert (found.state, found.attempts_made, found.stalled_count) == ("waiting", 0, 0), kind


@pytest.mark.parametrize("timeout", [None, 0.2])
async def test_a_handler_that_swallows_its_cancellation_keeps_its_slot_while_it_goes_on(make_runtime, timeout, caplog):
    runtime = make_runtime()
    running = most = 0
    go_on = asyncio.Event()

    @runtime.job("job", limiter=None, concurrency=1, attempts=1, timeout=timeout)
    async def handle(data):
        nonlocal running, most
        running += 1
        most = max(most, running)
        while data == "stubborn" and not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go_on.wait()
        running -= 1

    async with runtime:
        stubborn = await runtime.queue.add("job", "stubborn")
        await eventually(lambda: running == 1)
        following = await runtime.queue.add("job", "next")
        if timeout is None:
            next(iter(runtime._assembly.queues.consumers.values())).attempts.cancel_all()
        await eventually(lambda: "settling it without its handler" in caplog.text)
        if timeout is not None:
            await all_in_state(runtime, [stubborn], "failed", None)
        assert running == 1
        assert runtime._assembly.pump.running == 1
        go_on.set()
        await following.wait(10)
        await eventually(lambda: runtime._assembly.pump.running == 0)
    assert most == 1


# Tasks -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("everywhere", [False, True])
async def test_a_task_that_raises_anything_ticks_again(make_runtime, everywhere, caplog):
    caplog.set_level(logging.CRITICAL)
    runtime = make_runtime()
    kinds = [kind for kind in FAILURES if not kind.startswith("huge")]
    failed: dict[str, int] = {}
    runtime.on("task.failed", lambda told: failed.__setitem__(told.name, failed.get(told.name, 0) + 1))

    def register(number: int, kind: str) -> None:
        @runtime.task("* * * * * *", name=f"sync-{number}", every_instance=everywhere)
        def in_a_thread():
            raised(kind)

        @runtime.task("* * * * * *", name=f"async-{number}", every_instance=everywhere)
        async def on_the_loop():
            await asyncio.sleep(0)
            raised(kind)

    for number, kind in enumerate(kinds):
        register(number, kind)
    async with runtime:
        await eventually(
            lambda: len(failed) == 2 * len(kinds) and min(failed.values()) >= 2,
            what=f"all failed twice: {failed}",
        )
