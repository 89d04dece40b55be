"""Waiting: what a limit needs of a queue that it keeps waiting, and of the turn in which that queue asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from asyncjobs.broker import Keys
from asyncjobs.declare.queue_limits import QueueLimits


class Asking(Protocol):
    """A turn. `reserved`: how many jobs it would start."""

    reserved: int


class Waiting(Protocol):
    """A queue.

    Attributes:
        keys: where it lies.
        limits: what holds for it now.
        margin: seconds that a start may lag behind a token of its own.
        parked: the shared limit that keeps it waiting, or None.
        hungry: there may be something to take.
        queued: it is about to have a turn.
        quiet: nothing of it is to begin any more.
    """

    keys: Keys
    limits: QueueLimits
    margin: float
    parked: Any
    hungry: bool
    queued: bool
    quiet: bool

    @property
    def shared_limits(self) -> Sequence[Any]:
        """The shared limits over it."""

    @property
    def turns(self) -> Sequence[Asking]:
        """Those that are under way."""

    def free(self) -> int:
        """Slots of its own that are free and not asked for yet."""

    def look_again(self) -> None:
        """There may be something to take."""
