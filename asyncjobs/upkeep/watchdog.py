"""The Watchdog: a thread that notices when the event loop is blocked, and says by which job.

A blocked loop runs nothing else: no request, no other job, and no heartbeat, so that in the end other processes
take this one's jobs over. The loop itself cannot tell; a thread can.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from types import FrameType
from typing import Any, Final

from asyncjobs import clock
from asyncjobs.active_job import ActiveJob
from asyncjobs.events import Subscription
from asyncjobs.logs import ThrottledLog
from asyncjobs.work.attempts import Attempts

logger = logging.getLogger("asyncjobs")

LOOKS_A_LAG: Final = 2
FRAMES: Final = 12


class Watchdog:
    """Asks the loop that started it for a sign of life, again and again, and measures how long that takes.

    State: `_asked`, the monotonic instant of the question that is not answered yet; `_blocked`, whether that block was
    reported; `_by`, who was found to block the loop; `_answered`, the loop's way of answering.
    """

    def __init__(self, longest_block: float) -> None:
        self._lag = longest_block
        self._nap = longest_block / LOOKS_A_LAG
        self._asked: float | None = None
        self._blocked = False
        self._by = ""
        self._stopped = threading.Event()
        self._throttled = ThrottledLog(logger)
        self._loop_thread = 0

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        stopped = self._stopped = threading.Event()
        self._asked, self._blocked = None, False
        threading.Thread(target=self._watch, args=(loop, stopped), name="asyncjobs watchdog", daemon=True).start()
        try:
            await loop.create_future()
        finally:
            stopped.set()

    def _answer(self) -> None:
        """The loop runs."""
        asked, self._asked = self._asked, None
        if self._blocked and asked is not None:
            self._blocked = False
            self._throttled.warning(
                "free", "the event loop is free again after %.2f s; %s", clock.monotonic() - asked, self._by
            )

    def _watch(self, loop: asyncio.AbstractEventLoop, stopped: threading.Event) -> None:
        """In the thread: ask, and look whether there was an answer."""
        while True:
            looked, used = clock.monotonic(), clock.cpu()
            if stopped.wait(self._nap):
                return
            now = clock.monotonic()
            overslept = now - looked - self._nap
            if overslept > self._nap and clock.cpu() - used < overslept / 2:
                self._asked = None  # the whole process was suspended, which is nobody's fault
            asked = self._asked
            if asked is None:
                self._asked = now
                try:
                    loop.call_soon_threadsafe(self._answer)
                except RuntimeError:
                    return  # the loop has been closed
            elif now - asked >= self._lag and not self._blocked:
                self._report(now - asked)

    def _report(self, lag: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        job, subscriber = _found_in(frame)
        if job is not None:
            who = repr(job)
        elif subscriber:
            who = f"the subscriber {subscriber}"
        else:
            who = "something outside of any job"
        self._by = f"it was blocked by {who}" if job or subscriber else "by what the stack above shows"
        self._blocked = True
        self._throttled.warning(
            job.name if job is not None else subscriber,
            "%s blocks the event loop, so far for %.2f s: nothing else runs here, not even the heartbeat. "
            "Await there, or make the function a plain `def` where it is a handler, which runs in a thread.\n%s",
            who, lag, _shown(frame),
        )  # fmt: skip


def _found_in(frame: FrameType | None) -> tuple[ActiveJob | None, str]:
    """The job whose try is on a stack, and the subscriber that is: a coroutine that runs stands on its callers."""
    subscriber = ""
    while frame is not None:
        if frame.f_code is Attempts._try.__code__:
            job: Any = frame.f_locals.get("job")
            return (job, subscriber) if isinstance(job, ActiveJob) else (None, subscriber)
        if frame.f_code is Subscription.call.__code__:
            one: Any = frame.f_locals.get("self")
            subscriber = str(one)
        frame = frame.f_back
    return None, subscriber


def _shown(frame: FrameType | None) -> str:
    """The end of a stack, innermost call last."""
    return "".join(traceback.format_stack(frame, FRAMES)).rstrip() if frame is not None else ""
