"""TakenJob: a job as the scripts hand it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from asyncjobs.record import Record

LONGEST: Final = 15  # digits of a number that all parts of the system can hold
LATEST: Final = 10**LONGEST


class Fault(NamedTuple):
    """The unreadable part of a record, in words, and the id under which the record is stored."""

    text: str
    stored_id: str | bytes


class TakenJob(Record, frozen=True, gc=False):
    """A job as a script hands it out.

    Attributes:
        fault: set if the job cannot be run. It must not hold up other jobs.
        mark: who asked for the job's cancel and why, as the record has it; empty: not asked for.
    """

    job_id: str
    entry: bytes
    data: bytes
    attempts_made: int
    stalled_count: int
    added_ms: int
    options: bytes
    token: bytes
    fault: Fault | None = None
    mark: bytes = b""


def taken(rows: Sequence[Any], width: int, token: bytes = b"") -> list[TakenJob]:
    """The jobs in a script's flat reply, `width` fields each. `token`: of all rows, unless rows end with their own."""
    jobs = []
    for i in range(0, len(rows), width):
        job_id, entry, data, attempts, stalled, added, options = rows[i : i + 7]
        fence = token or rows[i + 7]
        try:
            made, died = 0 if attempts == b"0" else number(attempts), 0 if stalled == b"0" else number(stalled)
            since = int(added)
            if since > LATEST:
                raise ValueError
            jobs.append(TakenJob(job_id.decode(), entry, data, made, died, since, options, fence))
        except ValueError:
            jobs.append(_damaged(job_id, entry, data, attempts, stalled, added, options, fence))
    return jobs


def marked(rows: Sequence[Any], width: int, token: bytes = b"") -> list[TakenJob]:
    """The jobs of a flat reply whose cancel was asked for: as `taken` reads them, each with its mark behind."""
    jobs = []
    for i in range(0, len(rows), width + 1):
        (job,) = taken(rows[i : i + width], width, token)
        jobs.append(job._replace(mark=rows[i + width]))
    return jobs


def number(text: bytes) -> int:
    """A count of a record.

    Raises:
        ValueError: `text` is no count.
    """
    if not text.isdigit() or len(text) > LONGEST:
        raise ValueError(text[:LONGEST])
    return int(text)


def shown_id(job_id: bytes) -> str:
    """A job id as text, even if it is no UTF-8. Ids that asyncjobs makes are UTF-8."""
    return job_id.decode(errors="backslashreplace")


def _damaged(
    job_id: bytes,
    entry: bytes,
    data: bytes,
    attempts: bytes,
    stalled: bytes,
    added: bytes,
    options: bytes,
    token: bytes,
) -> TakenJob:
    """A job whose record another program has written or changed."""
    faults, numbers, stored_id = [], [], _text_or_bytes(job_id)
    if isinstance(stored_id, bytes):
        faults.append("its id is no UTF-8")
    for field, meaning, value in (
        ("a", "tries", attempts),
        ("s", "stalls", stalled),
        ("t", "the ms of its add", added),
    ):
        try:
            numbers.append(number(value))
        except ValueError:
            numbers.append(0)
            faults.append(f"its field {field!r} ({meaning}) is {value[:80]!r}, which is no number")
    made, died, since = numbers
    fault = Fault(" and ".join(faults), stored_id)
    return TakenJob(shown_id(job_id), entry, data, made, died, since, options, token, fault)


def _text_or_bytes(job_id: bytes) -> str | bytes:
    try:
        return job_id.decode()
    except UnicodeDecodeError:
        return job_id
