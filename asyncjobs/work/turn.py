"""The Turn: the settlements of one queue in one round trip, and the jobs that the queue asks for."""

from __future__ import annotations

from typing import Any, Generic, Protocol, Self, TypeVar

from asyncjobs.active_job import ActiveJob
from asyncjobs.broker import NO_LIMIT, Keys, TakenJob, WorkCall
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.queue_limits import QueueLimits
from asyncjobs.errors import named
from asyncjobs.limits.shared_limit import Grant
from asyncjobs.record import Record
from asyncjobs.work.decide import Decision


class Ended(Record, frozen=True, gc=False):
    """A job as it is told of once its try has ended, without what it held while it ran: see `ActiveJob`."""

    spec: JobSpec
    id: str
    group_id: str | None
    attempts_made: int
    raw: bytes
    context: Any
    took: float | None

    @classmethod
    def of(cls, job: ActiveJob) -> Self:
        """Of a job whose handler has returned."""
        took = job.ended_at - job.began_at
        return cls(job.spec, job.id, job.group_id, job.attempts_made, job.raw, job.context, took)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def data(self) -> Any:
        """As they were added; nobody wanted to know when the try ended."""
        return self.spec.codec.decode(self.raw)

    def __repr__(self) -> str:
        return f"<ActiveJob {named(self.name, self.id, self.group_id)} try {self.attempts_made + 1}>"


class Finished(Record, frozen=True, gc=False):
    """A decision on its way to the store."""

    job: ActiveJob | Ended
    decision: Decision
    resent: bool = False


def renew(finished: list[Finished], owned: dict[str, TakenJob]) -> None:
    """Give each job in `finished` the entry and token of its take in `owned`, and remove that take from `owned`."""
    for i, one in enumerate(finished):
        taken = owned.pop(one.job.id, None)
        if taken is not None:
            settlement = one.decision.settlement._replace(entry=taken.entry, token=taken.token)
            finished[i] = one._replace(decision=one.decision._replace(settlement=settlement))


class Source(Protocol):
    """The queue, as its turn sees it. `QueueState` describes the attributes."""

    spec: JobSpec
    keys: Keys
    group_id: str | None
    base: QueueLimits
    margin: float
    calls: int
    indexed: bool

    @property
    def cautious(self) -> bool:
        """True if the first stall fails a job."""


Queue = TypeVar("Queue", bound=Source)


class Turn(Generic[Queue]):
    """One queue's turn on the wire: its settlements, and the slots that it asks for.

    Attributes:
        reserved: slots that wait for the reply.
        ahead: jobs that the reply may bring beyond `reserved`, to run as others end.
        calls: `Consumer.calls` when the turn was made up. The reply cannot know of later news.
        margin: seconds that a start may lag behind the token that the turn takes for it.
        grants, sent_at: the grants of the shared limits, and when the limits were asked; 0: they were not asked.
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
        """True if the reply may bring jobs."""
        return self.reserved + self.ahead > 0

    def let_in(self, jobs: int) -> None:
        """`jobs` that the shared limits let in are not on their way any more: they run, or will not run."""
        for grant in self.grants:
            grant.shared_limit.pending -= jobs

    def dropped(self) -> None:
        """The reply was lost, so the grants are dropped. Jobs that the turn has taken will be adopted."""
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
