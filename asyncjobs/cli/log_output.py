"""What `run` prints: a line for each finished try and tick, and the log, as text or as JSON.

Only the command line sets logging up, and only where the app has not; an embedded runtime never does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TextIO

from asyncjobs import words
from asyncjobs.errors import named
from asyncjobs.events import EVENT_TYPES, Event
from asyncjobs.log_context import JobLogFilter
from asyncjobs.logs import label

if TYPE_CHECKING:
    from asyncjobs.runtime import Runtime

MOST_LINES: Final = 50  # a second, of tries and ticks that went well; as many of those that did not
SECOND: Final = 1.0
WELL: Final = ("job.completed", "job.retrying", "job.cancelled", "task.completed")
OUTCOMES: Final = {"job.retrying": "later"}  # without an error; those with one are told by `asyncjobs.work` itself
KEYS: Final = ("job", "group", "id", "attempt", "task", "outcome", "duration", "delay", "error")
MARKS: Final = {
    "completed": ("✓", "32"), "failed": ("✕", "31"), "discarded": ("✕", "31"), "retrying": ("↻", "33"),
    "later": ("↻", "36"), "cancelled": ("■", "35"), "skipped": ("–", "33"),
}  # fmt: skip
LEVELS: Final = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "1;31"}
OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", *KEYS}
work, cron = logging.getLogger("asyncjobs.work"), logging.getLogger("asyncjobs.cron")


def colours(stream: TextIO) -> bool:
    """Whether `stream` shows colours, and is asked to."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def set_up(stream: TextIO, level: int, log_format: str | None) -> None:
    """Log to `stream`, unless the app has set logging up and `log_format` asks for nothing else."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(JobLogFilter())
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines(stream.isatty(), colours(stream)))
    logging.basicConfig(level=level, handlers=[handler], force=log_format is not None)
    logging.captureWarnings(log_format == "json")


class TextLines(logging.Formatter):
    """A line for people: short, with marks, on a terminal; with the date, the level and the logger in a pipe.

    A text of others moves no cursor and begins no line: what is not printable is shown as an escape.
    """

    def __init__(self, terminal: bool, coloured: bool) -> None:
        super().__init__()
        self._terminal, self._coloured = terminal, coloured

    def format(self, record: logging.LogRecord) -> str:
        outcome = getattr(record, "outcome", None)
        text = words.lines(record.getMessage())
        text = words.one_line(text) if outcome else text.replace("\n", "\n    ")
        took = getattr(record, "duration", None)
        if isinstance(took, (int, float)):
            text += f"  {self._paint(words.duration(took), '2')}"
        if not record.name.startswith("asyncjobs") and getattr(record, "id", None) is not None:
            text += self._paint(_whose(record), "2")
        stack = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
        return "\n".join((self._head(record, outcome) + text, *([words.lines(stack)] if stack else [])))

    def _head(self, record: logging.LogRecord, outcome: Any) -> str:
        if not self._terminal:
            return f"{self.formatTime(record)} {record.levelname} {record.name}: "
        mark, colour = MARKS.get(outcome, ("", LEVELS.get(record.levelno, "")))
        if not mark and record.levelno != logging.INFO:
            mark = record.levelname.lower() + ":"
        time = self._paint(self.formatTime(record, "%H:%M:%S"), "2")
        return f"{time} {self._paint(mark, colour) + ' ' if mark else ''}"

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured and code else text


def _whose(record: logging.LogRecord) -> str:
    group, attempt = getattr(record, "group", None), getattr(record, "attempt", None)
    who = named(str(getattr(record, "job", "")), str(getattr(record, "id", "")), None if group is None else str(group))
    return f"  [{who}{'' if attempt is None else f' try {attempt}'}]"


class JsonLines(logging.Formatter):
    """One JSON object a line, always with the same keys; what the app has put on a record stands under `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        stack = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else None)
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        extra = {name: value for name, value in vars(record).items() if name not in OWN}
        line = {
            "at": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{key: getattr(record, key, None) for key in KEYS},
            "stack": stack,
            "extra": extra,
        }
        try:
            return json.dumps(line, default=_shown, allow_nan=False)
        except (ValueError, TypeError, RecursionError):  # a key that is no text, a list that holds itself
            return json.dumps(
                {key: value if type(value) in (str, int) else _shown(value) for key, value in line.items()}
            )


def _shown(value: Any) -> str | None:
    try:
        return None if value is None else str(value)
    except Exception:
        return f"<{type(value).__name__}>"


class Lines:
    """A line for each finished try and tick, `MOST_LINES` a second at most; then how many were left out.

    While nothing more may be said of jobs that complete, nobody listens for them: a thousand a second cost nothing.

    Args:
        well: whether to tell of those that went well too. The others are warnings and errors of the log in any case.
    """

    def __init__(self, runtime: Runtime, *, well: bool) -> None:
        self._runtime, self._loop = runtime, asyncio.get_running_loop()
        self._said: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._deaf_since: int | None = None  # completed jobs by then
        self._off = {kind: runtime.on(kind, self._well) for kind in WELL if well and kind in EVENT_TYPES}
        work.addFilter(self._may_be_said)

    def _well(self, event: Event) -> None:
        if event.error is not None and event.type != "job.cancelled":
            return  # the log tells of it
        kind = OUTCOMES.get(event.type, event.type.partition(".")[2])
        if not self._allowed("well", kind):
            if event.type == "job.completed" and self._deaf_since is None:
                self._deaf_since = self._completed()
                self._off["job.completed"]()
            return
        if event.type.startswith("task."):
            parts: dict[str, Any] = {"task": event.name, "outcome": kind, "duration": event.duration}
            _say(cron, f"task {event.name} {kind}", parts)
        else:
            self._say_job(event, kind)

    def _say_job(self, event: Event, kind: str) -> None:
        number = (event.attempts_made or 0) + (kind != "completed")
        parts: dict[str, Any] = {
            "job": event.name, "group": event.group_id, "id": event.job_id, "attempt": number, "outcome": kind,
            "duration": event.duration, "delay": event.delay,
        }  # fmt: skip
        again = ""
        if kind == "later":
            again = f", again in {words.duration(event.delay or 0)} as it asked"
        verb = "ended" if kind == "later" else kind
        who = named(event.name, event.job_id or "", event.group_id)
        _say(work, f"{who} {verb} at try {number}{again}", parts)

    def _may_be_said(self, record: logging.LogRecord) -> bool:
        """A filter of the logger that tells of failed tries."""
        outcome = getattr(record, "outcome", None)
        return outcome not in ("failed", "retrying", "discarded") or self._allowed("badly", outcome)

    def _allowed(self, how: str, kind: str) -> bool:
        if self._timer is None:
            self._timer = self._loop.call_later(SECOND, self._over)
        self._said[how] += 1
        if self._said[how] <= MOST_LINES:
            return True
        self._left_out[kind] += 1
        return False

    def _completed(self) -> int:
        return self._runtime.health()["counters"]["completed"]

    def _over(self) -> None:
        """A second is over: say what was left out in it."""
        self._timer = None
        self._said.clear()
        if self._deaf_since is not None:
            self._left_out["completed"] += self._completed() - self._deaf_since
            self._deaf_since = None
            self._off["job.completed"] = self._runtime.on("job.completed", self._well)
        if self._left_out:
            left = ", ".join(f"{words.number(count)} {kind}" for kind, count in self._left_out.items())
            self._left_out.clear()
            _say(work, f"… and more in that second, of which no line is printed: {left}", {})

    def close(self) -> None:
        """Nothing more is told; what was left out until now is."""
        if self._timer is not None:
            self._timer.cancel()
            self._over()
        for off in self._off.values():
            off()
        work.removeFilter(self._may_be_said)


def _say(logger: logging.Logger, message: str, parts: dict[str, Any]) -> None:
    if logger.isEnabledFor(logging.INFO):
        record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, message, (), None, "_say")
        label(record, parts)
        logger.handle(record)
