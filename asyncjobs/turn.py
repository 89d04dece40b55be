"""The Turn: what one queue settles and asks for in one round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from asyncjobs.broker import WorkCall
from asyncjobs.job import ActiveJob
from asyncjobs.retry import Decision

if TYPE_CHECKING:
    from asyncjobs.consumer import Consumer


class Finished(NamedTuple):
    """A decision on its way to the store."""

    job: ActiveJob
    decision: Decision
    resent: bool = False


class Turn:
    """One queue's turn on the wire: what it settles, how many slots it asked for, and what it cannot know.

    Attributes:
        reserved: slots that wait for its reply.
        calls: `Consumer.calls` when it was made up: news that came later is not in its reply.
        margin: seconds that a start may lag behind the tokens that it takes.
    """

    __slots__ = ("calls", "consumer", "margin", "reserved", "sending", "token")

    def __init__(self, consumer: Consumer, sending: list[Finished], reserved: int, token: bytes) -> None:
        self.consumer, self.sending, self.reserved, self.token = consumer, sending, reserved, token
        self.calls = consumer.calls
        self.margin = consumer.margin

    def call(self) -> WorkCall:
        """The turn, as the broker takes it."""
        consumer, spec = self.consumer, self.consumer.spec
        bucket = (*spec.bucket, round(self.margin * 1e6)) if spec.limiter is not None else (0, 0, 0)
        settlements = [finished.decision.settlement for finished in self.sending]
        return WorkCall(
            spec.name, consumer.keys, spec.grouped, self.token, self.reserved, spec.slots, bucket, spec.retention,
            settlements,
        )  # fmt: skip
