"""The Watchdog: a thread that measures how late the event loop is, and names the job or subscriber that blocks it.

A blocked loop runs nothing else: no request, no other job, and no heartbeat. In the end other processes take over the
jobs of this one. The blocked loop cannot report that, so a thread does.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import traceback
from types import FrameType
from typing import Any, Final, TypedDict

from asyncjobs import clock
from asyncjobs.active_job import ActiveJob
from asyncjobs.events import Subscription
from asyncjobs.logs import ThrottledLog
from asyncjobs.work.attempts import Attempts

logger = logging.getLogger("asyncjobs")

LOOKS_A_LAG: Final = 5
FRAMES: Final = 12
REMEMBERED: Final = 60.0  # seconds for which the longest lag is told
COLLECTOR: Final = "the garbage collector"


class Lag(TypedDict):
    """How late the loop is, in seconds.

    Attributes:
        now: the lag at the last look, or since the question that is not answered yet.
        longest: the longest lag of the last minute or two.
        by: the cause of the longest lag; '' if it was not found.
        collection: the longest pause for the garbage collector in the same time.
    """

    now: float
    longest: float
    by: str
    collection: float


class Watchdog:
    """Asks the loop for a sign of life, again and again, and measures how long the answer takes.

    State: `_asked`, the monotonic instant of the question that is not answered yet, and the value of `_away` then;
    `_away`, seconds in which the whole process did not run, which do not count as lag; `_blocked`, the present block
    was reported; `_by`, the cause of the block; `_last`, the lag of the last answer; `_worst` and `_before`, the
    longest lag since `_since` and in the time before that, each with its cause; `_collecting`, the instant since which
    the garbage collector works, and `_pauses`, its longest pause in each of those two times.
    """

    def __init__(self, longest_block: float) -> None:
        self._lag = longest_block
        self._nap = longest_block / LOOKS_A_LAG
        self._asked: tuple[float, float] | None = None
        self._away = 0.0
        self._blocked = False
        self._by = self._who = ""
        self._last = self._since = self._collecting = 0.0
        self._worst = self._before = (0.0, "")
        self._pauses = (0.0, 0.0)
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
        gc.callbacks.append(self._collected)
        try:
            await loop.create_future()
        finally:
            gc.callbacks.remove(self._collected)
            stopped.set()

    def lag(self) -> Lag:
        """How late the loop is, and was."""
        asked = self._asked
        now = self._last if asked is None else max(self._last, self._late(asked))
        longest, by = max(self._worst, self._before)
        return {
            "now": round(now, 4), "longest": round(longest, 4), "by": by, "collection": round(max(self._pauses), 4),
        }  # fmt: skip

    def _late(self, asked: tuple[float, float]) -> float:
        """How long a question has been waiting, without the time in which the process did not run."""
        return max(0.0, clock.monotonic() - asked[0] - (self._away - asked[1]))

    def _remember(self, lag: float, who: str) -> None:
        now = clock.monotonic()
        if now - self._since > REMEMBERED:
            self._before, self._worst = self._worst, (0.0, "")
            self._pauses, self._since = (0.0, self._pauses[0]), now
        if lag > self._worst[0]:
            self._worst = (lag, who)

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        """The garbage collector begins or has ended, in any thread. All other threads stand still meanwhile."""
        if phase == "start":
            self._collecting = clock.monotonic()
            return
        pause = clock.monotonic() - self._collecting
        if pause > self._pauses[0]:
            self._pauses = (pause, self._pauses[1])
        if pause >= self._lag:
            self._who = COLLECTOR
            self._throttled.warning(
                "collector",
                "the garbage collector stopped the process for %.2f s, looking through all that it holds: gc.freeze() "
                "once the app has started leaves out what is there by then",
                pause,
            )

    def _answer(self) -> None:
        """The loop has answered the question."""
        asked, self._asked = self._asked, None
        if asked is not None:
            self._last = self._late(asked)
            self._remember(self._last, self._who)
            self._who = ""
        if self._blocked and asked is not None:
            self._blocked = False
            self._throttled.warning(
                "free", "the event loop is free again after %.2f s; %s", self._late(asked), self._by
            )

    def _watch(self, loop: asyncio.AbstractEventLoop, stopped: threading.Event) -> None:
        """In the thread: ask the loop, and look for its answer."""
        while True:
            looked, used = clock.monotonic(), clock.cpu()
            if stopped.wait(self._nap):
                return
            now = clock.monotonic()
            overslept = now - looked - self._nap
            if overslept > self._nap and clock.cpu() - used < overslept / 2:
                self._away += overslept
            asked = self._asked
            if asked is None:
                self._asked = (now, self._away)
                try:
                    loop.call_soon_threadsafe(self._answer)
                except RuntimeError:
                    return  # the loop has been closed
            elif (late := self._late(asked)) >= self._lag - self._nap and not self._blocked:
                self._report(late)

    def _report(self, lag: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        job, subscriber = _found_in(frame)
        if job is not None:
            who = repr(job)
        elif subscriber:
            who = f"the subscriber {subscriber}"
        else:
            who = "something outside of any job"
        self._who = who
        self._by = f"it was blocked by {who}" if job or subscriber else "by what the stack above shows"
        self._blocked = True
        self._throttled.warning(
            job.name if job is not None else subscriber,
            "%s blocks the event loop, so far for %.2f s: nothing else runs here, not even the heartbeat. "
            "Await there, or make the function a plain `def` where it is a handler, which runs in a thread.\n%s",
            who, lag, _shown(frame),
        )  # fmt: skip


def _found_in(frame: FrameType | None) -> tuple[ActiveJob | None, str]:
    """The job and the subscriber whose frames are on a stack. A running coroutine stands above its callers."""
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
    """The end of a stack as text, with the innermost call last."""
    return "".join(traceback.format_stack(frame, FRAMES)).rstrip() if frame is not None else ""
