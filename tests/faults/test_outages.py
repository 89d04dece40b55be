"""The store goes away, freezes, forgets; the link is slow, half open, cut. Every process carries on by itself."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import time
from collections import Counter

import pytest

from asyncjobs import BrokerUnavailableError, Runtime
from tests.helpers import Process, Server, Watcher, eventually, ledger, write


async def adds(runtime: Runtime, name: str, data: object, within: float = 20, **options) -> object:
    """The result of a job that is added again and again until the store takes it."""

    async def once():
        try:
            return await runtime.queue.add(name, data, **options)
        except BrokerUnavailableError:
            return None

    job = await eventually(once, within, "the store takes a job")
    return await job.wait(within)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 8])
@pytest.mark.parametrize("busy", [True, False])
async def test_an_outage_is_outlived_without_a_busy_loop_or_a_flood_of_lines(
    durable_proxy, prefix, caplog, seconds, busy
):
    proxy = durable_proxy
    runtime = Runtime(proxy.url, prefix=prefix, connect_timeout=1)
    seen, ran = Watcher(runtime), Counter()

    @runtime.job("work", limiter=None, concurrency=5)
    async def work(data):
        ran[data] += 1
        await asyncio.sleep(0.05)
        return data

    @runtime.job("tenant", limiter=None, group=True)
    async def tenant(data):
        return data

    async with runtime:
        await adds(runtime, "tenant", 1, group_id="acme")
        if busy:
            await runtime.queue.add_bulk([("work", n) for n in range(60)])
            await seen("job.completed", count=10)
        proxy.mode = "refuse"
        proxy.cut_all()
        caplog.clear()
        connected, spent = proxy.connected, resource.getrusage(resource.RUSAGE_SELF)
        with pytest.raises(BrokerUnavailableError) as caught:
            await runtime.queue.add("work", "unsure")
        assert caught.value.job_ids
        await asyncio.sleep(seconds - 1)
        now = resource.getrusage(resource.RUSAGE_SELF)
        used = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
        # The first second has the quick retries and the adds of this test; after it two connects a second.
        assert proxy.connected - connected < 45 + 3 * seconds
        assert runtime.health()["status"] == "degraded"
        proxy.mode = "pass"
        assert await adds(runtime, "work", "after", 6) == "after"
        assert await adds(runtime, "tenant", 2, 6, group_id="umbrella") == 2
        await runtime.wait_idle(20)
        await eventually(lambda: runtime.health()["status"] == "ok", 6)
    if busy:
        assert all(ran[n] == 1 for n in range(60)), ran
    assert used < 0.1 * seconds + 0.4
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) <= 6, [record.message for record in lines]


@pytest.mark.slow
async def test_a_minute_without_the_store(durable_proxy, prefix, caplog):
    """A worker with running jobs, an idle one, and one that is just starting, through sixty seconds of nothing."""
    proxy, began = durable_proxy, time.monotonic()
    busy, idle = [Runtime(proxy.url, prefix=prefix, connect_timeout=1) for _ in range(2)]
    starting = Runtime(proxy.url, prefix=prefix, connect_timeout=90)
    release = asyncio.Event()
    for runtime in (busy, idle, starting):

        @runtime.job("work", limiter=None, concurrency=3, lease=10)
        async def work(data):
            if data == "long":
                await release.wait()
            return data

    async with busy:
        long = await busy.queue.add("work", "long")
        await eventually(lambda: busy.health()["running"] == 1)
        async with idle:
            proxy.mode = "refuse"
            proxy.cut_all()
            start = asyncio.create_task(starting.start())
            connected = proxy.connected
            await asyncio.sleep(1)
            release.set()
            await asyncio.sleep(59)
            assert proxy.connected - connected < 60 * 2 * 3, "two connects a second and process"
            proxy.mode = "pass"
            assert await long.wait(10) == "long"
            assert await adds(idle, "work", "after", 8) == "after"
            await asyncio.wait_for(start, 8)
            assert await adds(starting, "work", "started", 8) == "started"
            record = await busy.queue.get_job("work", long.id)
            assert (record.state, record.attempts_made, record.stalled_count) == ("completed", 1, 0)
            await starting.stop()
    assert time.monotonic() - began < 110
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) < 20


@pytest.mark.slow
async def test_killed_over_and_over_with_its_file_at_every_command_it_loses_nothing(
    durable_server, durable_proxy, prefix
):
    runtime = Runtime(durable_proxy.url, prefix=prefix, connect_timeout=10)
    ran: Counter[int] = Counter()

    @runtime.job("work", limiter=None, concurrency=20)
    async def work(data):
        ran[data] += 1

    acknowledged = 0
    stopped = False

    async def add():
        nonlocal acknowledged
        while not stopped:
            await runtime.queue.add("work", acknowledged)
            acknowledged += 1

    async with runtime:
        adding = asyncio.create_task(add())
        for _ in range(20):
            enough = acknowledged + 40
            await eventually(lambda enough=enough: acknowledged >= enough)
            durable_server.kill()
            await asyncio.to_thread(durable_server.again)
        stopped = True
        await adding
        await runtime.wait_idle(20)
        assert (await runtime.queue.counts("work"))["completed"] == min(acknowledged, 1000)
    assert sorted(ran) == list(range(acknowledged))
    assert max(ran.values()) == 1, "its worker never died: no reason to run anything twice"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["restart", "flush"])
async def test_a_store_that_forgot_everything_is_named_once_and_work_goes_on(tcp_server, prefix, caplog, how):
    runtime = Runtime(tcp_server.url, prefix=prefix, connect_timeout=5)
    ended: list[str] = []

    @runtime.job("work", limiter=None, lease=0.6)
    async def work(data):
        try:
            await asyncio.sleep(30 if data == "long" else 0)
        finally:
            ended.append(data)
        return data

    @runtime.job("tenant", limiter=None, group=True, lease=0.6)
    async def tenant(data):
        return data

    async with runtime:
        assert await adds(runtime, "tenant", 0, group_id="acme") == 0
        await runtime.queue.add("work", "long")
        await runtime.queue.add("work", "later", delay=60)
        await eventually(lambda: runtime.health()["running"] == 1)
        if how == "restart":
            tcp_server.kill()
            tcp_server.again()
        else:
            async with tcp_server.client() as redis:
                await redis.flushall()
        await eventually(lambda: runtime.health()["data_lost_at"] is not None, what="it is noticed")
        assert runtime.health()["status"] == "degraded"
        assert await adds(runtime, "work", "new") == "new"
        assert await adds(runtime, "tenant", 1, group_id="acme") == 1
        await eventually(lambda: "long" in ended, what="the try of a job that is gone is cancelled")
        runtime.acknowledge_data_loss()
        await eventually(lambda: runtime.health()["status"] == "ok")
        assert (await runtime.queue.counts("work"))["delayed"] == 0
    assert [record.levelname for record in caplog.records].count("CRITICAL") == 1


@pytest.mark.slow
async def test_a_half_open_link_is_noticed_and_left(durable_proxy, prefix):
    """Nothing passes and nothing is refused, for ten seconds; then new connections work, the old ones never again."""
    proxy = durable_proxy
    runtime = Runtime(proxy.url, prefix=prefix, connect_timeout=1)
    runtime.job("echo", limiter=None, concurrency=2)(lambda data: data)
    async with runtime:
        await runtime.queue.add_bulk([("echo", n) for n in range(2000)])
        proxy.mode = "black-hole"
        with pytest.raises(BrokerUnavailableError):
            await asyncio.wait_for(runtime.queue.add("echo", "x"), 10)
        await asyncio.sleep(4)
        proxy.mode = "pass"
        assert await adds(runtime, "echo", "after", 12) == "after"
        await runtime.wait_idle(20)
        assert (await runtime.queue.counts("echo"))["completed"] == 1000


@pytest.mark.slow
async def test_without_its_news_a_job_starts_all_the_same(tcp_server, prefix):
    runtime = Runtime(tcp_server.url, prefix=prefix, sweep_interval=0.5)
    runtime.job("echo", limiter=None)(lambda data: data)
    adder = Runtime(tcp_server.url, prefix=prefix, consume=False)
    adder.job("echo", limiter=None)(lambda data: data)
    async with runtime, adder:
        assert await (await adder.queue.add("echo", 1)).wait(5) == 1
        runtime._assembly.broker.subscriber._handlers.clear()  # as if every message were lost from now on
        began = time.monotonic()
        job = await adder.queue.add("echo", 2)
        assert await job.wait(5) == 2
        assert time.monotonic() - began < 2


@pytest.mark.slow
async def test_a_slow_link_stalls_nothing(durable_proxy, prefix):
    """200 ms each way, give or take 200, under two hundred long jobs and a lease of two seconds."""
    proxy = durable_proxy
    runtimes = [Runtime(proxy.url, prefix=prefix, connect_timeout=20) for _ in range(2)]
    watchers = [Watcher(runtime) for runtime in runtimes]
    for runtime in runtimes:

        @runtime.job("long", limiter=None, concurrency=100, lease=2)
        async def long(data):
            await asyncio.sleep(5)

    async with runtimes[0], runtimes[1]:
        proxy.latency, proxy.jitter = 0.2, 0.2
        await runtimes[0].queue.add_bulk([("long", n) for n in range(200)])
        await eventually(lambda: sum(len(one.all("job.completed")) for one in watchers) == 200, 60)
        proxy.latency = proxy.jitter = 0.0
    assert [event for one in watchers for event in one.all("job.stalled")] == []


@pytest.mark.slow
async def test_a_store_frozen_for_two_leases_gives_nobody_up(tcp_server, prefix):
    runtimes = [Runtime(tcp_server.url, prefix=prefix, connect_timeout=20) for _ in range(2)]
    watchers = [Watcher(runtime) for runtime in runtimes]
    ran: Counter[int] = Counter()
    for runtime in runtimes:

        @runtime.job("long", limiter=None, concurrency=50, lease=1)
        async def long(data):
            ran[data] += 1
            await asyncio.sleep(4)

    async with runtimes[0], runtimes[1]:
        await runtimes[0].queue.add_bulk([("long", n) for n in range(100)])
        await eventually(lambda: len(ran) == 100)
        tcp_server.freeze(True)
        await asyncio.sleep(2.5)
        tcp_server.freeze(False)
        await runtimes[0].wait_idle(30)
    assert sum(ran.values()) <= 105, "at most one in twenty ran twice"
    assert sum(len(one.all("job.completed")) for one in watchers) == 100


PROJECT = {
    "jobs/work.py": """
        import asyncio, os
        from asyncjobs import WorkerOptions
        worker_options = WorkerOptions(limiter=None, concurrency=20, lease=2)
        async def handle(data, job):
            with open("ledger", "a") as file:
                file.write(f"start {data['n']} {os.getpid()} {job.stalled_count}\\n")
            await asyncio.sleep(data.get("takes", 0))
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("traffic", [True, False])
async def test_the_jobs_of_a_killed_worker_run_elsewhere_within_a_lease_and_a_third(durable_server, tmp_path, traffic):
    """On another host, that is: here the name of the dead tells that it is gone, so its host is made up."""
    write(tmp_path, PROJECT)
    env = {"ASYNCJOBS_REDIS_URL": durable_server.url}
    elsewhere = (
        "import asyncjobs.upkeep.heartbeat as one; one._host = lambda: {!r}; from asyncjobs.cli import main; main()"
    )
    victim, heir = [Process(tmp_path, "-c", elsewhere.format(host), module=False, env=env) for host in ("a", "b")]
    runtime = Runtime(durable_server.url, jobs=tmp_path / "jobs", consume=False)
    try:
        await victim.says("ready")
        await heir.says("ready")
        async with runtime:
            heir.signal(signal.SIGSTOP)
            await runtime.queue.add_bulk([("work", {"n": n, "takes": 60}) for n in range(5)])
            await eventually(lambda: len(ledger(tmp_path / "ledger")) == 5)
            heir.signal(signal.SIGCONT)
            heir_takes = await runtime.queue.add("work", {"n": 99, "takes": 60})
            await eventually(lambda: len(ledger(tmp_path / "ledger")) == 6)
            assert heir_takes.added
            flood = asyncio.create_task(_flood(runtime)) if traffic else None
            await asyncio.sleep(1)
            victim.kill()
            killed = time.monotonic()
            again = lambda: [line for line in ledger(tmp_path / "ledger") if line.endswith(f"{heir.popen.pid} 1")]  # noqa: E731
            await eventually(lambda: len(again()) >= 5 or not _ours(tmp_path, victim), 10)
            took = time.monotonic() - killed
            if flood is not None:
                flood.cancel()
    finally:
        victim.kill()
        heir.kill()
    assert took < 1.3 * 2


