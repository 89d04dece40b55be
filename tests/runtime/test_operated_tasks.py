"""Tasks as an operator sees and steers them: what ran, what did not and why, what comes; run now, pause, resume."""

from __future__ import annotations

import asyncio
import itertools
import threading
from datetime import UTC, datetime, timedelta

import pytest

from asyncjobs import ConfigError, StateError
from asyncjobs.broker.keys import runs_key, tasks_key
from asyncjobs.operate import tasks as operated
from tests.helpers import Process, Watcher, eventually, ledger, write

EVERY_SECOND = "* * * * * *"
NEVER = "0 0 29 2 *"


async def task(runtime, name):
    return next(one for one in await runtime.tasks() if one.name == name)


async def runs(runtime, name, count=1, **fields):
    """The runs of a task, once there are `count` of these."""

    async def there():
        every = (await task(runtime, name)).runs
        found = [one for one in every if all(getattr(one, key) == value for key, value in fields.items())]
        return found if len(found) >= count else None

    return await eventually(there, what=f"{count} runs of {name} {fields}")


async def test_what_a_task_is_and_what_became_of_its_ticks(make_runtime):
    worker, web = make_runtime(timezone="UTC"), make_runtime(consume=False, schedule=False)
    fail = False

    @worker.task(EVERY_SECOND, name="poll")
    async def poll():
        if fail:
            raise RuntimeError("not today " + "x" * 10_000)

    worker.task("30 2 * * 1-5", name="nightly", timezone="America/New_York", overlap="queue", misfire="once")(poll)
    worker.task(NEVER, name="off", is_active=False)(poll)
    worker.task(NEVER, name="elsewhere", environments=["production", "staging"])(poll)
    async with worker, web:
        await runs(web, "poll", 2, outcome="completed")
        fail = True
        (bad, *_) = await runs(web, "poll", outcome="failed")
        nightly, off, elsewhere, poll_ = [await task(web, name) for name in ("nightly", "off", "elsewhere", "poll")]
        me = worker.health()["process"]
    good = next(one for one in poll_.runs if one.outcome == "completed")
    assert good.scheduled <= good.began <= good.ended
    assert (good.process, good.error, good.by_hand) == (me, "", False)
    assert bad.error.startswith("RuntimeError: not today xxx")
    assert len(bad.error) <= 500
    assert sorted(poll_.runs, key=lambda one: one.scheduled, reverse=True) == list(poll_.runs), "newest first"
    assert (poll_.words, poll_.processes, poll_.active, poll_.why_not) == ("Every second", (me,), True, "")
    assert (nightly.words, nightly.timezone) == ("At 02:30 on Monday through Friday", "America/New_York")
    assert (nightly.overlap, nightly.misfire, len(nightly.next)) == ("queue", "once", 10)
    assert all(one.local.hour in (2, 3) and one.at == one.local for one in nightly.next)
    assert nightly.next[0].at > datetime.now(UTC)
    assert (off.active, off.why_not, off.next) == (False, "is_active is not True", ())
    assert (elsewhere.active, elsewhere.environments) == (False, ("production", "staging"))
    assert elsewhere.why_not == "it runs in production, staging, and this is development"


async def test_a_task_that_no_living_process_fires_says_so(make_runtime):
    worker, web = make_runtime(), make_runtime(consume=False, schedule=False)
    worker.task("@daily", name="nightly")(lambda: None)
    async with web:
        async with worker:
            assert (await task(web, "nightly")).why_not == ""
        known = await task(web, "nightly")
        assert (known.active, known.processes) == (True, ())
        assert known.why_not == "no process that fires it is alive"
        with pytest.raises(StateError, match="no living process fires the task nightly"):
            await web.run_task("nightly")


async def test_fifty_runs_are_kept_and_no_more(make_runtime, redis, prefix):
    worker = make_runtime()
    worker.task(NEVER, name="poll", overlap="allow")(lambda: None)
    async with worker:
        for _ in range(55):
            assert await worker.run_task("poll") == "started"
        await runs(worker, "poll", 50, outcome="completed")
        assert await redis.llen(runs_key(prefix, "poll")) == 50
        assert await redis.pttl(runs_key(prefix, "poll")) > 80 * 86_400_000


