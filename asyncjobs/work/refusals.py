"""Refusals: the settlements of a queue that the store refuses. One refused settlement must not hold up the others.

A refused turn is settled again in halves, until each settlement that the store refuses is alone. A refused result is
replaced by a small failure. Any other refused settlement waits apart, and is tried again now and then.
"""

from __future__ import annotations

from typing import Final

from asyncjobs import clock
from asyncjobs.errors import BrokerError, PayloadError, named
from asyncjobs.work.decide import decide
from asyncjobs.work.executor import Failed
from asyncjobs.work.turn import Ended, Finished

SETTLED_A_TURN: Final = 500
SMALL: Final = 16_384  # bytes; no larger body is ever refused for its size
PAUSE: Final = 0.05  # seconds between two of the smaller turns
QUARANTINE: Final = 5.0  # seconds until a settlement that was refused alone is tried again
NOT_FOR_ITSELF: Final = ("WRONGTYPE", "NOPERM", "NOAUTH", "OOM")


class Refusals:
    """The refused settlements of one queue.

    State:
        most: settlements that a turn may carry: halved by a refused turn, doubled by an accepted one.
        apart: settlements that were refused alone. Each is tried again in a turn of its own, from `again_at` on.
        again_at: until then the queue takes no jobs, because a turn that only settles is more likely to succeed.
    """

    __slots__ = ("again_at", "apart", "most")

    def __init__(self) -> None:
        self.most = SETTLED_A_TURN
        self.apart: list[Finished] = []
        self.again_at = 0.0

    @property
    def rest(self) -> float:
        """Seconds until the settlements that wait apart are tried again, and jobs are taken again."""
        return max(0.0, self.again_at - clock.monotonic())

    def pause(self, seconds: float) -> None:
        """Take no jobs for `seconds`."""
        self.again_at = max(self.again_at, clock.monotonic() + seconds)

    def over(self, outbox: list[Finished]) -> bool:
        """True if no settlement is refused any more, so that turns may be as they were before."""
        return not self.apart and not self.rest and (self.most >= SETTLED_A_TURN or not outbox)

    def next(self, outbox: list[Finished]) -> list[Finished]:
        """Remove and return the settlements of the next turn, from `outbox` or from those that wait apart."""
        sending = outbox[: self.most]
        del outbox[: self.most]
        return sending or ([self.apart.pop(0)] if self.apart and not self.rest else [])

    def refused(self, sending: list[Finished], taking: bool, error: BrokerError) -> list[Finished]:
        """The store refused a turn. Returns the settlements of it that go back to the outbox."""
        if taking:
            self.again_at = clock.monotonic() + QUARANTINE
        if len(sending) > 1:
            self.most = len(sending) // 2
            return sending
        if not sending or taking:
            return sending
        smaller = smaller_than(sending[0], error)
        if smaller is not None:
            self.again_at = 0.0  # the settlement was refused, and not the taking of jobs
            return [smaller]
        self.apart += sending
        self.again_at = clock.monotonic() + QUARANTINE
        return []

    def answered(self) -> None:
        """The store accepted a turn, so the next turn may carry more settlements."""
        self.most = min(SETTLED_A_TURN, 2 * self.most)


def smaller_than(finished: Finished, error: BrokerError) -> Finished | None:
    """A failure in place of a result that the store refuses for its size; None if it refuses for another reason."""
    job, body = finished.job, finished.decision.settlement.body
    if len(body) <= SMALL or isinstance(job, Ended) or any(word in str(error) for word in NOT_FOR_ITSELF):
        return None
    who = named(job.name, job.id, job.group_id)
    why = PayloadError(f"the result of {who}, {len(body)} bytes of JSON, was not kept: {error}")
    decision = decide(job, Failed(why, final=True))
    return None if decision is None else Finished(job, decision, finished.resent)