async def _flood(runtime: Runtime) -> None:
    while True:
        await runtime.queue.add("work", {"n": 1000})


def _ours(folder, process) -> list[str]:
    return [line for line in ledger(folder / "ledger") if line.split()[2] == str(process.popen.pid)]


async def test_an_interrupted_write_at_the_end_of_its_file_is_dropped_and_the_rest_is_there(tmp_path):
    runtime = Runtime(data_dir=tmp_path / "store")
    runtime.job("echo", limiter=None)(lambda data: data)
    async with runtime:
        later = await runtime.queue.add("echo", 1, delay=60)
    await eventually(lambda: not (tmp_path / "store" / "valkey.sock").exists() or not _answers(tmp_path / "store"))
    (file,) = (tmp_path / "store" / "appendonlydir").glob("*.incr.aof")
    with file.open("ab") as torn:
        torn.write(b"*3\r\n$3\r\nSET\r\n$5\r\nhalf")
    async with runtime:
        assert (await runtime.queue.get_job("echo", later.id)).state == "delayed"
    assert "truncat" in (tmp_path / "store" / "valkey.log").read_text().lower()


def _answers(folder) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fspath(folder / "valkey.sock")) == 0


def test_servers_are_stopped_even_when_frozen(tmp_path):
    server = Server(tmp_path, tcp=True).start()
    server.freeze(True)
    server.stop()
    assert not server.alive
