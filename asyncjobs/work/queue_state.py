"""The QueueState: what a queue of this process holds and waits for, and what of it may run now."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

from asyncjobs.active_job import ActiveJob
from asyncjobs.broker import WORK_CONNECTIONS, Keys, TakenJob
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.queue_limits import QueueLimits
from asyncjobs.errors import visible
from asyncjobs.limits.shared_limit import SharedLimit
from asyncjobs.limits.start_margin import least_margin
from asyncjobs.work.attempts import Attempts
from asyncjobs.work.executor import Outcome
from asyncjobs.work.prefetch import Prefetch, Prefetched
from asyncjobs.work.refusals import Refusals
from asyncjobs.work.shared import Shared
from asyncjobs.work.turn import Finished, Turn

BATCH: Final = 256  # jobs taken in one turn at most
TURNS: Final = WORK_CONNECTIONS


class QueueState:
    """One queue: what of it runs here, what has finished and is not settled, and whether to look for more.

    State:
        attempts: what of it runs here.
        outbox: decisions not yet acknowledged by the store, in order.
        refusals: those that it has refused; None: there are none.
        hungry: there may be something to take; cleared by a take that came back short.
        flowing: the last take brought all that it asked for, so that a second one beside it is worth its while.
        calls: how often there was news; a reply is short only of what its turn could know of.
        alarm_at: when the pump's alarms wake it, or None.
        ahead: what it holds beyond its slots.
        spent: jobs started in its present turn among those that starve, up to its weight.
        parked: the shared limit that keeps it waiting, or None.
        appetite: jobs that a turn asks the shared limits for at most; more with every turn that brings all it asked
            for, so that a queue with little work does not hold what others could use.
        indexed: finished jobs of groups are listed beside its own, so that no turn of it may trim that list.
        took: whether this process has taken jobs here, so that its name may be in the queue's stream.
        queued, starving: in the pump's ring; waiting for a slot of the process.
        turns: on the wire, two at the most: while the server works on one, this process runs what another brought.
        lost_reply: something may be pending for this process that it does not know of.
        margin: seconds that a start may lag behind its token.
        base, set, limits: what holds for all queues of its name; what was set of this one; the one laid over the other.
    """

    __slots__ = (
        "_shared", "ahead", "alarm_at", "appetite", "attempts", "base", "calls", "flowing", "group_id", "hungry",
        "indexed", "keys", "limits", "lost_reply", "margin", "on_rest", "outbox", "parked", "queued", "quiet",
        "refusals", "rested_at", "resting_until", "set", "shared_limits", "spec", "spent", "starving", "took", "turns",
    )  # fmt: skip

    def __init__(
        self,
        shared: Shared,
        spec: JobSpec,
        keys: Keys,
        group_id: str | None = None,
        base: QueueLimits | None = None,
        on_rest: Callable[[Any], None] | None = None,
    ) -> None:
        self._shared = shared
        self.on_rest = on_rest
        self.spec = spec
        self.keys = keys
        self.group_id = group_id
        self.attempts = Attempts(shared, self)
        self.outbox: list[Finished] = []
        self.refusals: Refusals | None = None
        self.turns: list[Turn[Any]] = []
        self.hungry = True
        self.calls = 0
        self.flowing = False
        self.alarm_at: float | None = None
        self.queued = False
        self.starving = False
        self.lost_reply = False
        self.shared_limits = shared.shared_limits.get(spec.name, ())
        self.parked: SharedLimit | None = None
        self.appetite = 1
        self.took = False
        self.indexed = False
        self.ahead = Prefetch(shared.pace.get(spec.name, 0))
        self.spent = 0
        self.quiet = False
        self.resting_until = 0.0
        self.rested_at: float | None = None
        self.base = self.limits = base or spec.limits
        self.set: tuple[str, str, str] | None = None
        self.margin = least_margin(self.limits, self.shared_limits)

    def __repr__(self) -> str:
        name = self.spec.name if self.group_id is None else f"{self.spec.name}:{visible(self.group_id)}"
        return f"<Consumer {name} [{len(self.attempts.running)} running]>"

    @abstractmethod
    def ended(self, job: ActiveJob, outcome: Outcome) -> Prefetched | None:
        """A try of this queue has come to `outcome`; the job that is to begin instead."""

    @abstractmethod
    def release(self, jobs: Sequence[TakenJob]) -> None:
        """Put jobs that have not begun back to the head of the queue, uncounted."""

    @abstractmethod
    def look_again(self) -> None:
        """There may be something to take."""

    # What there is, and what may run ------------------------------------------------------------------------
    @property
    def idle(self) -> bool:
        """Nothing runs, nothing waits to be settled or looked at, now or later: whatever is left of it is idle too."""
        busy = self.attempts.slots_used or self.outbox or self.turns or self.hungry or self.refusals or self.lost_reply
        return not busy and self.alarm_at is None and self not in self._shared.pump.doubts

    @property
    def cautious(self) -> bool:
        """Whether the first stall fails a job."""
        return self.attempts.cautious

    @property
    def fetched(self) -> int:
        """How many jobs it holds beyond its slots."""
        return len(self.ahead)

    @property
    def has_ended(self) -> bool:
        """Whether decisions wait to be settled."""
        return bool(self.outbox)

    @property
    def wants_a_turn(self) -> bool:
        """Whether there is something to settle, to sort out after a lost reply, or to take."""
        return bool(self.outbox or self.refusals) or self.lost_reply or (self.hungry and self.free() > 0)

    @property
    def at_leisure(self) -> bool:
        """Whether a turn of it may travel with somebody else: none is under way, and nothing is to be sorted out."""
        busy = self.queued or self.turns or self.outbox or self.lost_reply or self.resting_until or self.refusals
        return not (busy or self.quiet)

    @property
    def unsettled(self) -> int:
        """Decisions that the store has not acknowledged yet."""
        apart = len(self.refusals.apart) if self.refusals else 0
        return len(self.outbox) + apart + sum(len(turn.sending) for turn in self.turns)

    def free(self) -> int:
        """Slots of its own that are free and not asked for yet."""
        if self.quiet or self.parked is not None or self.limits.paused:
            return 0
        if self.limits.concurrency is None:
            return BATCH
        used = self.attempts.slots_used
        for turn in self.turns:
            used += turn.reserved
        return max(0, self.limits.concurrency - used)

    def _batch(self) -> int:
        """How many a turn takes at most: half of what may run, so that the server and this process work at once."""
        concurrency = self.limits.concurrency
        most = BATCH if concurrency is None else min(BATCH, (concurrency + 1) // TURNS)
        return min(most, self.appetite) if self.shared_limits else most

    def may_fetch_ahead(self, reserved: int) -> int:
        """How many jobs a turn that asks for `reserved` slots may bring beyond them.

        None where something else than their order decides when jobs start: a limit, a shared limit, a group's share
        of slots that other processes have too.
        """
        limits = self.limits
        if (
            not self.ahead.most
            or limits.window
            or self.shared_limits
            or self.spec.ordered
            or limits.concurrency is None
        ):
            return 0
        if limits.concurrency == 1:
            return self.ahead.most if reserved else 0
        if self.spec.slots or self.quiet or self.parked is not None or limits.paused:
            return 0
        held = len(self.ahead) + sum(turn.ahead for turn in self.turns)
        return max(0, min(self.ahead.most - held, BATCH - reserved))

    def _room(self) -> int:
        """Slots in which a job may start now."""
        if self.limits.concurrency is None:
            return BATCH
        return max(0, self.limits.concurrency - self.attempts.slots_used)

    @property
    def unsure(self) -> bool:
        """Whether jobs may be pending for this process of which it does not know, or does not know yet."""
        return self.lost_reply or bool(self.turns)

    @property
    def lingers(self) -> bool:
        """Whether what was fetched ahead has been waiting for too long."""
        return self.ahead.lingers(self.limits.concurrency == 1, self._shared.rounds.governs)

    def rebase(self, base: QueueLimits) -> None:
        """Other limits hold for all queues of this name."""
        self.base = base
        self._settle_limits(self.set)

    def _settle_limits(self, settings: tuple[str, str, str] | None) -> None:
        """What was set of this queue has changed."""
        self.set = settings
        self.limits = self.base if settings is None else self.base.laid_over(*settings)
        self.margin = least_margin(self.limits, self.shared_limits)
        self._more_may_be_there()

    def _expect(self, delay_ms: int) -> None:
        """A retry is due in `delay_ms`; the news of it may be lost, and other processes may be gone by then."""
        if delay_ms:
            self._shared.pump.alarms.set_earlier(self, delay_ms / 1000)
        else:
            self._more_may_be_there()

    def _more_may_be_there(self) -> None:
        """Since the turns on the wire were made up; a short reply of theirs must not hide it."""
        self.hungry = True
        self.calls += 1
