"""Values: checks for single options, and records that refuse unknown options."""

from __future__ import annotations

import contextvars
import difflib
import functools
import inspect
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from asyncjobs.errors import AsyncjobsWarning, ConfigError

Seconds: TypeAlias = int | float | timedelta


Record = TypeVar("Record")


DAY: Final = 86_400.0


FOREVER: Final = 100 * 365 * DAY  # longer than any delay that can be meant


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
    except Exception as error:  # raised by a class of the app
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= most else text[: most - 1] + "…"


OWN_FOLDER: Final = str(Path(__file__).parent.parent) + os.sep


# The file of jobs/ or tasks/ that is being loaded. Warnings during the load name it.
loading: Final[contextvars.ContextVar[str]] = contextvars.ContextVar("asyncjobs_loading", default="")


def warn(text: str) -> None:
    """Warn of a likely mistake. The text names the file that is being loaded; the warning points at the app's line."""
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
        option: the name of the option, for the message.
        least: the smallest value allowed; with `above`, the value must be greater than `least`.
        may_be_long: durations of days are usual for the option, so they cause no warning about milliseconds.
    Raises:
        ConfigError: `value` is no finite duration, or out of bounds.
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
    """True for more than a day, and for round thousands that are no whole hours: 60000 ms is a minute."""
    return value > DAY or (value >= 10_000 and value % 1000 == 0 and value % 3600 != 0)


def _plain(value: float) -> str:
    return f"{value / 3600:.1f} hours" if value <= 2 * DAY else f"{value / DAY:.1f} days"


def duration(value: Seconds) -> float:
    """A checked duration as float seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def whole(value: Any, option: str, *, least: int, most: int | None = None) -> int:
    """`value` as an int within bounds. A bool is refused."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not fits or (most is not None and value > most):
        bound = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ConfigError(f"{option}={shown(value)}: expected a whole number, {bound}")
    return int(value)


def folder(value: Any, option: str) -> Path | None:
    """`value` as a path; None stays None."""
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
    """Class decorator: an unknown or missing argument of `kind` raises a ConfigError."""
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


def snake(key: str) -> str:
    """``removeOnComplete`` → ``remove_on_complete``, because plain dicts may use the spellings of the Node original."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", key).lower()


def keywords(given: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> dict[str, Any]:
    """The options of `given` in snake_case. An unknown option raises a ConfigError, which lists the allowed ones."""
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
    """Make a `record` of `given`, which is a record already, or a mapping of its fields. Both are checked."""
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
