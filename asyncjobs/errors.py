"""The exception tree. Each message says what went wrong, with which value, and what to do about it.

AsyncjobsError
├─ ConfigError               an option, its value, the values allowed
├─ LoadError                 every bad file of jobs/ and tasks/, each with its reason
├─ PayloadError              the path of the value that is not JSON or does not fit the handler
├─ UnknownJobError           the name, and the nearest known ones
├─ StateError                a call that the job's state does not allow
├─ UpstreamError             a job that this one needs has failed
├─ JobGoneError              a job whose record is no longer kept
├─ QueueFullError            as many jobs wait as `max_waiting` allows
├─ NotRunningError           a call before start() or after stop()
├─ JobFailedError            what ``await job.wait()`` raises for a job that failed for good
│  └─ JobCancelledError      the same for one that was cancelled
├─ JobTimeoutError           a try, or a wait, that took longer than allowed; a TimeoutError, too
├─ JobStalledError           recorded on a job whose processes kept dying
└─ BrokerError
   └─ BrokerUnavailableError the store did not answer: the outcome is unknown, a repeat is safe

Discard, RetryLater, RateLimited     steering raised by handlers; not errors, never captured
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple


def visible(text: str) -> str:
    """`text` on one line. Characters that are not printable are escaped, so that an id cannot forge a line of a log."""
    return text if text.isprintable() else repr(text)[1:-1]


def named(name: str, job_id: str, group_id: str | None = None) -> str:
    """The name of a job in log lines and error texts."""
    return f"{name} {visible(job_id)}" if group_id is None else f"{name} {visible(job_id)} of {group_id!r}"


class AsyncjobsError(Exception):
    """The root of all errors that asyncjobs raises on purpose."""


class ConfigError(AsyncjobsError):
    """An option with a value it cannot take."""


class Complaint(NamedTuple):
    """One bad file: its path, the reason, and the exception behind it, if any."""

    path: str
    reason: str
    cause: BaseException | None = None


class LoadError(AsyncjobsError):
    """All bad files of the jobs and tasks folders, in one exception. The runtime was not started.

    Attributes:
        complaints: one record for each bad file, in path order. The traceback of the first one is chained.
    """

    def __init__(self, complaints: Sequence[Complaint]) -> None:
        self.complaints = tuple(complaints)
        files = "file" if len(self.complaints) == 1 else "files"
        lines = [f"  {complaint.path}: {complaint.reason}" for complaint in self.complaints]
        super().__init__("\n".join([f"{len(self.complaints)} {files} could not be loaded", *lines]))


class PayloadError(AsyncjobsError):
    """Data that is not JSON, is too large, or does not fit the handler's declared type.

    Attributes:
        final: the error is about a result or a progress. A handler that ends with it is not tried again.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        self.final = final
        super().__init__(message)


class StateError(AsyncjobsError):
    """A call that the job's state does not allow. The text names the state."""


class UpstreamError(AsyncjobsError):
    """A job that this job needs has failed, so this job cannot run."""


class JobGoneError(AsyncjobsError):
    """A job whose record is no longer kept."""


class UnknownJobError(AsyncjobsError):
    """A job name that is not registered."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if near:
            hint = "did you mean " + " or ".join(repr(one) for one in near) + "?"
        elif names:
            hint = "known jobs: " + ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        else:
            hint = "no job is registered; is the jobs folder the right one?"
        super().__init__(f"no job is called {name!r}; {hint}")


class QueueFullError(AsyncjobsError):
    """As many jobs wait as `max_waiting` allows, so the jobs `job_ids` were not added.

    Attributes:
        job_ids: the refused jobs. The other jobs of a bulk were added.
    """

    def __init__(self, queue: str, most: int, job_ids: Sequence[str]) -> None:
        self.queue, self.max_waiting, self.job_ids = queue, most, tuple(job_ids)
        jobs = "the job" if len(self.job_ids) == 1 else f"{len(self.job_ids)} jobs"
        super().__init__(
            f"{queue} is full: max_waiting={most} jobs wait or are delayed, so {jobs} was not added; try later"
        )


class NotRunningError(AsyncjobsError):
    """The runtime has not been started, or was stopped."""


class JobFailedError(AsyncjobsError):
    """A job that was waited for has failed for good. The text is the job's last error."""

    def __init__(self, name: str, job_id: str, reason: str) -> None:
        self.name, self.job_id, self.reason = name, job_id, reason
        super().__init__(f"job {named(name, job_id)} failed: {reason}")


class JobCancelledError(JobFailedError):
    """A job that was waited for was cancelled. No failure of the job, but like one it brings no result.

    Attributes:
        reason: what was said with the cancel, '' for nothing.
    """

    def __init__(self, name: str, job_id: str, reason: str = "") -> None:
        self.name, self.job_id, self.reason = name, job_id, reason
        why = f": {visible(reason)}" if reason else ""
        AsyncjobsError.__init__(self, f"job {named(name, job_id)} was cancelled{why}")


class JobTimeoutError(AsyncjobsError, TimeoutError):
    """A try ran longer than its ``timeout``, or a wait longer than the caller allowed."""


class JobStalledError(AsyncjobsError):
    """The processes that ran a job died more often than ``max_stalled_count`` allows."""


class BrokerError(AsyncjobsError):
    """The store refused a command."""


class BrokerUnavailableError(BrokerError):
    """The store did not answer in time. The command is wholly applied or not at all, and a repeat is safe.

    Attributes:
        job_ids: for an ``add``, the ids that were sent. A repeat with these ids cannot add twice.
    """

    def __init__(self, message: str, job_ids: Sequence[str] = ()) -> None:
        self.job_ids = tuple(job_ids)
        super().__init__(message)


class Discard(Exception):
    """A handler raises this to fail the job for good, without further tries and without a Sentry event."""


def _quoted(delay: object) -> str:
    """A given delay in words. It must not raise, because the runtime refuses a bad delay later, by its name."""
    try:
        return str(delay)[:40]
    except Exception:  # an int of thousands of digits
        return f"{type(delay).__name__}"


class RetryLater(Exception):
    """A handler raises this to run the job again after ``delay`` seconds, at the cost of no attempt.

    Jobs behind it run meanwhile. With ``ordered=True`` they wait, because that promises order.
    """

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        super().__init__(f"again in {_quoted(delay)} s")


class RateLimited(Exception):
    """Raise it in a handler that was told to slow down, by an HTTP 429 say.

    The job goes back to the head of its queue, uncounted, and the queue, or the group, starts nothing for
    ``retry_after`` seconds, in any process.
    """

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(f"rate limited for {_quoted(retry_after)} s")


class AsyncjobsWarning(UserWarning):
    """A likely mistake that is no error: milliseconds for seconds, a task that will never tick."""
