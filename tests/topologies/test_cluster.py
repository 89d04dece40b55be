"""A real Cluster of three primaries: queues and the groups of one queue spread over the shards."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from redis.asyncio import Redis

from asyncjobs import Backoff, ConfigError, Limiter, Runtime
from tests.helpers import Server, Watcher, eventually, free_port

SLOTS = ((0, 5460), (5461, 10922), (10923, 16383))


@pytest.fixture
async def nodes():
    base = Path(tempfile.mkdtemp(prefix="aj-"))
    servers, bus_ports = [], []
    for n in range(3):
        folder = base / str(n)
        folder.mkdir()
        bus_ports.append(free_port())
        server = Server(folder, tcp=True)
        servers.append(server.start("--cluster-enabled", "yes", "--cluster-port", str(bus_ports[n])))
    clients = [Redis.from_url(server.url) for server in servers]
    for client, (first, last) in zip(clients, SLOTS, strict=True):
        await client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
    for server, bus in zip(servers[1:], bus_ports[1:], strict=True):
        await clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, bus)

    async def formed():
        states = [await client.execute_command("CLUSTER INFO") for client in clients]
        return all(one["cluster_state"] == "ok" and one["cluster_known_nodes"] == "3" for one in states)

    await eventually(formed, what="the Cluster has formed")
    yield servers, clients
    for client in clients:
        await client.aclose()
    for server in servers:
        server.stop()
    shutil.rmtree(base, ignore_errors=True)


@pytest.mark.slow
async def test_everything_works_on_a_cluster_and_groups_spread_over_its_shards(nodes):
    servers, clients = nodes
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in servers[:2])
    runtime = Runtime(url, prefix="shop")
    seen = Watcher(runtime)
    ran: list[str] = []

    @runtime.job("echo", limiter=Limiter(50, 0.2), attempts=2, backoff=Backoff("fixed", 0.05))
    async def echo(data, job):
        if data == "retry" and job.attempts_made == 0:
            raise ValueError
        return data

    @runtime.job("sync", group=True, limiter=None, group_idle=0.3, remove_on_complete=20)
    async def sync(data, job):
        ran.append(job.group_id)

    @runtime.task("* * * * * *", name="poll")
    async def poll(): ...

    async with runtime:
        assert await (await runtime.queue.add("echo", {"n": 1})).wait(10) == {"n": 1}
        assert await (await runtime.queue.add("echo", "retry", delay=0.1)).wait(10) == "retry"
        groups = [f"tenant-{i}" for i in range(40)]
        await runtime.queue.add_bulk([("sync", i, {"group_id": group}) for group in groups for i in range(3)])
        spread = [await client.dbsize() for client in clients]
        assert all(keys > 0 for keys in spread), spread
        await runtime.wait_idle(20)
        assert sorted(ran) == sorted(groups * 3)
        await seen("group.reaped", count=40)
        assert await runtime.queue.groups("sync") == []
        await eventually(lambda: _kept(runtime, 20), what="retention is per name, over all shards")
        await seen("task.fired")
        assert (await runtime.queue.counts("echo"))["completed"] == 2


async def _kept(runtime, count):
    return (await runtime.queue.counts("sync"))["completed"] == count


@pytest.mark.slow
async def test_flushed_scripts_and_a_moved_slot_are_noticed(nodes):
    servers, clients = nodes
    runtime = Runtime(f"redis+cluster://127.0.0.1:{servers[0].port}", prefix="shop")
    runtime.job("echo", limiter=None)(lambda data: data)
    async with runtime:
        assert await (await runtime.queue.add("echo", 0)).wait(10) == 0
        slot = await clients[0].execute_command("CLUSTER", "KEYSLOT", "{shop:echo}:s")
        owner = next(n for n, (first, last) in enumerate(SLOTS) if first <= slot <= last)
        target = (owner + 1) % 3
        names = [await client.execute_command("CLUSTER", "MYID") for client in clients]
        for client in clients:
            await client.script_flush()
        keys = [key async for key in clients[owner].scan_iter(match="{shop:echo}*")]
        await clients[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[owner])
        await clients[owner].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
        adding = asyncio.create_task(runtime.queue.add("echo", 1))
        await clients[owner].execute_command("MIGRATE", "127.0.0.1", servers[target].port, "", 0, 5000, "KEYS", *keys)
        for client in (clients[target], clients[owner]):
            await client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[target])
        assert await (await adding).wait(15) == 1
        for i in range(2, 10):
            assert await (await runtime.queue.add("echo", i)).wait(10) == i
        assert (await runtime.queue.counts("echo"))["completed"] == 10


async def test_one_server_is_no_cluster(own_server, tmp_path):
    tcp = Server(tmp_path, tcp=True).start()
    try:
        with pytest.raises(Exception, match="is no Cluster"):
            await Runtime(f"redis+cluster://127.0.0.1:{tcp.port}", connect_timeout=2).start()
    finally:
        tcp.stop()
    with pytest.raises(ConfigError, match="no numbered databases"):
        await Runtime("redis+cluster://127.0.0.1:1/3").start()
    with pytest.raises(ConfigError, match="not available on a Cluster"):
        await Runtime("redis+cluster://127.0.0.1:1", durability="replicated").start()
