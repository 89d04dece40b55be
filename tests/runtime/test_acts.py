"""What operators do to jobs: retry, rerun, promote, remove; each once, from any process, and told in the trail."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from asyncjobs import (
    ConfigError,
    JobFailedError,
    JobGoneError,
    Limiter,
    NotRunningError,
    StateError,
    UnknownJobError,
)
from tests.helpers import Watcher, eventually

ALWAYS = {"limiter": None, "remove_on_complete": 1000}


class Fails:
    """A handler that fails until it is told to work."""

    def __init__(self) -> None:
        self.works = False
        self.ran: Counter[str] = Counter()

    async def __call__(self, data, job):
        self.ran[job.id] += 1
        if not self.works:
            raise ValueError(f"no {job.attempts_made}")
        return "done"


@pytest.fixture(params=["", "acme"], ids=["alone", "group"])
async def crew(request, make_runtime):
    """A runtime that works and one that only adds, one name, and how its jobs are addressed."""
    fails = Fails()
    group = {"group_id": request.param} if request.param else {}
    worker = make_runtime()
    worker.job("send", group=bool(group), attempts=2, backoff=0, **ALWAYS)(fails)
    desk = make_runtime(consume=False)
    desk.job("send", group=bool(group), attempts=2, backoff=0, **ALWAYS)(fails)
    async with worker, desk:
        yield desk, fails, group


async def failed(desk, group: dict, **options):
    job = await desk.queue.add("send", {"n": 1}, **group, **options)
    with pytest.raises(JobFailedError):
        await job.wait(20)
    return await desk.queue.get_job("send", job.id, **group)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_failed_job_is_retried_and_its_errors_stay(crew, reset):
    desk, fails, group = crew
    job = await failed(desk, group)
    assert (job.attempts_made, len(job.error)) == (2, 2)
    await job.retry(reset=reset)
    with pytest.raises(JobFailedError):
        await job.wait(20)
    job = await desk.queue.get_job("send", job.id, **group)
    assert job.state == "failed"
    assert fails.ran[job.id] == (4 if reset else 3)
    assert job.attempts_made == (2 if reset else 3)
    assert len(job.error) == (4 if reset else 3)
    fails.works = True
    await job.retry(reset=reset)
    assert await job.wait(20) == "done"
    job = await desk.queue.get_job("send", job.id, **group)
    assert (job.state, job.result) == ("completed", "done")
    assert job.attempts_made == (1 if reset else 4)
    assert len(job.error) >= 3, "what went wrong before stays"
    counts = await desk.queue.counts("send", **group)
    assert (counts["failed"], counts["completed"], counts["waiting"]) == (0, 1, 0)
    assert (await desk.queue.counts("send"))["failed"] == 0, "over all groups too"
    assert [one.what for one in job.history if one.what != "failed"] == ["retry", "retry"]
    assert [one.what for one in job.history][:3] == ["failed", "failed", "retry"]


async def test_a_job_that_fails_again_at_once_stays_listed_under_its_name(crew):
    """It may fail within the ms of its retry, before the process that asked for that has its answer."""
    desk, _, group = crew
    job = await failed(desk, group, attempts=1)
    for n in range(200):
        assert (await desk.queue.counts("send"))["failed"] == 1, f"after {n} retries"
        await job.retry()
        with pytest.raises(JobFailedError):
            await job.wait(20)


@pytest.mark.parametrize("state", ["waiting", "delayed", "completed"])
@pytest.mark.parametrize("verb", ["retry", "promote"])
async def test_an_act_that_does_not_go_with_the_state_is_refused_and_says_so(crew, state, verb):
    if (state, verb) == ("delayed", "promote"):
        return
    desk, fails, group = crew
    fails.works = True
    if state == "waiting":
        await desk.queue.job("send").pause()
    job = await desk.queue.add("send", 1, delay=60 if state == "delayed" else None, **group)
    if state == "completed":
        await job.wait(20)
    with pytest.raises(StateError, match=state):
        await getattr(job, verb)()
    assert (await desk.queue.get_job("send", job.id, **group)).state == state


async def test_a_job_that_runs_is_neither_retried_nor_removed(make_runtime):
    runtime, go = make_runtime(), asyncio.Event()

    @runtime.job("long", **ALWAYS)
    async def long(data):
        await go.wait()

    async with runtime:
        seen = Watcher(runtime)
        job = await runtime.queue.add("long")
        await seen("job.active")
        for act in (job.retry, job.promote, job.remove):
            with pytest.raises(StateError, match="active"):
                await act()
        go.set()
        await job.wait(20)


async def test_a_delayed_job_is_promoted(crew):
    desk, fails, group = crew
    fails.works = True
    job = await desk.queue.add("send", 1, delay=3600, **group)
    await job.promote()
    assert await job.wait(20) == "done"


@pytest.mark.parametrize("state", ["waiting", "delayed", "completed", "failed"])
async def test_a_job_that_does_not_run_is_removed_with_all_that_it_owns(crew, state, keys_left):
    desk, fails, group = crew
    fails.works = state == "completed"
    if state == "waiting":
        await desk.queue.job("send").pause()
    job = await desk.queue.add("send", 1, delay=3600 if state == "delayed" else None, **group)
    if state in ("completed", "failed"):
        await asyncio.gather(job.wait(20), return_exceptions=True)
    others = [await desk.queue.add("send", n, delay=3600, **group) for n in range(3)]
    await job.remove()
    assert await desk.queue.get_job("send", job.id, **group) is None
    assert sum((await desk.queue.counts("send", **group)).values()) == 3
    assert sum((await desk.queue.counts("send")).values()) == 3
    await job.remove()  # it is gone, as was asked
    with pytest.raises(JobGoneError):
        await job.retry()
    await others[0].promote()
    await desk.queue.job("send").resume()
    await asyncio.gather(others[0].wait(20), return_exceptions=True)
    assert not [key for key in await keys_left() if job.id in key]


async def test_somebody_who_waits_for_a_removed_job_is_told(crew):
    desk, _, group = crew
    job = await desk.queue.add("send", 1, delay=3600, **group)
    waiting = asyncio.ensure_future(job.wait(20))
    await asyncio.sleep(0)
    await eventually(lambda: desk._assembly.broker._watched)
    await job.remove()
    with pytest.raises(JobFailedError, match="gone"):
        await waiting


async def test_a_rerun_is_a_new_job_with_changes(crew):
    desk, fails, group = crew
    job = await failed(desk, group)
    fails.works = True
    again = await job.rerun()
    assert again.id != job.id
    assert await again.wait(20) == "done"
    again = await desk.queue.get_job("send", again.id, **group)
    assert (again.data, again.copied_from.id, again.copied_from.name) == ({"n": 1}, job.id, "send")
    other = await job.rerun(data={"n": 2}, delay=60)
    assert (other.data, other.state) == ({"n": 2}, "delayed")
    assert (await desk.queue.get_job("send", job.id, **group)).state == "failed"
    with pytest.raises(ConfigError):
        await job.rerun(colour="red")


async def test_who_acts_is_told(crew):
    desk, _, group = crew
    job = await failed(desk, group)
    ana = desk.queue.acting_as("ana", source="cli")
    mine = await ana.get_job("send", job.id, **group)
    await mine.retry()
    await asyncio.gather(job.wait(20), return_exceptions=True)
    (entry,) = [one for one in (await desk.queue.get_job("send", job.id, **group)).history if one.what != "failed"]
    assert (entry.by, entry.source, entry.what) == ("ana", "cli", "retry")
    trail = [one async for one in desk.queue.audit()]
    assert [(one.by, one.source, one.what, one.target["name"]) for one in trail] == [("ana", "cli", "retry", "send")]


# Many jobs ---------------------------------------------------------------------------------------------------
async def many_failed(desk, fails: Fails, group: dict, number: int) -> None:
    await desk.queue.add_bulk([("send", n, {**group, "attempts": 1}) for n in range(number)])
    await eventually(lambda: sum(fails.ran.values()) >= number, 60)

    async def settled() -> bool:
        return bool((await desk.queue.counts("send"))["failed"] == number)

    await eventually(settled, 30)


@pytest.mark.parametrize("number", [7, 1200], ids=["few", "an operation"])
async def test_all_failed_jobs_are_retried_each_once(crew, number):
    desk, fails, group = crew
    await many_failed(desk, fails, group, number)
    failed = desk.queue.select("send", state="failed")
    dry = await failed.retry(dry_run=True)
    assert (dry.number, dry.exact, len(dry.sample)) == (number, True, 5)
    assert (await desk.queue.counts("send"))["failed"] == number
    fails.works = True
    done = await failed.retry(reason="the mail server is back")
    assert (done.done, done.skipped) == (number, {})
    assert (done.operation is None) == (number == 7)

    await eventually(lambda: sum(fails.ran.values()) == 2 * number, 60)
    assert set(fails.ran.values()) == {2}
    assert (await failed.count()).number == 0
    (entry,) = [one async for one in desk.queue.audit()]
    assert (entry.what, entry.reason) == ("retry", "the mail server is back")
    if done.operation:
        operation = await desk.queue.operations.read(done.operation)
        assert (operation.state, operation.done, operation.of) == ("done", number, number)


async def test_what_fails_again_meanwhile_is_not_swept_in(crew):
    desk, fails, group = crew
    await many_failed(desk, fails, group, 1100)
    done = await desk.queue.select("send", state="failed").retry()
    assert (done.done, sum(done.skipped.values())) == (1100, 0)
    await eventually(lambda: set(fails.ran.values()) == {2}, 60)


async def test_an_operation_is_done_again_from_where_its_driver_died_and_reaches_each_job_once(crew, monkeypatch):
    desk, fails, group = crew
    await many_failed(desk, fails, group, 1700)
    monkeypatch.setattr("asyncjobs.operate.operations.LEASE", 0.2)
    real, calls = desk._assembly.broker.drive, 0

    async def dies(*args):
        nonlocal calls
        calls += 1
        if calls == 3:  # the second step is done, and not kept
            raise NotRunningError
        return await real(*args)

    monkeypatch.setattr(desk._assembly.broker, "drive", dies)
    with pytest.raises(NotRunningError):
        await desk.queue.select("send", state="failed").retry()
    monkeypatch.setattr(desk._assembly.broker, "drive", real)
    (operation,) = await desk.queue.operations.all()
    assert (operation.state, operation.done) == ("running", 0)
    await desk.queue.operations.drive(operation.id)
    operation = await desk.queue.operations.read(operation.id)
    assert (operation.state, operation.done, operation.skipped) == ("done", 1700, {})
    await eventually(lambda: set(fails.ran.values()) == {2}, 60)


async def test_an_operation_can_be_stopped(crew, monkeypatch):
    desk, fails, group = crew
    await many_failed(desk, fails, group, 1200)
    real = desk._assembly.broker.drive

    async def stops(operation_id, driver, lease, changes):
        if changes:
            await desk.queue.operations.stop(operation_id)
        return await real(operation_id, driver, lease, changes)

    monkeypatch.setattr(desk._assembly.broker, "drive", stops)
    fails.works = True
    done = await desk.queue.select("send", state="failed").retry()
    assert done.done in (0, 500)
    assert (await desk.queue.operations.read(done.operation)).state == "stopped"
    with pytest.raises(ConfigError, match="no operation"):
        await desk.queue.operations.stop("nonsense")


async def test_many_are_removed_and_copied(crew):
    desk, fails, group = crew
    await many_failed(desk, fails, group, 30)
    fails.works = True
    done = await desk.queue.select("send", state="failed").rerun(delay=3600)
    assert done.done == 30
    assert (await desk.queue.counts("send"))["delayed"] == 30
    assert (await desk.queue.select("send", state="failed").remove()).done == 30
    assert (await desk.queue.select("send", state="delayed").promote()).done == 30
    await eventually(lambda: sum(fails.ran.values()) == 60, 30)
    with pytest.raises(ConfigError):
        await desk.queue.select("send").rerun(job_id="x")


async def test_another_process_goes_on_where_one_has_died(make_runtime, monkeypatch):
    monkeypatch.setattr("asyncjobs.operate.operations.LEASE", 0.2)
    fails = Fails()
    desk, worker = make_runtime(consume=False), make_runtime(sweep_interval=0.2)
    for runtime in (desk, worker):
        runtime.job("send", attempts=1, **ALWAYS)(fails)
    async with worker:
        async with desk:
            await many_failed(desk, fails, {}, 1200)
            fails.works = True
            operations = desk.queue.operations
            plan = desk.queue.select("send", state="failed")._plan
            operation_id = await operations.begin(plan, "retry", {}, "", 1200)

        async def ended() -> bool:
            return (await worker.queue.operations.read(operation_id)).state == "done"

        await eventually(ended)
        assert (await worker.queue.operations.read(operation_id)).done == 1200
        await eventually(lambda: sum(fails.ran.values()) == 2400, 60)


# Records of the release before -------------------------------------------------------------------------------
@pytest.fixture(params=["", "acme"], ids=["alone", "group"])
async def old(request, make_runtime, redis, prefix):
    """A runtime that only adds, jobs as the release before has added them, and how they are addressed."""
    group = {"group_id": request.param} if request.param else {}
    runtime = make_runtime(consume=False)
    runtime.job("send", group=bool(group), **ALWAYS)(lambda data: None)
    async with runtime:
        tag = f"{{{prefix}:send:acme}}" if group else f"{{{prefix}:send}}"
        if group:
            await redis.zadd(f"{{{prefix}:send}}:groups", {"acme": 1})
        await redis.xgroup_create(f"{tag}:s", "w", "0", mkstream=True)
        for n in range(20):
            await redis.hset(f"{tag}:j:waiting-{n}", mapping={"d": "1", "t": "1700000000000"})
            await redis.xadd(f"{tag}:s", {"j": f"waiting-{n}"})
        await redis.hset(f"{tag}:j:delayed", mapping={"d": "1", "t": "1700000000000"})
        await redis.zadd(f"{tag}:d", {"delayed": 4_000_000_000_000})
        await redis.hset(
            f"{tag}:j:failed",
            mapping={"d": "1", "t": "1", "x": "f", "a": "1", "F": "1700000000000", "e1": '{"t":"x","s":"","a":1}'},
        )
        await redis.zadd(f"{tag}:f", {"failed": 1_700_000_000_000})
        if group:
            await redis.zadd(f"{{{prefix}:send}}:f", {"4:acmefailed": 1_700_000_000_000})
        yield runtime.queue, group


async def test_jobs_of_the_release_before_are_shown_and_acted_on(old):
    queue, group = old
    jobs = [job async for job in queue.select("send")]
    assert len(jobs) == 22
    for job_id, act in (("waiting-7", "remove"), ("delayed", "promote"), ("failed", "retry"), ("waiting-0", "remove")):
        job = await queue.get_job("send", job_id, **group)
        await getattr(job, act)()
    assert dict(await queue.counts("send", **group)) == {
        "waiting": 20, "active": 0, "delayed": 0, "completed": 0, "failed": 0,
    }  # fmt: skip
    assert (await queue.select("send", state="waiting").remove()).done == 20
    assert sum((await queue.counts("send")).values()) == 0


async def test_many_are_cancelled(make_runtime):
    runtime, begun = make_runtime(), asyncio.Event()

    @runtime.job("long", concurrency=2, **ALWAYS)
    async def long(data):
        begun.set()
        await asyncio.sleep(3600)

    async with runtime:
        await runtime.queue.add_bulk([("long", n) for n in range(10)])
        await runtime.queue.add_bulk([("long", n, {"delay": 3600}) for n in range(5)])
        await begun.wait()
        done = await runtime.queue.select("long").cancel("all of it was a mistake")
        assert (done.done, done.skipped) == (15, {})

        async def over() -> bool:
            return dict(await runtime.queue.counts("long")) == {
                "waiting": 0, "active": 0, "delayed": 0, "completed": 0, "failed": 0, "cancelled": 15,
            }  # fmt: skip

        await eventually(over)
        assert (await runtime.queue.select("long", state="cancelled").retry(dry_run=True)).number == 15


# A whole queue -----------------------------------------------------------------------------------------------
async def test_a_queue_is_drained_cleaned_and_cancelled(crew):
    desk, _, group = crew
    await desk.queue.job("send").pause()
    for delay in (None, 3600):
        await desk.queue.add_bulk([("send", n, {**group, "delay": delay}) for n in range(5)])
    whole = desk.queue.job("send")
    assert (await whole.drain()).done == 10
    await desk.queue.add_bulk([("send", n, group) for n in range(5)])
    assert (await whole.cancel_all("a mistake")).done == 5
    assert (await desk.queue.counts("send"))["cancelled"] == 5
    assert (await whole.clean("cancelled", older_than=3600)).done == 0
    assert (await whole.clean(["cancelled", "failed"])).done == 5
    assert sum((await desk.queue.counts("send")).values()) == 0
    with pytest.raises(ConfigError):
        await whole.clean("lost")


@pytest.mark.parametrize("force", [False, True])
async def test_a_name_is_obliterated_with_all_its_keys(make_runtime, keys_left, prefix, force):
    runtime, begun = make_runtime(), asyncio.Event()

    @runtime.job("send", group=True, limiter=Limiter(100, 60), total_limiter=Limiter(100, 60), attempts=1)
    async def send(data):
        if data == "run":
            begun.set()
            await asyncio.sleep(3600)
        if data == "fail":
            raise ValueError("no")

    async with runtime:
        seen = Watcher(runtime)
        await runtime.queue.add_bulk([("send", what, {"group_id": g}) for g in "ab" for what in ("", "fail")])
        await seen("job.failed", count=2)
        await seen("job.completed", count=2)
        await runtime.queue.add("send", 1, group_id="a", delay=60)
        await runtime.queue.group("send", "a").set(weight=2)
        controls = runtime.queue.job("send")
        if force:
            await runtime.queue.add("send", "run", group_id="b")
            await begun.wait()
            with pytest.raises(StateError, match="1 jobs"):
                await controls.obliterate()
        await controls.obliterate(force=force)
        assert sum((await runtime.queue.counts("send")).values()) == 0
        await runtime.queue.add("send", "", group_id="c")
        await seen("job.completed", count=3, timeout=20)
        await controls.obliterate()
        left = [
            key for key in await keys_left() if ":send" in key and not key.endswith((":n", ":b", ":gate", ":gate:1"))
        ]
        assert left == []


async def test_settings_are_in_the_audit_trail_and_can_be_reverted(crew):
    desk, _, group = crew
    ana = desk.queue.acting_as("ana")
    target = ana.group("send", "acme") if group else ana.job("send")
    await target.set(concurrency=7)
    await target.set(concurrency=9, weight=2)
    await target.pause()
    entries = [one async for one in ana.audit()]
    assert [(one.what, one.before, one.after) for one in entries] == [
        ("pause", {"paused": ""}, {"paused": "1"}),
        ("set", {"concurrency": "7", "weight": ""}, {"concurrency": "9", "weight": "2"}),
        ("set", {"concurrency": ""}, {"concurrency": "7"}),
    ]
    await ana.revert(entries[1].id)
    info = await target.info()
    assert (info["concurrency"], info["weight"], info["paused"]) == (7, 1, True)
    await ana.revert(entries[0].id)
    assert not (await target.info())["paused"]
    with pytest.raises(ConfigError, match="no entry"):
        await ana.revert("nonsense")
    assert [one.what async for one in ana.audit()][:2] == ["revert", "revert"]


async def test_a_name_that_others_have_registered_is_controlled_too(make_runtime):
    worker, desk = make_runtime(), make_runtime(consume=False)
    worker.job("send", **ALWAYS)(lambda data: None)
    async with worker, desk:
        await eventually(lambda: desk.queue.all_names())
        controls = await desk.queue.controls("send")
        await controls.pause()
        assert (await worker.queue.job("send").info())["paused"]
        with pytest.raises(UnknownJobError, match="did you mean 'send'"):
            await desk.queue.controls("sent")
