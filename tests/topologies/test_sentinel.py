"""Behind a real Sentinel: found by the service's name, and followed when the primary changes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from redis.asyncio import Redis

from asyncjobs import Runtime
from tests.helpers import Server, eventually


@pytest.fixture
async def trio():
    """A primary, a replica, and one Sentinel that watches them."""
    base = Path(tempfile.mkdtemp(prefix="aj-"))
    servers = []
    for name in ("primary", "replica", "sentinel"):
        folder = base / name
        folder.mkdir()
        servers.append(Server(folder, tcp=True))
    primary, replica, sentinel = servers
    primary.start()
    replica.start("--replicaof", "127.0.0.1", str(primary.port))
    config = sentinel.folder / "sentinel.conf"
    config.write_text(
        f"port {sentinel.port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds mymaster 1000\nsentinel failover-timeout mymaster 5000\n"
    )
    sentinel.start_sentinel(config)
    watcher = Redis.from_url(sentinel.url)

    async def ready():
        info = await watcher.sentinel_master("mymaster")
        return info["num-slaves"] == 1 and "disconnected" not in str(info["flags"])

    await eventually(ready, what="the Sentinel knows the replica")
    yield primary, replica, sentinel
    await watcher.aclose()
    for server in servers:
        server.stop()
    shutil.rmtree(base, ignore_errors=True)


@pytest.mark.slow
async def test_a_failover_is_followed(trio):
    primary, replica, sentinel = trio
    runtime = Runtime(
        f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster/0", durability="replicated", connect_timeout=20
    )
    runtime.job("echo", limiter=None)(lambda data: data)
    async with runtime:
        assert await (await runtime.queue.add("echo", 1)).wait(10) == 1
        kept = await runtime.queue.add("echo", 2, delay=60)
        primary.kill()
        runtime_after = await eventually(lambda: _added(runtime), 30, "adds work again")
        assert runtime_after is not None
        assert (await runtime.queue.get_job("echo", kept.id)).state == "delayed", "what was confirmed has survived"
        assert replica.answers()


async def _added(runtime):
    """Without a replica left nothing can be confirmed, but what was written runs."""
    from asyncjobs import BrokerUnavailableError

    try:
        job = await runtime.queue.add("echo", 3)
    except BrokerUnavailableError as error:
        if "no replica confirmed" not in str(error):
            return None
        job = await runtime.queue.get_job("echo", error.job_ids[0])
    return await job.wait(10) == 3
