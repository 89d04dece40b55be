"""The option records: frozen, checked when they are made, the same in code, in files and in plain dicts.

A record's field defaults *are* the documented defaults, so whatever a job leaves out is laid over them key
by key, and an explicit ``None`` stays ``None`` ("none", not "default").
"""

from __future__ import annotations

import contextvars
import difflib
import functools
import inspect
import math
import os
import random
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args

from asyncjobs.errors import AsyncjobsWarning, ConfigError

Seconds: TypeAlias = int | float | timedelta
BackoffType: TypeAlias = Literal["fixed", "exponential"]
BackoffFunction: TypeAlias = Callable[[int, BaseException], float]
Record = TypeVar("Record")

DAY: Final = 86_400.0
FOREVER: Final = 100 * 365 * DAY  # longer than any delay that can be meant
LEAST_WINDOW: Final = 1e-6  # seconds; the store counts in microseconds
LEAST_BUDGET: Final = 0.0005  # seconds; the loop itself would take up the most of less
LEAST_BLOCK: Final = 0.02  # seconds; to watch a loop for less would cost more than it tells


class Unset:
    """The type of `UNSET`, the default of an override that was not given (``None`` is a value)."""

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> bool:
        return False


UNSET: Final = Unset()


def shown(value: object, most: int = 80) -> str:
    """`value` as an error message quotes it: its repr, never longer than `most` characters."""
    try:
        text = repr(value)
    except Exception as error:  # of a class of the app
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= most else text[: most - 1] + "…"


OWN_FOLDER: Final = str(Path(__file__).parent.parent) + os.sep
# The file of jobs/ or tasks/ that is being loaded, for what is said meanwhile.
loading: Final[contextvars.ContextVar[str]] = contextvars.ContextVar("asyncjobs_loading", default="")


def warn(text: str) -> None:
    """Warn of a likely slip: the text names the file that is being loaded, the place is the line of the app."""
    if file := loading.get():
        text = f"{file}: {text}"
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith((OWN_FOLDER, "<")):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, AsyncjobsWarning, stacklevel=level)


def seconds(value: Any, option: str, *, least: float = 0.0, above: bool = False, may_be_long: bool = False) -> float:
    """`value` as float seconds.

    Args:
        value: an int, a float or a timedelta; a plain number that looks like milliseconds is warned about.
        option: its name for the message.
        least: the smallest value allowed; with `above`, the value must be greater than it.
        may_be_long: days are nothing unusual, and never taken for milliseconds.
    Raises:
        ConfigError: not a finite duration, or out of bounds.
    """
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    else:
        raise ConfigError(f"{option}={shown(value)}: expected seconds (int, float or timedelta)")
    if not math.isfinite(result) or result > FOREVER or result < least or (above and result == least):
        bound = f"more than {least:g}" if above else f"at least {least:g}"
        raise ConfigError(f"{option}={shown(value)}: expected {bound} and at most 100 years, in seconds")
    if not (may_be_long or isinstance(value, timedelta)) and _looks_like_milliseconds(result):
        warn(
            f"{option}={value!r}: durations are seconds, and {value!r} is {_plain(result)}; "
            f"did you mean {result / 1000:g} seconds? (a timedelta is never asked about)"
        )
    return result


def _looks_like_milliseconds(value: float) -> bool:
    """Over a day, or round thousands that are no whole number of hours: 60000 is a minute of milliseconds."""
    return value > DAY or (value >= 10_000 and value % 1000 == 0 and value % 3600 != 0)


def _plain(value: float) -> str:
    return f"{value / 3600:.1f} hours" if value <= 2 * DAY else f"{value / DAY:.1f} days"


def duration(value: Seconds) -> float:
    """A checked duration as float seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def whole(value: Any, option: str, *, least: int, most: int | None = None) -> int:
    """`value` as an int within bounds; a bool is not a number here."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not fits or (most is not None and value > most):
        bound = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ConfigError(f"{option}={shown(value)}: expected a whole number, {bound}")
    return int(value)


def folder(value: Any, option: str) -> Path | None:
    """`value` as a path, or None for none."""
    if value is None:
        return None
    try:
        return Path(value)
    except TypeError:
        raise ConfigError(f"{option}={shown(value)}: expected the path of a folder, or None") from None


def flag(value: Any, option: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{option}={shown(value)}: expected True or False")
    return value


def choice(value: Any, option: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigError(f"{option}={shown(value)}: expected one of {', '.join(map(repr, allowed))}")
    return str(value)


def put(record: Any, **values: Any) -> None:
    """Set fields of a frozen record while it is being made."""
    for name, value in values.items():
        object.__setattr__(record, name, value)


def strict(kind: type[Record]) -> type[Record]:
    """Class decorator: an argument that `kind` does not take, or one that is missing, is a ConfigError."""
    init = kind.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except TypeError:
            _check_arguments(kind.__name__, init, args, kwargs)
            raise

    kind.__init__ = checked  # type: ignore[method-assign]
    return kind


def _check_arguments(where: str, init: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    signature = inspect.signature(init)
    names = tuple(signature.parameters)[1:]
    for key in kwargs:
        if key not in names:
            raise ConfigError(f"{where} has no option {key!r}; {_hint(key, names)}allowed: {', '.join(names)}")
    try:
        signature.bind(None, *args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{where}(…): {error}; it takes {', '.join(names)}") from None


def _hint(key: Any, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(snake(str(key)), allowed, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


@strict
@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a failed job waits before its next try.

    ``"fixed"``: always `delay`. ``"exponential"``: ``delay · 2**(n-1)`` after the n-th failure, never above
    `max_delay`. `jitter` from 0 to 1 takes away up to that share at random, so that many do not return at once.
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
    """Never more than `max` starts in any window of `duration` seconds, over all processes together.

    One with a `name` is shared by every job, and every group, that names it.
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
    """One limiter, several of them, dicts of them, or ``None``; as a tuple."""
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
    """``True``: keep none; ``False`` or ``None``: keep all; an int: that count; or the record, or a dict."""
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
    """The record, a dict of it, a number of fixed seconds, a function ``(attempts_made, error)``, or ``None``."""
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
    """How a job's tries are made and what is kept of it. See the table in the README for each default."""

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
    """How jobs of one name are consumed. See the table in the README for each default.

    `concurrency` left out is 10, and 1 for a grouped job; ``None`` means bounded by the process alone.
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


def snake(key: str) -> str:
    """``removeOnComplete`` → ``remove_on_complete``: the spellings of the Node original are understood."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", key).lower()


def keywords(given: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> dict[str, Any]:
    """The options of `given` under their own names; an unknown one is a ConfigError that lists the allowed."""
    result: dict[str, Any] = {}
    for key, value in given.items():
        name = snake(key) if isinstance(key, str) else key
        if name not in allowed:
            raise ConfigError(f"{where} has no option {key!r}; {_hint(key, allowed)}allowed: {', '.join(allowed)}")
        if name in result:
            raise ConfigError(f"{where} gives {name!r} twice, in two spellings")
        result[name] = value
    return result


def build(record: type[Record], given: Any, where: str) -> Record:
    """`given` as a `record`: it already is one, or a mapping of its fields, checked as strictly."""
    if isinstance(given, record):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}={shown(given)}: expected {record.__name__}(…) or a dict of its options")
    names = fields(record)  # type: ignore[arg-type]
    values = keywords(given, tuple(one.name for one in names), where)
    missing = [one.name for one in names if one.name not in values and _required(one)]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    return record(**values)


def _required(one: Any) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """What `Runtime(...)` was given, checked; no I/O."""

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
