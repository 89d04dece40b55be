"""asyncjobs: durable background jobs, per-tenant groups, exact rate limits and cron tasks on your app's event loop.

queue.py ──► broker/ ══ Redis stream ══► work/pump ─► consumer ─► attempts ─► executor ─► decide ─► broker/ ─► events.py
 add()                                   turns         one queue    one try      outcome     settle      the edges
    ▲                                      ▲
    └ cron/scheduler.py  ticks             └ groups.py  one consumer a group, reaped when idle
                                             upkeep/  stalled, lost and finished jobs
"""

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
]
