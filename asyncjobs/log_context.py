"""The job that code runs for: asked for with `current_job`, and put on the app's own log lines.

Nothing is spent on it unless it is used: the context variable is there anyway, a filter works where it was added, and
structlog's variables are bound only where the app has imported structlog before the runtime starts.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeAlias

from asyncjobs.active_job import ActiveJob, current
from asyncjobs.guests.crossing import here

PARTS: Final = ("job", "group", "id", "attempt")
Bind: TypeAlias = Callable[[ActiveJob], None]


def current_job() -> ActiveJob | None:
    """The job whose handler this code runs in, in its thread and in what it has begun beside itself too; else None."""
    job = current.get(None)
    return None if job is None else here(job)


class JobLogFilter(logging.Filter):
    """Puts `job`, `group`, `id` and `attempt` on each record: add it to a handler, and name them in its format.

    Where a record has such an attribute already, from `extra=` say, that stays. It may stand on several handlers.

    Args:
        missing: what stands there outside of a job, and for the group of a job without one.
    """

    def __init__(self, missing: Any = None) -> None:
        super().__init__()
        self._missing = missing

    def filter(self, record: logging.LogRecord) -> bool:
        known, parts = record.__dict__, parts_of(current.get(None))
        for name in PARTS:
            if name not in known or known[name] is None:
                value = parts.get(name)
                known[name] = self._missing if value is None else value
        return True


def parts_of(job: ActiveJob | None) -> dict[str, Any]:
    """The parts of a job's log lines by name."""
    if job is None:
        return {}
    return {"job": job.name, "group": job.group_id, "id": job.id, "attempt": job.attempts_made + 1}


def structlog_binder() -> Bind | None:
    """What puts a job on structlog's context variables, as `merge_contextvars` reads them; None: there is no structlog.

    An aio_task runs jobs of one queue, one after the other, so what one has set the next one sets too.
    """
    bind = getattr(sys.modules.get("structlog.contextvars"), "bind_contextvars", None)
    if bind is None:
        return None

    def bound(job: ActiveJob) -> None:
        with suppress(Exception):  # it is a guest
            bind(**{name: value for name, value in parts_of(job).items() if value is not None})

    return bound
