"""Processes that die, block, or are told to stop, as web servers tell them; and the neighbours of a poison job."""

from __future__ import annotations

import asyncio
import signal
import time

import aiohttp
import pytest

from asyncjobs import Runtime
from tests.helpers import Process, eventually, free_port, ledger, write

PROJECT = {
    "jobs/slow.py": """
        import asyncio, os
        from asyncjobs import WorkerOptions
        worker_options = WorkerOptions(limiter=None, concurrency=10, lease=2)
        async def handle(data, job):
            first = not os.path.exists("ran")
            with open("ran", "a") as file:
                file.write(f"start {os.getpid()} {job.stalled_count} {job.attempts_made}\\n")
            if first:
                await asyncio.sleep(60)
            return "done"
    """,
    "asgi.py": """
        from fastapi import FastAPI
        from asyncjobs import Runtime
        runtime = Runtime(jobs="jobs", grace=0.5)
        app = FastAPI(lifespan=runtime.lifespan)
        @app.post("/add")
        async def add():
            return {"id": (await runtime.queue.add("slow", 1)).id}
    """,
    "aio.py": """
        import sys
        from aiohttp import web
        from asyncjobs import Runtime
        runtime = Runtime(jobs="jobs", grace=0.5)
        async def add(request):
            return web.json_response({"id": (await runtime.queue.add("slow", 1)).id})
        app = web.Application()
        app.cleanup_ctx.append(runtime.cleanup_ctx)
        app.router.add_post("/add", add)
        web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), shutdown_timeout=1)
    """,
}
SERVERS = {
    "uvicorn": ["-m", "uvicorn", "asgi:app", "--port", "{}", "--timeout-graceful-shutdown", "2"],
    "uvicorn --reload": ["-m", "uvicorn", "asgi:app", "--port", "{}", "--reload", "--timeout-graceful-shutdown", "2"],
    "gunicorn": ["-m", "gunicorn", "asgi:app", "-k", "uvicorn_worker.UvicornWorker", "-w", "2", "-b", "127.0.0.1:{}"],
    "aiohttp": ["aio.py", "{}"],
}


@pytest.fixture
async def serving(tmp_path, monkeypatch):
    """`serving(kind)`: that web server, with a job of the project running in it; the process and the job's id."""
    write(tmp_path, PROJECT)
    monkeypatch.chdir(tmp_path)
    started: list[Process] = []

    async def start(kind: str) -> tuple[Process, str]:
        port = str(free_port())
        process = Process(tmp_path, *(word.format(port) for word in SERVERS[kind]), module=False)
        started.append(process)

        async def added():
            async with aiohttp.ClientSession() as session:
                try:
                    async with session.post(f"http://127.0.0.1:{port}/add") as answer:
                        return (await answer.json())["id"]
                except aiohttp.ClientConnectionError:
                    assert process.popen.poll() is None, process.output
                    return None

        job_id = await eventually(added, 30, process.output)
        await eventually(lambda: len(ledger(tmp_path / "ran")) == 1)
        return process, job_id

    yield start
    for process in started:
        if process.popen.poll() is None:  # killed at once, a reloader or an arbiter would leave its workers behind
            process.signal(signal.SIGTERM)
            await process.ended(15)


async def run_again(folder, job_id):
    """What another process makes of the job."""
    async with Runtime(jobs=folder / "jobs", data_dir=folder / ".asyncjobs") as runtime:
        job = await runtime.queue.get_job("slow", job_id)
        assert await job.wait(15) == "done"
        return await runtime.queue.get_job("slow", job_id)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SERVERS)
