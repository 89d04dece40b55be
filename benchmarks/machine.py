"""What every benchmark needs: a server of its own, a clock, and a line about the machine."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asyncjobs.embedded.store import EmbeddedStore, server_binary
from benchmarks.servers import free_port


def describe() -> str:
    """The machine and the versions, on one line."""
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("redis", "hiredis", "msgspec"))
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {system}, {versions}"


@asynccontextmanager
async def server(kind: str) -> AsyncIterator[str]:
    """The URL of a server.

    Args:
        kind: ``memory``, the embedded store's server without persistence, on a Unix socket; ``redis``, the same from
            `redis-server` on the PATH; ``tcp``, either of them, on a loopback port; ``embedded``, append-only file at
            every write; or a URL.
    """
    logging.getLogger("asyncjobs").setLevel(logging.ERROR)  # that it keeps nothing is what is asked for here
    if "://" in kind:
        yield kind
        return
    with tempfile.TemporaryDirectory(prefix="aj-", ignore_cleanup_errors=True) as folder:
        if kind == "embedded":
            store = EmbeddedStore(folder)
            try:
                yield await store.start()
            finally:
                store.stop()
        else:
            binary = shutil.which("redis-server") if kind in ("redis", "tcp") else None
            if kind == "redis" and binary is None:
                raise SystemExit("no redis-server on the PATH; --server memory takes the embedded store's")
            path, port = f"{folder}/bench.sock", free_port() if kind == "tcp" else 0
            command = [binary or server_binary(), "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", path]
            command += ["--save", "", "--dir", folder]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)  # noqa: ASYNC220
            try:
                while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 - it is there within milliseconds
                    await asyncio.sleep(0.005)
                yield f"redis://127.0.0.1:{port}/0" if port else f"unix://{path}"
            finally:
                process.terminate()
                process.wait()
