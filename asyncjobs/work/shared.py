"""The Shared: the objects that all queues of a process share."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import Any

from asyncjobs.active_job import ActiveJob
from asyncjobs.broker import Broker
from asyncjobs.events import EventBus
from asyncjobs.guests.threads import Threads
from asyncjobs.history.recorder import Recorder
from asyncjobs.limits.shared_limit import SharedLimit
from asyncjobs.log_context import structlog_binder
from asyncjobs.work.served import Ring
from asyncjobs.work.suspects import Suspects
from asyncjobs.work.task_reuse import LoopRounds


class Shared:
    """The objects that all consumers of a process share."""

    __slots__ = (
        "bind", "broker", "bus", "context", "counters", "emit", "environment", "pace", "pump", "recorder", "rounds",
        "scope", "shared_limits", "stubborn", "suspects", "threads", "tokens", "unsettled", "zombies",
    )  # fmt: skip

    def __init__(
        self,
        broker: Broker,
        bus: EventBus,
        pump: Ring,
        environment: Mapping[str, Any],
        threads: Threads,
        scope: Callable[[ActiveJob], AbstractContextManager[Any]],
        boot: str,
        rounds: LoopRounds,
        recorder: Recorder | None = None,
    ) -> None:
        self.broker, self.bus, self.pump = broker, bus, pump
        self.environment, self.threads = environment, threads
        self.emit = bus.emit  # one bound method for all jobs
        self.counters = bus.counters
        self.bind = structlog_binder()
        self.context = copy_context()  # each job begins in a copy of it, independent of its add and of earlier jobs
        self.rounds = rounds
        self.recorder = recorder  # of what happens to each name; None: nothing is counted
        self.suspects = Suspects()
        self.pace: dict[str, int] = {}  # job name → how many jobs a queue may prefetch, since the last ones were quick
        # job name → the shared limits over its queues
        self.shared_limits: dict[str, tuple[SharedLimit, ...]] = {}
        self.scope = scope  # entered around each try; its value travels with the try's events
        self.stubborn: set[asyncio.Task[None]] = set()  # tries that go on although their job was settled
        self.unsettled = self.zombies = 0  # of all queues: decisions not acknowledged yet; handlers of settled jobs
        numbers = itertools.count(1)
        self.tokens = (f"{boot}.{number:x}".encode() for number in numbers)
