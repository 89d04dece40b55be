"""Waiting: a queue as its limits see it. Asking: a turn of that queue as its limits see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from asyncjobs.broker import Keys
from asyncjobs.declare.queue_limits import QueueLimits


class Asking(Protocol):
    """A turn. `reserved`: the number of jobs that it would start; `ahead`: how many more it may bring."""

    reserved: int
    ahead: int

    @property
    def grants(self) -> Sequence[Any]:
        """What shared limits have let in."""


class Waiting(Protocol):
    """A queue.

    Attributes:
        keys: the queue's keys in the store.
        limits: the queue's limits now.
        margin: seconds that a start may lag behind a token of the queue's own limit.
        parked: the shared limit that keeps the queue waiting, or None.
        hungry: the queue may have jobs to take.
        queued: the queue is about to have a turn.
        quiet: no job of the queue may begin any more.
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
        """The shared limits over the queue."""

    @property
    def turns(self) -> Sequence[Asking]:
        """The turns that are under way."""

    def free(self) -> int:
        """The queue's own slots that are free, and that no turn has asked for."""

    def look_again(self) -> None:
        """Take a turn soon, since the queue may have jobs to take."""
