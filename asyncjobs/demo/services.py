"""What the example's handlers share: a mailbox, a catalogue, and a record of what really happened."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

SYMBOLS = Path(__file__).parent / "data" / "symbols.csv"


class Services:
    """Handlers write down what they did; the summary counts it.

    Attributes:
        starts: what → monotonic instants at which it began.
        done: what → how often it was done.
        catalogue: the imported rows by code.
    """

    def __init__(self) -> None:
        self.starts: dict[str, list[float]] = defaultdict(list)
        self.done: dict[str, int] = defaultdict(int)
        self.catalogue: dict[str, str] = {}

    def began(self, what: str) -> None:
        self.starts[what].append(time.monotonic())

    def did(self, what: str, times: int = 1) -> None:
        self.done[what] += times


@asynccontextmanager
async def open_services() -> AsyncIterator[Services]:
    """Entered when the runtime starts, left when it stops: the place for pools and clients."""
    yield Services()
