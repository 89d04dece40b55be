"""The Location: the store of a runtime, which is the app's, the environment's, or the embedded one in its folder."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from asyncjobs import clock
from asyncjobs.declare.options import RuntimeConfig
from asyncjobs.embedded.store import EmbeddedStore, project_of

LAST_WRITES: Final = 2.0  # seconds in which the server of a private store ends


async def located(
    redis: Any, config: RuntimeConfig, files: Path | None, stack: AsyncExitStack
) -> tuple[Any, EmbeddedStore | None]:
    """The store to connect to, and the EmbeddedStore if it is that one, which `stack` leaves.

    Args:
        redis: the store that the app named; None: ``ASYNCJOBS_REDIS_URL``, else the embedded store.
        files: the folder of the jobs, or of the tasks, which tells the project.
    """
    target = redis if redis is not None else os.environ.get("ASYNCJOBS_REDIS_URL") or None
    if target is not None:
        return target, None
    where = config.data_dir
    if where is None and config.environment == "test":
        # Tests must not meet the developer's jobs, or each other's.
        where = tempfile.mkdtemp(prefix="asyncjobs-test-")
        stack.push_async_callback(_remove, Path(where))
    store = EmbeddedStore(project_of(files) / (where or ".asyncjobs"))
    stack.callback(store.stop)
    return await store.start(), store


async def _remove(where: Path) -> None:
    """Remove the folder of a private store once its server has ended, because the server writes there until then."""
    deadline = clock.monotonic() + LAST_WRITES
    while True:
        if not (where / "valkey.sock").exists() or clock.monotonic() > deadline:
            break
        await asyncio.sleep(0.01)
    shutil.rmtree(where, ignore_errors=True)
