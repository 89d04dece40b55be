"""The Consumer: one queue in this process: take → execute → decide → settle, without a loop of its own.

A consumer is a record and some callbacks. The Pump gives it turns, and its tries run in slots, so an idle queue costs
only its memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from asyncjobs import clock
from asyncjobs.active_job import ActiveJob
from asyncjobs.broker import BrokerBusyError, TakenJob, WorkReply
from asyncjobs.errors import BrokerError, JobStalledError
from asyncjobs.limits.start_margin import least_margin
from asyncjobs.logs import say
from asyncjobs.work.decide import decide
from asyncjobs.work.executor import Aside, Cancelled, Completed, Failed, Later, Outcome, Released
from asyncjobs.work.prefetch import Prefetched
from asyncjobs.work.queue_state import BATCH, QueueState
from asyncjobs.work.refusals import PAUSE, QUARANTINE, SETTLED_A_TURN, Refusals
from asyncjobs.work.reports import CANCEL_ASKED, overtaken, settled, to_tell
from asyncjobs.work.turn import Finished, Turn, renew

logger = logging.getLogger("asyncjobs.work")

RELEASED: Final = 1.0  # seconds until jobs are taken again after one of them could not begin
LONG_AGO: Final = float("-inf")  # stands for the unknown instant at which the tokens of adopted jobs were taken


class Consumer(QueueState):
    """Serves one queue: makes up its turns, reads the replies, follows up its tries. `QueueState` holds the state."""

    __slots__ = ()

    def look_again(self) -> None:
        """Take a turn soon, since the queue may have jobs to take."""
        self._more_may_be_there()
        self._shared.pump.offer(self)

    def wake(self, group_id: str, delay: float) -> None:
        """News: the queue has a job to take, now or in `delay` seconds."""
        if delay > 0:
            self._shared.pump.alarms.set_earlier(self, delay)
        else:
            self.look_again()

    def retire(self) -> None:
        """Never take a turn again, because another Consumer may serve this queue from now on."""
        assert self.idle
        self.queued = True  # for good, so that no ring takes it
        self._shared.pump.leave(self, gone=True)
        for shared_limit in self.shared_limits:
            shared_limit.leave(self, gone=True)

    # Turns ------------------------------------------------------------------------------------------------
    def hand_back(self) -> None:
        """Put the prefetched jobs back to the head of the queue, uncounted."""
        self.release([held.job for held in self.ahead.release()])

    def release(self, jobs: Sequence[TakenJob]) -> None:
        """Put jobs that have not begun back to the head of the queue, uncounted."""
        self._shared.pump.line.count(self, -len(jobs))
        for taken in jobs:
            job = self.attempts.active(taken)
            decision = decide(job, Released())
            assert decision is not None
            self._post(Finished(job, decision))
        self._shared.pump.offer(self)

    def hush(self) -> None:
        """Start no job from now on.

        These jobs go back to the queue: prefetched ones, those that a turn on the wire brings, and those that wait for
        a token or for their turn among the suspects.
        """
        self.quiet = True
        if self.ahead:
            self.hand_back()
        self.attempts.hush()
        self._shared.pump.offer(self)

    def prepare(self, process_slots: int) -> Turn[Consumer] | None:
        """Make up a turn with at most `process_slots` new jobs; None: the queue has nothing to do now."""
        if len(self.turns) >= self.most_turns or (self.turns and self.lost_reply):
            return None  # this turn must not adopt the jobs that another turn is about to bring
        if self.resting_until:
            rest = self.resting_until - clock.monotonic()
            if rest > 0:
                self._shared.pump.alarms.set_earlier(self, rest + 0.001)
                return None
            self.resting_until = 0.0
        if self.refusals is not None:
            return self._prepare_in_parts(self.refusals)
        free = min(self.free(), process_slots, self._batch()) if self.hungry else 0
        if not (free or self.outbox or self.lost_reply):
            return None
        self.rested_at = None
        ahead = self.may_fetch_ahead(free) if self.hungry and process_slots else 0
        sending, self.outbox = self.outbox[:SETTLED_A_TURN], self.outbox[SETTLED_A_TURN:]
        turn = Turn(self, sending, free, ahead, next(self._shared.tokens))
        self.turns.append(turn)
        return turn

    def _prepare_in_parts(self, refusals: Refusals) -> Turn[Consumer] | None:
        """Make up a turn that settles a part of the refused settlements. The turn takes no jobs."""
        if refusals.over(self.outbox):
            self.refusals = None
            self._shared.pump.offer(self)
            return None
        sending = refusals.next(self.outbox)
        if not sending:
            self._shared.pump.alarms.set_earlier(self, refusals.rest + 0.001)
            return None
        turn = Turn(self, sending, 0, 0, next(self._shared.tokens))
        self.turns.append(turn)
        return turn

    def withdraw(self, turn: Turn[Any], reserved: int) -> bool:
        """A shared limit lets in only `reserved` jobs of a turn. Returns False if the turn has nothing left to do."""
        turn.reserved = reserved
        if reserved or turn.sending:
            return True
        self.turns.remove(turn)
        return False

    def absorb(self, turn: Turn[Any], reply: WorkReply, sent_at: float) -> None:
        """The turn was answered. Report the settled jobs, and start the taken ones."""
        self.turns.remove(turn)
        if self.refusals is not None and turn.sending:
            self.refusals.answered()
        self._shared.unsettled -= len(turn.sending)
        plain = True
        for finished, status in zip(turn.sending, reply.statuses, strict=True):
            if status == CANCEL_ASKED:
                job = overtaken(finished)
                self._settle(job, Cancelled(job.mark))
                continue
            settled(self._shared.bus, finished, status)
            again = finished.decision.settlement
            if again.op != "c":
                plain = False
                if again.op in "rbh" and (finished.decision.event or again.number):
                    self._expect(again.number)
        if self.tally is not None:
            self.tally.turned(turn.sending, reply, plain, sent_at, self.spec.ordered)
        if reply.settings != self.set:
            self._settle_limits(reply.settings)
        margin = turn.margin or least_margin(self.limits, self.shared_limits)
        if turn.grants:
            margins = [grant.margin for grant in turn.grants if grant.shared_limit.window]
            margin = min(margins if not self.limits.window else [*margins, margin], default=0.0)
            if self.held_back and turn.reserved:
                self._tell_held_back(bool(reply.jobs or reply.marked))
        self._start_all(reply.jobs, turn.sent_at or sent_at, margin)
        for taken in reply.marked:
            self.end_marked(taken)
        if self.limits.concurrency != 1:
            self.ahead.pace()
        if turn.reserved or turn.ahead:
            self.flowing = len(reply.jobs) + len(reply.marked) == turn.reserved + turn.ahead
            self.appetite = min(BATCH, 4 * self.appetite) if self.flowing else 1
            if not self.flowing:
                self.hungry = self.calls != turn.calls
                if not self.hungry:
                    self._leave_lines()
            if reply.wait is not None:
                self._shared.pump.alarms.set_earlier(self, reply.wait)
        if self.wants_a_turn:
            self._shared.pump.offer(self)
        elif self.on_rest is not None and self.idle:
            # An emptied container keeps the memory it once needed, a fifth of the cost of an idle group.
            self.attempts.running, self.outbox, self.turns = {}, [], []
            self.rested_at = clock.monotonic()
            self.on_rest(self)

    def _leave_lines(self) -> None:
        """Leave the lines for slots and shared limits, because the queue has no job to take."""
        self._shared.pump.leave(self)
        for shared_limit in self.shared_limits:
            shared_limit.leave(self)

    def unanswered(self, turn: Turn[Any], rest: float = 0.0) -> None:
        """The reply was lost. Settle again with the same tokens, and ask which jobs this process owns before taking.

        `rest`: seconds for which the pump leaves this queue alone, while it serves the others.
        """
        self.resting_until = clock.monotonic() + rest if rest else self.resting_until
        self.lost_reply = self.lost_reply or turn.takes
        self._back_to_outbox(turn)
        self._shared.pump.offer(self)

    def refused(self, turn: Turn[Any], error: BrokerError) -> None:
        """The store refused this queue's turn. The other queues go on."""
        unsure = self.lost_reply  # the store may have refused the adoption before the turn, and not the turn
        self.lost_reply = unsure or turn.takes  # a script that failed half way may have taken jobs
        pause = 0.05 if isinstance(error, BrokerBusyError) else QUARANTINE
        if pause == QUARANTINE:
            self._shared.pump.throttled.error(self.spec.name, "%r is left alone for %g s: %s", self, pause, error)
            if turn.sending and not unsure:
                self.refusals = self.refusals or Refusals()
                turn.sending[:] = self.refusals.refused(turn.sending, turn.reserved + turn.ahead > 0, error)
                pause = PAUSE
        self._back_to_outbox(turn)
        self.resting_until = clock.monotonic() + pause
        self._shared.pump.offer(self)

    def _back_to_outbox(self, turn: Turn[Any]) -> None:
        self.turns.remove(turn)
        self.outbox[:0] = [finished._replace(resent=True) for finished in turn.sending]
        self._more_may_be_there()

    def adopt(self, owned: list[TakenJob]) -> None:
        """Start the jobs in `owned` that this process does not know. No other turn is on the wire.

        Known jobs go on under the token in `owned`, since a lost reply may have taken a job that had been given back.
        """
        known = {taken.job_id: taken for taken in owned}
        marked_jobs = [taken for taken in owned if taken.mark]
        apart = self.refusals.apart if self.refusals is not None else []
        for finished in (self.outbox, apart, *(turn.sending for turn in self.turns)):
            renew(finished, known)
        self.ahead.renew(known)
        mine = []
        for taken in known.values():
            if taken.mark and not self.attempts.runs(taken):
                self.end_marked(taken)
            elif taken.stalled_count > self.spec.worker_options.max_stalled_count and not self.attempts.runs(taken):
                self.fail_stalled(taken)
            else:
                mine.append(taken)
        self._start_all(mine, LONG_AGO, 0.0)
        for taken in marked_jobs:
            self.cancel(taken.job_id, taken.token, taken.mark)

    def make_room(self, turn: Turn[Any], process_slots: int) -> None:
        """Adopted jobs have taken slots that `turn`, the only one, had asked for. `process_slots` are left."""
        left = process_slots
        if self.limits.concurrency is not None:
            left = min(left, self.limits.concurrency - self.attempts.slots_used - len(self.ahead))
        turn.reserved = max(0, min(turn.reserved, left))

    # Tries ------------------------------------------------------------------------------------------------
    def _start_all(self, jobs: Sequence[TakenJob], sent_at: float, margin: float) -> None:
        """Start as many taken jobs as the queue and the process have slots. The rest follows as jobs end."""
        self.took = self.took or bool(jobs)
        if running := self.attempts.running:
            jobs = [taken for taken in jobs if taken.job_id not in running or not self.attempts.runs(taken)]
        if self.quiet:
            self.release(jobs)
            return
        room = min(self._room(), max(0, self._shared.pump.free_slots()))
        for taken in jobs[:room]:
            self.attempts.start(taken, sent_at, margin)
        if len(jobs) > room and self.shared_limits:
            self.release(jobs[room:])  # waiting jobs would count under no shared limit
        elif len(jobs) > room:
            self.ahead.hold([Prefetched(taken, sent_at, margin) for taken in jobs[room:]])
            self._shared.pump.patience(self)

    def ended(self, job: ActiveJob, outcome: Outcome) -> Prefetched | None:
        """A try has come to `outcome`. Returns the prefetched job that runs next in the same task, if any."""
        if job.sample is not None and self.tally is not None:
            self.tally.ended(job.sample, job.group_id, isinstance(outcome, Completed))
        decision = decide(job, outcome)
        if decision is None:
            say(logger, logging.WARNING, "%r was taken over by another process; its outcome does not count", job)
        else:
            self._post(Finished(to_tell(self._shared.bus, job, outcome), decision))
        if self.spec.slots:
            self._more_may_be_there()  # a slot of the group is free
        if isinstance(outcome, Released) and not job.leaving:
            self._pause()
        return self._follow(job, outcome)

    def _pause(self) -> None:
        """Settle, and take no jobs for a moment: the store refused a command that a try needs before it can begin.

        The job has gone back to the head of the queue, so this process would take it again at once.
        """
        self.refusals = self.refusals or Refusals()
        self.refusals.pause(RELEASED)
        self._shared.pump.offer(self)

    def _follow(self, job: ActiveJob, outcome: Outcome) -> Prefetched | None:
        """A slot is free. Returns the next prefetched job, or offers the pump a turn that settles and takes jobs."""
        alone, quick = self.limits.concurrency == 1, True
        if alone:
            quick = self.ahead.learn(job.ended_at - job.began_at)
            self._shared.pace[self.spec.name] = self.ahead.most
        else:
            self.ahead.count()
        if not self.ahead:
            self._shared.pump.offer(self)
        elif (
            not quick or self.quiet or self.limits.paused or not isinstance(outcome, (Aside, Completed, Failed, Later))
        ):
            self.hand_back()
        else:
            if not alone:
                self._shared.pump.offer(self)
            if self._room():
                return self.ahead.next()
        return None

    # Cancels ----------------------------------------------------------------------------------------------
    def cancel(self, job_id: str, token: bytes, mark: bytes) -> None:
        """The cancel of a job was asked for while it was active under `token`: if it is held here, it ends.

        One that has come to an outcome is left to its settlement, and one that is not known here to its adoption.
        """
        job = self.attempts.running.get(job_id)
        if job is not None and job.token == token:
            job.mark = mark
            self.attempts.cancel(job, "cancel")
            return
        taken = self.ahead.withdraw(job_id, token)
        if taken is not None:
            self.end_marked(taken._replace(mark=mark))
        for finished in (*self.outbox, *(one for turn in self.turns for one in turn.sending)):
            if finished.job.id == job_id and isinstance(finished.job, ActiveJob):  # else it has completed
                finished.job.mark = mark

    def end_marked(self, taken: TakenJob) -> None:
        """Settle a job that is not to run, since its cancel was asked for."""
        self.took = True
        if self.attempts.runs(taken):  # it was given back, because this process was silent
            self.cancel(taken.job_id, taken.token, taken.mark)
        else:
            self._settle(self.attempts.active(taken), Cancelled(taken.mark))

    def _settle(self, job: ActiveJob, outcome: Outcome) -> None:
        """Settle a job that runs nothing here."""
        decision = decide(job, outcome)
        assert decision is not None
        self._post(Finished(job, decision))
        self._shared.pump.offer(self)

    def fail_stalled(self, taken: TakenJob) -> None:
        """Fail a job that has stalled too often."""
        self.took = True
        most = self.spec.worker_options.max_stalled_count
        error = JobStalledError(f"its process died {taken.stalled_count} times, more than max_stalled_count={most}")
        self._settle(self.attempts.active(taken), Failed(error, final=True))

    # Stopping ---------------------------------------------------------------------------------------------
    def cancel_all(self) -> None:
        """Cancel all tries, because the process stops."""
        if self.ahead:
            self.hand_back()
        self.attempts.cancel_all()

    async def keep_owned(self, process: str) -> None:
        """This process was declared dead, and goes on as `process`. Cancel the tries that it does not own any more."""
        if self.ahead:
            self.hand_back()
        await self.attempts.keep_owned(process)
