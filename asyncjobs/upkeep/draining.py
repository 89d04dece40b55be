"""Draining: this process was asked to take nothing more; what runs here goes on to its end."""

from __future__ import annotations

import logging
from collections.abc import Callable

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.work.queues import Queues

logger = logging.getLogger("asyncjobs.work")


class Draining:
    """State: `_looked_at`, when the store was asked last: a beat that was sent before that says what held before."""

    def __init__(
        self, broker: Broker, queues: Queues, process: Callable[[], str], on_change: Callable[[bool], None]
    ) -> None:
        self._broker, self._queues, self._process, self._on_change = broker, queues, process, on_change
        self._looked_at = 0.0

    async def look(self) -> None:
        """Ask the store whether this process is to take nothing."""
        asked = await self._broker.was_asked_to_drain(self._process())
        self._looked_at = clock.monotonic()
        self._obey(asked)

    def heard(self, asked: bool, sent_at: float) -> None:
        """A beat that was sent at `sent_at` has brought it."""
        if sent_at >= self._looked_at:
            self._obey(asked)

    def _obey(self, asked: bool) -> None:
        if asked == self._queues.draining or self._queues.quiet:
            return
        logger.warning(
            "this process was asked to take nothing more; what runs goes on" if asked
            else "this process takes jobs again"
        )  # fmt: skip
        self._on_change(asked)
        self._queues.drain(asked)
