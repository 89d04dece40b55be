"""Cron tasks against the real store: once over all processes, overlap, misfire, environments, errors."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from asyncjobs import ConfigError
from tests.helpers import Watcher, eventually, write

EVERY_SECOND = "* * * * * *"


async def test_a_tick_fires_once_over_all_processes(make_runtime):
    runs = []
    runtimes = [make_runtime() for _ in range(4)]
    watchers = [Watcher(runtime) for runtime in runtimes]
    for place, runtime in enumerate(runtimes):

        @runtime.task(EVERY_SECOND, name="poll")
        async def poll(place=place):
            runs.append((int(time.time()), place))

    for runtime in runtimes:
        await runtime.start()
    await eventually(lambda: len({second for second, _ in runs}) >= 4)
    for runtime in runtimes:
        await runtime.stop(grace=1)
    seconds = [second for second, _ in runs]
    assert len(seconds) == len(set(seconds)), runs
    scheduled = [event.scheduled_at for watcher in watchers for event in watcher.all("task.fired")]
    assert len(scheduled) == len(set(scheduled)) == len(runs)
    assert all(at.tzinfo is not None and at.microsecond == 0 for at in scheduled)


async def test_every_instance_fires_in_each(make_runtime):
    runtimes = [make_runtime() for _ in range(2)]
    watchers = [Watcher(runtime) for runtime in runtimes]
    for runtime in runtimes:
        runtime.task(EVERY_SECOND, name="local", every_instance=True)(lambda: None)
        await runtime.start()
    fired = [{event.scheduled_at for event in await one("task.fired", count=2)} for one in watchers]
    assert fired[0] & fired[1]


@pytest.mark.parametrize("everywhere", [False, True])
async def test_overlap_skip_queue_and_allow(make_runtime, everywhere):
    most, active, runs = {}, {}, {}
    runtime = make_runtime()
    seen = Watcher(runtime)

    def slow(name):
        async def task():
            active[name] = active.get(name, 0) + 1
            runs[name] = runs.get(name, 0) + 1
            most[name] = max(most.get(name, 0), active[name])
            await asyncio.sleep(1.6)
            active[name] -= 1

        return task

    for overlap in ("skip", "queue", "allow"):
        runtime.task(EVERY_SECOND, name=overlap, overlap=overlap, every_instance=everywhere)(slow(overlap))
    async with runtime:
        await seen("task.fired", name="queue", count=3)
        await seen("task.fired", name="allow", count=4)
    assert (most["skip"], most["queue"]) == (1, 1)
    assert most["allow"] == 2
    assert seen.all("task.skipped", name="skip")[0].error == "the last run has not ended"
    assert seen.all("task.skipped", name="queue") == []
    fired = [event.at for event in seen.all("task.fired", name="queue")]
    gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(fired)]
    assert all(gap < 1.9 for gap in gaps), "a queued tick runs as soon as the last run has ended"


async def test_a_run_in_another_process_counts_as_overlap(make_runtime):
    active = most = 0
    runtimes = [make_runtime() for _ in range(2)]
    watchers = [Watcher(runtime) for runtime in runtimes]

    async def slow():
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(1.5)
        active -= 1

    for runtime in runtimes:
        runtime.task(EVERY_SECOND, name="slow")(slow)
        await runtime.start()
    await eventually(lambda: sum(len(one.all("task.skipped")) for one in watchers) >= 2)
    assert most == 1


async def test_a_task_that_raises_ticks_again(runtime, seen, caplog):
    @runtime.task(EVERY_SECOND)
    async def sometimes_fails():
        raise RuntimeError("not today")

    @runtime.task(EVERY_SECOND, name="exits")
    async def exits():
        raise SystemExit(1)

    async with runtime:
        failed = await seen("task.failed", name="sometimes-fails", count=2)
        await seen("task.failed", name="exits", count=2)
    assert str(failed[0].error) == "not today"
    assert "task sometimes-fails failed; it ticks again" in caplog.text


async def test_a_sync_task_runs_in_a_thread_and_gets_what_it_names(make_runtime):
    got = []
    runtime = make_runtime(services={"db": 1})

    @runtime.task(EVERY_SECOND)
    def poll(services, queue, io):
        got.append((services, queue is not None, io is not None, threading.current_thread() is threading.main_thread()))

    async with runtime:
        await eventually(lambda: got)
    assert got[0] == ({"db": 1}, True, True, False)


async def test_environments_and_is_active(tmp_path, make_runtime, monkeypatch):
    task = """
        cron_time = "* * * * * *"
        is_active = {}
        environments = {}
        async def task(services): services.append("{}")
    """
    files = {
        "tasks/everywhere.py": task.format(True, None, "everywhere"),
        "tasks/production.py": task.format(True, ["production", "staging"], "production"),
        "tasks/inactive.py": task.format(False, None, "inactive"),
    }
    write(tmp_path, files)
    for environment, expected in (("production", {"everywhere", "production"}), ("development", {"everywhere"})):
        ran: list[str] = []
        runtime = make_runtime(tasks=tmp_path / "tasks", services=ran, environment=environment)
        async with runtime:
            assert set(runtime.health()["tasks"]) == expected
            await eventually(lambda ran=ran, expected=expected: set(ran) == expected)
    monkeypatch.setenv("ASYNCJOBS_ENV", "test")
    runtime = make_runtime(tasks=tmp_path / "tasks")
    runtime.task(EVERY_SECOND)(never)
    async with runtime:
        assert runtime.config.environment == "test"
        assert runtime.health()["tasks"] == {}
    monkeypatch.setenv("ASYNCJOBS_ENV", "staging")
    assert make_runtime().config.environment == "staging"


async def never():
    raise AssertionError


async def test_schedule_false_runs_no_task(make_runtime):
    runtime = make_runtime(schedule=False)
    runtime.task(EVERY_SECOND)(never)
    async with runtime:
        assert runtime.health()["tasks"] == {}


async def test_misfire_once_runs_late_and_skip_does_not(make_runtime, redis, prefix):
    ran = []
    runtime = make_runtime(timezone="UTC")
    seen = Watcher(runtime)
    for name, misfire, grace in (("once", "once", 600), ("skip", "skip", 600), ("too-late", "once", 60)):
        runtime.task("* * * * *", name=name, misfire=misfire, misfire_grace=grace)(lambda name=name: ran.append(name))
    runtime.task("0 0 * * *", name="first-start", misfire="once")(lambda: ran.append("first-start"))
    minutes_ago = int((datetime.now(UTC) - timedelta(minutes=10)).timestamp() * 1000)
    for name in ("once", "skip", "too-late"):
        await redis.hset(f"{{{prefix}}}:ticks", name, f"{minutes_ago} -")
    async with runtime:
        await seen("task.fired", name="once")
        await seen("task.skipped", name="skip")
    assert ran.count("once") == 1
    assert "first-start" not in ran
    assert seen.all("task.fired", name="once")[0].scheduled_at <= datetime.now(UTC)
    assert "missed by" in seen.all("task.skipped", name="skip")[0].error


async def test_without_the_store_a_tick_is_not_fired_but_counted(own_server, make_runtime):
    runtime = make_runtime(own_server.url, connect_timeout=0.5)
    seen = Watcher(runtime)
    runtime.task(EVERY_SECOND, name="poll")(lambda: None)
    async with runtime:
        await seen("task.fired")
        own_server.kill()
        skipped = await seen("task.skipped")
        assert "the store did not answer" in skipped[0].error
        fired = len(seen.all("task.fired"))
        own_server.start()
        await seen("task.fired", count=fired + 1)


def test_bad_tasks_are_refused(runtime):
    with pytest.raises(ConfigError, match="cron_time='often'"):
        runtime.task("often")(never)
    with pytest.raises(ConfigError, match="no option 'overlaps'; did you mean 'overlap'"):
        runtime.task("@daily", overlaps="skip")
    with pytest.raises(ConfigError, match="task asks for 'data'; it may name services, queue, io"):
        runtime.task("@daily", name="x")(lambda data: None)
    runtime.task("@daily")(never)
    with pytest.raises(ConfigError, match="a task called 'never' is registered already"):
        runtime.task("@hourly")(never)
