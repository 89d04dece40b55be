"""What every benchmark needs: a server of its own, a clock, and a line about the machine."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import platform
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asyncjobs.embedded import EmbeddedStore, server_binary


def describe() -> str:
    """The machine and the versions, on one line."""
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("redis", "hiredis", "msgspec"))
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {system}, {versions}"


@asynccontextmanager
async def server(kind: str) -> AsyncIterator[str]:
    """The URL of a server: ``embedded`` (append-only file at every write), ``memory`` (no persistence), or a URL."""
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
            path = f"{folder}/bench.sock"
            command = [server_binary(), "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)  # noqa: ASYNC220
            try:
                while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 - it is there within milliseconds
                    await asyncio.sleep(0.005)
                yield f"unix://{path}"
            finally:
                process.terminate()
                process.wait()
