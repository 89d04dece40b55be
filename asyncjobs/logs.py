"""Logs: errors as a user wants to see them, their text and their stack from the handler on, within bounds.

An exception is a guest: its text, its cause, even the name of its class may raise whatever they like. Here they do no
harm. What may happen a thousand times a second is said once every ten, with how often it happened.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

from asyncjobs import clock

HERE: Final = Path(__file__).parent
# The example's own jobs and tasks are an app's; the keeper of threads and the loop are nobody's business.
OURS: Final = tuple(str(path) for path in HERE.iterdir() if path.name != "demo")
MACHINERY: Final = ("concurrent/futures/", "asyncio/")
MOST_TEXT: Final = 2048  # bytes of UTF-8 that are kept and logged of an error's text
MOST_STACK: Final = 6144  # the same of its stack
LONGEST_LINE: Final = 1024
SAID_EVERY: Final = 10.0  # seconds
MOST_KINDS: Final = 1000  # of messages that are told apart in that time
OTHERS: Final = ""  # the kind of all that come while there is no room for another kind
CONTROL: Final = {code: "?" for code in range(32) if chr(code) not in "\t\n"}  # six bytes each in JSON


class Told(NamedTuple):
    """An error as it is kept with a job and logged; together 8 kB at the most.

    Attributes:
        text: ``ValueError: no such user``.
        stack: the end of its traceback, without our own frames.
        whole: nothing of it was cut.
    """

    text: str
    stack: str
    whole: bool = True


def told(error: BaseException) -> Told:
    """`error` in words, whatever it is."""
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
    """Cut the texts of a chain before they are formatted: they may be megabytes of lines. Whether any was that long."""
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
        self._text = self._text or told(self._error).stack.strip()  # each handler of the app asks for it
        return self._text


def said(error: BaseException) -> str:
    """``ValueError: no such user``, of a bounded length, on whatever an exception's own text does."""
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
    """The last `MOST_STACK` bytes of `stack`; a line that would take the room of many is cut."""
    if len(stack) > MOST_STACK:
        lines = stack[-64 * MOST_STACK :].splitlines()
        stack = "\n".join(line if len(line) <= LONGEST_LINE else _head(line, LONGEST_LINE) for line in lines) + "\n"
    raw = stack[-MOST_STACK:].translate(CONTROL).encode(errors="replace")
    return raw[-MOST_STACK:].decode(errors="ignore")


def say(logger: logging.Logger, level: int, message: str, *args: Any) -> None:
    """Log `message`, on whatever the app's filters and handlers do: no job may hang on them."""
    with suppress(BaseException):
        logger.log(level, message, *args, stacklevel=2)


def log(logger: logging.Logger, level: int, error: Told, source: Any, message: str, *args: Any) -> None:
    """Log `message` with the stack of `error`; `source` is the exception, for handlers that read more than text.

    A formatter takes a stack that is there already instead of making one, which may be twenty megabytes.
    """
    if logger.isEnabledFor(level):
        file, line, function, _ = logger.findCaller(stacklevel=2)
        info = exc_info(source) if error.whole else None
        record = logger.makeRecord(logger.name, level, file, line, message, args, info, function)
        record.exc_text = error.stack.rstrip("\n")
        logger.handle(record)


class _Contained:
    """A logger of ours. The app's handlers, filters and record factories are guests: what they raise ends here.

    State: `_told`, the first such error was printed, as logging itself prints those of its own handlers.
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
    """Let loggers harm nobody, whichever class the app has chosen for them."""
    for name in names:
        one = logging.getLogger(name)
        if not isinstance(one, _Contained):
            one.__class__ = type("Logger", (_Contained, type(one)), {})


contain("asyncjobs", "asyncjobs.io", "asyncjobs.declare.cron_expression")


def from_the_handler(error: BaseException) -> TracebackType | None:
    """The traceback of `error` without its leading frames of ours, whose locals hold the raw job too."""
    at = error.__traceback__
    while at is not None and _is_ours(at.tb_frame.f_code.co_filename):
        at = at.tb_next
    return at or error.__traceback__


def _is_ours(filename: str) -> bool:
    return filename.startswith(OURS) or any(part in filename for part in MACHINERY)


def exc_info(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """`error` as `logging` takes it, with that traceback."""
    try:
        return type(error), error, from_the_handler(error)
    except BaseException:
        return type(error), error, None


def is_closing(aio_task: asyncio.Task[Any] | None) -> bool:
    """Whether a GeneratorExit in `aio_task` means that it is being taken down with its loop, so it must not go on.

    Otherwise something that it runs has raised it, as it may raise anything.
    """
    try:
        return aio_task is None or asyncio.current_task() is not aio_task
    except RuntimeError:
        return True


class ThrottledLog:
    """A log that says each kind of thing once per `SAID_EVERY`, and no more than `MOST_KINDS` kinds in one.

    State: `_said`, kind → when it was last said, and how often it was held back since; `_full_until`, before which no
    kind can have become free to be forgotten.
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
        """Drop the kinds that may be said again anyway."""
        self._said = {kind: (at, held) for kind, (at, held) in self._said.items() if now - at < SAID_EVERY}
        self._full_until = min((at for at, _ in self._said.values()), default=now) + SAID_EVERY
