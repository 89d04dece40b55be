"""The clock: the only module that reads one. It is for local times, since Redis's clock decides all deadlines."""

from __future__ import annotations

import time
from datetime import UTC, datetime

wall = time.time
"""Seconds since the epoch by this machine's clock: for ids, log lines and cron ticks only."""

monotonic = time.monotonic
"""Seconds by a clock that never steps, for all local timers and time limits."""

cpu = time.process_time
"""Seconds of CPU that this process has used. They stand still while the process is suspended."""


def now() -> datetime:
    """This instant, timezone-aware, in UTC."""
    return datetime.now(UTC)


def from_ms(ms: int | float | bytes | str) -> datetime:
    """The instant that lies `ms` milliseconds after the epoch, as Redis stores it."""
    return datetime.fromtimestamp(float(ms) / 1000, UTC)


def to_ms(instant: datetime) -> int:
    """The inverse of :func:`from_ms`, rounded up, so that no job is due too early."""
    return -int(-instant.timestamp() * 1000 // 1)