async def test_skipped_ticks_say_why(make_runtime, redis, prefix):
    worker = make_runtime(timezone="UTC")
    gate = asyncio.Event()
    worker.task(EVERY_SECOND, name="slow")(gate.wait)
    worker.task("* * * * *", name="missed")(lambda: None)
    ago = int((datetime.now(UTC) - timedelta(minutes=10)).timestamp() * 1000)
    await redis.hset(f"{{{prefix}}}:ticks", "missed", f"{ago} -")
    others = [make_runtime(timezone="UTC") for _ in range(2)]
    for other in others:
        other.task("* * * * *", name="missed")(lambda: None)
    async with worker, others[0], others[1]:
        (missed,) = await eventually(lambda: _skipped(worker, "missed"))
        overlap = await eventually(lambda: _skipped(worker, "slow", 2))
        gate.set()
    assert missed.why == "missed"
    assert missed.text.startswith("missed by ")
    assert {one.why for one in overlap} == {"overlap"}
    assert overlap[0].text == "the last run had not ended"
    assert overlap[0].scheduled > overlap[1].scheduled
    assert all(one.at >= one.scheduled for one in overlap)


async def _skipped(runtime, name, count=1):
    found = (await task(runtime, name)).skipped
    return found if len(found) >= count else None


@pytest.mark.parametrize("everywhere", [False, True])
async def test_a_run_that_is_asked_for_runs_once_in_one_of_four_processes(make_runtime, everywhere):
    ran = []
    workers, web = [make_runtime() for _ in range(4)], make_runtime(consume=False, schedule=False)
    for place, worker in enumerate(workers):
        worker.task(NEVER, name="poll", every_instance=everywhere)(lambda place=place: ran.append(place))
        await worker.start()
    await web.start()
    for n in range(1, 8):
        assert await web.run_task("poll") == "started"
        await runs(web, "poll", n, outcome="completed")
        assert len(ran) == n
    found = (await task(web, "poll")).runs
    assert all(one.by_hand for one in found)
    assert {one.process for one in found} <= {worker.health()["process"] for worker in workers}


async def test_an_asked_run_keeps_what_overlap_says(make_runtime):
    worker, web = make_runtime(), make_runtime(consume=False, schedule=False)
    seen = Watcher(worker)
    gate = asyncio.Event()
    most = now = 0

    async def slow():
        nonlocal most, now
        now += 1
        most = max(most, now)
        await gate.wait()
        now -= 1

    for overlap in ("skip", "queue", "allow"):
        for place in (False, True):
            worker.task(NEVER, name=f"{overlap}-{place}", overlap=overlap, every_instance=place)(slow)
    async with worker, web:
        for place in (False, True):
            gate.clear()
            most = 0
            assert await web.run_task(f"skip-{place}") == "started"
            await seen("task.fired", name=f"skip-{place}")
            assert await web.run_task(f"skip-{place}") == "skipped"
            assert (await _skipped(web, f"skip-{place}"))[0].why == "overlap"
            gate.set()
            await runs(web, f"skip-{place}", outcome="completed")
            gate.clear()
            assert await web.run_task(f"queue-{place}") == "started"
            await seen("task.fired", name=f"queue-{place}")
            assert await web.run_task(f"queue-{place}") == "queued"
            gate.set()
            await runs(web, f"queue-{place}", 2, outcome="completed")
            assert most == 1
            gate.clear()
            assert await web.run_task(f"allow-{place}") == "started"
            assert await web.run_task(f"allow-{place}") == "started"
            await eventually(lambda: now == 2)
            gate.set()
            await runs(web, f"allow-{place}", 2, outcome="completed")


