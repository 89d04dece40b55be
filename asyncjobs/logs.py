"""Logs: errors with their text and their stack from the handler on, within bounds.

An exception is a guest: its text, its cause, even the name of its class may raise any error. This module contains such
errors. A message that may come a thousand times a second is logged once in ten seconds, with the number of messages.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

from asyncjobs import clock

HERE: Final = Path(__file__).parent
# The example's own jobs and tasks are an app's; the keeper of threads and the loop are nobody's business.
OURS: Final = tuple(str(path) for path in HERE.iterdir() if path.name != "demo")
MACHINERY: Final = ("concurrent/futures/", "asyncio/")
MOST_TEXT: Final = 2048  # bytes of UTF-8 of an error's text that are kept and logged
MOST_STACK: Final = 6144  # bytes of UTF-8 of an error's stack that are kept and logged
LONGEST_LINE: Final = 1024
SAID_EVERY: Final = 10.0  # seconds
MOST_KINDS: Final = 1000  # kinds of messages that are told apart in that time
OTHERS: Final = ""  # the kind of all messages that come while there is no room for another kind
NO_PARTS: Final[Mapping[str, Any]] = {}
CONTROL: Final = {code: "?" for code in range(32) if chr(code) not in "\t\n"}  # six bytes each in JSON


class Told(NamedTuple):
    """An error in the form in which a job keeps it and the log shows it, 8 kB at most.

    Attributes:
        text: ``ValueError: no such user``.
        stack: the end of the traceback, without the frames of asyncjobs.
        whole: text and stack were not cut.
    """

    text: str
    stack: str
    whole: bool = True


def told(error: BaseException) -> Told:
    """`error` in words. Never raises."""
    full = _text(error)
    text = _head(full, MOST_TEXT)
    try:
        whole = traceback.TracebackException(*exc_info(error))
        cut = _cut(whole)
        stack = "".join(whole.format())
    except BaseException:
        return Told(text, text, False)
    tail = _tail(stack)
    return Told(text, tail, not cut and text == full and tail == stack)


def _cut(error: traceback.TracebackException) -> bool:
    """Cut the texts of a chain before they are formatted, as they may have megabytes. Returns True if one was cut."""
    left: list[traceback.TracebackException | None] = [error]
    cut = False
    while left:
        one = left.pop()
        if one is None:
            continue
        text = getattr(one, "_str", "")
        if isinstance(text, str) and len(text) > MOST_TEXT:
            one._str = _head(text, MOST_TEXT - 64)  # type: ignore[attr-defined]
            cut = True
        left += (one.__cause__, one.__context__, *(one.exceptions or ()))
    return cut


class Stack:
    """The stack of an error as an argument of a log line, made only if the line is written."""

    __slots__ = ("_error", "_text")

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self._text = ""

    def __str__(self) -> str:
        self._text = self._text or told(self._error).stack.strip()  # kept, because each handler of the app asks for it
        return self._text


def said(error: BaseException) -> str:
    """``ValueError: no such user``, of a bounded length. Never raises, even if the exception's own text does."""
    return _head(_text(error), MOST_TEXT)


def _text(error: BaseException) -> str:
    try:
        kind = str(type(error).__name__)
    except BaseException:
        kind = "an exception without a name"
    try:
        text = str(error)
    except BaseException:
        text = "<its text cannot be read>"
    return f"{kind}: {text}" if text else kind


def _head(text: str, most: int) -> str:
    """The first `most` bytes of `text`, as UTF-8 can hold them."""
    raw = text[: most + 1].translate(CONTROL).encode(errors="replace")
    return raw.decode() if len(raw) <= most else raw[: most - 3].decode(errors="ignore") + "…"


def _tail(stack: str) -> str:
    """The last `MOST_STACK` bytes of `stack`. Very long lines are cut."""
    if len(stack) > MOST_STACK:
        lines = stack[-64 * MOST_STACK :].splitlines()
        stack = "\n".join(line if len(line) <= LONGEST_LINE else _head(line, LONGEST_LINE) for line in lines) + "\n"
    raw = stack[-MOST_STACK:].translate(CONTROL).encode(errors="replace")
    return raw[-MOST_STACK:].decode(errors="ignore")


def say(logger: logging.Logger, level: int, message: str, *args: Any) -> None:
    """Log `message`. Never raises, because no job may depend on the app's filters and handlers."""
    with suppress(BaseException):
        logger.log(level, message, *args, stacklevel=2)


