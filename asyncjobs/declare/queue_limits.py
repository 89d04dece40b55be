"""QueueLimits: the limits of a queue now. Settings made at run time are laid over those of the code."""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from asyncjobs.declare.options import Limiter
from asyncjobs.declare.values import duration
from asyncjobs.logs import say

logger = logging.getLogger("asyncjobs.work")

LEAST_MARGIN: Final = 0.002
MOST_MARGIN: Final = 0.05
NO_WINDOWS: Final = "-"  # a run-time setting: the queue has no limiter, even if its code gives one


class QueueLimits(NamedTuple):
    """The limits of one queue.

    Attributes:
        windows: the limiter's windows as the scripts take them, ``max:µs max:µs …``; '' for no limiter.
        concurrency: most tries at once; None: only the process bounds them.
        weight: the queue's share of the starts where there is too little for all queues.
        paused: no job of the queue starts.
        window: seconds of the shortest window, 0 without a limiter.
    """

    windows: str
    concurrency: int | None
    weight: int = 1
    paused: bool = False
    window: float = 0.0

    @property
    def least_margin(self) -> float:
        """Seconds that a start may lag behind its token: 1 % of the window, from 2 to 50 ms, as in ``lua/work.lua``."""
        return max(LEAST_MARGIN, min(MOST_MARGIN, 0.01 * self.window)) if self.window else 0.0

    def laid_over(self, windows: str = "", concurrency: str = "", weight: str = "", paused: str = "") -> QueueLimits:
        """These limits under the settings made at run time; '': that setting was not made."""
        text = windows or self.windows
        try:
            return QueueLimits(
                "" if text == NO_WINDOWS else text,
                int(concurrency) if concurrency else self.concurrency,
                int(weight) if weight else self.weight,
                bool(paused) or self.paused,
                _shortest(text),
            )
        except ValueError as error:  # another program has written the setting
            say(logger, logging.WARNING, "what was set of a queue cannot be read, so its code holds: %s", error)
            return self._replace(paused=bool(paused) or self.paused)


def queue_limits(limiters: tuple[Limiter, ...], concurrency: int | None) -> QueueLimits:
    """The limits of a job's code."""
    text = windows_text(limiters)
    return QueueLimits(text, concurrency, window=_shortest(text))


def windows_text(limiters: tuple[Limiter, ...]) -> str:
    """The windows of limiters as the scripts take them."""
    return " ".join(f"{one.max}:{round(duration(one.duration) * 1e6)}" for one in limiters)


def _shortest(windows: str) -> float:
    if len(windows) < 3:
        return 0.0
    return min(int(one.partition(":")[2]) for one in windows.split()) / 1e6
