"""Stopping and dying: drain, hand back, leases, kill -9, and processes that come back from the dead."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from asyncjobs import NotRunningError, Runtime
from tests.helpers import Process, Watcher, eventually, ledger, write

LEDGER_JOBS = {
    "jobs/work.py": """
        import asyncio, os
        from asyncjobs import WorkerOptions
        worker_options = WorkerOptions(limiter=None, concurrency=5, lease=1)
        def note(*words):
            with open("ledger", "a") as file:
                file.write(" ".join(map(str, words)) + "\\n")
        async def handle(data, job):
            note("start", data["n"], os.getpid(), job.stalled_count, job.attempts_made)
            await asyncio.sleep(data.get("takes", 0))
            note("end", data["n"], os.getpid())
    """,
    "jobs/tenant.py": """
        import asyncio, os
        from asyncjobs import WorkerOptions
        from .work import note
        group = True
        worker_options = WorkerOptions(limiter=None, lease=1)
        async def handle(data, job):
            note("start", data["n"], os.getpid(), job.stalled_count, job.attempts_made)
            await asyncio.sleep(data.get("takes", 0))
            note("end", data["n"], os.getpid())
    """,
}


async def test_stop_drains_then_hands_back_uncounted(make_runtime):
    runs = []
    first, second = make_runtime(), make_runtime()
    watcher = Watcher(first)

    async def handle(data, job):
        runs.append((data, job.attempts_made, job.stalled_count))
        if data == "long" and len([one for one in runs if one[0] == "long"]) == 1:
            await asyncio.Event().wait()
        await asyncio.sleep(0.3)
        return "done"

    for runtime in (first, second):
        runtime.job("work", limiter=None, concurrency=3)(handle)
    await first.start()
    short, long, waiting = await first.queue.add_bulk(
        [("work", "short"), ("work", "long"), ("work", "x", {"delay": 60})]
    )
    await watcher("job.active", count=2)
    began = time.monotonic()
    await first.stop(grace=1)
    assert 0.9 < time.monotonic() - began < 4
    async with second:
        assert await (await second.queue.get_job("work", long.id)).wait(5) == "done"
        with pytest.raises(NotRunningError, match="has been stopped"):
            await long.wait(5)
        record = await second.queue.get_job("work", long.id)
        assert (record.attempts_made, record.stalled_count) == (1, 0)
        assert (await second.queue.get_job("work", short.id)).state == "completed"
        assert (await second.queue.get_job("work", waiting.id)).state == "delayed"
    assert runs.count(("long", 0, 0)) == 2
    assert runs.count(("short", 0, 0)) == 1


async def test_a_draining_handler_may_still_chain(runtime):
    started = asyncio.Event()

    @runtime.job("chain", limiter=None)
    async def chain(data, queue):
        started.set()
        await asyncio.sleep(0.2)
        return (await queue.add("chain", {}, job_id="next", delay=60)).added

    async with runtime:
        job = await chain.add({})
        await started.wait()
        await runtime.stop(grace=5)
    async with runtime:
        assert (await runtime.queue.get_job("chain", job.id)).result is True


async def test_stop_is_bounded_whatever_handlers_do(runtime):
    release = asyncio.Event()

    @runtime.job("stubborn", limiter=None)
    async def stubborn(data):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    @runtime.job("thread", limiter=None)
    def thread(data):
        time.sleep(3)

    seen = Watcher(runtime)
    await runtime.start()
    await runtime.queue.add_bulk([("stubborn", 1), ("thread", 1)])
    await seen("job.active", count=2)
    began = time.monotonic()
    await runtime.stop(grace=0.2)
    assert time.monotonic() - began < 5
    release.set()


async def test_start_and_stop_twice_are_fine_and_a_stopped_runtime_starts_again(runtime):
    runtime.job("echo", limiter=None)(lambda data: data)
    await runtime.stop()
    for _ in range(3):
        assert await runtime.start() is runtime
        await runtime.start()
        assert await (await runtime.queue.add("echo", 1)).wait(5) == 1
        await runtime.stop()
        await runtime.stop()
    assert runtime.health()["status"] == "stopped"


async def test_an_idle_stop_is_quick_and_leaves_no_task_or_connection(runtime, redis):
    runtime.job("echo", limiter=None)(lambda data: data)
    runtime.job("grouped", limiter=None, group=True)(lambda data: data)
    runtime.task("* * * * *", name="poll")(lambda: None)
    before, connections = asyncio.all_tasks(), len(await redis.client_list())
    async with runtime:
        await (await runtime.queue.add("echo", 1)).wait(5)
    began = time.monotonic()
    async with runtime:
        pass
    assert time.monotonic() - began < 1.5
    assert asyncio.all_tasks() == before
    await eventually(lambda: _connections(redis, connections))


async def _connections(redis, count):
    return len(await redis.client_list()) <= count


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with a ledger; `project()` starts a process in it, and this process is in it too."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, LEDGER_JOBS)
    processes: list[Process] = []

    def start(*args: str, **options) -> Process:
        processes.append(Process(tmp_path, *(args or ("run",)), **options))
        return processes[-1]

    start.folder = tmp_path
    yield start
    for process in processes:
        process.kill()


async def starts_of(project, n: int, count: int) -> list[list[str]]:
    def lines():
        found = [line.split() for line in ledger(project.folder / "ledger") if line.startswith(f"start {n} ")]
        return found if len(found) >= count else None

    return await eventually(lines, what=f"{count} starts of {n}")


@pytest.mark.slow
@pytest.mark.parametrize("known_host", [True, False])
async def test_a_killed_worker_loses_nothing_and_its_jobs_run_elsewhere(project, known_host, monkeypatch):
    """On one host a dead process is known at once; elsewhere its lease (1 s) has to run out."""
    runtime = Runtime(jobs=project.folder / "jobs", data_dir=project.folder / ".asyncjobs")
    if not known_host:
        monkeypatch.setattr("asyncjobs.upkeep.heartbeat._host", lambda: "elsewhere")
        monkeypatch.setattr("asyncjobs.upkeep.recovery.died_here", lambda process: False)
    seen = Watcher(runtime)
    victim = project()
    await victim.says("ready")
    async with runtime:
        pause(runtime)
        await runtime.queue.add_bulk(
            [("work", {"n": 1, "takes": 0.5}), ("tenant", {"n": 2, "takes": 0.5}, {"group_id": "acme"})]
        )
        for n in (1, 2):
            assert (await starts_of(project, n, 1))[0][2] == str(victim.popen.pid)
        victim.kill()
        killed = time.monotonic()
        pause(runtime, False)
        again = [(await starts_of(project, n, 2))[1] for n in (1, 2)]
        took = time.monotonic() - killed
        await runtime.wait_idle(10)
        counts = [await runtime.queue.counts(name) for name in ("work", "tenant")]
    assert took < 1.3
    assert [line[3:] for line in again] == [["1", "0"], ["1", "0"]], "one stall, no attempt"
    assert [one["completed"] for one in counts] == [1, 1]
    assert len(seen.all("job.stalled")) == 2


def pause(runtime: Runtime, quiet: bool = True) -> None:
    """Make this process take nothing, so that another one does."""
    runtime._assembly.queues.consumers["work"].quiet = quiet
    registry = runtime._assembly.queues.registries["tenant"]
    registry.quiet = quiet
    for consumer in registry.open.values():
        consumer.quiet = quiet


@pytest.mark.slow
async def test_killing_everybody_leaves_no_server_and_a_restart_finds_all(project):
    folder = project.folder
    first, second = project(), project()
    await first.says("ready")
    await second.says("ready")
    async with Runtime(jobs=folder / "jobs", data_dir=folder / ".asyncjobs", consume=False) as adder:
        await adder.queue.add_bulk([("work", {"n": n, "takes": 0.4}) for n in range(40)])
    await starts_of(project, 3, 1)
    os.kill(first.popen.pid, signal.SIGKILL)
    os.kill(second.popen.pid, signal.SIGKILL)
    await eventually(lambda: servers_in(folder) == [], 10, "no server is left behind")
    third = project("run", "--burst")
    assert await third.ended(30) == 0, third.output
    ended = {line.split()[1] for line in ledger(folder / "ledger") if line.startswith("end ")}
    assert ended == {str(n) for n in range(40)}
    await eventually(lambda: servers_in(folder) == [], 10)


def servers_in(folder) -> list[str]:
    from pathlib import Path

    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "cwd") == str(folder / ".asyncjobs"):
                    found.append(entry.name)
            except OSError:
                continue
    return found


@pytest.mark.slow
async def test_a_process_that_freezes_and_thaws_records_nothing_of_what_it_lost(project):
    folder = project.folder
    frozen = project()
    await frozen.says("ready")
    runtime = Runtime(jobs=folder / "jobs", data_dir=folder / ".asyncjobs")
    async with runtime:
        pause(runtime)
        job = await runtime.queue.add("work", {"n": 1, "takes": 1.5})
        await starts_of(project, 1, 1)
        frozen.signal(signal.SIGSTOP)
        pause(runtime, False)
        await starts_of(project, 1, 2)
        frozen.signal(signal.SIGCONT)
        await job.wait(10)
        await frozen.says("taken over by another process")
        record = await runtime.queue.get_job("work", job.id)
        assert (record.state, record.attempts_made, record.stalled_count) == ("completed", 1, 1)
        # It lives on under a new name and goes on working.
        pause(runtime)
        await runtime.queue.add("work", {"n": 2})
        assert (await starts_of(project, 2, 1))[0][2] == str(frozen.popen.pid)
    ended = [line for line in ledger(folder / "ledger") if line.startswith("end 1 ")]
    assert len(ended) == 1, "the lost try was cancelled"


@pytest.mark.slow
async def test_a_job_that_kills_its_process_fails_in_the_end(project):
    write(
        project.folder,
        {
            "jobs/poison.py": """
                import os
                from asyncjobs import WorkerOptions
                worker_options = WorkerOptions(limiter=None, lease=0.4, max_stalled_count=2)
                async def handle(data):
                    with open("poison", "a") as file:
                        file.write("start\\n")
                    os.kill(os.getpid(), 9)
            """
        },
    )
    watch = Runtime(jobs=project.folder / "jobs", data_dir=project.folder / ".asyncjobs", consume=False)
    async with watch:
        job = await watch.queue.add("poison", 1)
        for _ in range(3):
            assert await project().ended() == -9
        last = project()
        with pytest.raises(Exception, match="its process died 3 times, more than max_stalled_count=2"):
            await job.wait(15)
        assert last.popen.poll() is None
    assert ledger(project.folder / "poison") == ["start"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_with_grace_and_a_second_one_at_once(project, number):
    process = project("run", "--grace", "30")
    await process.says("ready")
    async with Runtime(jobs=project.folder / "jobs", data_dir=project.folder / ".asyncjobs", consume=False) as adder:
        await adder.queue.add("work", {"n": 1, "takes": 0.5})
        await starts_of(project, 1, 1)
        process.signal(number)
        assert await process.ended(10) == 0
        assert any(line.startswith("end 1 ") for line in ledger(project.folder / "ledger"))
        impatient = project("run", "--grace", "30")
        await impatient.says("ready")
        await adder.queue.add("work", {"n": 2, "takes": 60})
        await starts_of(project, 2, 1)
        impatient.signal(number)
        await impatient.says("stopping")
        impatient.signal(number)
        assert await impatient.ended(3) == 1
