"""A server of the test's own on a port, so that a proxy fits in front; and that proxy."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from benchmarks.proxy import Proxy
from tests.helpers import Server


@pytest.fixture
def tcp_server() -> Iterator[Server]:
    """It keeps nothing over a restart."""
    folder = Path(tempfile.mkdtemp(prefix="aj-"))
    server = Server(folder, tcp=True).start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def durable_server() -> Iterator[Server]:
    """Its append-only file is written at every command."""
    folder = Path(tempfile.mkdtemp(prefix="aj-"))
    server = Server(folder, tcp=True, appendonly=True).start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def proxy(tcp_server: Server) -> AsyncIterator[Proxy]:
    async with Proxy(tcp_server.port) as proxy:
        yield proxy


@pytest.fixture
async def durable_proxy(durable_server: Server) -> AsyncIterator[Proxy]:
    async with Proxy(durable_server.port) as proxy:
        yield proxy
