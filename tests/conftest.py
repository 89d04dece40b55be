"""Fixtures: a real server per test process, a prefix per test, runtimes that are stopped whatever happens."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster

from asyncjobs import Runtime
from asyncjobs.errors import BrokerError
from asyncjobs.invariants import of_keys, of_runtime, of_store
from benchmarks.servers import Cluster
from tests.helpers import Server, Watcher

_numbers = itertools.count(1)


OTHER_STORE = ("ASYNCJOBS_TEST_TOPOLOGY", "ASYNCJOBS_TEST_SERVER")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On another store than the usual one only the tests are of interest that use it."""
    if not any(os.environ.get(name) for name in OTHER_STORE):
        return
    shared = {"server", "own_server"}
    kept = [item for item in items if shared & set(getattr(item, "fixturenames", ()))]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


@pytest.fixture(autouse=True, scope="session")
def _no_environment() -> None:
    """What the developer has set must not decide a test."""
    for name in ("ASYNCJOBS_REDIS_URL", "ASYNCJOBS_ENV", "ASYNCJOBS_SERVER_BIN"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """What most tests run on: one Valkey; or, with ASYNCJOBS_TEST_TOPOLOGY=cluster, a Cluster of three primaries."""
    if os.environ.get("ASYNCJOBS_TEST_TOPOLOGY") == "cluster":
        cluster = Cluster(replicas=False)
        asyncio.run(_started(cluster))
        yield cluster
        asyncio.run(cluster.stop())
        return
    folder = Path(tempfile.mkdtemp(prefix="aj-"))
    server = Server(folder).start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


async def _started(cluster: Cluster) -> None:
    await cluster.start()
    for client in cluster.clients.values():
        await client.aclose()  # this loop ends here


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that a test may kill and restart; its append-only file is written at every command."""
    folder = Path(tempfile.mkdtemp(prefix="aj-"))
    server = Server(folder, appendonly=True).start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def prefix() -> str:
    return f"t{os.getpid()}-{next(_numbers)}"


@pytest.fixture
async def redis(server: Any) -> AsyncIterator[Any]:
    """A plain client of that server, for looking behind the runtime's back."""
    if isinstance(server, Cluster):
        client: Any = RedisCluster(host="127.0.0.1", port=server.data[0].port)
    else:
        client = Redis.from_url(server.url)
    yield client
    await client.aclose()


@pytest.fixture
async def make_runtime(request: Any, server: Any, prefix: str) -> AsyncIterator[Callable[..., Runtime]]:
    """Runtimes on the test's server under the test's prefix; every one is stopped at the end."""
    made: list[Runtime] = []

    def make(redis: Any = server.url, **options: Any) -> Runtime:
        options.setdefault("prefix", prefix)
        runtime = Runtime(redis, **options)
        made.append(runtime)
        return runtime

    yield make
    broken = [sentence for runtime in made for sentence in of_runtime(runtime)]
    if not broken and "own_server" not in request.fixturenames:
        broken += await _of_stores(made)
    for runtime in made:
        await runtime.stop(grace=0)
    assert broken == []


async def _of_stores(runtimes: list[Runtime]) -> list[str]:
    """What does not hold of what a test has left in the store; unless it has broken that itself."""
    for runtime in runtimes:
        if runtime.state == "running":
            try:
                async with asyncio.timeout(5):
                    return await of_store(runtime)
            except (BrokerError, TimeoutError):
                return []
    return []


@pytest.fixture
def all_in_place(redis: Any, prefix: str) -> Callable[[Runtime], Any]:
    """Asks what does not hold of a runtime, of its store when all is done, and of every key that is left."""

    async def expires(key: str) -> bool:
        return bool(await redis.pttl(key) >= 0) or not await redis.exists(key)

    async def ask(runtime: Runtime) -> list[str]:
        keys = [key.decode(errors="replace") async for key in redis.scan_iter(match=f"*{prefix}*", count=1000)]
        return [*of_runtime(runtime), *await of_store(runtime, settled=True), *await of_keys(runtime, keys, expires)]

    return ask


@pytest.fixture
def runtime(make_runtime: Callable[..., Runtime]) -> Runtime:
    """One runtime, not started yet."""
    return make_runtime()


@pytest.fixture
def seen(runtime: Runtime) -> Watcher:
    return Watcher(runtime)


@pytest.fixture
async def keys_left(redis: Any, prefix: str) -> Callable[[], Any]:
    """The keys of the test's prefix, by name."""

    async def keys() -> list[str]:
        return sorted([key.decode() async for key in redis.scan_iter(match=f"*{prefix}*", count=1000)])

    return keys
