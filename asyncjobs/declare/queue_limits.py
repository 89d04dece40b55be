"""QueueLimits: what holds for a queue now: what its code says, and over it what was set at run time."""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from asyncjobs.declare.options import Limiter
from asyncjobs.declare.values import duration
from asyncjobs.logs import say

logger = logging.getLogger("asyncjobs")

LEAST_MARGIN: Final = 0.002
MOST_MARGIN: Final = 0.05
NO_WINDOWS: Final = "-"  # set at run time: no limiter, whatever the code says


class QueueLimits(NamedTuple):
    """The limits of one queue.

    Attributes:
        windows: of its limiter as the scripts take them, ``max:µs max:µs …``; '' for no limiter.
        concurrency: most tries at once; None: bounded by the process alone.
        weight: how many jobs it may start in its turn where the process has too few slots for all.
        paused: nothing is started.
        window: seconds of its shortest window, 0 without a limiter.
    """

    windows: str
    concurrency: int | None
    weight: int = 1
    paused: bool = False
    window: float = 0.0

    @property
    def least_margin(self) -> float:
        """How much a start may lag behind its token: 1 % of the window, from 2 to 50 ms; as in ``lua/work.lua``."""
        return max(LEAST_MARGIN, min(MOST_MARGIN, 0.01 * self.window)) if self.window else 0.0

    def laid_over(self, windows: str = "", concurrency: str = "", weight: str = "", paused: str = "") -> QueueLimits:
        """These limits, and over them what was set at run time; '' for what was not."""
        text = windows or self.windows
        try:
            return QueueLimits(
                "" if text == NO_WINDOWS else text,
                int(concurrency) if concurrency else self.concurrency,
                int(weight) if weight else self.weight,
                bool(paused) or self.paused,
                _shortest(text),
            )
        except ValueError as error:  # nothing of ours has written that
            say(logger, logging.WARNING, "what was set of a queue cannot be read, so its code holds: %s", error)
            return self._replace(paused=bool(paused) or self.paused)


def queue_limits(limiters: tuple[Limiter, ...], concurrency: int | None) -> QueueLimits:
    """The limits of a job's code."""
    text = windows_text(limiters)
    return QueueLimits(text, concurrency, window=_shortest(text))


def windows_text(limiters: tuple[Limiter, ...]) -> str:
    """Windows as the scripts take them."""
    return " ".join(f"{one.max}:{round(duration(one.duration) * 1e6)}" for one in limiters)


def _shortest(windows: str) -> float:
    if len(windows) < 3:
        return 0.0
    return min(int(one.partition(":")[2]) for one in windows.split()) / 1e6
