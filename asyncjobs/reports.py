"""Reports: what became of a try, told as an event and as a line of the log once the store has it."""

from __future__ import annotations

import logging

from asyncjobs.errors import Discard, named
from asyncjobs.events import EventBus
from asyncjobs.job import ActiveJob
from asyncjobs.retry import Decision
from asyncjobs.stack import exc_info, said
from asyncjobs.turn import Finished

logger = logging.getLogger("asyncjobs")

STALE, GONE = b"03"


def settled(bus: EventBus, finished: Finished, status: int) -> None:
    """Tell what became of a try, once the store has it. Status: see ``lua/work.lua``."""
    job, decision, resent = finished
    # Gone is what a removed job's settlement meets when it is sent again: it was applied the first time.
    if status == STALE or (status == GONE and not resent):
        logger.warning("%r had been taken over by another process; its outcome does not count", job)
    elif decision.event and bus.wants(decision.event):
        # A later RetryLater and a release count no attempt.
        counted = 1 if decision.error is not None or decision.event == "job.completed" else 0
        bus.emit(
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
        _log(job, decision, decision.error)


def _log(job: ActiveJob, decision: Decision, error: BaseException) -> None:
    """A line for a try that failed, with the stack at the last."""
    who = named(job.name, job.id, job.group_id)
    if decision.settlement.op == "f":
        stack = None if isinstance(error, Discard) else exc_info(error)
        logger.error("%s failed for good at try %d: %s", who, job.attempts_made + 1, said(error), exc_info=stack)
    else:
        most = "" if job.attempts is None else f" of {job.attempts}"
        again = f"again in {decision.settlement.number / 1000:g} s"
        logger.warning("%s failed at try %d%s, %s: %s", who, job.attempts_made + 1, most, again, said(error))