def log(
    logger: logging.Logger,
    level: int,
    error: Told | None,
    source: Any,
    message: str,
    *args: Any,
    parts: Mapping[str, Any] = NO_PARTS,
) -> None:
    """Log `message` with the stack of `error`. `source` is the exception, for handlers that read more than text.

    `parts`: what the message is made up of, by name, as attributes of the record; what the app's own record factory
    has set under such a name stays.

    A formatter uses a stack that it finds, instead of making its own, which may be twenty megabytes.
    """
    if logger.isEnabledFor(level):
        file, line, function, _ = logger.findCaller(stacklevel=2)
        info = exc_info(source) if error is not None and error.whole else None
        record = logger.makeRecord(logger.name, level, file, line, message, args, info, function)
        if error is not None:
            record.exc_text = error.stack.rstrip("\n")
        label(record, parts)
        logger.handle(record)


def label(record: logging.LogRecord, parts: Mapping[str, Any]) -> None:
    """Set attributes of a record, but for those that it has already."""
    known = record.__dict__
    for name, value in parts.items():
        if known.get(name) is None:
            known[name] = value


class _Contained:
    """A logger of asyncjobs. Errors of the app's handlers, filters and record factories end here.

    State: `_told`, the first such error was printed, as logging itself prints errors of its own handlers.
    """

    _told = False

    def _log(self, *args: Any, stacklevel: int = 1, **options: Any) -> None:
        try:
            super()._log(*args, stacklevel=stacklevel + 1, **options)  # type: ignore[misc]
        except BaseException:
            self._raised()

    def handle(self, record: logging.LogRecord) -> None:
        try:
            super().handle(record)  # type: ignore[misc]
        except BaseException:
            self._raised()

    def _raised(self) -> None:
        if logging.raiseExceptions and not self._told:
            type(self)._told = True
            with suppress(BaseException):
                traceback.print_exc()


def contain(*names: str) -> None:
    """Contain the errors of loggers, whatever class the app has chosen for them."""
    for name in names:
        one = logging.getLogger(name)
        if not isinstance(one, _Contained):
            one.__class__ = type("Logger", (_Contained, type(one)), {})


contain("asyncjobs", "asyncjobs.work", "asyncjobs.cron", "asyncjobs.io", "asyncjobs.store")


def from_the_handler(error: BaseException) -> TracebackType | None:
    """The traceback of `error` without the leading frames of asyncjobs, because their locals hold the raw job."""
    at = error.__traceback__
    while at is not None and _is_ours(at.tb_frame.f_code.co_filename):
        at = at.tb_next
    return at or error.__traceback__


def _is_ours(filename: str) -> bool:
    return filename.startswith(OURS) or any(part in filename for part in MACHINERY)


def exc_info(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """`error` in the form that `logging` takes, with the traceback from the handler on."""
    try:
        return type(error), error, from_the_handler(error)
    except BaseException:
        return type(error), error, None


def is_closing(aio_task: asyncio.Task[Any] | None) -> bool:
    """True if a GeneratorExit in `aio_task` means that the task ends with its loop, so it must not go on.

    Otherwise the code in the task has raised the GeneratorExit itself.
    """
    try:
        return aio_task is None or asyncio.current_task() is not aio_task
    except RuntimeError:
        return True


class ThrottledLog:
    """A log that writes each kind of message once per `SAID_EVERY`, and at most `MOST_KINDS` kinds in that time.

    State: `_said`, kind → the instant of its last message, and how many were held back since; `_full_until`, the
    instant before which no kind can be forgotten.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._said: dict[str, tuple[float, int]] = {}
        self._full_until = float("-inf")

    def error(self, kind: str, message: str, *args: Any) -> None:
        self._say(logging.ERROR, kind, message, args)

    def warning(self, kind: str, message: str, *args: Any) -> None:
        self._say(logging.WARNING, kind, message, args)

    def _say(self, level: int, kind: str, message: str, args: tuple[Any, ...]) -> None:
        now = clock.monotonic()
        if kind not in self._said and len(self._said) >= MOST_KINDS:
            if now >= self._full_until:
                self._forget(now)
            if len(self._said) >= MOST_KINDS:
                kind = OTHERS
        at, held = self._said.get(kind, (float("-inf"), 0))
        if now - at < SAID_EVERY:
            self._said[kind] = (at, held + 1)
            return
        self._said[kind] = (now, 0)
        if held:
            message, args = message + " (and %d more like it)", (*args, held)
        say(self._logger, level, message, *args)

    def _forget(self, now: float) -> None:
        """Drop the kinds that may be logged again anyway."""
        self._said = {kind: (at, held) for kind, (at, held) in self._said.items() if now - at < SAID_EVERY}
        self._full_until = min((at for at, _ in self._said.values()), default=now) + SAID_EVERY
