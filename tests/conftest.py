"""Fixtures: a real server per test process, a prefix per test, runtimes that are stopped whatever happens."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from asyncjobs import Runtime
from tests.helpers import Server, Watcher

_numbers = itertools.count(1)


@pytest.fixture(autouse=True, scope="session")
def _no_environment() -> None:
    """What the developer has set must not decide a test."""
    for name in ("ASYNCJOBS_REDIS_URL", "ASYNCJOBS_ENV", "ASYNCJOBS_SERVER_BIN"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="aj-"))
    server = Server(folder).start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


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
async def redis(server: Server) -> AsyncIterator[Redis]:
    client = Redis.from_url(server.url)
    yield client
    await client.aclose()


@pytest.fixture
async def make_runtime(server: Server, prefix: str) -> AsyncIterator[Callable[..., Runtime]]:
    """Runtimes on the test's server under the test's prefix; every one is stopped at the end."""
    made: list[Runtime] = []

    def make(redis: Any = server.url, **options: Any) -> Runtime:
        options.setdefault("prefix", prefix)
        runtime = Runtime(redis, **options)
        made.append(runtime)
        return runtime

    yield make
    for runtime in made:
        await runtime.stop(grace=0)


@pytest.fixture
def runtime(make_runtime: Callable[..., Runtime]) -> Runtime:
    """One runtime, not started yet."""
    return make_runtime()


@pytest.fixture
def seen(runtime: Runtime) -> Watcher:
    return Watcher(runtime)


@pytest.fixture
async def keys_left(redis: Redis, prefix: str) -> Callable[[], Any]:
    """The keys of the test's prefix, by name."""

    async def keys() -> list[str]:
        return sorted([key.decode() async for key in redis.scan_iter(match=f"*{prefix}*", count=1000)])

    return keys
