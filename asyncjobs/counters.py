"""Counters: what has happened to jobs in this process since it began, whether anybody listens or not."""

from __future__ import annotations

from typing import TypedDict


class Counts(TypedDict):
    """The counters at one instant.

    Attributes:
        added: jobs that this process has added.
        started: tries that have begun here, the handler called.
        completed: jobs that have completed here.
        failed_tries: tries that have raised or run out of time here, the last one of a job too.
        failed: jobs that have failed for good here.
        retried: jobs that were put back for another try: after a failure, by RetryLater or by RateLimited.
        stalled: jobs that this process has given back for one that died.
        cancelled: jobs that were cancelled while they ran here.
    """

    added: int
    started: int
    completed: int
    failed_tries: int
    failed: int
    retried: int
    stalled: int
    cancelled: int


class Counters:
    """Plain numbers that only grow; for their meaning see `Counts`."""

    __slots__ = ("added", "cancelled", "completed", "failed", "failed_tries", "retried", "stalled", "started")

    def __init__(self) -> None:
        self.added = self.started = self.completed = self.stalled = 0
        self.failed_tries = self.failed = self.retried = self.cancelled = 0

    def ended(self, event: str, failed: bool) -> None:
        """A try that has not completed is settled: the event that tells of it, and whether it has failed."""
        self.failed_tries += failed
        if event == "job.failed":
            self.failed += 1
        elif event == "job.retrying":
            self.retried += 1
        elif event == "job.cancelled":
            self.cancelled += 1

    def counts(self) -> Counts:
        return Counts(
            added=self.added,
            started=self.started,
            completed=self.completed,
            failed_tries=self.failed_tries,
            failed=self.failed,
            retried=self.retried,
            stalled=self.stalled,
            cancelled=self.cancelled,
        )
