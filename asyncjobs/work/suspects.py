"""The Suspects: jobs that have stalled more than once. A process runs one suspect at a time.

A job that kills its process takes its neighbours along, and each is charged a stall. A suspect is charged only once it
has begun, and runs beside no other suspect, so an innocent one comes through. While one suspect runs for long, the
suspects behind it are put aside, delayed and uncounted, so that they keep no slots from other jobs.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from asyncjobs import clock

PATIENCE: Final = 0.5  # seconds that a suspect waits in its slot for another one that has just begun
LONGEST: Final = 60.0  # seconds for which a suspect is put aside, at most


class Suspects:
    """Gives the suspects of this process their turn, one at a time. State: `_since`, when the present turn began."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._since = 0.0

    async def enter(self) -> bool:
        """Wait for the turn. False: another suspect has the turn for too long already."""
        left = self._since + PATIENCE - clock.monotonic() if self._turn.locked() else PATIENCE
        if left <= 0:
            return False
        try:
            async with asyncio.timeout(left):
                await self._turn.acquire()
        except TimeoutError:
            return False
        self._since = clock.monotonic()
        return True

    def leave(self) -> None:
        """Pass the turn on to the next suspect."""
        self._turn.release()

    def rest(self) -> float:
        """Seconds for which a suspect without a turn is put aside: longer if the present turn has lasted longer."""
        return random.uniform(0.5, 1) * min(LONGEST, 2 * PATIENCE + (clock.monotonic() - self._since) / 4)
