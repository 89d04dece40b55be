"""The Attempts: the tries of one queue in this process, each from the taken job to its outcome.

Each try that has begun comes to exactly one outcome. The attempts report the outcome to the queue and free the slot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from asyncjobs import clock
from asyncjobs.active_job import ActiveJob, Leaving, current
from asyncjobs.broker import TakenJob
from asyncjobs.declare.definition import JobSpec
from asyncjobs.errors import BrokerError
from asyncjobs.guests.threads import InThread
from asyncjobs.history.tally import Tally
from asyncjobs.limits.start_margin import in_time
from asyncjobs.limits.waiting import Waiting
from asyncjobs.logs import is_closing, said, say
from asyncjobs.work.executor import Aside, Failed, Later, Lost, Outcome, Released, execute, given_up, late, timed_out
from asyncjobs.work.prefetch import Prefetched
from asyncjobs.work.shared import Shared
from asyncjobs.work.task_reuse import Slot

logger = logging.getLogger("asyncjobs.work")

STUBBORN: Final = 1.0  # seconds that a cancelled handler has to end before its job is settled without it
AGAIN: Final = 60.0  # seconds until the next try of a job that could not be started, uncounted


def complain(shared: Shared, message: str, error: BaseException) -> None:
    """Something of the app failed beside a job, and does not concern it."""
    shared.pump.throttled.error(message, message, said(error))


def unless_all_ends(shared: Shared, job: ActiveJob, outcome: Outcome) -> Outcome:
    """Return `outcome`, or Released if the app cancelled the handler by ending its loop without a stop.

    That cancellation is no failure of the job, so the job goes back to the queue uncounted.
    """
    if not job.leaving and isinstance(outcome, Failed) and issubclass(type(outcome.error), asyncio.CancelledError):
        aio_task = job.aio_task
        if aio_task is not None and aio_task.cancelling() and shared.pump.ends_with_the_loop:
            return Released()
    return outcome


class TriedQueue(Waiting, Protocol):
    """The queue, as its attempts see it."""

    spec: JobSpec
    tally: Tally | None

    def ended(self, job: ActiveJob, outcome: Outcome) -> Prefetched | None:
        """A try has come to `outcome`. Returns the prefetched job that runs next in the same task, if any."""

    def release(self, jobs: Sequence[TakenJob]) -> None:
        """Put jobs that have not begun back to the head of the queue, uncounted."""


class Attempts:
    """The tries of one queue that run in this process.

    State: `running`, id → job without an outcome yet; `zombies`, the number of handlers that go on after their job was
    settled, and keep their slots; `cautious`: the first stall fails a job, so a job is charged only once it has begun.
    """

    __slots__ = ("_queue", "_shared", "cautious", "running", "zombies")

    def __init__(self, shared: Shared, queue: TriedQueue) -> None:
        self._shared, self._queue = shared, queue
        self.running: dict[str, ActiveJob] = {}
        self.zombies = 0
        self.cautious = not queue.spec.worker_options.max_stalled_count

    @property
    def slots_used(self) -> int:
        return len(self.running) + self.zombies

    def active(self, taken: TakenJob) -> ActiveJob:
        return ActiveJob(self._shared.broker, self._shared.emit, self._queue.spec, self._queue.keys, taken)

    def start(self, taken: TakenJob, sent_at: float, margin: float) -> None:
        """Start a taken job in a slot of its own."""
        job = self._enter(taken)
        if job is None:
            return
        if self._shared.rounds.may_begin():
            self.begin(job, sent_at, margin, None)
        else:
            self._shared.rounds.defer(self, job, sent_at, margin)

    def begin(self, job: ActiveJob, sent_at: float, margin: float, rank: int | None) -> None:
        """Make an aio_task for a job that has its slot. `rank` is set if the job has waited for room."""
        loop, context = asyncio.get_running_loop(), self._shared.context.copy()
        work = self._work(job, sent_at, margin, rank)
        try:
            aio_task = loop.create_task(work, context=context)
        except BaseException as error:  # the app's own task factory has failed
            complain(self._shared, "the loop's task factory failed: %s", error)
            aio_task = asyncio.Task(work, loop=loop, context=context)
        if not job.ended:  # an eager loop may have run the whole job already
            job.aio_task = aio_task

    def _enter(self, taken: TakenJob) -> ActiveJob | None:
        if taken.job_id in self.running:
            return None
        job = self.active(taken)
        self.running[job.id] = job
        self._shared.pump.running += 1
        for shared_limit in self._queue.shared_limits:
            shared_limit.running += 1
        return job

    def runs(self, taken: TakenJob) -> bool:
        """True if a taken job runs here already. Its try goes on under the new entry and token.

        Another process may have given the job back while this one was silent, or a failover may have lost the take. The
        store refuses a settlement with the old token, and without this try nothing would settle the new take.
        """
        job = self.running.get(taken.job_id)
        if job is None:
            return False
        job.entry, job.token, job.stalled_count = taken.entry, taken.token, taken.stalled_count
        if job.leaving == "lost":  # cancelled as lost: this process owns the job again, so the job must go back
            job.leaving = "stop"
        return True

    async def _work(self, first: ActiveJob, sent_at: float, margin: float, rank: int | None) -> None:
        """Run one job after the other in this aio_task, until no next job is there or a job has left a trace in it."""
        slot, job = Slot(self._shared.rounds), first
        while True:
            job.aio_task = slot.aio_task
            current.set(job)
            if self._shared.bind is not None:
                self._shared.bind(job)
            slot.begin()
            outcome = await self._try(job, sent_at, margin, rank)
            if job.thread is not None:
                self._leave_to(job, job.thread)
                return
            following = self._next(slot, self._ended(job, outcome))
            job.aio_task = None  # a waiting settlement must not count as a reference that a library keeps
            self._shared.pump.slot_freed()
            if following is None:
                return
            (job, sent_at, margin), rank = following, None

    def _next(self, slot: Slot, held: Prefetched | None) -> tuple[ActiveJob, float, float] | None:
        """What begins now in the place of a job that has ended: `held`, or one of this queue that waits for room."""
        rounds = self._shared.rounds
        if held is None:
            step = rounds.next_of(self) if rounds.holds and slot.fit() else None
            return None if step is None else (step.job, step.sent_at, step.margin)
        if slot.fit():
            job = self._enter(held.job)
            return None if job is None else (job, held.sent_at, held.margin)
        self.start(held.job, held.sent_at, held.margin)
        return None

    async def _try(self, job: ActiveJob, sent_at: float, margin: float, rank: int | None) -> Outcome:
        """Make one try, from its token to its outcome. Never raises."""
        try:
            job.began_at = clock.monotonic()
            if job.began_at >= self._shared.rounds.until and not self._shared.rounds.has_room():
                await self._shared.rounds.room(rank)
                job.began_at = clock.monotonic()
            self._shared.rounds.begun += 1
            job.began = True
            if job.leaving:
                return given_up(job)
            if job.unreadable is not None:
                return Failed(job.unreadable, final=True)
            if job.stalled_count or self.cautious:
                return await self._try_noted(job, sent_at, margin)
            return unless_all_ends(self._shared, job, await self._run(job, sent_at, margin))
        except asyncio.CancelledError:
            return given_up(job)  # the handler has not begun
        except BaseException as error:
            if issubclass(type(error), GeneratorExit) and is_closing(job.aio_task):
                raise
            # An error of the handler is an outcome by now. This error is the runtime's, and must not cost a try.
            self._shared.pump.throttled.error("try", "%r could not be started; again in 60 s: %s", job, said(error))
            return Later(AGAIN)

    async def _try_noted(self, job: ActiveJob, sent_at: float, margin: float) -> Outcome:
        """Make a try whose beginning the store must know. A suspect waits for its turn among the suspects."""
        if job.stalled_count < self._queue.spec.suspect_after:
            return unless_all_ends(self._shared, job, await self._run_stalled(job, sent_at, margin))
        suspects = self._shared.suspects
        if not await suspects.enter():
            return Aside(suspects.rest())
        try:
            return unless_all_ends(self._shared, job, await self._run_stalled(job, sent_at, margin))
        finally:
            suspects.leave()

    async def _run_stalled(self, job: ActiveJob, sent_at: float, margin: float) -> Outcome:
        """Record in the store that the job begins. If this process dies too, the store charges this job a stall."""
        token = job.token
        try:
            ours = await self._shared.broker.note(self._queue.keys, job.id, token, "begin", b"")
        except BrokerError:
            return Released()
        if not ours:
            return Lost() if job.token == token else Released()  # another token: the job was taken anew meanwhile
        return await self._run(job, sent_at, margin)

    async def _run(self, job: ActiveJob, sent_at: float, margin: float) -> Outcome:
        if job.overrides.newer:
            self._shared.pump.throttled.warning(
                "newer", "%r was added by a newer release: an option that this one does not know is ignored", job
            )
        if self._queue.limits.window or self._queue.shared_limits:
            try:
                await in_time(self._queue, self._shared.broker, sent_at, margin)
            except BrokerError as error:
                self._shared.pump.throttled.warning(
                    "late", "%r gives a job back that would start late: %s", self._queue, error
                )
                return Released()
        if self._queue.quiet:
            return given_up(job)
        job.entered = True
        self._shared.counters.started += 1
        if job.sample is not None and self._queue.tally is not None:
            self._queue.tally.started(job.sample, job.group_id)
        limit = job.overrides.timeout(self._queue.spec.job_options)
        if limit is not None:
            job.timer = asyncio.get_running_loop().call_later(limit, self.cancel, job, "timeout")
        if self._shared.bus.wants("job.active"):
            self._announce(job)
        scope = None  # an integration's context around the try; its errors do not touch the job
        try:
            scope = self._shared.scope(job)
            job.context = scope.__enter__()
        except BaseException as error:
            complain(self._shared, "a try goes without its scope, which raised %s", error)
            scope = None
        outcome = await execute(job, self._shared.environment, self._shared.threads)
        if scope is not None:
            try:
                scope.__exit__(None, None, None)
            except BaseException as error:
                complain(self._shared, "the scope of a try raised %s", error)
        return outcome

    def _announce(self, job: ActiveJob) -> None:
        """Emit job.active. Errors of subscribers do not touch the job."""
        try:
            self._shared.bus.emit(
                "job.active", job.name, job_id=job.id, group_id=job.group_id, attempts_made=job.attempts_made
            )
        except BaseException as error:
            complain(self._shared, "a subscriber of job.active raised %s", error)

    def cancel(self, job: ActiveJob, why: Leaving) -> None:
        """Cancel a try. If the handler swallows the cancellation, the job is settled without the handler.

        An operator's cancel comes too late for a try that is being cancelled already. A stop changes nothing for a job
        that an operator has cancelled: the job is over, and does not go back to the queue.
        """
        if (why == "cancel" and job.leaving) or (why == "stop" and job.leaving == "cancel"):
            return
        if job.thread is not None and job.thread.running:
            self._cancel_in_thread(job, job.thread, why)
            return
        if job.ended or (job.aio_task is None and job.began):
            return
        if job.timer is not None:
            job.timer.cancel()
        job.leaving = why if job.leaving != "lost" else "lost"
        # An aio_task that is cancelled before its first step runs no code, so it could not settle its job.
        if job.began and job.aio_task is not None:
            job.aio_task.cancel()
        job.timer = asyncio.get_running_loop().call_later(STUBBORN, self._abandon, job)

    def _abandon(self, job: ActiveJob) -> None:
        if job.thread is not None and job.thread.running and job.leaving:
            self._cancel_in_thread(job, job.thread, job.leaving)
        elif not job.ended:
            self._settle_without(job)

    def _settle_without(self, job: ActiveJob) -> None:
        """Settle a job whose handler goes on. The handler keeps its slot."""
        say(logger, logging.WARNING, "%r does not end although it was cancelled; settling it without its handler", job)
        self.zombies += 1
        self._shared.zombies += 1
        if job.aio_task is not None:
            self._shared.stubborn.add(job.aio_task)
            job.aio_task.add_done_callback(self._shared.stubborn.discard)
        held = self._record(job, Failed(timed_out(job), job.discarded) if job.leaving == "timeout" else given_up(job))
        if held is None:
            return
        if self._shared.pump.free_slots() > 0:
            self.start(held.job, held.sent_at, held.margin)
        else:
            self._queue.release([held.job])

    # Threads ----------------------------------------------------------------------------------------------
    def _cancel_in_thread(self, job: ActiveJob, thread: InThread, why: Leaving) -> None:
        """Cancel a try that runs in a thread. The thread's waits on the loop end, but the thread itself goes on.

        So the job must not run again before the thread has ended. Only the last try of a job is settled at once when it
        times out, and a job that an operator has cancelled is settled after a moment; their threads keep the slots.
        Where the store counts the slots, the settlement would free the slot for another process, so there those tries
        wait for their threads as well.
        """
        if job.ended:
            return
        if job.timer is not None:
            job.timer.cancel()
        if why == "lost" or not job.leaving:
            job.leaving = why
        thread.interrupt()
        last = job.discarded or (job.attempts is not None and job.attempts_made + 1 >= job.attempts)
        if job.leaving == "timeout" and last and not self._queue.spec.slots:
            self._settle_without(job)
        elif job.leaving == "cancel" and not self._queue.spec.slots:
            job.timer = asyncio.get_running_loop().call_later(STUBBORN, self._settle_without, job)
        else:
            text = "%r runs in a thread, which cannot be cancelled (%s); it keeps its job and its slot until it ends"
            say(logger, logging.WARNING, text, job, why)

    def _leave_to(self, job: ActiveJob, thread: InThread) -> None:
        """The app has cancelled the aio_task of a try in a thread. Now the try ends when the thread ends."""
        job.aio_task = None
        thread.ended.add_done_callback(lambda ended: self._thread_ended(job, thread))

    def _thread_ended(self, job: ActiveJob, thread: InThread) -> None:
        held = self._ended(job, late(job, thread))
        if held is not None:
            self.start(held.job, held.sent_at, held.margin)
        self._shared.pump.slot_freed()

    def in_threads(self) -> int:
        """The number of jobs that cannot be settled yet, because threads run them."""
        return sum(job.thread is not None for job in self.running.values())

    def _ended(self, job: ActiveJob, outcome: Outcome) -> Prefetched | None:
        """A try has ended. Returns the prefetched job that runs next in this task, if any."""
        if job.timer is not None:
            job.timer.cancel()
        if not job.ended:
            return self._record(job, outcome)
        self.zombies -= 1  # the job was settled without its handler
        self._shared.zombies -= 1
        self._queue.look_again()
        return None

    def _record(self, job: ActiveJob, outcome: Outcome) -> Prefetched | None:
        """Record the outcome. Returns the prefetched job that runs next in this task, if any."""
        job.ended = True
        job.ended_at = clock.monotonic()
        self.running.pop(job.id, None)
        for shared_limit in self._queue.shared_limits:
            shared_limit.ended()
        return self._queue.ended(job, outcome)

    def hush(self) -> None:
        """Cancel the tries whose handlers have not begun, because no job may begin any more."""
        for job in tuple(self.running.values()):
            if not job.entered:
                self.cancel(job, "stop")

    def cancel_all(self) -> None:
        """Cancel all tries, because the process stops."""
        for job in tuple(self.running.values()):
            self.cancel(job, "stop")

    async def keep_owned(self, process: str) -> None:
        """Cancel the tries that another process took over while this one was silent. The others go on as `process`."""
        jobs = list(self.running.values())
        tries = [(job.id, job.entry, job.token) for job in jobs]
        kept = await self._shared.broker.retain(self._queue.keys, process, tries)
        for job, (_, _, token), ours in zip(jobs, tries, kept, strict=True):
            if not ours and job.token == token:  # another token: the job was taken anew meanwhile
                self.cancel(job, "lost")
