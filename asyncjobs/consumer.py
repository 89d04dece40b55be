"""The Consumer: one queue in this process. take → execute → decide → settle, with no loop of its own.

It is a record and a handful of callbacks: the Pump gives it turns, tries run in slots, and between them an idle queue
costs its memory alone.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import Any, Final, Literal

from asyncjobs import clock
from asyncjobs.ahead import Ahead, Fetched
from asyncjobs.broker import WORK_LANES, Broker, BrokerBusyError, Keys, TakenJob, WorkReply
from asyncjobs.definition import JobSpec
from asyncjobs.errors import BrokerError, Discard, JobStalledError
from asyncjobs.events import EventBus
from asyncjobs.executor import Completed, Failed, Later, Lost, Outcome, Released, execute, timed_out
from asyncjobs.gate import Gate
from asyncjobs.job import ActiveJob, current
from asyncjobs.margin import in_time, least_margin
from asyncjobs.pump import Pump
from asyncjobs.retry import Decision, decide
from asyncjobs.slot import Rounds, Slot
from asyncjobs.stack import exc_info, said
from asyncjobs.terms import Terms
from asyncjobs.turn import Finished, Turn

logger = logging.getLogger("asyncjobs")

BATCH: Final = 256  # jobs taken in one turn at most
SETTLED_A_TURN: Final = 500
TURNS: Final = WORK_LANES
STUBBORN: Final = 1.0  # seconds that a cancelled handler has to end before its job is settled without it
LONG_AGO: Final = float("-inf")  # when the tokens of adopted jobs were taken, for all that is known
STALE, GONE = b"03"
SUSPECT: Final = 2  # stalls after which a job runs beside no other such job of its process
QUARANTINE: Final = 5.0  # seconds that a queue rests whose keys the store refuses


class Shop:
    """What all consumers of a process share."""

    __slots__ = (
        "broker", "bus", "context", "environment", "gates", "pace", "pump", "rounds", "scope", "suspects", "threads",
        "tokens",
    )  # fmt: skip

    def __init__(
        self,
        broker: Broker,
        bus: EventBus,
        pump: Pump,
        environment: Mapping[str, Any],
        threads: Executor,
        scope: Callable[[ActiveJob], AbstractContextManager[Any]],
        boot: str,
    ) -> None:
        self.broker, self.bus, self.pump, self.environment, self.threads = (
            broker,
            bus,
            pump,
            environment,
            threads,
        )
        self.context = copy_context()  # in a copy of it each job begins, whoever added it and whatever ran before
        self.rounds = Rounds()
        # A job that kills its process takes its neighbours along, and each is charged a stall for it. Those who have
        # several queue here, one at a time, and are charged only once they have begun: the innocent come through.
        self.suspects = asyncio.Lock()
        self.pace: dict[str, int] = {}  # job name → how many to fetch ahead, as the last job of that name was quick
        self.gates: dict[str, tuple[Gate, ...]] = {}  # job name → the limits that hold over its queues and others
        self.scope = scope  # entered around each try; what it yields travels with the try's events
        numbers = itertools.count(1)
        self.tokens = (f"{boot}.{number:x}".encode() for number in numbers)


class Consumer:
    """One queue: what of it runs here, what has finished and is not settled, and whether to look for more.

    State:
        running: id → job whose outcome is not known yet.
        outbox: decisions not yet acknowledged by the store, in order.
        hungry: there may be something to take; cleared by a take that came back short.
        flowing: the last take brought all that it asked for, so that a second one beside it is worth its while.
        calls: how often there was news; a reply is short only of what its turn could know of.
        zombies: handlers that go on after their job was settled; they keep their slot.
        alarm_at: when the pump's alarms wake it, or None.
        ahead: what it holds beyond its slots.
        spent: jobs started in its present turn among those that starve, up to its weight.
        parked: a gate keeps it waiting.
        queued, starving: in the pump's ring; waiting for a slot of the process.
        turns: on the wire, two at the most: while the server works on one, this process runs what another brought.
        lost_reply: something may be pending for this process that it does not know of.
        margin: seconds that a start may lag behind its token.
        base, set, terms: what holds for all queues of its name; what was set of this one; the one laid over the other.
    """

    __slots__ = (
        "_shop", "ahead", "alarm_at", "base", "calls", "flowing", "gates", "group_id", "hungry", "keys", "lost_reply",
        "margin", "on_rest", "outbox", "parked", "queued", "quiet", "rested_at", "resting_until", "running", "set",
        "spec", "spent", "starving", "terms", "turns", "zombies",
    )  # fmt: skip

    def __init__(
        self,
        shop: Shop,
        spec: JobSpec,
        keys: Keys,
        group_id: str | None = None,
        base: Terms | None = None,
        on_rest: Callable[[Consumer], None] | None = None,
    ) -> None:
        self._shop = shop
        self.on_rest = on_rest
        self.spec = spec
        self.keys = keys
        self.group_id = group_id
        self.running: dict[str, ActiveJob] = {}
        self.outbox: list[Finished] = []
        self.turns: list[Turn] = []
        self.hungry = True
        self.calls = 0
        self.flowing = False
        self.zombies = 0
        self.alarm_at: float | None = None
        self.queued = False
        self.starving = False
        self.lost_reply = False
        self.gates = shop.gates.get(spec.name, ())
        self.parked = False
        self.ahead = Ahead(shop.pace.get(spec.name, 0))
        self.spent = 0
        self.quiet = False
        self.resting_until = 0.0
        self.rested_at: float | None = None
        self.base = self.terms = base or spec.terms
        self.set: tuple[str, str, str] | None = None
        self.margin = least_margin(self.terms, self.gates)

    def __repr__(self) -> str:
        name = self.spec.name if self.group_id is None else f"{self.spec.name}:{self.group_id}"
        return f"<Consumer {name} [{len(self.running)} running]>"

    # Turns ------------------------------------------------------------------------------------------------
    def look_again(self) -> None:
        """There may be something to take."""
        self._more_may_be_there()
        self._shop.pump.offer(self)

    def wake(self, group_id: str, delay: float) -> None:
        """News: there is something to take, now or in `delay` seconds."""
        if delay > 0:
            self._shop.pump.alarms.set_earlier(self, delay)
        else:
            self.look_again()

    @property
    def idle(self) -> bool:
        """Nothing runs, nothing waits to be settled or looked at, nothing is due at a known time."""
        busy = self.running or self.outbox or self.turns or self.hungry or self.zombies
        return not busy and self.alarm_at is None

    @property
    def at_leisure(self) -> bool:
        """Whether a turn of it may travel with somebody else: none is under way, and nothing is to be sorted out."""
        return not (self.queued or self.turns or self.outbox or self.lost_reply or self.resting_until)

    @property
    def unsettled(self) -> int:
        """Decisions that the store has not acknowledged yet."""
        return len(self.outbox) + sum(len(turn.sending) for turn in self.turns)

    def free(self) -> int:
        """Slots of its own that are free and not asked for yet."""
        if self.quiet or self.parked or self.terms.paused:
            return 0
        if self.terms.concurrency is None:
            return BATCH
        used = len(self.running) + self.zombies
        for turn in self.turns:
            used += turn.reserved
        return max(0, self.terms.concurrency - used)

    def _batch(self) -> int:
        """How many a turn takes at most: half of what may run, so that the server and this process work at once."""
        concurrency = self.terms.concurrency
        return BATCH if concurrency is None else min(BATCH, (concurrency + 1) // TURNS)

    def may_fetch_ahead(self, reserved: int) -> int:
        """How many jobs a turn that asks for `reserved` slots may bring beyond them.

        None where something else than their order decides when jobs start: a limit, a gate, a group's share of slots
        that other processes have too.
        """
        terms = self.terms
        if not self.ahead.most or terms.window or self.gates or self.spec.ordered or terms.concurrency is None:
            return 0
        if terms.concurrency == 1:
            return self.ahead.most if reserved else 0
        if self.spec.slots or self.quiet or self.parked or terms.paused:
            return 0
        held = len(self.ahead) + sum(turn.ahead for turn in self.turns)
        return max(0, min(self.ahead.most - held, BATCH - reserved))

    def _room(self) -> int:
        """Slots in which a job may start now."""
        if self.terms.concurrency is None:
            return BATCH
        return max(0, self.terms.concurrency - len(self.running) - self.zombies)

    def hand_back(self) -> None:
        """What was fetched ahead goes back to the head of the queue, uncounted."""
        for held in self.ahead.release():
            decision = decide(self._active(held.job), Released())
            assert decision is not None
            self.outbox.append(Finished(self._active(held.job), decision))
        self._shop.pump.offer(self)

    @property
    def lingers(self) -> bool:
        """Whether what was fetched ahead has been waiting for too long."""
        return self.ahead.lingers(self.terms.concurrency == 1)

    def prepare(self, process_slots: int) -> Turn | None:
        """Make up a turn with at most `process_slots` new jobs; None: nothing to do now."""
        if len(self.turns) >= TURNS or (self.turns and self.lost_reply):
            return None  # what another turn is about to bring must not be adopted
        if self.resting_until:
            rest = self.resting_until - clock.monotonic()
            if rest > 0:
                self._shop.pump.alarms.set_earlier(self, rest + 0.001)
                return None
            self.resting_until = 0.0
        free = min(self.free(), process_slots, self._batch()) if self.hungry else 0
        if not free and not self.outbox:
            return None
        self.rested_at = None
        ahead = self.may_fetch_ahead(free) if self.hungry and process_slots else 0
        sending, self.outbox = self.outbox[:SETTLED_A_TURN], self.outbox[SETTLED_A_TURN:]
        turn = Turn(self, sending, free, ahead, next(self._shop.tokens))
        self.turns.append(turn)
        return turn

    def withdraw(self, turn: Turn, reserved: int) -> bool:
        """A gate lets only `reserved` of a turn's jobs in; whether the turn is still worth its while."""
        turn.reserved = reserved
        if reserved or turn.sending:
            return True
        self.turns.remove(turn)
        return False

    def absorb(self, turn: Turn, reply: WorkReply, sent_at: float) -> None:
        """The turn was answered: tell what was settled, start what was taken."""
        self.turns.remove(turn)
        for finished, status in zip(turn.sending, reply.statuses, strict=True):
            self._settled(finished, status)
            if finished.decision.settlement.op in "rbh" and finished.decision.event:
                self._expect(finished.decision.settlement.number)
        if reply.settings != self.set:
            self._settle_terms(reply.settings)
        least = least_margin(self.terms, self.gates)
        margin = min(turn.margin or 1.0, least) if self.gates else turn.margin or least
        self._start_all(reply.jobs, turn.sent_at or sent_at, margin)
        if self.terms.concurrency != 1:
            self.ahead.pace()
        if turn.reserved or turn.ahead:
            self.flowing = len(reply.jobs) == turn.reserved + turn.ahead
            if not self.flowing:
                self.hungry = self.calls != turn.calls
            if reply.wait is not None:
                self._shop.pump.alarms.set_earlier(self, reply.wait)
        if self.outbox or (self.hungry and self.free()):
            self._shop.pump.offer(self)
        elif self.on_rest is not None and self.idle:
            # Emptied containers keep the room they once had: a fifth of what an idle group costs.
            self.running, self.outbox, self.turns = {}, [], []
            self.rested_at = clock.monotonic()
            self.on_rest(self)

    def rebase(self, base: Terms) -> None:
        """Other terms hold for all queues of this name."""
        self.base = base
        self._settle_terms(self.set)

    def _settle_terms(self, settings: tuple[str, str, str] | None) -> None:
        """What was set of this queue has changed."""
        self.set = settings
        self.terms = self.base if settings is None else self.base.laid_over(*settings)
        self.margin = least_margin(self.terms, self.gates)
        self._more_may_be_there()

    def _expect(self, delay_ms: int) -> None:
        """A retry is due in `delay_ms`; the news of it may be lost, and other processes may be gone by then."""
        if delay_ms:
            self._shop.pump.alarms.set_earlier(self, delay_ms / 1000)
        else:
            self._more_may_be_there()

    def _more_may_be_there(self) -> None:
        """Since the turns on the wire were made up; a short reply of theirs must not hide it."""
        self.hungry = True
        self.calls += 1

    def unanswered(self, turn: Turn, rest: float = 0.0) -> None:
        """The reply was lost: settle again with the same tokens, and see what we own before taking more.

        `rest`: seconds to leave the queue alone, where the pump itself goes on.
        """
        self.resting_until = clock.monotonic() + rest if rest else self.resting_until
        self.lost_reply = self.lost_reply or turn.reserved > 0
        self._back_to_outbox(turn)
        self._shop.pump.offer(self)

    def refused(self, turn: Turn, error: BrokerError) -> None:
        """The store refused this queue's turn; the others go on."""
        self.lost_reply = self.lost_reply or turn.reserved > 0  # a script that failed half way may have taken some
        self._back_to_outbox(turn)
        pause = 0.05 if isinstance(error, BrokerBusyError) else QUARANTINE
        if pause == QUARANTINE:
            self._shop.pump.complaints.error(self.spec.name, "%r is left alone for %g s: %s", self, pause, error)
        self.resting_until = clock.monotonic() + pause
        self._shop.pump.offer(self)

    def _back_to_outbox(self, turn: Turn) -> None:
        self.turns.remove(turn)
        self.outbox[:0] = [finished._replace(resent=True) for finished in turn.sending]
        self._more_may_be_there()

    def adopt(self, owned: list[TakenJob]) -> None:
        """Start what is pending for this process and not known here; no other turn is on the wire."""
        known = {finished.job.id for finished in self.outbox}
        known.update(finished.job.id for turn in self.turns for finished in turn.sending)
        known.update(held.job.job_id for held in self.ahead.jobs or ())
        mine = []
        for taken in owned:
            if taken.job_id not in self.running and taken.job_id not in known:
                if taken.stalled_count > self.spec.worker_options.max_stalled_count:
                    self.fail_stalled(taken)
                else:
                    mine.append(taken)
        self._start_all(mine, LONG_AGO, 0.0)

    def make_room(self, turn: Turn) -> None:
        """What was adopted has taken slots that `turn`, the only one, had asked for."""
        if self.terms.concurrency is not None:
            left = self.terms.concurrency - len(self.running) - self.zombies
            turn.reserved = max(0, min(turn.reserved, left))

    # Tries ------------------------------------------------------------------------------------------------
    def _start_all(self, jobs: Sequence[TakenJob], sent_at: float, margin: float) -> None:
        """Start what was taken, as many as there are slots; what was fetched ahead of that follows as they end."""
        room = self._room()
        for taken in jobs[:room]:
            self._start(taken, sent_at, margin)
        if len(jobs) > room:
            self.ahead.hold([Fetched(taken, sent_at, margin) for taken in jobs[room:]])
            self._shop.pump.patience(self)

    def _active(self, taken: TakenJob) -> ActiveJob:
        return ActiveJob(self._shop.broker, self._shop.bus.emit, self.spec, self.keys, taken)

    def _start(self, taken: TakenJob, sent_at: float, margin: float) -> None:
        """Start it in a slot of its own."""
        job = self._enter(taken)
        if job is not None:
            work = self._work(job, sent_at, margin)
            job.aio_task = asyncio.get_running_loop().create_task(work, context=self._shop.context.copy())

    def _enter(self, taken: TakenJob) -> ActiveJob | None:
        job = self._active(taken)
        if job.id in self.running:
            return None  # a failover forgot the take: this process runs it already
        self.running[job.id] = job
        self._shop.pump.running += 1
        for gate in self.gates:
            gate.running += 1
        return job

    async def _work(self, first: ActiveJob, sent_at: float, margin: float) -> None:
        """Run one job after the other in this aio_task, until none is at hand or something of one is left in it."""
        slot, job = Slot(self._shop.rounds), first
        while True:
            current.set(job)
            slot.begin()
            held = self._ended(job, await self._try(job, sent_at, margin))
            following = None
            if held is not None and slot.fit():
                following = self._enter(held.job)
            elif held is not None:
                self._start(*held)
            job.aio_task = None  # while it waits to be settled it must not look as if somebody had kept that
            self._shop.pump.slot_freed()
            if held is None or following is None:
                return
            job, sent_at, margin = following, held.sent_at, held.margin
            job.aio_task = slot.aio_task

    async def _try(self, job: ActiveJob, sent_at: float, margin: float) -> Outcome:
        """The whole of one try, from its token to its outcome."""
        job.began = True
        job.began_at = clock.monotonic()
        outcome: Outcome
        try:
            if job.leaving:
                raise asyncio.CancelledError
            if job.stalled_count >= max(1, min(SUSPECT, self.spec.worker_options.max_stalled_count)):
                async with self._shop.suspects:
                    outcome = await self._run_stalled(job, sent_at, margin)
            elif job.stalled_count:
                outcome = await self._run_stalled(job, sent_at, margin)
            else:
                outcome = await self._run(job, sent_at, margin)
        except asyncio.CancelledError:
            outcome = Lost() if job.leaving == "lost" else Released()  # before its handler began
        return outcome

    async def _run_stalled(self, job: ActiveJob, sent_at: float, margin: float) -> Outcome:
        """Begin for all to see: should this process die too, it is this job that is charged with it."""
        try:
            ours = await self._shop.broker.note(self.keys, job.id, job.token, "begin", b"")
        except BrokerError:
            return Released()
        return await self._run(job, sent_at, margin) if ours else Lost()

    async def _run(self, job: ActiveJob, sent_at: float, margin: float) -> Outcome:
        if job.unreadable is not None:
            return Failed(job.unreadable, final=True)
        if self.terms.window or self.gates:
            try:
                await in_time(self, self._shop.broker, sent_at, margin)
            except BrokerError as error:
                self._shop.pump.complaints.warning("late", "%r gives a job back that would start late: %s", self, error)
                return Released()
        limit = job.overrides.timeout(self.spec.job_options)
        if limit is not None:
            job.timer = asyncio.get_running_loop().call_later(limit, self._time_out, job)
        if self._shop.bus.wants("job.active"):
            self._tell("job.active", job)
        with self._shop.scope(job) as job.context:
            return await execute(job, self._shop.environment, self._shop.threads)

    def _time_out(self, job: ActiveJob) -> None:
        self._cancel(job, "timeout")

    def _cancel(self, job: ActiveJob, why: Literal["timeout", "stop", "lost"]) -> None:
        """Cancel a try; if its handler swallows that, the job is settled without it."""
        if job.ended or job.aio_task is None:
            return
        if job.timer is not None:
            job.timer.cancel()
        job.leaving = why
        if job.began:  # an aio_task cancelled before its first step would never come to settle anything
            job.aio_task.cancel()
        job.timer = asyncio.get_running_loop().call_later(STUBBORN, self._abandon, job)

    def _abandon(self, job: ActiveJob) -> None:
        if job.ended:
            return
        logger.warning("%r does not end although it was cancelled; settling it without its handler", job)
        self.zombies += 1
        outcomes: dict[str, Outcome | None] = {
            "timeout": Failed(timed_out(job), job.discarded),
            "stop": Released(),
        }
        held = self._record(job, outcomes.get(job.leaving))
        if held is not None:
            self._start(*held)

    def _ended(self, job: ActiveJob, outcome: Outcome) -> Fetched | None:
        """Its aio_task has done with it; the job that is to begin instead."""
        if job.timer is not None:
            job.timer.cancel()
        if not job.ended:
            return self._record(job, outcome)
        self.zombies -= 1  # it was abandoned before
        return None

    def _record(self, job: ActiveJob, outcome: Outcome | None) -> Fetched | None:
        """The outcome is known; the job that is to begin instead."""
        job.ended = True
        self.running.pop(job.id, None)
        for gate in self.gates:
            gate.running -= 1
        decision = decide(job, outcome) if outcome is not None else None
        if decision is None:
            logger.warning("%r was taken over by another process; its outcome does not count", job)
        else:
            self.outbox.append(Finished(job, decision))
        if self.spec.slots:
            self._more_may_be_there()  # a slot of the group is free
        return self._follow(job, outcome)

    def _follow(self, job: ActiveJob, outcome: Outcome | None) -> Fetched | None:
        """A slot is free: the next job that was fetched ahead, or a turn that settles and fetches anew."""
        alone, quick = self.terms.concurrency == 1, True
        if alone:
            quick = self.ahead.learn(clock.monotonic() - job.began_at)
            self._shop.pace[self.spec.name] = self.ahead.most
        else:
            self.ahead.count()
        if not self.ahead:
            self._shop.pump.offer(self)
        elif not quick or self.quiet or self.terms.paused or not isinstance(outcome, (Completed, Failed, Later)):
            self.hand_back()
        else:
            if not alone:
                self._shop.pump.offer(self)
            if self._room():
                return self.ahead.next()
        return None

    def fail_stalled(self, taken: TakenJob) -> None:
        """Fail a job whose processes died too often."""
        most = self.spec.worker_options.max_stalled_count
        error = JobStalledError(f"its process died {taken.stalled_count} times, more than max_stalled_count={most}")
        job = ActiveJob(self._shop.broker, self._shop.bus.emit, self.spec, self.keys, taken)
        decision = decide(job, Failed(error, final=True))
        assert decision is not None
        self.outbox.append(Finished(job, decision))
        self._shop.pump.offer(self)

    # Events -----------------------------------------------------------------------------------------------
    def _settled(self, finished: Finished, status: int) -> None:
        """Tell what became of a try, once the store has it. Status: see ``lua/work.lua``."""
        job, decision, resent = finished
        # Gone is what a removed job's settlement meets when it is sent again: it was applied the first time.
        if status == STALE or (status == GONE and not resent):
            logger.warning("%r had been taken over by another process; its outcome does not count", job)
        elif decision.event and self._shop.bus.wants(decision.event):
            # A later RetryLater and a release count no attempt.
            counted = 1 if decision.error is not None or decision.event == "job.completed" else 0
            self._shop.bus.emit(
                decision.event,
                job.name,
                job_id=job.id,
                group_id=job.group_id,
                attempts_made=job.attempts_made + counted,
                error=decision.error,
                data=job.data,
                context=job.context,
            )
        if decision.error is not None:
            self._log(job, decision, decision.error)

    @staticmethod
    def _log(job: ActiveJob, decision: Decision, error: BaseException) -> None:
        """A line for a try that failed, with the stack at the last."""
        who = f"{job.name} {job.id}" if job.group_id is None else f"{job.name} {job.id} of {job.group_id!r}"
        if decision.settlement.op == "f":
            stack = None if isinstance(error, Discard) else exc_info(error)
            logger.error("%s failed for good at try %d: %s", who, job.attempts_made + 1, said(error), exc_info=stack)
        else:
            most = "" if job.attempts is None else f" of {job.attempts}"
            again = f"again in {decision.settlement.number / 1000:g} s"
            logger.warning("%s failed at try %d%s, %s: %s", who, job.attempts_made + 1, most, again, said(error))

    def _tell(self, event: str, job: ActiveJob) -> None:
        self._shop.bus.emit(event, job.name, job_id=job.id, group_id=job.group_id, attempts_made=job.attempts_made)

    # Stopping ---------------------------------------------------------------------------------------------
    def cancel_all(self) -> None:
        """Cancel what runs, because the process stops."""
        if self.ahead:
            self.hand_back()
        for job in tuple(self.running.values()):
            self._cancel(job, "stop")

    async def keep_owned(self, process: str) -> None:
        """We were declared dead and live on as `process`: keep the tries that are still ours, cancel the others."""
        if self.ahead:
            self.hand_back()
        jobs = list(self.running.values())
        kept = await self._shop.broker.retain(self.keys, process, [(job.id, job.entry, job.token) for job in jobs])
        for job, ours in zip(jobs, kept, strict=True):
            if not ours:
                self._cancel(job, "lost")
