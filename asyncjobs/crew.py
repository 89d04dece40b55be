"""The Crew: the long-lived loops of a runtime, each restarted by itself if it crashes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from asyncjobs.errors import BrokerUnavailableError

logger = logging.getLogger("asyncjobs")

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0


class Crew:
    """Supervised aio_tasks. A loop that raises is reported, waits and starts again; its siblings go on."""

    def __init__(self) -> None:
        self._aio_tasks: set[asyncio.Task[None]] = set()

    def start(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `run` to its end or until `stop`, again and again if it crashes."""
        self._hold(self._supervise(name, run), name)

    def once(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run `coroutine` to its end beside everything else; an error is reported."""
        self._hold(self._report(name, coroutine), name)

    def _hold(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        aio_task = asyncio.get_running_loop().create_task(coroutine, name=f"asyncjobs {name}")
        self._aio_tasks.add(aio_task)
        aio_task.add_done_callback(self._aio_tasks.discard)

    @staticmethod
    async def _supervise(name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await run()
                return
            except BrokerUnavailableError as error:
                logger.debug("%s: %s", name, error)  # said once for all, by the pump
            except Exception:
                logger.exception("the %s loop crashed; it starts again in %.1f s", name, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    @staticmethod
    async def _report(name: str, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            await coroutine
        except Exception as error:
            logger.warning("%s: %s", name, error)

    async def stop(self) -> None:
        """Cancel all, and wait until they have ended."""
        aio_tasks = tuple(self._aio_tasks)
        for aio_task in aio_tasks:
            aio_task.cancel()
        await asyncio.gather(*aio_tasks, return_exceptions=True)