async def test_an_asked_run_keeps_no_tick_out(make_runtime):
    """A tick that comes late is claimed all the same where a run was asked for in between."""
    worker = make_runtime(timezone="UTC")
    seen = Watcher(worker)
    worker.task(EVERY_SECOND, name="poll", overlap="allow")(lambda: None)
    async with worker:
        await seen("task.fired")
        for _ in range(30):
            await worker.run_task("poll")
        await eventually(
            lambda: len({one.scheduled_at for one in seen.all("task.fired") if not one.scheduled_at.microsecond}) > 3
        )
    ticks = sorted({one.scheduled_at for one in seen.all("task.fired") if not one.scheduled_at.microsecond})
    assert all((b - a) == timedelta(seconds=1) for a, b in itertools.pairwise(ticks)), ticks


@pytest.mark.parametrize("everywhere", [False, True])
async def test_a_pause_holds_over_restarts_and_in_all_processes(make_runtime, everywhere):
    web = make_runtime(consume=False, schedule=False)
    workers = [make_runtime() for _ in range(2)]
    for worker in workers:
        worker.task(EVERY_SECOND, name="poll", every_instance=everywhere)(lambda: None)
    seen = [Watcher(worker) for worker in workers]

    def fired():
        return [one.scheduled_at for watcher in seen for one in watcher.all("task.fired")]

    async with web:
        async with workers[0], workers[1]:
            await eventually(lambda: len(fired()) >= 2)
            await web.pause_task("poll", reason="the rates are wrong")
            await web.pause_task("poll", reason="said again")
            paused_at = datetime.now(UTC)
            await eventually(lambda: _skipped_why(web, "poll", "paused", 2))
            known = await task(web, "poll")
            assert (known.paused, known.paused_reason) == (True, "the rates are wrong")
            assert known.why_not == "it is paused: the rates are wrong"
            assert abs((known.paused_at - paused_at).total_seconds()) < 5
        restarted_at = datetime.now(UTC)
        async with workers[0]:
            await eventually(
                lambda: seen[0].all("task.skipped") and seen[0].all("task.skipped")[-1].scheduled_at > restarted_at
            )
            assert [one for one in fired() if one > paused_at + timedelta(seconds=1)] == []
            assert await web.run_task("poll") == "started", "an operator may run it all the same"
            await runs(web, "poll", by_hand=True)
            await web.resume_task("poll")
            await web.resume_task("poll")
            resumed_at = datetime.now(UTC)
            await eventually(lambda: [one for one in fired() if one > resumed_at and not one.microsecond])
        assert not (await task(web, "poll")).paused


async def _skipped_why(runtime, name, why, count):
    return sum(one.why == why for one in (await task(runtime, name)).skipped) >= count


async def test_a_run_in_a_process_that_is_killed_is_lost(tmp_path, own_server, make_runtime):
    write(
        tmp_path,
        {
            "tasks/slow.py": """
                import asyncio, pathlib
                cron_time, is_active, overlap = "0 0 29 2 *", True, "skip"
                async def task():
                    with pathlib.Path("ran.txt").open("a") as ledger: ledger.write("x\\n")
                    await asyncio.sleep(3600)
            """
        },
    )
    worker = Process(tmp_path, "run", env={"ASYNCJOBS_REDIS_URL": own_server.url})
    web = make_runtime(own_server.url, consume=False, schedule=False, prefix="asyncjobs")
    try:
        async with web:
            await eventually(lambda: web.processes(), 30)
            assert await web.run_task("slow") == "started"
            await eventually(lambda: ledger(tmp_path / "ran.txt") == ["x"])
            (one,) = (await task(web, "slow")).runs
            assert (one.outcome, one.ended) == ("running", None)
            worker.kill()
            worker = Process(tmp_path, "run", env={"ASYNCJOBS_REDIS_URL": own_server.url})
            await runs(web, "slow", outcome="lost")
            await eventually(lambda: _alive(web))
            assert await web.run_task("slow") == "started", "what is lost keeps nothing out"
            assert [one.outcome for one in (await task(web, "slow")).runs] == ["running", "lost"]
    finally:
        worker.kill()


async def _alive(web):
    return any(one.state == "alive" for one in await web.processes())


