"""What a runtime tells of itself: the job on the app's own log lines, which logger says what, counters, health."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

import asyncjobs
from asyncjobs import JobLogFilter, RetryLater, current_job
from tests.helpers import eventually


class Kept(logging.Handler):
    """Every record, as the filters have left it."""

    def __init__(self, *filters: logging.Filter) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        for one in filters:
            self.addFilter(one)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def parts(self, message: str) -> tuple:
        (record,) = [one for one in self.records if one.getMessage() == message]
        return record.job, record.group, record.id, record.attempt  # type: ignore[attr-defined]


@pytest.fixture
def shop():
    """The app's own logger, with a handler that has the filter."""
    logger, handler = logging.getLogger("shop"), Kept(JobLogFilter())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)


log = logging.getLogger("shop")


async def test_the_job_is_on_the_lines_of_its_handler_and_of_what_that_calls(runtime, shop):
    beside = asyncio.Event()

    async def helper(text):
        log.info(text)

    @runtime.job("charge", limiter=None, attempts=2, backoff=0.01)
    async def charge(data, job):
        assert current_job() is job
        log.info("%s try %d", data, job.attempts_made + 1)
        await asyncio.gather(helper(f"{data} beside {job.attempts_made + 1}"))
        if data == "twice" and not job.attempts_made:
            raise ValueError("once more")

    @runtime.job("sync", group=True, limiter=None)
    async def sync(data):
        log.info("group %s", current_job().group_id)

    @runtime.on("job.completed")
    def completed(event):
        assert current_job() is None
        log.info("completed %s", event.job_id)
        beside.set()

    async with runtime:
        log.info("outside")
        assert current_job() is None
        one = await charge.add("once")
        two = await charge.add("twice")
        three = await sync.add(1, group_id="acme")
        for job in (one, two, three):
            await job.wait(10)
        await beside.wait()
    assert shop.parts("outside") == (None, None, None, None)
    assert shop.parts("once try 1") == ("charge", None, one.id, 1)
    assert shop.parts("once beside 1") == ("charge", None, one.id, 1)
    assert shop.parts("twice try 2") == ("charge", None, two.id, 2)
    assert shop.parts("group acme") == ("sync", "acme", three.id, 1)
    assert shop.parts(f"completed {one.id}") == (None, None, None, None)


async def test_it_is_there_in_a_thread_too_and_works_as_the_handlers_own(runtime, shop):
    @runtime.job("resize", limiter=None)
    def resize(data, job):
        mine = current_job()
        assert (mine.id, mine.name, mine.attempts_made) == (job.id, "resize", 0)
        mine.log("from the thread")
        log.info("in %s", threading.current_thread().name)
        return threading.current_thread() is threading.main_thread()

    async with runtime:
        job = await resize.add(1)
        assert await job.wait(10) is False
        assert (await runtime.queue.get_job("resize", job.id)).logs == ("from the thread",)
    assert shop.parts("in asyncjobs") == ("resize", None, job.id, 1)
    assert current_job() is None


async def test_a_task_has_no_job(runtime, shop):
    ticked = asyncio.Event()

    @runtime.task("* * * * * *", name="tick")
    async def tick():
        log.info("tick %s", current_job())
        ticked.set()

    async with runtime:
        await asyncio.wait_for(ticked.wait(), 10)
    assert shop.parts("tick None") == (None, None, None, None)


async def test_the_filter_leaves_what_the_app_has_put_there_and_says_what_is_missing(runtime):
    handler = Kept(JobLogFilter(missing="-"), JobLogFilter())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:

        @runtime.job("charge", limiter=None)
        async def charge(data):
            log.info("mine", extra={"id": "order 7"})

        async with runtime:
            await (await charge.add(1)).wait(10)
            log.info("outside")
    finally:
        log.removeHandler(handler)
    assert handler.parts("mine") == ("charge", "-", "order 7", 1)
    assert handler.parts("outside") == ("-", "-", "-", "-")


async def test_structlog_sees_the_job(make_runtime):
    structlog = pytest.importorskip("structlog")
    runtime = make_runtime()
    seen: list[dict] = []

    def keep(logger, method, event):
        seen.append(dict(event))
        raise structlog.DropEvent

    logger = structlog.wrap_logger(None, processors=[structlog.contextvars.merge_contextvars, keep])

    @runtime.job("charge", limiter=None, concurrency=1)
    async def charge(data, job):
        structlog.contextvars.bind_contextvars(customer=data)
        logger.info("charged")

    @runtime.job("sync", limiter=None, group=True)
    def sync(data):
        logger.info("synced")

    async with runtime:
        jobs = await runtime.queue.add_bulk(
            [("charge", 1), ("charge", 2), ("sync", 3, {"group_id": "acme"})],
        )
        for job in jobs:
            await job.wait(10)
        logger.info("outside")
    by_event = {(one.pop("event"), one.get("id")): one for one in seen}
    assert by_event == {
        ("charged", jobs[0].id): {"job": "charge", "id": jobs[0].id, "attempt": 1, "customer": 1},
        ("charged", jobs[1].id): {"job": "charge", "id": jobs[1].id, "attempt": 1, "customer": 2},
        ("synced", jobs[2].id): {"job": "sync", "group": "acme", "id": jobs[2].id, "attempt": 1},
        ("outside", None): {},
    }


