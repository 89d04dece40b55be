"""Adds on their way: a caller's submission, the batches in which its jobs travel, and the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Set
from typing import Any, Final, NamedTuple

from asyncjobs.broker.keys import Keys
from asyncjobs.broker.wire import Command
from asyncjobs.errors import BrokerError, BrokerUnavailableError, QueueFullError

NOBODY: Final[Set[str]] = frozenset()


class Place(NamedTuple):
    """The queue that jobs are added to. `registry`: the key that registers its group, '' for a queue without groups."""

    keys: Keys
    name: str
    news: str
    registry: str


class AddCall(NamedTuple):
    """One job to add. `kind` is 'in' (`when` ms from now, 0 at once) or 'at' (`when` ms since the epoch).

    `most`: most waiting and delayed jobs, unless the queue's own settings give a bound; '' for no bound.
    """

    place: Place
    job_id: str
    kind: str
    when: int
    data: bytes
    options: bytes
    named: bool
    most: str = ""


class AddReply(NamedTuple):
    added: bool
    at_ms: int


class Submission:
    """One caller's jobs: the number of unanswered ones, their replies in order, and the future that waits."""

    __slots__ = ("calls", "deadline", "future", "left", "most", "once", "refused", "replies")

    def __init__(self, calls: Sequence[AddCall], deadline: float, future: asyncio.Future[list[AddReply]]) -> None:
        self.calls, self.deadline, self.future, self.left = calls, deadline, future, len(calls)
        self.replies: list[AddReply] = [AddReply(False, 0)] * len(calls)
        self.refused: list[AddCall] = []
        self.most = 0
        self.once = False  # the store is known to be down, so the submission is sent once

    def waits_for(self, tags: Set[str]) -> bool:
        """True if any of the jobs goes to one of the queues `tags`."""
        return bool(tags) and any(call.place.keys.tag in tags for call in self.calls)

    def answer(self, index: int, reply: AddReply) -> None:
        self.replies[index] = reply
        self._answered()

    def refuse(self, index: int, most: int) -> None:
        """The store refused the job at `index`, because its queue is full."""
        self.refused.append(self.calls[index])
        self.most = most
        self._answered()

    def _answered(self) -> None:
        self.left -= 1
        if self.left or self.future.done():
            return
        if self.refused:
            place = self.refused[0].place
            queue = place.name if not place.keys.group else f"{place.name}, group {place.keys.group!r},"
            self.future.set_exception(QueueFullError(queue, self.most, [call.job_id for call in self.refused]))
        else:
            self.future.set_result(self.replies)

    def fail(self, error: BrokerError) -> None:
        if not self.future.done():
            if isinstance(error, BrokerUnavailableError):
                error = BrokerUnavailableError(str(error), [call.job_id for call in self.calls])
            self.future.set_exception(error)


class FollowUp(NamedTuple):
    """A command that travels behind adds to the queue `tag`, and the function that gets the reply or the error."""

    tag: str
    command: Command
    answer: Callable[[Any], None]


class Item(NamedTuple):
    """One job of a submission, and its index there."""

    submission: Submission
    nth: int
    call: AddCall


class Batch(NamedTuple):
    """The jobs of one queue that one script call adds, and the instant at which the batch was made up."""

    tag: str
    command: Command
    items: list[Item]
    since: float

    @property
    def is_waited_for(self) -> bool:
        return any(not item.submission.future.done() for item in self.items)
