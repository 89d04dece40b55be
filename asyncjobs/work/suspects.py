"""The Suspects: jobs that have stalled more than once run one at a time, and those that wait take nobody's slot.

A job that kills its process takes its neighbours along, and each is charged a stall. Beside no other suspect, and
charged only once it has begun, an innocent one comes through. One that runs for long keeps no slot from other jobs: the
suspects behind it are put aside, delayed and uncounted.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from asyncjobs import clock

PATIENCE: Final = 0.5  # seconds that one waits in its slot for another that has just begun
LONGEST: Final = 60.0  # seconds for which one is put aside


class Suspects:
    """The turn of one suspect after the other in this process. State: `_since`, when the present one had it."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._since = 0.0

    async def enter(self) -> bool:
        """Have the turn; False: another one has had it for too long, and goes on."""
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
        """The turn is the next one's."""
        self._turn.release()

    def rest(self) -> float:
        """Seconds for which one that had no turn is put aside: longer where the turn has lasted for longer."""
        return random.uniform(0.5, 1) * min(LONGEST, 2 * PATIENCE + (clock.monotonic() - self._since) / 4)
