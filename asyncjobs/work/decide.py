"""Decide what follows from an outcome: complete, retry at a time, fail, or go back. Pure, and always with an answer."""

from __future__ import annotations

import inspect
import logging
import math
from contextlib import suppress
from datetime import timedelta
from typing import Final

import msgspec

from asyncjobs import clock
from asyncjobs.active_job import ActiveJob
from asyncjobs.broker import Op, Settlement
from asyncjobs.declare.options import Backoff
from asyncjobs.declare.values import FOREVER
from asyncjobs.job_record import StoredError
from asyncjobs.logs import Told, log, said, say, told
from asyncjobs.record import Record
from asyncjobs.work.executor import Aside, Cancelled, Completed, Failed, Held, Later, Lost, Outcome, Released

logger = logging.getLogger("asyncjobs.work")

FALLBACK: Final = Backoff("fixed", 60)


class Decision(Record, frozen=True, gc=False):
    """The settlement to write, the event to emit after the write, and the job's error, as an exception and in words."""

    settlement: Settlement
    event: str
    error: BaseException | None = None
    told: Told | None = None


def decide(job: ActiveJob, outcome: Outcome) -> Decision | None:
    """The decision for `job` after `outcome`; None: another process owns the job, so nothing may be written."""
    try:
        options, job_id = job.spec.job_options, job.stored_id
        if isinstance(outcome, Completed):
            keep = job.overrides.keep(options, "c")
            return Decision(Settlement("c", job_id, job.entry, job.token, outcome.body, 0, keep), "job.completed")
        if isinstance(outcome, Cancelled):
            return _cancelled(job, outcome, job.overrides.keep(options, "k"))
        if isinstance(outcome, Released):
            return Decision(Settlement("b", job_id, job.entry, job.token), "")
        if isinstance(outcome, Later):
            delay = math.ceil(outcome.delay * 1000)
            if job.spec.ordered:  # no job may overtake this one: it stays at the head, and the queue waits
                return Decision(Settlement("b", job_id, job.entry, job.token, b"", delay), "job.retrying")
            return Decision(Settlement("r", job_id, job.entry, job.token, b"", delay, "0"), "job.retrying")
        if isinstance(outcome, Aside):
            aside: Op = "b" if job.spec.ordered else "r"
            delay = math.ceil(outcome.delay * 1000)
            return Decision(Settlement(aside, job_id, job.entry, job.token, b"", delay, "0"), "")
        if isinstance(outcome, Held):
            hold = math.ceil(outcome.delay * 1000)
            return Decision(Settlement("b", job_id, job.entry, job.token, b"", hold), "job.retrying")
        if not isinstance(outcome, Failed):
            return None
        failures = job.attempts_made + 1
        most = job.attempts
        final = outcome.final or (most is not None and failures >= most)
        words = told(outcome.error)
        body = store(words)
        if final:
            keep = job.overrides.keep(options, "f")
            settlement = Settlement("f", job_id, job.entry, job.token, body, 0, keep)
            return Decision(settlement, "job.failed", outcome.error, words)
        delay = math.ceil(wait(job, failures, outcome.error) * 1000)
        op: Op = "h" if job.spec.ordered else "r"
        settlement = Settlement(op, job_id, job.entry, job.token, body, delay, "1")
        return Decision(settlement, "job.retrying", outcome.error, words)
    except BaseException as error:
        say(logger, logging.ERROR, "no decision could be made for %s %s: %s", job.name, job.id, said(error))
        return _fallback(job, outcome, error)


def _cancelled(job: ActiveJob, outcome: Cancelled, keep: str = "") -> Decision:
    """A job that is over: its try counts as an attempt if its handler was called."""
    settlement = Settlement("k", job.stored_id, job.entry, job.token, outcome.mark, int(job.entered), keep)
    return Decision(settlement, "job.cancelled")


def _fallback(job: ActiveJob, outcome: Outcome, error: BaseException) -> Decision | None:
    """A decision that needs only the job's record, because each outcome must be settled."""
    job_id = job.stored_id
    if isinstance(outcome, Lost):
        return None
    if isinstance(outcome, Completed):
        return Decision(Settlement("c", job_id, job.entry, job.token, outcome.body), "job.completed")
    if isinstance(outcome, Cancelled):
        return _cancelled(job, outcome)
    delay = math.ceil(FALLBACK.wait(1) * 1000)
    words = told(error)
    op: Op = "h" if job.spec.ordered else "r"
    settlement = Settlement(op, job_id, job.entry, job.token, store(words), delay, "1")
    return Decision(settlement, "job.retrying", error, words)


def wait(job: ActiveJob, failures: int, error: BaseException) -> float:
    """Seconds until the next try after the `failures`-th failed one; 0: at once, behind the waiting jobs."""
    rule = job.overrides.backoff(job.spec.job_options)
    if rule is None:
        return 0.0
    if isinstance(rule, Backoff):
        return rule.wait(failures)
    delay = None
    try:
        delay = rule(failures, error)
        pause = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
        if not math.isfinite(pause) or pause > FOREVER:
            raise ValueError(f"it returned {pause}")
        return max(0.0, pause)
    except BaseException as wrong:  # the backoff function is the app's, and may raise anything
        with suppress(BaseException):
            if inspect.iscoroutine(delay):
                delay.close()
            log(logger, logging.ERROR, told(wrong), wrong, "the backoff function of %s failed; 60 s instead", job.name)
        return FALLBACK.wait(failures)


def store(error: Told) -> bytes:
    """An error as the record of the job keeps it."""
    return msgspec.json.encode(StoredError(error.text, error.stack, int(clock.wall() * 1000)))
