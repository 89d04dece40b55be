"""Reports: the event and the log line of a try, once the store has settled it."""

from __future__ import annotations

import logging
from contextlib import suppress

from asyncjobs.active_job import ActiveJob
from asyncjobs.errors import Discard, named
from asyncjobs.events import EventBus
from asyncjobs.job_record import cancellation
from asyncjobs.log_context import parts_of
from asyncjobs.logs import Told, log, said, say
from asyncjobs.work.decide import Decision
from asyncjobs.work.executor import Completed, Outcome
from asyncjobs.work.refusals import SMALL
from asyncjobs.work.turn import Ended, Finished

logger = logging.getLogger("asyncjobs.work")

STALE, GONE, CANCEL_ASKED = b"034"


def to_tell(bus: EventBus, job: ActiveJob, outcome: Outcome) -> ActiveJob | Ended:
    """As much of an ended job as can be needed until the store has its outcome.

    The garbage collector sees an `ActiveJob`, and would count those that wait to be settled among what lives for long.
    """
    small = type(outcome) is Completed and len(outcome.body) <= SMALL and job.stored_id is job.id
    return Ended.of(job) if small and not bus.wants("job.completed") else job


def settled(bus: EventBus, finished: Finished, status: int) -> None:
    """Report a try that the store has settled. ``lua/work.lua`` lists the values of `status`.

    Never raises, because the same reply holds other settled jobs, and taken ones, that come after this one.
    """
    job, decision = finished.job, finished.decision
    try:
        if status == STALE:
            logger.warning("%r had been taken over by another process; its outcome does not count", job)
        elif status == GONE and not finished.resent:  # a resent one may have removed the job at its first arrival
            logger.warning("the record of %r was deleted while it ran; its outcome does not count", job)
        elif decision.event:
            if decision.event == "job.completed":
                bus.counters.completed += 1
            else:
                bus.counters.ended(decision.event, decision.error is not None)
            if bus.wants(decision.event):
                _tell(bus, job, decision)
    except BaseException as error:
        say(logger, logging.ERROR, "the outcome of %r could not be reported: %s", job, said(error))
    if decision.error is not None and decision.told is not None and not isinstance(job, Ended):
        with suppress(BaseException):
            _log(job, decision, decision.error, decision.told)


def _tell(bus: EventBus, job: ActiveJob | Ended, decision: Decision) -> None:
    # RetryLater and a release count no attempt.
    counted = 1 if decision.error is not None or decision.event == "job.completed" else 0
    error: BaseException | str | None = decision.error
    if decision.event == "job.cancelled":
        counted, error = decision.settlement.number, reason_of(decision.settlement.body)
    bus.emit(
        decision.event,
        job.name,
        job_id=job.id,
        group_id=job.group_id,
        attempts_made=job.attempts_made + counted,
        duration=took(job),
        delay=decision.settlement.number / 1000 if decision.event == "job.retrying" else None,
        error=error,
        data=job.data,
        context=job.context,
    )


def reason_of(mark: bytes) -> str | None:
    """What was said with a cancel; None for nothing."""
    known = cancellation(mark)
    return known.reason or None if known is not None else None


def overtaken(finished: Finished) -> ActiveJob:
    """A try was to be followed by another one, and its job is cancelled instead: its error stands in the log alone.

    Returns:
        The job, as it is to be settled now.
    """
    job, words, settlement = finished.job, finished.decision.told, finished.decision.settlement
    assert isinstance(job, ActiveJob), "a completed job is not overtaken"
    job.entry, job.token = settlement.entry, settlement.token  # it may have been adopted since it ended
    if finished.decision.error is not None and words is not None:
        who = named(job.name, job.id, job.group_id)
        text = "%s failed at try %d, and is not tried again, since it was cancelled: %s"
        with suppress(BaseException):
            log(logger, logging.WARNING, words, finished.decision.error, text, who, job.attempts_made + 1, words.text)
    return job


def took(job: ActiveJob | Ended) -> float | None:
    """Seconds that a try took; None: it has not begun here."""
    if isinstance(job, Ended):
        return job.took
    return job.ended_at - job.began_at if job.began and job.ended else None


def _log(job: ActiveJob, decision: Decision, error: BaseException, words: Told) -> None:
    """Log a failed try, with the stack at the first and at the last try, and with its parts by name."""
    who = named(job.name, job.id, job.group_id)
    number = job.attempts_made + 1
    parts = {**parts_of(job), "duration": took(job), "error": words.text, "outcome": "failed"}
    if issubclass(type(error), Discard):
        parts["outcome"] = "discarded"
        log(logger, logging.WARNING, None, None, "%s was discarded at try %d: %s", who, number, words.text, parts=parts)
    elif decision.settlement.op == "f":
        log(
            logger,
            logging.ERROR,
            words,
            error,
            "%s failed for good at try %d: %s",
            who,
            number,
            words.text,
            parts=parts,
        )
    else:
        most = "" if job.attempts is None else f" of {job.attempts}"
        again = f"again in {decision.settlement.number / 1000:g} s"
        parts |= {"outcome": "retrying", "delay": decision.settlement.number / 1000}
        line = ("%s failed at try %d%s, %s: %s", who, number, most, again, words.text)
        first = number == 1
        log(logger, logging.WARNING, words if first else None, error if first else None, *line, parts=parts)
