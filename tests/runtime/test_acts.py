"""What operators do to jobs: retry, rerun, promote, remove; each once, from any process, and told in the trail."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from asyncjobs import ConfigError, JobFailedError, JobGoneError, Runtime, StateError
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


async def failed(desk: Runtime, group: dict, **options):
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
    assert [one.what for one in job.history] == ["retry", "retry"]


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
    (entry,) = (await desk.queue.get_job("send", job.id, **group)).history
    assert (entry.by, entry.source, entry.what) == ("ana", "cli", "retry")
    trail = [one async for one in desk.queue.audit()]
    assert [(one.by, one.source, one.what, one.target["name"]) for one in trail] == [("ana", "cli", "retry", "send")]
