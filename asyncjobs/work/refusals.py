"""Refusals: what a queue does with settlements that the store refuses, so that one of them does not hold the others.

A refused turn is settled again in halves, until what cannot be settled is alone. A result that is refused for itself is
replaced by a failure, which is small; anything else waits apart and is tried again now and then.
"""

from __future__ import annotations

from typing import Final

from asyncjobs import clock
from asyncjobs.errors import BrokerError, PayloadError, named
from asyncjobs.work.decide import decide
from asyncjobs.work.executor import Failed
from asyncjobs.work.turn import Finished

SETTLED_A_TURN: Final = 500
SMALL: Final = 16_384  # bytes; no larger body is ever refused for its size
PAUSE: Final = 0.05  # seconds between two of the smaller turns
QUARANTINE: Final = 5.0  # seconds until what was refused alone is tried again
NOT_FOR_ITSELF: Final = ("WRONGTYPE", "NOPERM", "NOAUTH", "OOM")


class Refusals:
    """What is in trouble of one queue's settlements.

    State:
        most: settlements that a turn may carry: halved when one is refused, doubled when one is taken.
        apart: what was refused alone, each tried again in a turn of its own from `again_at` on.
        again_at: until then nothing is taken either, since a turn that only settles is more likely to succeed.
    """

    __slots__ = ("again_at", "apart", "most")

    def __init__(self) -> None:
        self.most = SETTLED_A_TURN
        self.apart: list[Finished] = []
        self.again_at = 0.0

    @property
    def rest(self) -> float:
        """Seconds until what waits apart is tried again, and jobs are taken again."""
        return max(0.0, self.again_at - clock.monotonic())

    def pause(self, seconds: float) -> None:
        """Take nothing for `seconds`."""
        self.again_at = max(self.again_at, clock.monotonic() + seconds)

    def over(self, outbox: list[Finished]) -> bool:
        """Whether turns may be as they were before."""
        return not self.apart and not self.rest and (self.most >= SETTLED_A_TURN or not outbox)

    def next(self, outbox: list[Finished]) -> list[Finished]:
        """What the next turn settles; taken out of `outbox`, or of what waits apart."""
        sending = outbox[: self.most]
        del outbox[: self.most]
        return sending or ([self.apart.pop(0)] if self.apart and not self.rest else [])

    def refused(self, sending: list[Finished], taking: bool, error: BrokerError) -> list[Finished]:
        """The store refused a turn; what of it is to be settled next."""
        if taking:
            self.again_at = clock.monotonic() + QUARANTINE
        if len(sending) > 1:
            self.most = len(sending) // 2
            return sending
        if not sending or taking:
            return sending
        smaller = smaller_than(sending[0], error)
        if smaller is not None:
            self.again_at = 0.0  # that was it, and not what was to be taken
            return [smaller]
        self.apart += sending
        self.again_at = clock.monotonic() + QUARANTINE
        return []

    def answered(self) -> None:
        """The store took a turn: the next one may carry more, and what waits apart is tried again at once."""
        self.most = min(SETTLED_A_TURN, 2 * self.most)


def smaller_than(finished: Finished, error: BrokerError) -> Finished | None:
    """A failure instead of a result that the store refuses; None where it is not its size that it refuses."""
    body = finished.decision.settlement.body
    if len(body) <= SMALL or any(word in str(error) for word in NOT_FOR_ITSELF):
        return None
    job = finished.job
    who = named(job.name, job.id, job.group_id)
    why = PayloadError(f"the result of {who}, {len(body)} bytes of JSON, was not kept: {error}")
    decision = decide(job, Failed(why, final=True))
    return None if decision is None else Finished(job, decision, finished.resent)