async def test_a_web_server_that_is_told_to_stop_hands_its_jobs_back(serving, tmp_path, kind):
    process, job_id = await serving(kind)
    began = time.monotonic()
    process.signal(signal.SIGTERM)
    await process.ended(12)
    assert time.monotonic() - began < 8
    record = await run_again(tmp_path, job_id)
    assert (record.state, record.attempts_made, record.stalled_count) == ("completed", 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uvicorn", "aiohttp"])
async def test_a_second_ctrl_c_ends_it_at_once_and_loses_nothing(serving, tmp_path, kind):
    """Forced, uvicorn does not even come to its shut-down: what safety there is may not depend on it."""
    process, job_id = await serving(kind)
    began = time.monotonic()
    process.signal(signal.SIGINT)
    await eventually(lambda: time.monotonic() - began > 0.1)
    process.signal(signal.SIGINT)
    await process.ended(6)
    assert time.monotonic() - began < 4
    record = await run_again(tmp_path, job_id)
    assert (record.state, record.attempts_made) == ("completed", 1)
    assert record.stalled_count <= 1


@pytest.mark.slow
async def test_a_reload_goes_on_with_the_jobs(serving, tmp_path):
    process, job_id = await serving("uvicorn --reload")
    (tmp_path / "asgi.py").write_text((tmp_path / "asgi.py").read_text() + "\n# changed\n")
    await eventually(lambda: len(ledger(tmp_path / "ran")) == 2, 20, "the new process runs the job again")
    first, second = [line.split() for line in ledger(tmp_path / "ran")]
    assert first[1] != second[1]
    assert second[2:] == ["0", "0"], "handed back uncounted"
    assert process.popen.poll() is None
    record = await run_again(tmp_path, job_id)
    assert record.state == "completed"


@pytest.mark.slow
async def test_a_job_that_blocks_the_loop_is_named_and_records_nothing_of_what_was_taken_over(durable_server, tmp_path):
    write(
        tmp_path,
        {
            "jobs/work.py": """
                import asyncio, os, time
                from asyncjobs import WorkerOptions
                worker_options = WorkerOptions(limiter=None, concurrency=20, lease=0.6)
                def reconcile_everything(seconds):
                    time.sleep(seconds)
                async def handle(data, job):
                    with open("ledger", "a") as file:
                        file.write(f"start {data['n']} {os.getpid()}\\n")
                    await asyncio.sleep(0.3)
                    if data["n"] == 7 and not job.stalled_count:
                        reconcile_everything(1.8)
                    await asyncio.sleep(0.3)
                    with open("ledger", "a") as file:
                        file.write(f"end {data['n']} {os.getpid()}\\n")
            """
        },
    )
    env = {"ASYNCJOBS_REDIS_URL": durable_server.url}
    blocked, other = Process(tmp_path, env=env), Process(tmp_path, env=env)
    try:
        await blocked.says("ready")
        await other.says("ready")
        other.signal(signal.SIGSTOP)
        async with Runtime(durable_server.url, jobs=tmp_path / "jobs", consume=False) as adder:
            jobs = await adder.queue.add_bulk([("work", {"n": n}) for n in range(20)])
            await eventually(lambda: len(ledger(tmp_path / "ledger")) == 20)
            other.signal(signal.SIGCONT)
            for job in jobs:
                await job.wait(20)
            await adder.wait_idle(10)
            records = [await adder.queue.get_job("work", job.id) for job in jobs]
        await eventually(lambda: "taken over by another process" in blocked.output)
    finally:
        blocked.kill()
        other.kill()
    assert f"ActiveJob work {jobs[7].id}" in blocked.output.replace("\n", " ").replace("  ", " ")
    assert "blocks the event loop" in blocked.output
    assert "reconcile_everything" in blocked.output, "the stack shows where"
    assert {(record.state, record.attempts_made) for record in records} == {("completed", 1)}
    ends = [line.split()[1] for line in ledger(tmp_path / "ledger") if line.startswith("end")]
    assert max(ends.count(str(n)) for n in range(20)) <= 2


@pytest.mark.slow
async def test_the_neighbours_of_a_poison_job_come_through(tmp_path):
    """Each of its crashes takes fifty innocent ones along; all of them complete, and it alone fails, at its sixth."""
    write(
        tmp_path,
        {
            "jobs/work.py": """
                import asyncio, os
                from asyncjobs import WorkerOptions
                worker_options = WorkerOptions(limiter=None, concurrency=60, lease=1)
                async def handle(data, job):
                    with open("ledger", "a") as file:
                        file.write(f"start {data} {os.getpid()} {job.stalled_count}\\n")
                    await asyncio.sleep(0.05)
                    if data == "poison":
                        os.kill(os.getpid(), 9)
                    await asyncio.sleep(0.1)
            """
        },
    )
    watch = Runtime(jobs=tmp_path / "jobs", data_dir=tmp_path / ".asyncjobs", consume=False)
    async with watch:
        innocent = await watch.queue.add_bulk([("work", f"n{n}") for n in range(25)])
        poison = await watch.queue.add("work", "poison")
        innocent += await watch.queue.add_bulk([("work", f"n{n}") for n in range(25, 50)])
        process = Process(tmp_path)
        deadline = time.monotonic() + 60
        while (await watch.queue.get_job("work", poison.id)).state != "failed":
            if process.popen.poll() is not None:
                process = Process(tmp_path)
            assert time.monotonic() < deadline, process.output
            await asyncio.sleep(0.02)
        await watch.wait_idle(20)
        process.kill()
        states = [(await watch.queue.get_job("work", job.id)).state for job in innocent]
        record = await watch.queue.get_job("work", poison.id)
    starts = [line.split() for line in ledger(tmp_path / "ledger")]
    assert states == ["completed"] * 50
    assert len([line for line in starts if line[1] == "poison"]) == 6
    assert record.stalled_count == 6


@pytest.mark.slow
async def test_a_fast_clock_neither_makes_a_job_early_nor_a_tick(durable_server, tmp_path):
    """One process lives an hour ahead, one an hour behind; Redis's clock decides."""
    write(
        tmp_path,
        {
            "jobs/work.py": """
                import time
                from asyncjobs import WorkerOptions
                worker_options = WorkerOptions(limiter=None)
                async def handle(data):
                    with open("ledger", "a") as file:
                        file.write(f"{data} {time.monotonic()}\\n")
            """,
            "tasks/tick.py": """
                import time
                cron_time, is_active = "* * * * * *", True
                async def task():
                    with open("ticks", "a") as file:
                        file.write(f"{time.monotonic()}\\n")
            """,
        },
    )
    shifted = (
        "import time; real = time.time; time.time = lambda: real() + {};"
        "import asyncjobs.clock as one; one.wall = time.time;"
        "from asyncjobs.cli import main; main()"
    )
    env = {"ASYNCJOBS_REDIS_URL": durable_server.url}
    processes = []
    try:
        for by in (3600, -3600, 0):  # the one that is ahead comes first, and must not set the pace
            processes.append(Process(tmp_path, "-c", shifted.format(by), module=False, env=env))
            await processes[-1].says("ready")
        async with Runtime(durable_server.url, jobs=tmp_path / "jobs", consume=False) as adder:
            added = time.monotonic()
            await adder.queue.add_bulk([("work", n, {"delay": 1.0}) for n in range(30)])
            await eventually(lambda: len(ledger(tmp_path / "ledger")) == 30)
            await eventually(lambda: len(ledger(tmp_path / "ticks")) >= 4)
    finally:
        for process in processes:
            process.kill()
    assert all(0.99 <= float(line.split()[1]) - added < 3 for line in ledger(tmp_path / "ledger"))
    ticks = [float(line) for line in ledger(tmp_path / "ticks")]
    assert ticks[-1] - ticks[0] > (len(ticks) - 1) * 0.9, "one a second, not three"


@pytest.mark.slow
async def test_a_task_whose_process_was_killed_in_the_middle_of_it_ticks_again_before_its_lease_is_over(
    durable_server, tmp_path
):
    """On the same host its death is seen at the next beat; until then each tick would be skipped as an overlap."""
    write(
        tmp_path,
        {
            "tasks/tick.py": """
                import asyncio, os
                cron_time, is_active, overlap = "* * * * * *", True, "skip"
                async def task(queue):
                    with open("ticks", "a") as file:
                        file.write(f"{os.getpid()}\\n")
                    await asyncio.sleep(60)
            """,
        },
    )
    processes = [Process(tmp_path, "run", env={"ASYNCJOBS_REDIS_URL": durable_server.url}) for _ in range(2)]
    try:
        for process in processes:
            await process.says("ready")
        await eventually(lambda: ledger(tmp_path / "ticks"))
        victim = next(one for one in processes if str(one.popen.pid) == ledger(tmp_path / "ticks")[0])
        victim.kill()
        await eventually(lambda: len(ledger(tmp_path / "ticks")) == 2, 30 / 4 + 5)
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
async def test_eight_processes_that_are_killed_now_and_then_tick_once_a_second(durable_server, tmp_path):
    write(
        tmp_path,
        {
            "tasks/tick.py": """
                cron_time, is_active = "* * * * * *", True
                async def task(queue):
                    ...
            """,
            "watch.py": """
                import os
                from asyncjobs import Runtime
                runtime = Runtime(tasks="tasks")
                @runtime.on("task.fired")
                def fired(event):
                    with open("ticks", "a") as file:
                        file.write(f"{event.scheduled_at.timestamp():.0f}\\n")
            """,
        },
    )
    env = {"ASYNCJOBS_REDIS_URL": durable_server.url}

    def start() -> Process:
        return Process(tmp_path, "run", "--app", "watch:runtime", env=env)

    processes = [start() for _ in range(8)]
    try:
        for process in processes:
            await process.says("ready")
        for n in range(6):
            enough = len(ledger(tmp_path / "ticks")) + 1
            await eventually(lambda enough=enough: len(ledger(tmp_path / "ticks")) > enough)
            processes[n].kill()
            processes[n] = start()
    finally:
        for process in processes:
            process.kill()
    ticks = [int(line) for line in ledger(tmp_path / "ticks")]
    assert len(ticks) == len(set(ticks)), "none fired twice"
    # A tick that was claimed by a process just killed is the only one that may be missing.
    assert len(ticks) >= max(ticks) - min(ticks) + 1 - 6
