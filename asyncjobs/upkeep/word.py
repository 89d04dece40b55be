"""The Speaker: what this process says of itself with each heartbeat, in a bounded number of bytes."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Final

import msgspec

from asyncjobs import clock
from asyncjobs.active_job import ActiveJob
from asyncjobs.broker import Word
from asyncjobs.declare.options import RuntimeConfig
from asyncjobs.operate.processes import About, Names, order
from asyncjobs.work.pump import Pump
from asyncjobs.work.queues import Queues

logger = logging.getLogger("asyncjobs")

MOST_SHOWN: Final = 20  # jobs that run
MOST_BYTES: Final = 4096  # of their names and ids
LOOKED_AT: Final = 5000  # queues, for jobs that run


class Speaker:
    """State: `_said`, the names as the store has them; `_since`, when this process started, in ms."""

    def __init__(
        self,
        config: RuntimeConfig,
        pump: Pump,
        queues: Queues,
        tasks: Callable[[], list[str]],
        lag: Callable[[], float | None],
    ) -> None:
        self._config, self._pump, self._queues, self._tasks, self._lag = config, pump, queues, tasks, lag
        self._said = b""
        self._since = clock.wall() * 1000
        self._host = socket.gethostname()[:255]
        self._version = os.environ.get("ASYNCJOBS_VERSION", "")[:100]

    def word(self, joining: bool) -> Word:
        """What to say now. The names are said when this process joins, and when they have changed."""
        names = self._names()
        draining = order("") if joining and self._queues.draining else b""
        return Word(self._about(), names if joining or names != self._said else b"", draining)

    def heard(self, word: Word) -> None:
        """The store has it."""
        self._said = word.names or self._said

    def _names(self) -> bytes:
        jobs = {spec.name for spec in (*self._queues.expected, *self._queues.specs())}
        return msgspec.json.encode(Names(sorted(jobs), sorted(self._tasks())))

    def _about(self) -> bytes:
        """Where this runs, and what. A beat is never lost for a text that is no UTF-8."""
        import asyncjobs

        about = About(
            self._host, os.getpid(), asyncjobs.__version__, self._version, self._config.environment[:100], self._since,
            self._pump.running, self._config.concurrency, self._lag(), _resident(), list(self._running()),
        )  # fmt: skip
        try:
            return msgspec.json.encode(about)
        except UnicodeEncodeError as error:
            logger.debug("what runs here is not told: %s", error)
            plain = About(pid=about.pid, release=about.release, since=about.since, used=about.used, slots=about.slots)
            return msgspec.json.encode(plain)

    def _running(self) -> Iterator[tuple[str, str | None, str, float]]:
        """Some of the jobs that run."""
        if not self._pump.running:
            return
        now, wall, left = clock.monotonic(), clock.wall() * 1000, MOST_BYTES
        for job in islice(self._jobs(), MOST_SHOWN):
            left -= len(job.id) + len(job.group_id or "") + len(job.name)
            if left < 0:
                return
            yield job.name, job.group_id, job.id, round(wall - max(0.0, now - job.began_at) * 1000)

    def _jobs(self) -> Iterator[ActiveJob]:
        groups = (registry.open.values() for registry in self._queues.registries.values())
        for queue in islice(chain(self._queues.consumers.values(), *groups), LOOKED_AT):
            yield from (job for job in tuple(queue.attempts.running.values()) if job.began)


def _resident() -> int | None:
    """Bytes of this process that are resident."""
    try:
        import resource  # Windows has none
    except ImportError:
        return None
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
