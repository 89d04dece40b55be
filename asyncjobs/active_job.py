"""The ActiveJob: the job that a handler is running, as the handler sees it."""

from __future__ import annotations

import contextvars
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from asyncjobs import clock
from asyncjobs.broker import Keys, TakenJob
from asyncjobs.declare import payload
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.overrides import NO_OVERRIDES, Overrides
from asyncjobs.declare.values import shown
from asyncjobs.errors import PayloadError, named

if TYPE_CHECKING:
    import asyncio

    from asyncjobs.broker import Broker
    from asyncjobs.guests.threads import InThread

LONGEST_LINE: Final = 8192  # bytes of a log line
Leaving: TypeAlias = Literal["", "timeout", "cancel", "stop", "lost"]


current: contextvars.ContextVar[ActiveJob] = contextvars.ContextVar("asyncjobs_current_job")


class ActiveJob:
    """The job that a handler is running.

    Attributes:
        attempts_made: finished tries before this one: 0 on the first.
        attempts: the most tries in all; None: no bound.
        stalled_count: how often the job's process died.
    """

    __slots__ = (
        "_broker", "_notify", "added_ms", "aio_task", "attempts_made", "began", "began_at", "context", "data",
        "discarded", "ended", "ended_at", "entered", "entry", "group_id", "id", "keys", "leaving", "mark", "name",
        "overrides", "raw", "sample", "spec", "stalled_count", "stored_id", "thread", "timer", "token",
        "unreadable",
    )  # fmt: skip

    def __init__(self, broker: Broker, notify: Any, spec: JobSpec, keys: Keys, taken: TakenJob) -> None:
        self._broker = broker
        self._notify = notify
        self.spec = spec
        self.keys = keys
        self.name = spec.name
        self.group_id = keys.group or None
        self.id = taken.job_id
        self.entry = taken.entry
        self.raw = taken.data
        self.attempts_made = taken.attempts_made
        self.stalled_count = taken.stalled_count
        self.added_ms = taken.added_ms
        self.token = taken.token
        self.sample = taken.sample
        options, fault = taken.options, taken.fault
        self.overrides = NO_OVERRIDES
        self.unreadable: PayloadError | None = None
        self.stored_id: str | bytes = self.id
        if fault is not None:
            self.stored_id = fault.stored_id
            self.unreadable = PayloadError(f"the record of {named(self.name, self.id)} is damaged: {fault.text}")
        elif options:
            try:
                self.overrides = Overrides.decode(options)
            except Exception as error:  # msgspec's errors, and a RecursionError for a value that is nested too deeply
                self.unreadable = PayloadError(f"the options of {named(self.name, self.id)} cannot be read: {error}")
        self.data: Any = None
        self.discarded = False
        # Kept by the consumer:
        self.aio_task: asyncio.Task[None] | None = None
        self.context: Any = None  # an integration's context of this try
        self.began = False
        self.entered = False  # the handler is called, or is about to be
        self.began_at = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.leaving: Leaving = ""  # why the runtime has cancelled the try
        self.mark = taken.mark  # who asked for the job's cancel, and why; empty: not asked for
        self.thread: InThread | None = None  # set while a thread runs the handler
        self.ended_at = 0.0
        self.ended = False  # an outcome was recorded, so the handler's end does not count any more

    @property
    def attempts(self) -> int | None:
        return self.overrides.attempts(self.spec.job_options)

    @property
    def added_at(self) -> datetime:
        return clock.from_ms(self.added_ms)

    @property
    def cancelled(self) -> bool:
        """True if an operator has cancelled this job while it runs. Then the handler's outcome does not count any more.

        A handler in a thread has to look at this by itself, because a thread cannot be cancelled.
        """
        return self.leaving == "cancel"

    def discard(self) -> None:
        """Allow no further try. An error of this try fails the job for good, a return completes it."""
        self.discarded = True

    async def update_progress(self, value: Any) -> None:
        """Record the job's progress, any JSON. The event `job.progress` carries it.

        Raises:
            PayloadError: `value` cannot be written, or is larger than `max_result`. A handler that ends with this error
                is not tried again.
        """
        body = payload.encode_result(value, "progress", self.spec.max_result)
        await self._broker.note(self.keys, self.id, self.token, "progress", body)
        self._notify("job.progress", self.name, job_id=self.id, group_id=self.group_id, data=value)

    async def log(self, text: str) -> None:
        """Keep a line of log with the job: its first 8192 bytes of UTF-8. The last 1000 lines stay."""
        if not isinstance(text, str):
            raise PayloadError(f"job.log({shown(text)}): expected text")
        line = text[:LONGEST_LINE].encode(errors="replace")
        if len(line) > LONGEST_LINE:
            line = line[:LONGEST_LINE].decode(errors="ignore").encode()  # without a cut character
        await self._broker.note(self.keys, self.id, self.token, "log", line)

    def __repr__(self) -> str:
        return f"<ActiveJob {named(self.name, self.id, self.group_id)} try {self.attempts_made + 1}>"
