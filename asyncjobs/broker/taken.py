"""A job as the scripts hand it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class TakenJob(NamedTuple):
    """A job as a script hands it out."""

    job_id: str
    entry: bytes
    data: bytes
    attempts_made: int
    stalled_count: int
    added_ms: int
    options: bytes
    token: bytes


def taken(rows: Sequence[Any], width: int, token: bytes = b"") -> list[TakenJob]:
    """The jobs of `width` fields each in a script's flat reply; their token, unless each row ends with its own."""
    jobs = []
    for i in range(0, len(rows), width):
        job_id, entry, data, attempts, stalled, added, options = rows[i : i + 7]
        fence = token or rows[i + 7]
        made, died = 0 if attempts == b"0" else int(attempts), 0 if stalled == b"0" else int(stalled)
        jobs.append(TakenJob(job_id.decode(), entry, data, made, died, int(added), options, fence))
    return jobs
