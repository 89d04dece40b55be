"""Processes, as each says of itself with its heartbeat, and what they do when they are asked to take nothing."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time

import pytest

import asyncjobs
from asyncjobs import ConfigError, Limiter, NotRunningError, ProcessInfo
from asyncjobs.broker.keys import about_key, draining_key, due_key, leases_key, processes_key
from tests.helpers import Process, Watcher, eventually, write

JOBS = {
    "jobs/held.py": """
        import asyncio, pathlib
        attempts, limiter, lease = 5, None, 1.5
        async def handle(data):
            with pathlib.Path("ran.txt").open("a") as ledger: ledger.write(f"{data}\\n")
            await asyncio.sleep(3600)
    """
}


async def me(runtime, process=None) -> ProcessInfo:
    """What another process sees of the process of `runtime`."""
    wanted = process or runtime.health()["process"]
    return next(one for one in await runtime.processes() if one.id == wanted)


async def test_each_process_says_where_it_is_and_what_it_runs(make_runtime, monkeypatch):
    monkeypatch.setenv("ASYNCJOBS_VERSION", "7.3")
    worker, web = make_runtime(concurrency=50, environment="staging"), make_runtime(consume=False, schedule=False)
    gate = asyncio.Event()

    @worker.job("quick", limiter=None, lease=1)
    async def quick(data):
        await gate.wait()

    @worker.job("tenant", limiter=None, group=True, lease=1)
    async def tenant(data):
        await gate.wait()

    worker.task("@daily", name="nightly")(lambda: None)
    async with worker, web:
        before = time.time()
        for n in range(25):
            await worker.queue.add("quick", n)
        ids = {(await worker.queue.add("tenant", 0, group_id=group)).id: group for group in ("acme", "ëü\n")}
        await eventually(lambda: worker.health()["running"] == 12)
        await eventually(lambda: _says(web, worker, 12))
        (one,) = await web.processes()
        gate.set()
        assert (one.state, one.host, one.pid) == ("alive", socket.gethostname(), os.getpid())
        assert (one.release, one.version, one.environment) == (asyncjobs.__version__, "7.3", "staging")
        assert (one.names, one.tasks) == (("quick", "tenant"), ("nightly",))
        assert (one.slots_used, one.slots, one.lease) == (12, 50, 1.0)
        assert one.memory > 10 << 20
        assert one.loop_lag >= 0
        assert one.gone_since is None
        assert before - 20 < one.since.timestamp() <= one.seen_at.timestamp() + 1
        assert {job.id: job.group_id for job in one.running if job.name == "tenant"} == ids
        assert all(before - 2 < job.since.timestamp() < time.time() + 2 for job in one.running)
        assert len(one.running) == 12
        await worker.wait_idle(10)


async def _says(web, worker, used):
    return (await me(web, worker.health()["process"])).slots_used == used


async def _says_of(worker, ending):
    one = await me(worker)
    return one.slots_used == 40 and one.running[0].id.endswith(ending)


async def test_at_most_twenty_jobs_and_a_bounded_number_of_bytes_are_told(make_runtime, redis, prefix):
    worker = make_runtime()
    gate = asyncio.Event()

    @worker.job("quick", limiter=None, concurrency=None, lease=1)
    async def quick(data):
        await gate.wait()

    async with worker:
        for n in range(40):
            await worker.queue.add("quick", n, job_id=f"{n:03}")
        await eventually(lambda: _says(worker, worker, 40))
        assert len((await me(worker)).running) == 20
        gate.set()
        await worker.wait_idle(10)
        gate.clear()
        for n in range(40):
            await worker.queue.add("quick", n, job_id=f"{n:03}{'x' * 500}")
        await eventually(lambda: _says_of(worker, "xxx"))
        assert 5 < len((await me(worker)).running) < 10
        assert len(await redis.hget(about_key(prefix), worker.health()["process"])) < 6000
        gate.set()
        await worker.wait_idle(10)


async def test_a_process_that_leaves_leaves_nothing(make_runtime, keys_left, prefix):
    worker, web = make_runtime(), make_runtime(consume=False, schedule=False)
    worker.job("quick")(lambda data: None)
    async with web:
        async with worker:
            await web.drain_process(worker.health()["process"])
            assert len(await web.processes()) == 1
        assert await web.processes() == []
    assert not {about_key(prefix), draining_key(prefix)} & set(await keys_left())


async def test_a_killed_process_is_shown_as_gone_until_it_is_buried(tmp_path, own_server, make_runtime):
    write(tmp_path, JOBS)
    worker = Process(tmp_path, "run", env={"ASYNCJOBS_REDIS_URL": own_server.url, "ASYNCJOBS_ENV": "x"})
    web = make_runtime(own_server.url, consume=False, schedule=False, prefix="asyncjobs", jobs=tmp_path / "jobs")
    try:
        async with web:
            await eventually(lambda: web.processes())
            await web.queue.add("held", 1)
            await eventually(lambda: _any_running(web))
            worker.kill()
            gone = await eventually(lambda: _gone(web))
            assert (gone.state, gone.pid) == ("gone", worker.popen.pid)
            assert gone.gone_since == gone.seen_at
            assert [job.name for job in gone.running] == ["held"]
            with pytest.raises(ConfigError, match="no process has this id"):
                await web.drain_process("nobody")
            survivor = make_runtime(own_server.url, prefix="asyncjobs")
            survivor.job("held", limiter=None, lease=1.5)(lambda data: None)
            async with survivor:
                await eventually(lambda: _is_alone(web, survivor), 30)
                await survivor.wait_idle(10)
    finally:
        worker.kill()


async def _any_running(web):
    return any(one.running for one in await web.processes())


async def _gone(web):
    return next((one for one in await web.processes() if one.state == "gone"), None)


async def _is_alone(web, survivor):
    return [one.id for one in await web.processes()] == [survivor.health()["process"]]


async def test_what_an_earlier_release_leaves_is_shown_as_far_as_it_goes(make_runtime, redis, prefix):
    web = make_runtime(consume=False, schedule=False)
    now = int((await redis.time())[0]) * 1000
    earlier, nameless, broken = "ab12cd.4711.99.f00d", "x", "b.1.2.c"
    await redis.zadd(processes_key(prefix), {earlier: now - 1000, nameless: now - 60_000, broken: now})
    await redis.zadd(due_key(prefix), {earlier: now + 20_000})
    await redis.hset(leases_key(prefix), mapping={earlier: '{"":20000}', broken: "[1"})
    await redis.hset(about_key(prefix), mapping={broken: "{", f"{broken} names": '{"jobs":7}'})
    async with web:
        found = {one.id: one for one in await web.processes()}
    assert (found[earlier].state, found[earlier].pid, found[earlier].lease) == ("alive", 4711, 20.0)
    assert (found[earlier].release, found[earlier].names, found[earlier].slots) == (None, (), None)
    assert (found[nameless].state, found[nameless].pid) == ("gone", None)
    assert (found[broken].state, found[broken].release, found[broken].lease) == ("alive", None, None)
    await redis.delete(processes_key(prefix), due_key(prefix), leases_key(prefix), about_key(prefix))


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_draining_process_finishes_what_runs_and_takes_nothing(make_runtime, grouped):
    ran: dict[int, list[int]] = {0: [], 1: []}
    gate = asyncio.Event()
    workers, web = [make_runtime(), make_runtime()], make_runtime(consume=False, schedule=False)
    group = {"group_id": "acme"} if grouped else {}
    for place, worker in enumerate(workers):

        @worker.job("work", limiter=None, group=grouped, concurrency=1, lease=2)
        async def work(data, place=place):
            ran[place].append(data)
            if data == 0:
                await gate.wait()

    web.job("work", group=grouped)(lambda data: None)
    await web.start()
    await workers[0].start()
    first = await web.queue.add("work", 0, **group)
    await eventually(lambda: ran[0])
    name = workers[0].health()["process"]
    await web.drain_process(name, "the disk is full")
    await eventually(lambda: workers[0].health()["draining"])
    one = await me(web, name)
    assert (one.state, one.draining_reason) == ("draining", "the disk is full")
    jobs = [await web.queue.add("work", n, **group) for n in range(1, 6)]
    gate.set()
    assert await first.wait(10) is None
    assert ran[0] == [0], "it takes nothing more"
    assert [(await web.queue.get_job("work", job.id, **group)).state for job in jobs] == ["waiting"] * 5
    await workers[1].start()
    await asyncio.gather(*(job.wait(10) for job in jobs))
    assert (ran[0], sorted(ran[1])) == ([0], [1, 2, 3, 4, 5])
    await workers[1].stop()
    last = await web.queue.add("work", 9, **group)
    await web.resume_process(name.rpartition(".")[2])
    await last.wait(10)
    assert ran[0] == [0, 9]
    assert not workers[0].health()["draining"]
    assert (await me(web, name)).state == "alive"


async def test_a_drain_whose_message_was_lost_comes_with_the_beat_and_outlives_a_new_name(make_runtime, redis, prefix):
    worker = make_runtime()
    worker.job("work", lease=1)(lambda data: None)
    async with worker:
        name = worker.health()["process"]
        await redis.hset(draining_key(prefix), name, "{}")
        await eventually(lambda: worker.health()["draining"])
        await redis.zrem(processes_key(prefix), name)
        await eventually(lambda: worker.health()["process"] != name)
        assert worker.health()["draining"]
        assert (await me(worker)).state == "draining"
        job = await worker.queue.add("work")
        await worker.resume_process(worker.health()["process"])
        await job.wait(10)


async def test_what_waits_for_a_token_goes_back_while_a_process_drains(make_runtime):
    ran = []
    workers = [make_runtime(), make_runtime()]
    for place, worker in enumerate(workers):
        worker.job("work", limiter=Limiter(2, 0.3), lease=2)(lambda data, place=place: ran.append((place, data)))
        await worker.start()
    jobs = await workers[0].queue.add_bulk([("work", n) for n in range(10)])
    await workers[0].drain_process(workers[0].health()["process"])
    await eventually(lambda: workers[0].health()["draining"])
    drained_at = len(ran)
    await asyncio.gather(*(job.wait(20) for job in jobs))
    assert sorted(data for _, data in ran) == list(range(10))
    assert all(place == 1 for place, _ in ran[drained_at + 2 :])


async def test_bad_ids_and_a_runtime_that_is_not_running_get_a_clear_answer(make_runtime):
    worker = make_runtime()
    worker.job("work")(lambda data: None)
    with pytest.raises(NotRunningError):
        await worker.processes()
    async with worker:
        name = worker.health()["process"]
        for bad in ("nobody", "", None, 7, "a|b\n"):
            with pytest.raises(ConfigError, match="process="):
                await worker.drain_process(bad)
        with pytest.raises(ConfigError, match=name):
            await worker.resume_process("nobody")
        with pytest.raises(ConfigError, match="reason=7: expected a text"):
            await worker.drain_process(name, 7)


async def test_a_thousand_processes_cost_a_beat_no_more_and_are_all_shown(make_runtime, redis, prefix):
    """What a beat says of itself is one field, whatever the others say."""
    worker = make_runtime()
    worker.job("work", lease=2)(lambda data: None)
    watcher = Watcher(worker)
    async with worker:
        now = int((await redis.time())[0]) * 1000
        about = json.dumps(
            {"host": "h", "pid": 7, "release": "0.1.0", "running": [["n" * 40, None, "i" * 24, now]] * 20}
        )
        names = {f"p{n}": now + 60_000 for n in range(1000)}
        await redis.zadd(processes_key(prefix), dict.fromkeys(names, now + 59_000))
        await redis.zadd(due_key(prefix), names)
        await redis.hset(about_key(prefix), mapping=dict.fromkeys(names, about))
        found = await worker.processes()
        assert len(found) == 1001
        assert sum(len(one.running) for one in found) == 20_000
        await redis.delete(about_key(prefix), processes_key(prefix), due_key(prefix))
    assert watcher.events == []
