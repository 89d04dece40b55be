"""Decide what follows from an outcome: complete, retry at a time, fail, or go back. Pure."""

from __future__ import annotations

import logging
import math
import traceback
from typing import Final, NamedTuple

import msgspec

from asyncjobs import clock
from asyncjobs.broker import Op, Settlement
from asyncjobs.config import FOREVER, Backoff
from asyncjobs.executor import Completed, Failed, Held, Later, Outcome, Released
from asyncjobs.job import ActiveJob, StoredError
from asyncjobs.stack import exc_info, said

logger = logging.getLogger("asyncjobs")

MOST_TEXT: Final = 4096
MOST_STACK: Final = 8192
FALLBACK: Final = Backoff("fixed", 60)


class Decision(NamedTuple):
    """What to write, the event to tell when it is written, and the error that goes with it."""

    settlement: Settlement
    event: str
    error: BaseException | None = None


def decide(job: ActiveJob, outcome: Outcome) -> Decision | None:
    """What `outcome` means for `job`; None: nothing may be written, the job is not ours any more."""
    options = job.spec.job_options
    if isinstance(outcome, Completed):
        keep = job.overrides.keep(options, "c")
        return Decision(Settlement("c", job.id, job.entry, job.token, outcome.body, 0, keep), "job.completed")
    if isinstance(outcome, Released):
        return Decision(Settlement("b", job.id, job.entry, job.token), "")
    if isinstance(outcome, Later):
        delay = math.ceil(outcome.delay * 1000)
        return Decision(Settlement("r", job.id, job.entry, job.token, b"", delay, "0"), "job.retrying")
    if isinstance(outcome, Held):
        hold = math.ceil(outcome.delay * 1000)
        return Decision(Settlement("b", job.id, job.entry, job.token, b"", hold), "job.retrying")
    if not isinstance(outcome, Failed):
        return None
    failures = job.attempts_made + 1
    most = job.attempts
    final = outcome.final or (most is not None and failures >= most)
    body = store(outcome.error)
    if final:
        keep = job.overrides.keep(options, "f")
        settlement = Settlement("f", job.id, job.entry, job.token, body, 0, keep)
        return Decision(settlement, "job.failed", outcome.error)
    delay = math.ceil(wait(job, failures, outcome.error) * 1000)
    op: Op = "h" if job.spec.ordered else "r"
    settlement = Settlement(op, job.id, job.entry, job.token, body, delay, "1")
    return Decision(settlement, "job.retrying", outcome.error)


def wait(job: ActiveJob, failures: int, error: BaseException) -> float:
    """Seconds until the next try after the `failures`-th failed one; 0: at once, behind what is waiting."""
    rule = job.overrides.backoff(job.spec.job_options)
    if rule is None:
        return 0.0
    if isinstance(rule, Backoff):
        return rule.wait(failures)
    try:
        delay = float(rule(failures, error))
        if not math.isfinite(delay) or delay > FOREVER:
            raise ValueError(f"it returned {delay}")
        return max(0.0, delay)
    except Exception:
        logger.exception("the backoff function of %s failed; waiting 60 s instead", job.name)
        return FALLBACK.wait(failures)


def store(error: BaseException) -> bytes:
    """`error` as the record of the job keeps it: its text, and the end of its stack without our own frames."""
    text = said(error)
    try:
        stack = "".join(traceback.format_exception(*exc_info(error)))
    except Exception:
        stack = text
    stored = StoredError(_clean(text[:MOST_TEXT]), _clean(stack[-MOST_STACK:]), int(clock.wall() * 1000))
    return msgspec.json.encode(stored)


def _clean(text: str) -> str:
    return text.encode(errors="replace").decode()