async def test_runs_that_a_stop_cancels_say_so(make_runtime):
    worker, web = make_runtime(), make_runtime(consume=False, schedule=False)
    for everywhere in (False, True):
        worker.task(NEVER, name=f"slow-{everywhere}", every_instance=everywhere)(asyncio.Event().wait)
    async with web:
        await worker.start()
        for everywhere in (False, True):
            await worker.run_task(f"slow-{everywhere}")
            await runs(web, f"slow-{everywhere}", outcome="running")
        await worker.stop(grace=0)
        for everywhere in (False, True):
            await runs(web, f"slow-{everywhere}", outcome="cancelled")


async def test_unknown_tasks_and_bad_values_get_a_clear_answer(make_runtime, monkeypatch):
    worker = make_runtime()
    worker.task(NEVER, name="poll")(lambda: None)
    async with worker:
        for call in (worker.run_task, worker.pause_task, worker.resume_task):
            for bad in ("nope", "", None, 7, ["poll"]):
                with pytest.raises(ConfigError, match="no task is called so; known tasks: poll"):
                    await call(bad)
        with pytest.raises(ConfigError, match="reason=7"):
            await worker.pause_task("poll", 7)
        await worker.drain_process(worker.health()["process"])
        with pytest.raises(StateError, match="is draining"):
            await worker.run_task("poll")


async def test_a_run_that_nobody_takes_is_withdrawn(make_runtime, redis, prefix, monkeypatch):
    worker = make_runtime()
    ran = []
    worker.task(NEVER, name="poll")(lambda: ran.append(1))
    monkeypatch.setattr(operated, "RUN_PATIENCE", 0.3)
    async with worker:
        requests = []

        async def deaf(task, request):
            requests.append(request)

        monkeypatch.setattr(worker._assembly.orders, "_run", deaf)
        with pytest.raises(StateError, match="no process took the run of poll within"):
            await worker.run_task("poll")
        await worker._assembly.scheduler.asked("poll", requests[0])
        assert ran == []


async def test_what_another_release_has_left_is_shown_as_far_as_it_can_be_read(make_runtime, redis, prefix):
    web = make_runtime(consume=False, schedule=False)
    await redis.hset(
        tasks_key(prefix), mapping={"odd": "[", "newer": '{"schedule":"@weekly","zone":"Mars/Base","new":1}'}
    )
    await redis.rpush(runs_key(prefix, "odd"), "{", '{"s":1e99}', '{"s":1000,"p":"x","o":"new","e":2000}')
    async with web:
        odd, newer = await task(web, "odd"), await task(web, "newer")
    assert [one.outcome for one in odd.runs] == ["lost"]
    assert (newer.timezone, newer.active) == ("Mars/Base", False)


async def test_queued_ticks_and_those_of_threads_are_written_down(make_runtime):
    worker = make_runtime()
    gate = threading.Event()
    worker.task(NEVER, name="thread", overlap="queue")(lambda: gate.wait(10))
    async with worker:
        assert await worker.run_task("thread") == "started"
        await runs(worker, "thread", outcome="running")
        assert await worker.run_task("thread") == "queued"
        gate.set()
        await runs(worker, "thread", 2, outcome="completed")


async def test_what_operators_do_to_processes_and_tasks_is_in_the_audit_trail(make_runtime):
    worker = make_runtime()
    worker.task(NEVER, name="poll")(lambda: None)
    async with worker:
        process = worker.health()["process"]
        await worker.run_task("poll")
        await worker.pause_task("poll", "too many")
        await worker.resume_task("poll")
        await worker.drain_process(process, "the disk")
        await worker.resume_process(process)
        trail = [(one.what, one.target, one.reason) async for one in worker.queue.audit()]
    assert sorted(trail, key=str) == sorted(
        [
            ("run_task", {"task": "poll"}, ""),
            ("pause_task", {"task": "poll"}, "too many"),
            ("resume_task", {"task": "poll"}, ""),
            ("drain_process", {"process": process}, "the disk"),
            ("resume_process", {"process": process}, ""),
        ],
        key=str,
    )
