"""asyncjobs: durable background jobs, per-tenant groups, exact rate limits and cron tasks on your app's event loop.

queue.py ──► broker/ ══ Redis stream ══► work/pump ─► consumer ─► attempts ─► executor ─► decide ─► broker/ ─► events.py
 add()                                   turns         one queue    one try      outcome     settle      the edges
    ▲                                      ▲
    └ cron/scheduler.py  ticks             └ groups.py  one consumer a group, reaped when idle
                                             upkeep/  stalled, lost and finished jobs

What is named here is imported when it is first asked for: the command line shows its help without all of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from asyncjobs.active_job import ActiveJob
    from asyncjobs.declare.definition import JobDefinition, TaskDefinition
    from asyncjobs.declare.options import Alerts, Backoff, JobOptions, Limiter, Retention, WorkerOptions
    from asyncjobs.errors import (
        AsyncjobsError,
        AsyncjobsWarning,
        BrokerError,
        BrokerUnavailableError,
        ConfigError,
        Discard,
        JobCancelledError,
        JobFailedError,
        JobGoneError,
        JobStalledError,
        JobTimeoutError,
        LoadError,
        NotRunningError,
        PayloadError,
        QueueFullError,
        RateLimited,
        RetryLater,
        StateError,
        UnknownJobError,
        UpstreamError,
    )
    from asyncjobs.events import Event
    from asyncjobs.history.alerts import Alert
    from asyncjobs.history.figures import Figures, Group, History, Spread
    from asyncjobs.job import Job
    from asyncjobs.job_record import Cancellation
    from asyncjobs.log_context import JobLogFilter, current_job
    from asyncjobs.operate.counting import Count
    from asyncjobs.operate.preview import Pace, Preview
    from asyncjobs.operate.processes import ProcessInfo, RunningJob
    from asyncjobs.operate.schedule import NextTick
    from asyncjobs.operate.selection import Page, Selection
    from asyncjobs.operate.tasks import SkippedTick, TaskInfo, TaskRun
    from asyncjobs.operate.why import Reason
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

__version__ = "0.1.0"

__all__ = [
    "ActiveJob",
    "Alert",
    "Alerts",
    "AsyncjobsError",
    "AsyncjobsWarning",
    "Backoff",
    "BrokerError",
    "BrokerUnavailableError",
    "Cancellation",
    "ConfigError",
    "Count",
    "Discard",
    "Event",
    "Figures",
    "Group",
    "History",
    "Job",
    "JobCancelledError",
    "JobDefinition",
    "JobFailedError",
    "JobGoneError",
    "JobLogFilter",
    "JobOptions",
    "JobStalledError",
    "JobTimeoutError",
    "Limiter",
    "LoadError",
    "NextTick",
    "NotRunningError",
    "Pace",
    "Page",
    "PayloadError",
    "Preview",
    "ProcessInfo",
    "Queue",
    "QueueFullError",
    "RateLimited",
    "Reason",
    "Retention",
    "RetryLater",
    "RunningJob",
    "Runtime",
    "Selection",
    "SkippedTick",
    "Spread",
    "StateError",
    "TaskDefinition",
    "TaskInfo",
    "TaskRun",
    "UnknownJobError",
    "UpstreamError",
    "WorkerOptions",
    "__version__",
    "current_job",
]

_MODULES: Final = {
    "active_job": "ActiveJob",
    "declare.definition": "JobDefinition TaskDefinition",
    "declare.options": "Alerts Backoff JobOptions Limiter Retention WorkerOptions",
    "events": "Event",
    "history.alerts": "Alert",
    "history.figures": "Figures Group History Spread",
    "job": "Job",
    "job_record": "Cancellation",
    "log_context": "JobLogFilter current_job",
    "operate.counting": "Count",
    "operate.preview": "Pace Preview",
    "operate.processes": "ProcessInfo RunningJob",
    "operate.schedule": "NextTick",
    "operate.selection": "Page Selection",
    "operate.tasks": "SkippedTick TaskInfo TaskRun",
    "operate.why": "Reason",
    "queue": "Queue",
    "runtime": "Runtime",
}
_WHERE: Final = dict.fromkeys(__all__, "errors") | {
    name: module for module, names in _MODULES.items() for name in names.split()
}

if not TYPE_CHECKING:  # a type checker knows the names above and no others

    def __getattr__(name: str) -> Any:
        if name not in _WHERE:
            raise AttributeError(f"module 'asyncjobs' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"asyncjobs.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
