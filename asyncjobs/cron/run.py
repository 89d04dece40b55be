"""Run: one run of a task, and what is written down of runs and of ticks that had none."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from datetime import datetime
from typing import Any, Final, Literal

from asyncjobs import clock
from asyncjobs.broker import Broker, outcome_json, run_mark, skip_json
from asyncjobs.declare.definition import TaskSpec
from asyncjobs.errors import AsyncjobsError, BrokerError, NotRunningError
from asyncjobs.guests.threads import InThread

logger = logging.getLogger("asyncjobs.cron")

LONGEST_TEXT: Final = 500  # characters of an error
MOST_KEPT: Final = 200  # notes that wait for the store
AGAIN: Final = 1.0  # seconds until a note is tried again


class Run:
    """One run of a task, in an aio_task or in a thread.

    State: `aio_task`, in which the run began; `late`, the runtime stops and its grace is over; `process`, under whose
    name it began, and `mark`, by which its entry in the store is found; `outcome` and `error`, once it has ended.
    """

    __slots__ = ("aio_task", "began", "error", "late", "mark", "outcome", "process", "scheduled", "spec", "thread")

    def __init__(self, spec: TaskSpec, scheduled: datetime, process: str, asked: bool = False) -> None:
        self.spec, self.scheduled, self.process = spec, scheduled, process
        self.mark = run_mark(_ms(scheduled), process, asked)
        self.outcome: Literal["completed", "failed", "cancelled"] = "completed"
        self.error = ""
        self.began = clock.monotonic()
        self.aio_task: asyncio.Task[Any] | None = None
        self.thread: InThread | None = None
        self.late = False

    def refusal(self) -> AsyncjobsError | None:
        """Why the run's thread may not use its queue and io any more; None: it may."""
        return (
            NotRunningError(f"the runtime stops, and the grace of task {self.spec.name} is over") if self.late else None
        )

    def returned(self, awaitable: bool) -> None:
        if self.late and awaitable:
            raise asyncio.CancelledError

    def ended(self, error: BaseException | None, text: str) -> None:
        """It came to an error, which is none where it was cancelled because the runtime stops."""
        self.outcome, self.error = ("failed", text[:LONGEST_TEXT]) if error is not None else ("cancelled", "")

    def told(self) -> bytes:
        """Its end, as its entry goes on."""
        return outcome_json(self.outcome, self.error)


class RunNotes:
    """What is written down beside the claims of ticks; never waited for by a run.

    State: `_waiting`, what the store does not have yet, oldest first; `_writing`, the aio_task that writes; `_closed`,
    the runtime stops; `paused`, the tasks that do not tick, as the store had it at the last look.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._waiting: deque[tuple[str, Literal["begin", "end", "skip"], str, bytes]] = deque(maxlen=MOST_KEPT)
        self._writing: asyncio.Task[None] | None = None
        self._closed = False
        self.paused: set[str] = set()

    async def look(self) -> None:
        """See which tasks are paused."""
        self.paused = await self._broker.paused_tasks()

    def begun(self, run: Run) -> None:
        self._write(run.spec.name, "begin", run.mark, b"")

    def ended(self, run: Run) -> None:
        self._write(run.spec.name, "end", run.mark, run.told())

    def skipped(self, spec: TaskSpec, scheduled: datetime, why: str, more: str = "") -> None:
        """A tick had no run."""
        self._write(spec.name, "skip", str(_ms(scheduled)), skip_json(why, more[:LONGEST_TEXT]))

    def _write(self, task: str, kind: Literal["begin", "end", "skip"], mark: str, more: bytes) -> None:
        self._waiting.append((task, kind, mark, more))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._work(), name="asyncjobs notes of tasks")

    async def _work(self) -> None:
        while self._waiting:
            note = self._waiting[0]
            try:
                paused = await self._broker.note_run(*note)
            except BrokerError as error:
                if self._closed:
                    return
                logger.debug("what became of a tick of %s is written down later: %s", note[0], error)
                await asyncio.sleep(AGAIN)
                continue
            if paused:
                self.paused.add(note[0])
            else:
                self.paused.discard(note[0])
            if self._waiting and self._waiting[0] is note:  # else it was one too many
                self._waiting.popleft()

    async def stop(self, timeout: float) -> None:
        """Write what is left, for `timeout` seconds at most."""
        self._closed = True
        if self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing], timeout=timeout)
            self._writing.cancel()


def _ms(instant: datetime) -> int:
    """An instant as the store has it."""
    return round(instant.timestamp() * 1000)
