"""Idle: waiting until no job is left to run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from asyncjobs import clock
from asyncjobs.errors import JobTimeoutError
from asyncjobs.queue import Queue

FIRST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 0.25


async def idle(queue: Queue, here: Callable[[], int], timeout: float | None) -> None:
    """Wait until no job of the names that `queue` knows is waiting, active or delayed, in any process.

    Args:
        here: returns how many jobs run in this process, or are not settled yet.
    Raises:
        JobTimeoutError: jobs are left after `timeout` seconds.
    """
    deadline = None if timeout is None else clock.monotonic() + timeout
    pause = FIRST_PAUSE
    while busy := await _busy(queue, here):
        if deadline is not None and clock.monotonic() + pause >= deadline:
            raise JobTimeoutError(f"not idle after {timeout:g} s: {busy}")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)


async def _busy(queue: Queue, here: Callable[[], int]) -> str:
    """The first job name with work left, in words; empty if there is none."""
    if running := here():
        return f"{running} running here"
    for name in queue.names:
        counts = await queue.counts(name)
        left = {state: counts[state] for state in ("waiting", "active", "delayed") if counts[state]}
        if left:
            return f"{name}: " + ", ".join(f"{count} {state}" for state, count in left.items())
    return ""
