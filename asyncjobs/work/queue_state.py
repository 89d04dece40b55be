"""The QueueState: the jobs that a queue holds in this process, what it waits for, and how many jobs may run now."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

from asyncjobs import clock
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
    """One queue: its running tries, its finished jobs that are not settled, and whether it looks for more jobs.

    State:
        attempts: the queue's tries in this process.
        outbox: decisions that the store has not acknowledged yet, in order.
        refusals: settlements that the store has refused; None: there are none.
        hungry: the queue may have jobs to take. A take that comes back short clears it.
        flowing: the last take brought all jobs that it asked for, so a second take beside it is worth a round trip.
        calls: the number of news. A short reply says nothing about news that came after its turn was made up.
        alarm_at: when the pump's alarms wake the queue, or None.
        ahead: the jobs that the queue holds beyond its slots.
        parked: the shared limit that keeps the queue waiting, or None.
        appetite: most jobs that a turn asks the shared limits for. Each turn that brings all its jobs raises it, so a
            queue with little work does not reserve starts that others could use.
        indexed: the list of finished jobs holds those of groups as well, so no turn of the queue may trim that list.
        tally: the counts of the queue's name in this process; None: nothing is counted.
        held_back: turns that a shared limit has let start fewer than they wanted. They count as refused once a turn
            finds a job, since a shared limit is asked before the queue is looked at: there may have been none.
        took: this process has taken jobs here, so its name may be in the queue's stream.
        queued, starving: the queue is in the pump's ring; it waits for a slot of the process.
        turns, most_turns: the turns on the wire, and their number at most: while the server works on one, this process
            runs the jobs of the other. Of a queue with shared limits there may be as many again, that ask these.
        lost_reply: the store may hold jobs for this process that the process does not know.
        margin: seconds that a start may lag behind its token.
        base, set, limits: the limits of all queues of the name; this queue's own settings; `set` laid over `base`.
    """

    __slots__ = (
        "_shared", "ahead", "alarm_at", "appetite", "attempts", "base", "calls", "flowing", "group_id", "held_back",
        "hungry", "indexed", "keys", "limits", "lost_reply", "margin", "most_turns", "on_rest", "outbox", "parked",
        "queued", "quiet", "refusals", "rested_at", "resting_until", "set", "shared_limits", "spec", "starving",
        "tally", "took", "turns",
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
        self.most_turns = 2 * TURNS if self.shared_limits else TURNS
        self.parked: SharedLimit | None = None
        self.appetite = 1
        self.took = False
        self.tally = None if shared.recorder is None else shared.recorder.tally(spec.name)
        self.held_back = 0
        self.indexed = False
        self.ahead = Prefetch(shared.pace.get(spec.name, 0))
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
        """A try has come to `outcome`. Returns the prefetched job that runs next in the same task, if any."""

    @abstractmethod
    def release(self, jobs: Sequence[TakenJob]) -> None:
        """Put jobs that have not begun back to the head of the queue, uncounted."""

    @abstractmethod
    def look_again(self) -> None:
        """Take a turn soon, since the queue may have jobs to take."""

    def _tell_held_back(self, found: bool) -> None:
        """Count the turns that a shared limit has held back, if there was a job that they could have `found`.

        Else a process without work would send figures of nothing to the store.
        """
        if found and self.tally is not None:
            self.tally.count("refused", self.held_back)
        self.held_back = 0

    # What the queue holds, and what may run -----------------------------------------------------------------
    @property
    def idle(self) -> bool:
        """True if no job runs, none waits to be settled, and no turn or alarm is due."""
        busy = self.attempts.slots_used or self.outbox or self.turns or self.hungry or self.refusals or self.lost_reply
        return not busy and self.alarm_at is None and self not in self._shared.pump.doubts

    @property
    def cautious(self) -> bool:
        """True if the first stall fails a job."""
        return self.attempts.cautious

    @property
    def fetched(self) -> int:
        """The number of jobs that the queue holds beyond its slots."""
        return len(self.ahead)

    @property
    def has_ended(self) -> bool:
        """True if decisions wait to be settled."""
        return bool(self.outbox)

    @property
    def wants_a_turn(self) -> bool:
        """True if the queue has decisions to settle, a lost reply to sort out, or jobs to take."""
        return bool(self.outbox or self.refusals) or self.lost_reply or (self.hungry and self.free() > 0)

    @property
    def at_leisure(self) -> bool:
        """True if a turn may travel behind an add: no turn is under way, and no reply was lost."""
        busy = self.queued or self.turns or self.outbox or self.lost_reply or self.resting_until or self.refusals
        return not (busy or self.quiet)

    @property
    def unsettled(self) -> int:
        """Decisions that the store has not acknowledged yet."""
        apart = len(self.refusals.apart) if self.refusals else 0
        return len(self.outbox) + apart + sum(len(turn.sending) for turn in self.turns)

    def _post(self, finished: Finished) -> None:
        """Have the next turn carry a decision."""
        self.outbox.append(finished)
        self._shared.unsettled += 1

    def free(self) -> int:
        """The queue's own slots that are free, and that no turn has asked for."""
        if self.quiet or self.parked is not None or self.limits.paused:
            return 0
        if self.limits.concurrency is None:
            return BATCH
        used = self.attempts.slots_used
        for turn in self.turns:
            used += turn.reserved
        return max(0, self.limits.concurrency - used)

    @property
    def wanted(self) -> int:
        """How many jobs its next turn would start, were there slots enough."""
        if (
            not self.hungry
            or len(self.turns) >= self.most_turns
            or self.refusals is not None
            or (self.turns and self.lost_reply)
        ):
            return 0
        if self.resting_until and self.resting_until > clock.monotonic():
            return 0
        return min(self.free(), self._batch())

    def _batch(self) -> int:
        """Most jobs that a turn takes: half of those that may run, so that server and process work at the same time.

        Where something else than the queue's concurrency is scarce, all: other queues take what a turn leaves.
        """
        concurrency = self.limits.concurrency
        scarce = self._shared.pump.line.scarce or any(one.line.scarce for one in self.shared_limits)
        most = BATCH if concurrency is None or scarce else min(BATCH, (concurrency + 1) // TURNS)
        return min(most, self.appetite) if self.shared_limits else most

    def may_fetch_ahead(self, reserved: int) -> int:
        """How many jobs a turn that asks for `reserved` slots may bring beyond them.

        0 if more than their order decides when jobs start: a limit, a shared limit, or slots that a group shares with
        other processes.
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
        """The slots in which a job may start now."""
        if self.limits.concurrency is None:
            return BATCH
        return max(0, self.limits.concurrency - self.attempts.slots_used)

    @property
    def unsure(self) -> bool:
        """True if the store may hold jobs for this process that the process does not know yet."""
        return self.lost_reply or bool(self.turns)

    @property
    def lingers(self) -> bool:
        """True if the prefetched jobs have waited for too long."""
        return self.ahead.lingers(self.limits.concurrency == 1, self._shared.rounds.governs)

    def rebase(self, base: QueueLimits) -> None:
        """Set the limits of all queues of this name, under the queue's own settings."""
        self.base = base
        self._settle_limits(self.set)

    def learn(self, settings: tuple[str, str, str]) -> None:
        """What is set of this queue, as the store has it."""
        told = settings if any(settings) else None
        if told != self.set:
            self._settle_limits(told)
            self.look_again()

    def _settle_limits(self, settings: tuple[str, str, str] | None) -> None:
        """Apply the queue's own settings, which have changed."""
        self.set = settings
        self.limits = self.base if settings is None else self.base.laid_over(*settings)
        self.margin = least_margin(self.limits, self.shared_limits)
        self._more_may_be_there()

    def _expect(self, delay_ms: int) -> None:
        """Set an alarm for a retry that is due in `delay_ms`, because its news may be lost."""
        if delay_ms:
            self._shared.pump.alarms.set_earlier(self, delay_ms / 1000)
        else:
            self._more_may_be_there()

    def _more_may_be_there(self) -> None:
        """More jobs may have come since the turns on the wire were made up. Their short replies must not hide these."""
        self.hungry = True
        self.calls += 1
