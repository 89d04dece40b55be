"""The Home: the process and the event loop in which a runtime was started. Only code there may call the runtime."""

from __future__ import annotations

import asyncio
import os
from typing import Literal

from asyncjobs.errors import NotRunningError


class Home:
    """State: `loop`, in which the runtime was started last, or None; `_pid`, the process that started it."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def enter(self) -> None:
        """Let the runtime live in the running loop from now on."""
        self.loop, self._pid = asyncio.get_running_loop(), os.getpid()

    def is_here(self) -> bool:
        """True if the caller runs in the runtime's own loop."""
        return self.loop is not None and self.loop is running_loop() and self._pid == os.getpid()

    def lost(self) -> Literal["", "closed", "forked"]:
        """Why that loop cannot be used any more: it was closed, or this process was forked off."""
        if self.loop is None:
            return ""
        if self._pid != os.getpid():
            return "forked"
        return "closed" if self.loop.is_closed() else ""

    def check(self, what: str) -> None:
        """Refuse calls from elsewhere.

        Raises:
            NotRunningError: `what` was called in another process, event loop or thread.
        """
        if not self.is_here():
            raise NotRunningError(self._elsewhere(what))

    def _elsewhere(self, what: str) -> str:
        lost = self.lost()
        if lost == "forked":
            return f"{what}: this process was forked off a running runtime; start the runtime after the fork"
        if lost == "closed":
            return f"{what}: the event loop that this runtime was started in has been closed; start the runtime again"
        if running_loop() is None:
            return (
                f"{what} was called in a thread without an event loop; this runtime lives in the loop that it was "
                "started in: use asyncio.run_coroutine_threadsafe(…, that loop)"
            )
        return (
            f"{what} was called in another event loop than this runtime's: call it in the loop (and the thread) that "
            "the runtime was started in, with asyncio.run_coroutine_threadsafe, or give this loop a Runtime of its own"
        )


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
