"""The option records: frozen, checked when they are made, the same in code, in files and in plain dicts.

The defaults of a record's fields *are* the documented defaults. A job's own values are laid over them key by key, and
an explicit ``None`` stays ``None`` ("none", not "default").
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias, get_args

from asyncjobs.declare.values import (
    DAY,
    FOREVER,
    UNSET,
    Seconds,
    Unset,
    build,
    choice,
    duration,
    flag,
    put,
    seconds,
    shown,
    strict,
    whole,
)
from asyncjobs.errors import ConfigError

BackoffType: TypeAlias = Literal["fixed", "exponential"]
BackoffFunction: TypeAlias = Callable[[int, BaseException], float]


LEAST_WINDOW: Final = 1e-6  # seconds; the store counts in microseconds
LEAST_BUDGET: Final = 0.0005  # seconds; the loop itself would take up the most of less
LEAST_BLOCK: Final = 0.02  # seconds; to watch a loop for less would cost more than it tells


@strict
@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a failed job waits before its next try.

    ``"fixed"``: always `delay`. ``"exponential"``: ``delay · 2**(n-1)`` after the n-th failure, never above
    `max_delay`. `jitter` from 0 to 1 takes away up to that share at random, so that many jobs do not return at once.
    """

    type: BackoffType = "fixed"
    delay: Seconds = 60
    max_delay: Seconds | None = None
    jitter: float = 0.0

    def __post_init__(self) -> None:
        choice(self.type, "backoff.type", get_args(BackoffType))
        put(self, delay=seconds(self.delay, "backoff.delay"))
        if self.max_delay is not None:
            put(self, max_delay=seconds(self.max_delay, "backoff.max_delay"))
        plain = isinstance(self.jitter, (int, float)) and not isinstance(self.jitter, bool)
        if not plain or not 0 <= self.jitter <= 1:
            raise ConfigError(f"backoff.jitter={shown(self.jitter)}: expected a number from 0 to 1")

    def wait(self, failures: int, rng: Callable[[], float] = random.random) -> float:
        """Seconds to wait after the `failures`-th failed try, counted from 1."""
        delay = duration(self.delay)
        if self.type == "exponential":
            delay = min(delay * 2.0 ** min(failures - 1, 1000), FOREVER) if delay else 0.0
        if self.max_delay is not None:
            delay = min(delay, duration(self.max_delay))
        return delay * (1 - self.jitter * rng()) if self.jitter else delay


@strict
@dataclass(frozen=True, slots=True)
class Retention:
    """Which finished jobs of a name are kept: none older than `age` seconds, and at most `count`."""

    age: Seconds | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.age is not None:
            # An age over a day is the normal case here, so it is never taken for milliseconds.
            put(self, age=seconds(self.age, "retention.age", may_be_long=True))
        if self.count is not None:
            whole(self.count, "retention.count", least=0)

    @property
    def keeps_none(self) -> bool:
        return self.count == 0 or self.age == 0


