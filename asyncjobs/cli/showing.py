"""Jobs as commands show them: as a row, in full, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from asyncjobs import clock, redaction, words
from asyncjobs.cli import output
from asyncjobs.cli.output import Cell, Column

if TYPE_CHECKING:
    from asyncjobs.job import Job

LONGEST_CELL: Final = 500  # characters
LONGEST_PAYLOAD: Final = 20_000
LOGS: Final = 20  # last lines
COLUMNS: Final = {
    "id": Column("id"), "name": Column("name"), "group": Column("group"), "state": Column("state"),
    "when": Column("when"), "tries": Column("tries", number=True), "stalled": Column("stalled", number=True),
    "added": Column("added"), "started": Column("started"), "finished": Column("finished"), "due": Column("due"),
    "took": Column("took", number=True), "waited": Column("waited", number=True), "progress": Column("progress"),
    "error": Column("error", flexible=True), "data": Column("data", flexible=True),
    "about": Column("about", flexible=True),
}  # fmt: skip


def when(job: Job) -> datetime | None:
    """The instant that matters: finished, started, due or added."""
    if job.state == "delayed":
        return job.due_at
    return job.finished_at or (job.started_at if job.state == "active" else None) or job.added_at


def took(job: Job) -> float | None:
    """Seconds that its last try took, or has taken so far."""
    if job.started_at is None:
        return None
    end = job.finished_at or (clock.now() if job.state == "active" else None)
    return None if end is None else (end - job.started_at).total_seconds()


def ready_at(job: Job) -> datetime | None:
    """When it began to wait last: when it was added, came due, or was put back."""
    ms, dash, _ = (job._record or {}).get("i", b"").partition(b"-")
    if dash and ms.isdigit() and len(ms) < 15:
        return clock.from_ms(ms)
    return job.added_at if job.attempts_made <= 1 else None


def waited(job: Job) -> float | None:
    """Seconds that it has waited for its last start, or has waited so far."""
    begin = ready_at(job)
    if begin is None:
        return None
    end = clock.now() if job.state == "waiting" else None if job.state == "delayed" else job.started_at
    return None if end is None else max(timedelta(), end - begin).total_seconds()


def tries(job: Job) -> str:
    made = job.attempts_made
    return f"{made}" if job.attempts is None else f"{made}/{job.attempts}"


def data(job: Job, reveal: bool) -> str:
    """Its payload on one line."""
    return compact(job.data if reveal else redaction.redacted(job.data))


def compact(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)[:LONGEST_CELL]
    except (ValueError, RecursionError):
        return words.one_line(str(value))[:LONGEST_CELL]


def last_error(job: Job) -> str | None:
    return redaction.text(job.error[-1].text) if job.error else None


def cell(job: Job, column: str, reveal: bool) -> Any:
    """One cell of a job's row."""
    if column == "about":
        error = last_error(job)
        return Cell(error, "red") if error is not None and job.state != "completed" else data(job, reveal)
    made: dict[str, Any] = {
        "id": job.id, "name": job.name, "group": job.group_id, "when": when(job), "tries": tries(job),
        "stalled": job.stalled_count, "added": job.added_at, "started": job.started_at, "finished": job.finished_at,
        "due": job.due_at,
    }  # fmt: skip
    if column in made:
        return made[column]
    if column == "state":
        return output.state(job.state)
    if column in ("took", "waited"):
        seconds = took(job) if column == "took" else waited(job)
        return None if seconds is None else Cell(words.duration(seconds), "", f"{seconds:.3f}")
    if column == "progress":
        return None if job.progress is None else compact(job.progress)
    return last_error(job) if column == "error" else data(job, reveal)


def table(jobs: Sequence[Job], columns: Sequence[str], reveal: bool, empty: str = "") -> None:
    """Jobs, one a row."""
    rows = [[cell(job, column, reveal) for column in columns] for job in jobs]
    output.table([COLUMNS[column] for column in columns], rows, empty)


def _hider(reveal: bool) -> Callable[[Any], Any]:
    """What hides secrets in a value, unless they are to be shown."""
    return (lambda value: value) if reveal else redaction.redacted


def as_dict(job: Job, reveal: bool) -> dict[str, Any]:
    """A job as JSON."""
    hide = _hider(reveal)
    cancelled = getattr(job, "cancelled_by", None)
    found: dict[str, Any] = {
        "id": job.id, "name": job.name, "group": job.group_id, "state": job.state, "data": hide(job.data),
        "result": hide(job.result), "progress": hide(job.progress), "logs": [hide(line) for line in job.logs],
        "attempts_made": job.attempts_made, "attempts": job.attempts, "stalled_count": job.stalled_count,
        "added_at": job.added_at, "started_at": job.started_at, "finished_at": job.finished_at, "due_at": job.due_at,
        "errors": [
            {"attempt": one.attempt, "at": one.at, "text": hide(one.text), "stack": hide(one.stack)}
            for one in job.error
        ],
        "errors_left_out": job.error.left_out,
    }  # fmt: skip
    for name in ("tags", "priority", "history", "copied_from", "flow", "batch"):
        if hasattr(job, name):
            found[name] = getattr(job, name)
    found["cancelled_by"] = cancelled
    return found


def show(job: Job, reveal: bool) -> None:
    """Everything that is known of a job."""
    now = clock.now()
    seconds, wait = took(job), waited(job)
    stalls = job.stalled_count or None
    output.details(
        [
            ("id", job.id),
            ("job", job.name),
            ("group", job.group_id),
            ("state", output.state(job.state)),
            ("added", output.since(job.added_at, now)),
            ("due", None if job.due_at is None else output.since(job.due_at, now)),
            ("started", None if job.started_at is None else output.since(job.started_at, now)),
            ("finished", None if job.finished_at is None else output.since(job.finished_at, now)),
            ("waited", None if wait is None else words.duration(wait)),
            ("took", None if seconds is None else words.duration(seconds)),
            ("tries", tries(job)),
            ("stalls", stalls),
            ("copied from", _words(getattr(job, "copied_from", None))),
            ("cancelled by", _words(getattr(job, "cancelled_by", None))),
            ("tags", ", ".join(getattr(job, "tags", None) or ()) or None),
            ("progress", None if job.progress is None else compact(job.progress)),
        ]
    )
    hide = _hider(reveal)
    output.block("data", pretty(hide(job.data)))
    if job.result is not None:
        output.block("result", pretty(hide(job.result)))
    for number, error in enumerate(job.error):
        if number == 1 and job.error.left_out:
            output.block(f"… {job.error.left_out} more failed tries, which are not kept …", "")
        output.block(f"try {error.attempt}, {output.at(error.at)}", hide(error.stack or error.text))
    if job.logs:
        left = len(job.logs) - LOGS
        title = "log" if left <= 0 else f"log, the last {LOGS} lines of {len(job.logs)}"
        output.block(title, "\n".join(hide(line) for line in job.logs[-LOGS:]))
    history = getattr(job, "history", None)
    if history:
        output.block("history", "\n".join(str(_words(one)) for one in history))


def _words(value: Any) -> str | None:
    """What an operator did, or what it was done to, in words."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    parts = output._builtin(value)
    if isinstance(parts, dict):
        return "  ".join(str(output.plain(one)) for one in parts.values() if one not in (None, "", []))
    return str(value)


def pretty(value: Any) -> str:
    """JSON on several lines, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    except (ValueError, RecursionError):
        text = str(value)
    if len(text) > LONGEST_PAYLOAD:
        return f"{text[:LONGEST_PAYLOAD]}\n… {len(text) - LONGEST_PAYLOAD:,} more characters; --json prints all"
    return text
