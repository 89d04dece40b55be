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
from asyncjobs.attempts import Attempts
from asyncjobs.complaints import Complaints
from asyncjobs.job import ActiveJob

logger = logging.getLogger("asyncjobs")

MOST_LAG: Final = 1.0  # seconds of a blocked loop that are worth a warning, less where a lease is short
LOOKS_A_LAG: Final = 2
FRAMES: Final = 12


class Watchdog:
    """Watches the loop that started it.

    State: `_seen`, the monotonic instant at which the loop last ran; `_blocked_since`, while a block is reported;
    `_by`, who was found to block it.
    """

    def __init__(self, shortest_lease: float) -> None:
        self._lag = min(MOST_LAG, shortest_lease / 3)
        self._seen = clock.monotonic()
        self._blocked_since: float | None = None
        self._by = ""
        self._stopped = threading.Event()
        self._complaints = Complaints(logger)
        self._loop_thread = 0

    async def run(self) -> None:
        """Watch until cancelled."""
        self._loop_thread = threading.get_ident()
        self._seen = clock.monotonic()
        self._stopped.clear()
        thread = threading.Thread(target=self._watch, name="asyncjobs watchdog", daemon=True)
        thread.start()
        try:
            while True:
                await asyncio.sleep(self._lag / LOOKS_A_LAG)
                self._seen = clock.monotonic()
                if self._blocked_since is not None:
                    took, self._blocked_since = self._seen - self._blocked_since, None
                    self._complaints.warning("free", "the event loop is free again after %.1f s; %s", took, self._by)
        finally:
            self._stopped.set()

    def _watch(self) -> None:
        nap = self._lag / LOOKS_A_LAG
        while True:
            looked = clock.monotonic()
            if self._stopped.wait(nap):
                return
            lag = clock.monotonic() - self._seen
            suspended = clock.monotonic() - looked > 2 * nap  # with the whole process, which is nobody's fault
            if lag > self._lag + nap and self._blocked_since is None and not suspended:
                frame = sys._current_frames().get(self._loop_thread)
                job = _job_of(frame)
                self._by = f"it was blocked by {job!r}" if job is not None else "by what the stack above shows"
                self._blocked_since = self._seen
                self._complaints.warning(
                    job.name if job is not None else "",
                    "%s blocks the event loop, so far for %.1f s: nothing else runs here, not even the heartbeat. "
                    "Await there, or make the handler a plain `def`, which runs in a thread.\n%s",
                    repr(job) if job is not None else "something outside of any job", lag, _shown(frame),
                )  # fmt: skip
            frame = None


def _job_of(frame: FrameType | None) -> ActiveJob | None:
    """The job whose try is on a stack: a coroutine that runs stands on those that await it."""
    while frame is not None:
        if frame.f_code is Attempts._try.__code__:
            job: Any = frame.f_locals.get("job")
            return job if isinstance(job, ActiveJob) else None
        frame = frame.f_back
    return None


def _shown(frame: FrameType | None) -> str:
    """The end of a stack, innermost call last."""
    return "".join(traceback.format_stack(frame, FRAMES)).rstrip() if frame is not None else ""
