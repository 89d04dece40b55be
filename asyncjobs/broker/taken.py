"""A job as the scripts hand it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

LONGEST: Final = 15  # digits of a number that every part of the system can hold


class TakenJob(NamedTuple):
    """A job as a script hands it out.

    Attributes:
        fault: what of its record cannot be read, in words; such a job cannot be run, and must not hold up others.
    """

    job_id: str
    entry: bytes
    data: bytes
    attempts_made: int
    stalled_count: int
    added_ms: int
    options: bytes
    token: bytes
    fault: str = ""


def taken(rows: Sequence[Any], width: int, token: bytes = b"") -> list[TakenJob]:
    """The jobs of `width` fields each in a script's flat reply; their token, unless each row ends with its own."""
    jobs = []
    for i in range(0, len(rows), width):
        job_id, entry, data, attempts, stalled, added, options = rows[i : i + 7]
        fence = token or rows[i + 7]
        try:
            made, died = 0 if attempts == b"0" else number(attempts), 0 if stalled == b"0" else number(stalled)
            since = int(added) if len(added) <= LONGEST else number(added)
            jobs.append(TakenJob(job_id.decode(), entry, data, made, died, since, options, fence))
        except ValueError:
            jobs.append(_damaged(job_id, entry, data, attempts, stalled, added, options, fence))
    return jobs


def number(text: bytes) -> int:
    """A count of a record.

    Raises:
        ValueError: it is none.
    """
    if not text.isdigit() or len(text) > LONGEST:
        raise ValueError(text[:LONGEST])
    return int(text)


def decoded_id(job_id: bytes) -> str:
    """A job id; one that is no UTF-8, as ours always are, keeps its bytes and becomes them again by `encoded_id`."""
    return job_id.decode(errors="surrogateescape")


def encoded_id(job_id: str) -> bytes:
    """The inverse of `decoded_id`."""
    return job_id.encode(errors="surrogateescape")


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
    """A job whose record somebody else has written, or changed."""
    faults, numbers = [], []
    if not _is_text(job_id):
        faults.append(f"its id is {job_id[:80]!r}, which is no UTF-8")
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
    made, died, added_ms = numbers
    return TakenJob(decoded_id(job_id), entry, data, made, died, added_ms, options, token, " and ".join(faults))


def _is_text(job_id: bytes) -> bool:
    try:
        job_id.decode()
    except UnicodeDecodeError:
        return False
    return True
