"""Figures: how each job name is doing, read from the store at a bounded cost, whoever works on it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asyncjobs import clock
from asyncjobs.cli import project, showing, steering
from asyncjobs.errors import AsyncjobsError

if TYPE_CHECKING:
    from asyncjobs.declare.definition import JobSpec
    from asyncjobs.queue import Queue

MINUTE: Final = timedelta(minutes=1)
DAY: Final = timedelta(days=1)
SAMPLE: Final = 50  # jobs that have completed last, of which the wait is told
ENOUGH: Final = 100  # finished jobs that are kept, beyond which their instants tell the pace
FULL: Final = 0.9  # of what a limit allows


class Pace(NamedTuple):
    """How fast a name goes.

    Attributes:
        done: jobs completed a second, over the last minute or, of a fast name, over what is kept of them.
        wait: of twenty of the last completed jobs the wait that one at most has exceeded, in seconds.
        failed: jobs that have failed for good in the last 24 hours.
    """

    done: float
    wait: float | None
    failed: int


class Figures(NamedTuple):
    """One job name.

    Attributes:
        info: what `QueueControls.info` says.
        groups: how many are open; None where it has none.
        share: of what its limits allow, how much it takes, from 0 to 1; None: they are not known.
        processes: how many take its jobs.
    """

    name: str
    registered: bool
    info: dict[str, Any]
    limit: str
    groups: int | None
    pace: Pace | None
    share: float | None
    processes: int

    @property
    def binds(self) -> bool:
        """Whether its limit is what the waiting jobs wait for."""
        return bool(self.info["waiting"]) and self.share is not None and self.share >= FULL


async def figures(
    queue: Queue, counts: dict[str, dict[str, int]], paces: dict[str, Pace], processes: Mapping[str, int]
) -> list[Figures]:
    """The figures of the names in `counts`.

    Args:
        paces: those that are known.
        processes: how many take jobs of a name.
    """
    return [await _figures(queue, name, counts[name], paces.get(name), processes.get(name, 0)) for name in counts]


async def _figures(queue: Queue, name: str, counts: dict[str, int], pace: Pace | None, processes: int) -> Figures:
    spec = queue.spec(name) if name in queue.names else None
    info = await info_of(queue, name, counts)
    groups = len(await queue.groups(name)) if spec is not None and spec.grouped else None
    limit = steering.limit(info, spec)
    most = _slots(info, spec) * processes
    if limit == steering.NONE and most and info["active"] >= most * FULL:
        limit = f"{most} at once"
    return Figures(
        name, project.is_here(queue, name), info, limit, groups, pace, share(info, spec, pace, most), processes
    )


def _slots(info: dict[str, Any], spec: JobSpec | None) -> int:
    """How many may run at once in a process."""
    return int(info["concurrency"] or (spec.concurrency if spec is not None else None) or 0)


async def info_of(queue: Queue, name: str, counts: dict[str, int]) -> dict[str, Any]:
    """What `QueueControls.info` says; of a name that is not known here the counts alone."""
    try:
        return await queue.job(name).info()
    except AsyncjobsError:
        empty = dict.fromkeys(("group_id", "limiter", "concurrency", "max_waiting", "held_until"))
        return {"name": name, **empty, "paused": False, "weight": 1, **counts}


async def pace(queue: Queue, name: str, counts: dict[str, int], now: datetime | None = None) -> Pace:
    """How fast a name goes, from what is kept of its finished jobs."""
    at = now or clock.now()
    newest = queue.select(name, state="completed")
    page, minute, failed = await asyncio.gather(
        newest.page(limit=SAMPLE),
        queue.select(name, state="completed", since=at - MINUTE).count(),
        queue.select(name, state="failed", since=at - DAY).count(),
    )
    done = minute.number / MINUTE.total_seconds()
    kept = counts.get("completed", 0)
    if minute.number >= kept >= ENOUGH:  # retention has let go of others of this minute
        oldest = await queue.select(name, state="completed", newest_first=False).page(limit=1)
        ends = [job.finished_at for job in (*page.jobs[:1], *oldest.jobs) if job.finished_at is not None]
        if len(ends) == 2 and ends[0] > ends[1]:
            done = kept / (ends[0] - ends[1]).total_seconds()
    waits = sorted(wait for job in page.jobs if (wait := showing.waited(job)) is not None)
    return Pace(done, waits[-1 - len(waits) // 20] if waits else None, failed.number)


def share(info: dict[str, Any], spec: JobSpec | None, pace: Pace | None, most: int) -> float | None:
    """How much of what is allowed it takes, from 0 to 1: of its tightest window, or of its slots; None: no bound.

    Args:
        most: how many may run at once in all processes; 0: not known.
    """
    from asyncjobs.declare.queue_limits import windows_text

    found = []
    if spec is not None and spec.grouped:
        return None
    text = info["limiter"] if info["limiter"] is not None else windows_text(spec.limiters) if spec is not None else ""
    rate = _rate(text or "")
    if rate and pace is not None:
        found.append(pace.done / rate)
    if most:
        found.append(info["active"] / most)
    return min(1.0, max(found)) if found else None


def _rate(windows: str) -> float | None:
    """Starts a second that windows allow."""
    try:
        parts = [one.partition(":") for one in windows.split() if ":" in one]
        return min((int(most) / (int(us) / 1e6) for most, _, us in parts), default=None)
    except (ValueError, ZeroDivisionError):
        return None