async def test_each_logger_tells_of_its_own(make_runtime, caplog):
    caplog.set_level(logging.DEBUG, "asyncjobs")
    runtime = make_runtime(environment="development")
    failed = asyncio.Event()

    @runtime.job("fails", limiter=None, attempts=1)
    async def fails(data):
        raise ValueError("no")

    @runtime.task("* * * * * *", name="broken")
    async def broken():
        failed.set()
        raise ValueError("no tick")

    async with runtime:
        job = await fails.add(1)
        await asyncio.wait_for(failed.wait(), 10)
        await eventually(lambda: "no tick" in caplog.text)
        await eventually(lambda: f"{job.id} failed for good" in caplog.text)
    by_logger = {}
    for record in caplog.records:
        by_logger.setdefault(record.name, []).append(record.getMessage())
    assert any("failed for good" in line for line in by_logger["asyncjobs.work"])
    assert any("it ticks again" in line for line in by_logger["asyncjobs.cron"])
    assert any(line.startswith("the store ") for line in by_logger["asyncjobs.store"])
    known = {"asyncjobs", "asyncjobs.work", "asyncjobs.cron", "asyncjobs.io", "asyncjobs.store"}
    assert {name for name in by_logger if name.startswith("asyncjobs")} <= known


async def test_a_failed_try_has_its_stack_in_the_log_at_the_first_and_the_last(runtime, caplog):
    @runtime.job("fails", limiter=None, attempts=4, backoff=0.01)
    async def fails(data):
        raise ValueError("no")

    async with runtime:
        job = await fails.add(1)
        await eventually(lambda: f"{job.id} failed for good" in caplog.text)
    mine = [one for one in caplog.records if job.id in one.getMessage() and "failed" in one.getMessage()]
    assert [bool(one.exc_text) for one in mine] == [True, False, False, True]
    first, last = mine[0], mine[-1]
    assert (first.job, first.group, first.id, first.attempt, first.outcome) == ("fails", None, job.id, 1, "retrying")
    assert (first.delay, first.error, last.attempt, last.outcome) == (0.01, "ValueError: no", 4, "failed")
    assert 0 <= first.duration < 10


async def test_a_record_factory_of_the_app_costs_no_line(runtime, caplog):
    """One that has an attribute of that name already."""
    before = logging.getLogRecordFactory()

    def factory(*args, **kwargs):
        record = before(*args, **kwargs)
        record.id, record.job = "request 7", None
        return record

    @runtime.job("fails", limiter=None, attempts=1)
    async def fails(data):
        raise ValueError("no")

    logging.setLogRecordFactory(factory)
    try:
        async with runtime:
            job = await fails.add(1)
            await eventually(lambda: f"{job.id} failed for good" in caplog.text)
    finally:
        logging.setLogRecordFactory(before)
    (mine,) = [one for one in caplog.records if "failed for good" in one.getMessage()]
    assert (mine.id, mine.job) == ("request 7", "fails")


async def test_events_tell_how_long_it_took_and_when_it_goes_on(runtime, seen):
    @runtime.job("work", limiter=None, attempts=2, backoff=0.02)
    async def work(data, job):
        await asyncio.sleep(0.02)
        if data == "later" and await runtime.queue.get_job("work", job.id):
            raise RetryLater(3600)
        if data == "fail" and not job.attempts_made:
            raise ValueError

    @runtime.task("* * * * * *", name="tick")
    async def tick(): ...

    async with runtime:
        await work.add("well")
        failing = await work.add("fail")
        later = await work.add("later")
        await seen("job.completed", count=2)
        (failed,) = await seen("job.retrying", job_id=failing.id)
        (postponed,) = await seen("job.retrying", job_id=later.id)
        (ticked, *_) = await seen("task.completed", name="tick")
    assert all(0.02 <= event.duration < 10 for event in seen.all("job.completed"))
    assert (failed.delay, postponed.delay) == (0.02, 3600)
    assert ticked.duration >= 0


async def test_health_counts_what_happened_here_and_is_well_as_soon_as_start_has_returned(make_runtime):
    runtime = make_runtime()

    @runtime.job("work", limiter=None, attempts=2, backoff=0.01)
    async def work(data, job):
        if data == "later" and not job.stalled_count:
            raise RetryLater(3600)
        if data == "fail":
            raise ValueError

    zeros = dict.fromkeys(
        ("added", "started", "completed", "failed_tries", "failed", "retried", "stalled", "cancelled"), 0
    )
    assert runtime.health()["counters"] == zeros
    async with runtime:
        assert runtime.health()["status"] == "ok"
        await runtime.queue.add_bulk([("work", 1)] * 5)
        await work.add("later")
        assert (await work.add(1, job_id="one")).added
        assert not (await work.add(1, job_id="one")).added
        await work.add("fail")
        expected = {**zeros, "added": 8, "started": 9, "completed": 6, "failed_tries": 2, "failed": 1, "retried": 2}
        await eventually(lambda: runtime.health()["counters"] == expected, what=str(expected))
    assert runtime.health()["counters"] == expected, "they outlive a stop"


@pytest.mark.parametrize("consume", [True, False])
async def test_health_is_well_at_once_many_times(make_runtime, consume):
    runtime = make_runtime(consume=consume)
    for _ in range(10):
        async with runtime:
            assert runtime.health()["status"] == "ok"


def test_every_public_name_is_there_and_no_other():
    for name in asyncjobs.__all__:
        assert getattr(asyncjobs, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        asyncjobs.Nothing  # noqa: B018
