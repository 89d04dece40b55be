"""Tick: the clock of one task, a thin subclass of aiocron.Cron.

aiocron pins the wall clock to the loop's once, at start. `Tick` reads it again at every wake, at least twice a
minute, so that clock steps, a suspended machine or a blocked loop neither shift later ticks nor fire one twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import aiocron

from asyncjobs.declare.cron_expression import Ticks, last_tick
from asyncjobs.declare.definition import TaskSpec

logger = logging.getLogger("asyncjobs.cron")

LONGEST_NAP: Final = 30.0
MOST_PAST: Final = 1000  # past ticks that are skipped one by one
LATE: Final = 30.0  # seconds behind its instant after which a tick counts as missed
STEP_BACK: Final = 1.0
STEPS: Final = 7200.0  # seconds; if the clock goes back by more, it was wrong before


class Tick(aiocron.Cron):  # type: ignore[misc]  # aiocron has no types
    """The clock of one task: it calls `fire(scheduled)` at each tick, and `missed(newest)` for ticks too far back.

    Attributes:
        scheduled: the next tick, UTC.
    """

    def __init__(
        self,
        spec: TaskSpec,
        fire: Callable[[datetime], None],
        missed: Callable[[datetime], None],
        wall: Callable[[], float],
    ) -> None:
        super().__init__(spec.definition.cron_time, tz=spec.zone, start=False, loop=asyncio.get_running_loop())
        self._fire, self._missed, self._wall = fire, missed, wall
        self._seen = self._last = 0.0
        self.handle: asyncio.TimerHandle | None = None
        self.scheduled = datetime.fromtimestamp(0, UTC)

    def initialize(self) -> None:
        """Begin at this instant."""
        self._seen = self._wall()
        self._last = max(self._last, self._seen)
        self.cronsim = Ticks(self.spec, datetime.fromtimestamp(self._seen, self.tz))

    def get_next(self) -> float:
        """Set `scheduled` to the first tick that lies ahead. Returns the loop time of the next wake."""
        now = self._wall()
        past = 0
        while True:
            tick = next(self.cronsim)
            # cronsim drops `fold`, and the clock may have stepped, so ticks that are past or were fired are skipped.
            if tick.timestamp() > max(now, self._last):
                self.scheduled = tick.astimezone(UTC)
                return self._wake_at(now)
            past += 1
            if past == MOST_PAST:  # the clock has made a long step; the ticks within it are not walked one by one
                self.cronsim = Ticks(self.spec, datetime.fromtimestamp(max(now, self._last), self.tz))

    def _wake_at(self, now: float) -> float:
        return float(self.loop.time() + min(max(0.0, self.scheduled.timestamp() - now), LONGEST_NAP))

    def replan(self) -> None:
        """Begin anew at this instant: the clock was ahead, so the ticks that it fired did not run."""
        now = self._wall()
        self._last = now
        self.cronsim = Ticks(self.spec, datetime.fromtimestamp(now, self.tz))
        if self.handle is not None:
            self.handle.cancel()
        self.handle = self.loop.call_at(self.get_next(), self.call_next)

    def call_next(self) -> None:
        """Fire the ticks that are due, and arm the next wake."""
        now = self._wall()
        if now < self._seen - STEP_BACK:
            logger.info("the clock went back by %.1f s; %s is planned anew", self._seen - now, self.spec)
            self.cronsim = Ticks(self.spec, datetime.fromtimestamp(now, self.tz))
            if self._last - now > STEPS:
                self._last = now
            self.handle = self.loop.call_at(self.get_next(), self.call_next)
            self._seen = now
            return
        self._seen = now
        due = self.scheduled.timestamp()
        if now < due:
            self.handle = self.loop.call_at(self._wake_at(now), self.call_next)
            return
        scheduled = self.scheduled
        self._last = due
        self.handle = self.loop.call_at(self.get_next(), self.call_next)
        if now - due <= LATE:
            self._fire(scheduled)
        else:
            newest = last_tick(self.spec, datetime.fromtimestamp(now, self.tz))
            self._missed(newest.astimezone(UTC) if newest else scheduled)
