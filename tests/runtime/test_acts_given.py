"""What acts are given: what is wrong is refused before anything is done, and what is right reaches the jobs."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from asyncjobs import AsyncjobsError, Backoff, ConfigError, PayloadError, UnknownJobError

WRONG = ["\ud800", 5, None, b"x", ["x"]]


@dataclasses.dataclass
class Mail:
    to: str
    number: int


@pytest.fixture
async def desk(make_runtime):
    runtime = make_runtime()
    runtime.job("send", limiter=None)(lambda data: None)
    runtime.job("tenant", limiter=None, group=True)(lambda data: None)

    @runtime.job("typed", limiter=None)
    async def typed(data: Mail) -> None: ...

    async with runtime:
        for name in ("send", "tenant", "typed"):
            await runtime.queue.job(name).pause()
        yield runtime


@pytest.mark.parametrize("wrong", WRONG, ids=ascii)
async def test_a_reason_that_is_no_text_is_refused_by_every_verb_and_nothing_is_done(desk, wrong):
    queue = desk.queue
    job = await queue.add("send", 1, delay=3600)
    every, controls = queue.select("send"), queue.job("send")
    written = len([one async for one in queue.audit()])
    for verb in ("retry", "rerun", "promote", "remove", "cancel"):
        with pytest.raises(ConfigError, match="reason="):
            await getattr(job, verb)(reason=wrong)
        with pytest.raises(ConfigError, match="reason="):
            await getattr(every, verb)(reason=wrong)
    for verb in (controls.drain, controls.cancel_all, controls.obliterate):
        with pytest.raises(ConfigError, match="reason="):
            await verb(reason=wrong)
    with pytest.raises(ConfigError, match="reason="):
        await controls.clean("delayed", reason=wrong)
    assert (await job.refresh()).state == "delayed"
    assert dict(await queue.counts("send")) == {"waiting": 0, "active": 0, "delayed": 1, "completed": 0, "failed": 0}
    assert len([one async for one in queue.audit()]) == written


@pytest.mark.parametrize("wrong", [*WRONG, "x" * 1_000_000], ids=lambda one: ascii(one)[:10])
async def test_other_wrong_values_are_refused(desk, wrong):
    queue = desk.queue
    job = await queue.add("send", 1, delay=3600)
    every, controls, operations = queue.select("send"), queue.job("send"), queue.operations
    calls = [
        job.retry(reset=wrong), every.retry(reset=wrong), every.cancel(dry_run=wrong), every.rerun(dry_run=wrong),
        controls.obliterate(force=wrong), queue.revert(wrong), queue.controls(wrong), queue.controls("send", wrong),
        queue.controls("tenant", wrong) if wrong not in (None, 5) else queue.controls("send", "group"),
        operations.read(wrong), operations.stop(wrong), operations.drive(wrong), queue.find(wrong),
        controls.clean(wrong) if wrong is not None else controls.clean("x"),
    ]  # fmt: skip
    for n, call in enumerate(calls):
        if (n, wrong) == (7, None):
            assert await call
            continue
        with pytest.raises((ConfigError, UnknownJobError)) as told:
            await call
        assert len(str(told.value)) < 500, n
    for given in ({"by": wrong}, {"by": "ana", "source": wrong}):
        with pytest.raises(ConfigError):
            queue.acting_as(**given)
    assert (await job.refresh()).state == "delayed"


async def test_a_long_reason_is_cut(desk):
    job = await desk.queue.add("send", 1, delay=3600)
    done = await desk.queue.select("send").rerun(reason="x" * 1_000_000, delay=3600)
    assert len((await desk.queue.operations.read(done.operation)).reason) == 500
    await job.promote("y" * 1_000_000)
    assert len((await job.refresh()).history[-1].reason) == 500
    assert all(len(one.reason) <= 500 for one in [one async for one in desk.queue.audit()])


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"delay": "soon"}, ConfigError),
        ({"at": datetime(2030, 1, 1)}, ConfigError),
        ({"delay": 1, "at": datetime(2030, 1, 1, tzinfo=UTC)}, ConfigError),
        ({"name": "sent"}, UnknownJobError),
        ({"name": 5}, UnknownJobError),
        ({"attempts": 0}, ConfigError),
        ({"group_id": "g"}, ConfigError),
        ({"job_id": "x"}, ConfigError),
        ({"data": object()}, PayloadError),
        ({"data": "\ud800"}, PayloadError),
        ({"data": "x" * 2_000_000}, PayloadError),
        ({"name": "typed", "data": {"to": 5}}, PayloadError),
    ],
    ids=lambda one: ascii(one)[:30],
)
async def test_changes_that_cannot_be_are_refused_before_an_operation_begins(desk, wrong, error):
    await desk.queue.add("send", 1, delay=3600)
    with pytest.raises(error):
        await desk.queue.select("send").rerun(**wrong)
    assert await desk.queue.operations.all() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"delay": timedelta(seconds=3600)},
        {"at": datetime(2090, 1, 1, tzinfo=UTC)},
        {"timeout": timedelta(seconds=60), "backoff": Backoff("fixed", timedelta(seconds=5)), "delay": 3600},
        {"remove_on_fail": {"count": 5, "age": 60}, "remove_on_complete": True, "delay": 3600},
        {"data": 2**80, "delay": 3600},
        {"data": {"a": [1, {"b": None}]}, "delay": 3600},
    ],
    ids=ascii,
)
async def test_changes_of_every_kind_reach_the_copies(desk, changes):
    job = await desk.queue.add("send", 1, delay=60)
    done = await desk.queue.select("send").rerun(**changes)
    assert (done.done, done.skipped) == (1, {})
    (copy,) = [one async for one in desk.queue.select("send") if one.copied_from]
    alone = await job.rerun(**changes)
    assert (copy.data, copy.copied_from.id) == (changes.get("data", 1), job.id)
    assert (await alone.refresh())._record["o"] == copy._record["o"], "as one that is copied by itself"
    assert abs((copy.due_at - alone.due_at).total_seconds()) < 60


async def test_a_handler_and_a_value_of_its_type_are_changes_too(desk):
    await desk.queue.add("send", 1, delay=3600)
    handler = desk.queue.spec("typed").definition.handle
    done = await desk.queue.select("send").rerun(name=handler, data=Mail("ana", 3), delay=60)
    assert (done.done, done.skipped) == (1, {})
    (copy,) = [one async for one in desk.queue.select("typed")]
    assert copy.data == {"to": "ana", "number": 3}


@pytest.mark.parametrize("field", ["plan", "args", "cursor", "done", "skipped", "step"])
@pytest.mark.parametrize("garbage", ["", "nonsense", "[" * 1000, "\ud800"], ids=["empty", "text", "deep", "bytes"])
async def test_an_operation_that_somebody_has_overwritten_ends_and_keeps_no_other_waiting(
    desk, redis, prefix, field, garbage, monkeypatch
):
    queue = desk.queue
    await queue.add("send", 1, delay=3600)
    plan = queue.select("send", state="delayed")._plan
    bad, gone, good = [await queue.operations.begin(plan, "promote", {}, "", 1) for _ in range(3)]
    key = f"{{{prefix}}}:op:{bad}"
    await redis.hset(key, field, garbage.encode(errors="surrogatepass"))
    await redis.delete(f"{{{prefix}}}:op:{gone}")
    assert len(await queue.operations.all()) == 2
    await queue.operations.take_up()
    assert (await queue.operations.read(good)).state == "done"
    if field != "cursor" or garbage:
        assert (await queue.operations.read(bad)).problem
    assert await queue.operations.take_up() == [], "nothing is tried for ever"


async def test_a_stopped_operation_says_when_it_ended(desk):
    await desk.queue.add("send", 1, delay=3600)
    plan = desk.queue.select("send", state="delayed")._plan
    operation_id = await desk.queue.operations.begin(plan, "promote", {}, "", 1)
    stopped = await desk.queue.operations.stop(operation_id)
    assert stopped.state == "stopped"
    assert stopped.ended is not None
    assert (await desk.queue.operations.drive(operation_id)).done == 0
    with pytest.raises(AsyncjobsError):
        await desk.queue.operations.drive("0" * 19)
