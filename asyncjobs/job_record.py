"""What a record tells of a job beside its data: failed tries, a cancel, acts of operators, where it was copied from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from asyncjobs import clock
from asyncjobs.declare import payload

if TYPE_CHECKING:
    pass


NUMBERED: Final = re.compile(r"[elE]([0-9]{1,15})", re.ASCII)


class TryError(msgspec.Struct, frozen=True):
    """One failed try: which one, what was raised, and where."""

    attempt: int
    text: str
    stack: str
    at: datetime

    def __str__(self) -> str:
        return f"try {self.attempt} at {self.at:%Y-%m-%d %H:%M:%S}Z: {self.text}\n{self.stack}"


class TryErrors(tuple[TryError, ...]):
    """The failed tries of a job, oldest first: the first one and the last ten; as text, each with its stack."""

    __slots__ = ()

    @property
    def left_out(self) -> int:
        """How many failed tries between the first and the last ten are not kept."""
        return max(0, self[-1].attempt - self[0].attempt + 1 - len(self)) if self else 0

    def __str__(self) -> str:
        texts = [str(one) for one in self]
        if self.left_out:
            texts.insert(1, f"… {self.left_out} more failed tries, which are not kept …")
        return "\n".join(texts)


NO_ERRORS: Final = TryErrors()


class Cancellation(msgspec.Struct, frozen=True):
    """Who asked for the cancel of a job, why, when, and from where.

    Attributes:
        by: who did it, '' where nobody said so.
        source: what it was done with: 'python' for code that calls `Job.cancel`.
    """

    by: str
    reason: str
    at: datetime
    source: str = ""


class StoredCancellation(msgspec.Struct):
    """A `Cancellation` as the record of the job holds it; `at` in ms."""

    by: str = ""
    reason: str = ""
    at: int = 0
    source: str = ""


class JobAct(msgspec.Struct, frozen=True):
    """What has befallen a job: what, when, who did it, from where, and why. The reason of a failed try is its error."""

    what: str
    at: datetime
    by: str = ""
    source: str = ""
    reason: str = ""


class StoredAct(msgspec.Struct):
    """A `JobAct` as the record of the job holds it; `at` in ms."""

    at: int
    what: str
    by: str = ""
    source: str = ""
    reason: str = ""


class Origin(NamedTuple):
    """The job that another was copied from."""

    name: str
    group_id: str | None
    id: str


class StoredError(msgspec.Struct, rename={"text": "t", "stack": "s", "at_ms": "a"}):
    """A `TryError` as the record of the job holds it."""

    text: str
    stack: str
    at_ms: int


# A record is read whatever it holds: another release may have written it, or an operator, or a fault of ours.
def number_of(value: bytes | None) -> int:
    """A count of a record; 0 where it is none."""
    return int(value) if value is not None and value.isdigit() and len(value) < 16 else 0


def value_of(raw: bytes | None) -> Any:
    """JSON of a record; None where it is none."""
    with suppress(Exception):  # not only msgspec's: what is nested too deeply is a RecursionError
        return None if raw is None else payload.decode(raw)
    return None


def instant_of(ms: bytes | float | None) -> datetime | None:
    """An instant of a record; None where it is none, or lies beyond the calendar."""
    with suppress(ValueError, OverflowError, OSError):
        return None if ms is None else clock.from_ms(ms)
    return None


def numbered(record: Mapping[str, bytes], kind: str) -> list[tuple[int, bytes]]:
    """The fields `kind`1, `kind`2, … of a record, in this order."""
    found = [(NUMBERED.fullmatch(field), value) for field, value in record.items() if field.startswith(kind)]
    return sorted((int(match[1]), value) for match, value in found if match is not None)


def cancellation(raw: bytes | None) -> Cancellation | None:
    """The mark of a record; None where there is none, or somebody has made something else of it."""
    if raw is None:
        return None
    with suppress(Exception):
        stored = msgspec.json.decode(raw, type=StoredCancellation)
        return Cancellation(stored.by, stored.reason, clock.from_ms(stored.at), stored.source)
    return Cancellation("", "", clock.from_ms(0), "")


def history_of(record: Mapping[str, bytes], errors: Iterable[TryError | None]) -> tuple[JobAct, ...]:
    """What has befallen a job, oldest first: its failed tries, its cancel, and what operators did to it."""
    found = list(acts_of(record.get("y", b"")))
    found += (JobAct("failed", one.at, reason=one.text) for one in errors if one is not None)
    if (mark := cancellation(record.get("k"))) is not None:
        found.append(JobAct("cancel", mark.at, mark.by, mark.source, mark.reason))
    return tuple(sorted(found, key=lambda one: one.at))


def acts_of(raw: bytes) -> tuple[JobAct, ...]:
    """The acts of a record; a line that cannot be read is left out."""
    found = []
    for line in raw.splitlines():
        with suppress(Exception):
            one = msgspec.json.decode(line, type=StoredAct)
            found.append(JobAct(one.what, clock.from_ms(one.at), one.by, one.source, one.reason))
    return tuple(found)


def try_error_before(raw: bytes) -> TryError | None:
    """The error of an attempt that counts no more; its number stands in front."""
    number, _, stored = raw.partition(b" ")
    return try_error(number_of(number), stored)


def try_error(attempt: int, raw: bytes) -> TryError | None:
    with suppress(Exception):
        stored = msgspec.json.decode(raw, type=StoredError)
        return TryError(attempt, stored.text, stored.stack, clock.from_ms(stored.at_ms))
    return None
