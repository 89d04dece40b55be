"""The front door: add, add_bulk, job ids, overrides, looking, waiting, and what is refused."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from asyncjobs import (
    AsyncjobsError,
    Backoff,
    BrokerUnavailableError,
    ConfigError,
    JobFailedError,
    JobTimeoutError,
    NotRunningError,
    PayloadError,
    Retention,
    Runtime,
    UnknownJobError,
)
from tests.helpers import eventually


class Mail(msgspec.Struct):
    to: str


@pytest.fixture
async def running(runtime):
    @runtime.job("echo", limiter=None)
    async def echo(data):
        return data

    @runtime.job("send-mail", limiter=None)
    async def send(data: Mail):
        return data.to

    @runtime.job("sync-data", group=True, limiter=None)
    async def sync(data, job):
        return job.group_id

    @runtime.job("slow", limiter=None, concurrency=1)
    async def slow(data):
        await asyncio.Event().wait()

    @runtime.job("fails", limiter=None, attempts=1)
    async def fails(data):
        raise ValueError("no luck")

    async with runtime:
        yield runtime


async def test_a_job_runs_and_its_result_is_had_from_the_handle(running):
    job = await running.queue.add("echo", {"n": [1, {}, None, 2**63]})
    assert (job.added, job.state, job.name, job.group_id) == (True, "waiting", "echo", None)
    assert await job.wait(5) == {"n": [1, {}, None, 2**63]}


async def test_the_record_tells_the_whole_story(running):
    before = datetime.now(UTC) - timedelta(seconds=1)
    added = await running.queue.add("echo", {"n": 1})
    await added.wait(5)
    job = await running.queue.get_job("echo", added.id)
    assert (job.state, job.result, job.data, job.attempts_made, job.attempts) == (
        "completed",
        {"n": 1},
        {"n": 1},
        1,
        100,
    )
    assert before < job.added_at <= job.started_at <= job.finished_at
    assert job.added_at.tzinfo is not None
    assert (job.error, job.logs, job.progress, job.stalled_count) == ((), (), None, 0)
    assert await running.queue.get_job("echo", "no-such-id") is None


async def test_ids_are_ordered_in_time_and_unique(running):
    ids = [(await running.queue.add("echo", 1)).id for _ in range(5)]
    ids += [job.id for job in await running.queue.add_bulk([("echo", i) for i in range(300)])]
    assert len(set(ids)) == 305
    assert ids == sorted(ids)


async def test_by_reference_typed_and_by_decorator(running):
    send = running.queue.spec("send-mail").definition.handle
    assert await (await running.queue.add(send, Mail("a@b"))).wait(5) == "a@b"
    assert await (await send.add({"to": "c@d"})).wait(5) == "c@d"
    with pytest.raises(PayloadError, match=r"data does not fit.*to"):
        await send.add({"t": "x"})


async def test_a_job_id_adds_once_in_any_state(running):
    first = await running.queue.add("slow", 1, job_id="mine")
    again = await running.queue.add("slow", 2, job_id="mine")
    assert (first.added, again.added, again.id) == (True, False, "mine")
    assert again.state is None
    done = await running.queue.add("echo", "x", job_id="finished")
    await done.wait(5)
    assert (await running.queue.add("echo", "x", job_id="finished")).added is False
    later = await running.queue.add("echo", "x", job_id="later", delay=60)
    assert later.state == "delayed"
    assert (await running.queue.add("echo", "x", job_id="later")).added is False
    assert await running.queue.counts("echo") == {"waiting": 0, "active": 0, "delayed": 1, "completed": 1, "failed": 0}


async def test_the_same_id_from_many_at_once_adds_one(running, make_runtime):
    other = make_runtime(consume=False)
    other.job("echo", limiter=None)(lambda data: None)
    async with other:
        queues = (running.queue, other.queue)
        jobs = await asyncio.gather(*(queues[i % 2].add("echo", i, job_id="one") for i in range(40)))
    assert sum(job.added for job in jobs) == 1


async def test_bulk_is_all_or_nothing_on_checks(running):
    with pytest.raises(PayloadError, match=r"add_bulk\[2\]: data.x is a complex"):
        await running.queue.add_bulk([("echo", 1), ("echo", 2), ("echo", {"x": 1j})])
    with pytest.raises(UnknownJobError):
        await running.queue.add_bulk([("echo", 1), ("ecko", 2)])
    with pytest.raises(ConfigError, match=r"add_bulk\[1\].*expected \(job, data\)"):
        await running.queue.add_bulk([("echo", 1), "echo"])
    with pytest.raises(ConfigError, match=r"add_bulk\[0\]: an add has no option 'dalay'; did you mean 'delay'"):
        await running.queue.add_bulk([("echo", 1, {"dalay": 5})])
    assert sum((await running.queue.counts("echo")).values()) == 0
    jobs = await running.queue.add_bulk(
        [("echo", 1), ("echo", 2, {"delay": 60}), ("sync-data", 3, {"groupId": "g"}), ("echo", 4, {"jobId": "four"})]
    )
    assert [job.state for job in jobs] == ["waiting", "delayed", "waiting", "waiting"]
    assert (jobs[2].group_id, jobs[3].id) == ("g", "four")
    assert await running.queue.add_bulk([]) == []


async def test_delay_and_at_are_kept_by_the_store_to_the_millisecond(running):
    loop = asyncio.get_running_loop()
    began = loop.time()
    soon = await running.queue.add("echo", 1, delay=0.3)
    at = await running.queue.add("echo", 2, at=datetime.now(UTC) + timedelta(seconds=0.3))
    past = await running.queue.add("echo", 3, at=datetime.now(UTC) - timedelta(days=1))
    assert (soon.state, at.state, past.state) == ("delayed", "delayed", "waiting")
    assert await past.wait(5) == 3
    await soon.wait(5)
    assert loop.time() - began >= 0.3
    await at.wait(5)
    record = await running.queue.get_job("echo", soon.id)
    assert record.started_at - record.added_at >= timedelta(seconds=0.3)


async def test_overrides_of_one_add(running, seen):
    job = await running.queue.add("fails", 1, attempts=3, backoff=Backoff("fixed", 0.05))
    with pytest.raises(JobFailedError, match="no luck"):
        await job.wait(5)
    record = await running.queue.get_job("fails", job.id)
    assert (record.attempts_made, record.attempts, len(record.error)) == (3, 3, 3)
    gone = await running.queue.add("fails", 1, remove_on_fail=True)
    with pytest.raises(JobFailedError, match="no luck"):
        await gone.wait(5)
    few = await running.queue.add("echo", 1, remove_on_complete=Retention(count=1))
    await few.wait(5)
    removed = await running.queue.add("echo", "kept for the one who waits", remove_on_complete=True)
    assert await removed.wait(5) == "kept for the one who waits"
    with pytest.raises(ConfigError, match="a function cannot travel"):
        await running.queue.add("fails", 1, backoff=lambda made, error: 1)


async def test_counts_and_groups(running):
    for group in ("b", "a", 7):
        await (await running.queue.add("sync-data", 1, group_id=group)).wait(5)
    await running.queue.add("sync-data", 1, group_id="a", delay=60)
    assert await running.queue.groups("sync-data") == ["7", "a", "b"]
    assert await running.queue.counts("sync-data") == {
        "waiting": 0,
        "active": 0,
        "delayed": 1,
        "completed": 3,
        "failed": 0,
    }
    assert await running.queue.counts("sync-data", 7) == {
        "waiting": 0,
        "active": 0,
        "delayed": 0,
        "completed": 1,
        "failed": 0,
    }
    assert (await running.queue.counts("sync-data", group_id="a"))["delayed"] == 1


async def test_waiting(running):
    slow = await running.queue.add("slow", 1)
    with pytest.raises(JobTimeoutError, match=r"had not finished after 0\.1 s"):
        await slow.wait(timeout=0.1)
    with pytest.raises(JobTimeoutError, match="not idle"):
        await running.wait_idle(0.1)


async def test_waiting_for_ones_own_queue_at_concurrency_one_is_refused(runtime):
    @runtime.job("chain", limiter=None, concurrency=1, attempts=1)
    async def chain(data, queue):
        if data:
            await (await queue.add("chain", data - 1)).wait(5)

    async with runtime:
        with pytest.raises(JobFailedError, match="can never end"):
            await (await runtime.queue.add("chain", 1)).wait(5)


async def test_a_handler_may_wait_for_another_queue(runtime):
    @runtime.job("inner", limiter=None)
    async def inner(data):
        return data * 2

    @runtime.job("outer", limiter=None, concurrency=1)
    async def outer(data, queue):
        return await (await queue.add("inner", data)).wait(5)

    async with runtime:
        assert await (await runtime.queue.add("outer", 21)).wait(5) == 42


async def test_waiting_from_a_process_that_does_not_consume(running, make_runtime):
    other = make_runtime(consume=False)
    other.job("fails", limiter=None)(lambda data: None)
    async with other:
        with pytest.raises(JobFailedError, match="ValueError: no luck"):
            await (await other.queue.add("fails", 1)).wait(5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q: q.add("send_mail", {}), UnknownJobError, "no job is called 'send_mail'; did you mean 'send-mail'?"),
        (lambda q: q.add("zzz", {}), UnknownJobError, "known jobs: echo, fails, send-mail, slow, sync-data"),
        (lambda q: q.add(print, {}), UnknownJobError, "print"),
        (lambda q: q.add("sync-data", {}), ConfigError, "sync-data is a grouped job: name its group"),
        (lambda q: q.add("echo", {}, group_id="a"), ConfigError, "echo has no groups, so it takes no group_id"),
        (lambda q: q.add("sync-data", {}, group_id=""), ConfigError, "group_id='': expected a text that is not empty"),
        (lambda q: q.add("sync-data", {}, group_id="é" * 300), ConfigError, "600 bytes of UTF-8, at most 512"),
        (lambda q: q.add("sync-data", {}, group_id=1.5), ConfigError, "group_id=1.5"),
        (lambda q: q.add("sync-data", {}, group_id=True), ConfigError, "group_id=True"),
        (lambda q: q.add("sync-data", {}, group_id="\ud800"), ConfigError, "a lone surrogate"),
        (lambda q: q.add("echo", {}, job_id=""), ConfigError, "job_id=''"),
        (lambda q: q.add("echo", {}, delay=-1), ConfigError, "delay=-1: expected at least 0"),
        (lambda q: q.add("echo", {}, delay="1"), ConfigError, "delay='1': expected seconds"),
        (lambda q: q.add("echo", {}, at=datetime(2030, 1, 1)), ConfigError, "expected a timezone-aware datetime"),
        (lambda q: q.add("echo", {}, at=datetime.now(UTC), delay=1), ConfigError, "give one of them"),
        (lambda q: q.add("echo", {}, attempts=0), ConfigError, "attempts=0"),
        (lambda q: q.add("echo", "x" * 2**20), PayloadError, "more than max_payload=1048576"),
        (lambda q: q.add("echo", {"a": {"b": object()}}), PayloadError, "data.a.b is a object"),
        (lambda q: q.counts("nope"), UnknownJobError, "nope"),
        (lambda q: q.groups("echo"), ConfigError, "echo has no groups"),
        (lambda q: q.get_job("sync-data", "id"), ConfigError, "name its group"),
    ],
)
async def test_bad_input_is_refused_before_anything_is_sent(running, call, error, message, keys_left):
    before = await keys_left()
    with pytest.raises(error) as caught:
        await call(running.queue)
    assert isinstance(caught.value, AsyncjobsError)
    assert message in str(caught.value)
    assert await keys_left() == before


async def test_not_running_is_said_before_and_after(runtime):
    runtime.job("echo", limiter=None)(lambda data: None)
    with pytest.raises(NotRunningError, match="the runtime is not running; start it with"):
        await runtime.queue.add("echo", 1)
    async with runtime:
        await runtime.queue.add("echo", 1)
    with pytest.raises(NotRunningError):
        await runtime.queue.counts("echo")


async def test_a_forked_process_is_told_to_start_its_own(running, monkeypatch):
    monkeypatch.setattr("asyncjobs.home.os.getpid", lambda: -1)
    with pytest.raises(NotRunningError, match="forked"):
        await running.queue.add("echo", 1)


async def test_an_unreachable_store_is_named_without_its_password(tmp_path):
    runtime = Runtime("redis://user:s3cret@127.0.0.1:1/0", connect_timeout=0.3)
    with pytest.raises(BrokerUnavailableError) as caught:
        await runtime.start()
    assert "127.0.0.1:1" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert runtime.state == "stopped"


@pytest.mark.parametrize(
    "url", ["http://x", "redis://h:port", "redis+sentinel://h:1", "nonsense", "redis://127.0.0.1:6379/notanumber"]
)
async def test_a_bad_url_is_a_config_error(url):
    with pytest.raises(ConfigError, match="redis="):
        await Runtime(url).start()


async def test_a_store_that_goes_away_fails_an_add_in_time_and_takes_it_later(own_server, make_runtime):
    runtime = make_runtime(own_server.url, connect_timeout=1)
    runtime.job("echo", limiter=None)(lambda data: data)
    async with runtime:
        own_server.kill()
        began = asyncio.get_running_loop().time()
        with pytest.raises(BrokerUnavailableError) as caught:
            await runtime.queue.add("echo", 1, job_id="mine")
        assert asyncio.get_running_loop().time() - began < 4
        assert caught.value.job_ids == ("mine",)
        assert runtime.health()["status"] == "degraded"
        own_server.start()
        job = await runtime.queue.add("echo", 2)
        assert await job.wait(10) == 2
        await eventually(lambda: runtime.health()["status"] == "ok")


async def test_a_client_of_the_app_may_be_given(redis, make_runtime):
    runtime = make_runtime(redis)
    runtime.job("echo", limiter=None)(lambda data: data)
    async with runtime:
        assert await (await runtime.queue.add("echo", "hi")).wait(5) == "hi"
    assert await redis.ping()
