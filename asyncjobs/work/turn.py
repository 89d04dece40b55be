"""The Turn: what one queue settles and asks for in one round trip."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from asyncjobs.active_job import ActiveJob
from asyncjobs.broker import NO_LIMIT, Keys, TakenJob, WorkCall
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.queue_limits import QueueLimits
from asyncjobs.limits.shared_limit import Grant
from asyncjobs.record import Record
from asyncjobs.work.decide import Decision


class Finished(Record, frozen=True, gc=False):
    """A decision on its way to the store."""

    job: ActiveJob
    decision: Decision
    resent: bool = False


def renew(finished: list[Finished], owned: dict[str, TakenJob]) -> None:
    """Settle what has `finished` as the takes that are in `owned`, and take those out of it."""
    for i, one in enumerate(finished):
        taken = owned.pop(one.job.id, None)
        if taken is not None:
            settlement = one.decision.settlement._replace(entry=taken.entry, token=taken.token)
            finished[i] = one._replace(decision=one.decision._replace(settlement=settlement))


class Source(Protocol):
    """What a turn is made up of. For the attributes see `Consumer`."""

    spec: JobSpec
    keys: Keys
    group_id: str | None
    base: QueueLimits
    margin: float
    calls: int
    indexed: bool

    @property
    def cautious(self) -> bool:
        """Whether the first stall fails a job."""


Queue = TypeVar("Queue", bound=Source)


class Turn(Generic[Queue]):
    """One queue's turn on the wire: what it settles, how many slots it asked for, and what it cannot know.

    Attributes:
        reserved: slots that wait for its reply.
        ahead: jobs that it may bring beyond that, to run as others end.
        calls: `Consumer.calls` when it was made up: news that came later is not in its reply.
        margin: seconds that a start may lag behind the tokens that it takes.
        grants, sent_at: what the shared limits have let in, and when they were asked; 0: they were not.
    """

    __slots__ = ("ahead", "calls", "consumer", "grants", "margin", "reserved", "sending", "sent_at", "token")

    def __init__(self, consumer: Queue, sending: list[Finished], reserved: int, ahead: int, token: bytes) -> None:
        self.consumer, self.sending, self.reserved, self.ahead, self.token = consumer, sending, reserved, ahead, token
        self.calls = consumer.calls
        self.margin = consumer.margin
        self.grants: tuple[Grant, ...] = ()
        self.sent_at = 0.0

    @property
    def takes(self) -> bool:
        """Whether its reply may bring jobs."""
        return self.reserved + self.ahead > 0

    def let_in(self, jobs: int) -> None:
        """`jobs` of what the shared limits let in are no longer on their way: they run, or will not."""
        for grant in self.grants:
            grant.shared_limit.pending -= jobs

    def dropped(self) -> None:
        """No reply says what became of what the limits let in: what has been taken is adopted, the rest is free."""
        self.let_in(self.reserved)
        for grant in self.grants:
            grant.shared_limit.reconsider()

    def call(self) -> WorkCall:
        """The turn, as the broker takes it."""
        consumer, spec, limits = self.consumer, self.consumer.spec, self.consumer.base
        slots = limits.concurrency or 0 if spec.slots else 0
        settlements = [finished.decision.settlement for finished in self.sending]
        return WorkCall(
            spec.name, consumer.keys, consumer.group_id is not None, self.token, self.reserved + self.ahead, slots,
            limits.windows, round(self.margin * 1e6), self.ahead, NO_LIMIT if consumer.indexed else spec.retention,
            settlements, consumer.cautious,
        )  # fmt: skip
