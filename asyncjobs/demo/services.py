"""The services of the example's handlers: a mailbox, a catalogue, and a record of the handlers' work."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

SYMBOLS = Path(__file__).parent / "data" / "symbols.csv"


class Services:
    """Handlers write down their work here, and the summary counts it.

    Attributes:
        starts: kind of work → monotonic instants at which it began.
        done: kind of work → how often it was done.
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
    """The runtime enters this when it starts, and leaves it when it stops. An app opens pools and clients here."""
    yield Services()