@strict
@dataclass(frozen=True, slots=True)
class Limiter:
    """At most `max` starts in any window of `duration` seconds, over all processes together.

    All jobs, and all groups, whose limiter has the same `name` share one limit.
    """

    max: int
    duration: Seconds = 1
    name: str | None = None

    def __post_init__(self) -> None:
        whole(self.max, "limiter.max", least=1, most=1_000_000)
        put(self, duration=seconds(self.duration, "limiter.duration", above=True))
        if duration(self.duration) < LEAST_WINDOW:
            raise ConfigError(f"limiter.duration={shown(self.duration)}: expected a microsecond at least")
        if self.name is not None and not (
            isinstance(self.name, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", self.name)
        ):
            raise ConfigError(f"limiter.name={shown(self.name)}: expected 1 to 64 of A-Z a-z 0-9 _ . -")

    def __str__(self) -> str:
        return f"{self.max} per {duration(self.duration):g} s" + (f" ({self.name})" if self.name else "")


MOST_WINDOWS: Final = 4


def limiters(value: Any, option: str) -> tuple[Limiter, ...]:
    """Limiters as a tuple, from one limiter, several, dicts of them, or ``None``."""
    if value is None:
        return ()
    many = value if isinstance(value, (list, tuple)) else (value,)
    made = tuple(_limiter(one, option, value) for one in many)
    if len(made) > MOST_WINDOWS:
        raise ConfigError(f"{option}={shown(value)}: expected {MOST_WINDOWS} windows at most")
    return made


def _limiter(one: Any, option: str, given: Any) -> Limiter:
    if isinstance(one, (Limiter, Mapping)):
        return build(Limiter, one, option)
    raise ConfigError(f"{option}={shown(given)}: expected Limiter(max, duration), several of them, or None")


Limits: TypeAlias = Limiter | Sequence[Limiter | Mapping[str, Any]] | Mapping[str, Any] | None
KeepRule: TypeAlias = bool | int | Retention | None
KEEP_ALL: Final = Retention()
KEEP_NONE: Final = Retention(count=0)


def retention(rule: Any, option: str) -> Retention:
    """A Retention from ``True`` (keep none), ``False`` or ``None`` (keep all), a count, the record, or a dict."""
    if isinstance(rule, Retention):
        return rule
    if rule is True:
        return KEEP_NONE
    if rule is False or rule is None:
        return KEEP_ALL
    if isinstance(rule, int):
        return Retention(count=whole(rule, option, least=0))
    if isinstance(rule, Mapping):
        return build(Retention, rule, option)
    raise ConfigError(f"{option}={shown(rule)}: expected True, False, a count, or Retention(age, count)")


def backoff(value: Any, option: str = "backoff") -> Backoff | BackoffFunction | None:
    """A backoff from the record, a dict, fixed seconds, a function ``(attempts_made, error)``, or ``None``."""
    if value is None or isinstance(value, Backoff):
        return value
    if isinstance(value, Mapping):
        return build(Backoff, value, option)
    if isinstance(value, (int, float, timedelta)) and not isinstance(value, bool):
        return Backoff("fixed", value)
    if callable(value):
        return value  # type: ignore[no-any-return]
    raise ConfigError(
        f"{option}={shown(value)}: expected Backoff('fixed' or 'exponential', seconds), "
        "a function (attempts_made, error) -> seconds, or None"
    )


@strict
@dataclass(frozen=True, slots=True)
class JobOptions:
    """How a job is tried, and how long its record is kept. The README's table has each default."""

    attempts: int | None = 100
    backoff: Backoff | BackoffFunction | Mapping[str, Any] | Seconds | None = Backoff("fixed", 60)
    remove_on_complete: KeepRule | Mapping[str, Any] = Retention(age=30 * DAY, count=1000)
    remove_on_fail: KeepRule | Mapping[str, Any] = Retention(age=90 * DAY, count=5000)
    timeout: Seconds | None = None

    def __post_init__(self) -> None:
        if self.attempts is not None:
            whole(self.attempts, "attempts", least=1)
        put(
            self,
            backoff=backoff(self.backoff),
            remove_on_complete=retention(self.remove_on_complete, "remove_on_complete"),
            remove_on_fail=retention(self.remove_on_fail, "remove_on_fail"),
        )
        if self.timeout is not None:
            put(self, timeout=seconds(self.timeout, "timeout", above=True))


@strict
@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How the jobs of one name are consumed. The README's table has each default.

    `concurrency` is 10 if left out, and 1 for a grouped job. With ``None`` only the process bounds it.
    """

    limiter: Limits = Limiter(max=2, duration=1)
    concurrency: int | Unset | None = UNSET
    max_stalled_count: int = 5
    autorun: bool = False
    lease: Seconds = 30
    group_idle: Seconds = 600
    total_limiter: Limits = None
    total_concurrency: int | None = None
    ordered: bool = False

    def __post_init__(self) -> None:
        for option in ("limiter", "total_limiter"):
            value = getattr(self, option)
            made = limiters(value, option)
            put(self, **{option: made if isinstance(value, (list, tuple)) else made[0] if made else None})
        if any(one.name for one in limiters(self.total_limiter, "total_limiter")):
            raise ConfigError(
                "total_limiter: it has no name; give the named one as limiter=…, it holds over all groups anyway"
            )
        if self.total_concurrency is not None:
            whole(self.total_concurrency, "total_concurrency", least=1)
        flag(self.ordered, "ordered")
        if self.ordered and self.concurrency not in (UNSET, 1):
            raise ConfigError(f"ordered=True with concurrency={shown(self.concurrency)}: order needs concurrency 1")
        if self.concurrency is not None and not isinstance(self.concurrency, Unset):
            whole(self.concurrency, "concurrency", least=1)
        whole(self.max_stalled_count, "max_stalled_count", least=0)
        flag(self.autorun, "autorun")
        put(self, lease=seconds(self.lease, "lease", least=0.1))
        put(self, group_idle=seconds(self.group_idle, "group_idle"))


@strict
@dataclass(frozen=True, slots=True)
class Alerts:
    """When something is alerted; False, or None for a bound, where it is not.

    Each is raised where it held in two of three minutes, and cleared where it did not.

    Attributes:
        no_consumer: no process consumes a name that holds work.
        oldest_waiting: seconds that a job may wait.
        failure_share: of the last tries, 20 of them at least, how many may fail.
        backlog: waiting jobs of a name from which on it is looked whether they get fewer.
        stalls: jobs of a name whose process died, in a minute.
        missed_tasks: a task did not tick when it was due.
        store: it may lose what it acknowledged, or evict it.
    """

    no_consumer: bool = True
    oldest_waiting: Seconds | None = 600
    failure_share: float | None = 0.2
    backlog: int | None = 1000
    stalls: int | None = 1
    missed_tasks: bool = True
    store: bool = True

    def __post_init__(self) -> None:
        for option in ("no_consumer", "missed_tasks", "store"):
            flag(getattr(self, option), f"alerts.{option}")
        if self.oldest_waiting is not None:
            waiting = seconds(self.oldest_waiting, "alerts.oldest_waiting", above=True, may_be_long=True)
            put(self, oldest_waiting=waiting)
        share = self.failure_share
        if share is not None and (isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1):
            raise ConfigError(f"alerts.failure_share={shown(share)}: expected a share above 0, 1 at most, or None")
        for option in ("backlog", "stalls"):
            if getattr(self, option) is not None:
                whole(getattr(self, option), f"alerts.{option}", least=1)


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """The checked arguments of `Runtime(...)`. Checking does no I/O."""

    prefix: str = "asyncjobs"
    environment: str = "development"
    timezone: str = "America/Sao_Paulo"
    consume: bool = True
    schedule: bool = True
    durability: Literal["local", "replicated"] = "local"
    concurrency: int = 1000
    max_payload: int = 1024 * 1024
    max_result: int = 1024 * 1024
    connect_timeout: Seconds = 10
    grace: Seconds = 10
    sentry_capture: Literal["every", "final"] = "every"
    sentry_payload: bool = False
    sweep_interval: Seconds = 15
    data_dir: str | None = None
    allow_eviction: bool = False
    strict_load: bool = True
    blocking_warning: Seconds | None = 0.25
    loop_budget: Seconds | None = 0.005
    gc_freeze: bool = False
    history: bool = True
    alerts: Alerts | None = Alerts()

    def __post_init__(self) -> None:
        if not isinstance(self.prefix, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", self.prefix):
            raise ConfigError(f"prefix={shown(self.prefix)}: expected 1 to 64 of A-Z a-z 0-9 _ . -")
        if not isinstance(self.environment, str) or not self.environment:
            raise ConfigError(f"environment={shown(self.environment)}: expected a name such as 'production'")
        flag(self.consume, "consume")
        flag(self.schedule, "schedule")
        flag(self.allow_eviction, "allow_eviction")
        flag(self.strict_load, "strict_load")
        flag(self.sentry_payload, "sentry_payload")
        flag(self.gc_freeze, "gc_freeze")
        flag(self.history, "history")
        if self.alerts is not None:
            put(self, alerts=build(Alerts, self.alerts, "alerts"))
        choice(self.durability, "durability", ("local", "replicated"))
        choice(self.sentry_capture, "sentry_capture", ("every", "final"))
        whole(self.concurrency, "concurrency", least=1)
        whole(self.max_payload, "max_payload", least=1)
        whole(self.max_result, "max_result", least=1)
        put(self, connect_timeout=seconds(self.connect_timeout, "connect_timeout", above=True))
        put(self, grace=seconds(self.grace, "grace"))
        put(self, sweep_interval=seconds(self.sweep_interval, "sweep_interval", above=True))
        if self.blocking_warning is not None:
            put(self, blocking_warning=seconds(self.blocking_warning, "blocking_warning", least=LEAST_BLOCK))
        if self.loop_budget is not None:
            put(self, loop_budget=seconds(self.loop_budget, "loop_budget", least=LEAST_BUDGET))
