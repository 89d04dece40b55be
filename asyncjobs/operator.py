"""The Operator: in whose name jobs are acted on. Each act is written to the audit trail first, then done, then told.

An act reaches any number of jobs of one queue. What is not written is not done: a trail that the store refuses to
lengthen stops the act.
"""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from asyncjobs import clock
from asyncjobs.broker import DONE, DONE_BEFORE, GONE, Act, Broker, Keys, Target, bounds
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.options import JobOptions
from asyncjobs.declare.overrides import NO_OVERRIDES, Overrides
from asyncjobs.declare.values import shown
from asyncjobs.errors import ConfigError
from asyncjobs.events import EventBus
from asyncjobs.job_record import StoredCancellation
from asyncjobs.record import Record

LONGEST_REASON: Final = 500  # characters that are kept
LONGEST_NAME: Final = 100
ENTRY: Final = re.compile(r"[0-9]{1,15}-[0-9]{1,15}", re.ASCII)
TRAIL_PIECE: Final = 200  # entries of the audit trail that are read at once
AT_ONCE: Final = 100  # jobs in one script, so that the store is not kept from others for long
TOLD: Final = {"retry": "job.retried", "promote": "job.promoted", "remove": "job.removed"}
STATES_BY_LETTER: Final = {
    "w": "waiting", "d": "delayed", "a": "active", "c": "completed", "f": "failed", "k": "cancelled", GONE: "gone",
}  # fmt: skip
CancelAnswer: TypeAlias = Literal["cancelled", "requested", "finished", "gone"]
CANCEL_ANSWERS: Final[Mapping[str, CancelAnswer]] = {
    "k": "cancelled", "x": "cancelled", "a": "requested", "f": "finished", "g": "gone",
}  # fmt: skip
UNKNOWN: Final = JobOptions()  # of a name that is not registered here


class Copies(Protocol):
    """Adds jobs that are copies of others, with changes."""

    async def copy(self, job: Any, changes: Mapping[str, Any], operator: Operator) -> Any:
        """Add a copy of `job`; the new job."""
        ...

    def checked(self, name: str | None, changes: Mapping[str, Any]) -> dict[str, Any]:
        """`changes` as an operation keeps them, for jobs called `name`; None: for those of several names."""
        ...


class Spot(NamedTuple):
    """The queue that an act is about: its job name, its group and its keys."""

    name: str
    group_id: str | None
    keys: Keys


class AuditEntry(Record, frozen=True):
    """One act, as the audit trail has it.

    Attributes:
        id: of the entry; later ones are greater.
        target: what was acted on: `name`, `group_id`, the first ten `ids`, and their `number`.
        before, after: what was set, where the act has changed a setting.
    """

    id: str
    at: datetime
    what: str
    by: str
    source: str
    target: dict[str, Any]
    reason: str = ""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


async def trail(broker: Broker) -> AsyncIterator[AuditEntry]:
    """Every entry of the audit trail, newest first, in pieces of a bounded size."""
    before = ""
    while rows := await broker.read_audit(before, TRAIL_PIECE):
        for entry, fields in rows:
            yield _entry(entry, fields)
        before = rows[-1][0]


async def entry_of(broker: Broker, entry_id: str) -> AuditEntry:
    """One entry of the audit trail.

    Raises:
        ConfigError: there is none of that id.
    """
    known = isinstance(entry_id, str) and ENTRY.fullmatch(entry_id)
    fields = await broker.read_audit_entry(entry_id) if known else None
    if fields is None:
        raise ConfigError(f"the audit trail has no entry {shown(entry_id)}; about the last 10,000 are kept")
    return _entry(entry_id, fields)


def reason_text(given: Any) -> str:
    """Why something is done, as it is kept.

    Raises:
        ConfigError: it is no text.
    """
    if not isinstance(given, str):
        raise ConfigError(f"reason={shown(given)}: expected text")
    reason = given[:LONGEST_REASON]
    try:
        reason.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"reason={shown(reason)}: a lone surrogate is no text") from None
    return reason


def _entry(entry: str, fields: Mapping[str, str]) -> AuditEntry:
    def decoded(field: str) -> dict[str, Any] | None:
        with suppress(msgspec.MsgspecError):  # another release, or a hand, may have written it
            return msgspec.json.decode(fields.get(field, ""), type=dict[str, Any])
        return None

    what, by, source, reason = (fields.get(one, "") for one in ("what", "by", "source", "reason"))
    at = clock.from_ms(float(entry.partition("-")[0]))
    return AuditEntry(entry, at, what, by, source, decoded("target") or {}, reason, decoded("before"), decoded("after"))


class Operator:
    """Who acts, and from where."""

    __slots__ = ("_bus", "_copies", "by", "source")

    def __init__(self, bus: EventBus, copies: Copies, by: str = "", source: str = "python") -> None:
        self._bus, self._copies = bus, copies
        self.by, self.source = by[:LONGEST_NAME], source[:LONGEST_NAME]

    def called(self, by: str, source: str) -> Operator:
        """The same under another name."""
        return Operator(self._bus, self._copies, by, source)

    def new_act(self, what: str, reason: str = "", act_id: str = "") -> Act:
        """An act that is done once to each job that it reaches. `act_id`: of an operation that goes on."""
        told = {"what": what, "by": self.by, "source": self.source, "reason": reason_text(reason)}
        entry = msgspec.json.encode({key: value for key, value in told.items() if value})
        return Act(act_id or secrets.token_hex(8), entry[1:])

    async def write(
        self,
        broker: Broker,
        what: str,
        target: Mapping[str, Any],
        *,
        reason: str = "",
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> str:
        """Lengthen the audit trail by one entry; its id.

        Raises:
            ConfigError: the reason is no text.
        """
        reason = reason_text(reason)
        fields: dict[str, str | bytes] = {"what": what, "by": self.by, "source": self.source}
        fields["target"] = msgspec.json.encode(target)
        if reason:
            fields["reason"] = reason
        for key, value in (("before", before), ("after", after)):
            if value is not None:
                fields[key] = msgspec.json.encode(value)
        return await broker.write_audit(fields)

    async def act(
        self,
        broker: Broker,
        what: str,
        spot: Spot,
        job_ids: Sequence[str],
        *,
        reason: str = "",
        reset: bool = False,
        act: Act | None = None,
    ) -> list[str]:
        """Retry, promote or remove jobs of one queue.

        Args:
            act: the act of an operation, which is in the audit trail already.
        Returns:
            For each job ``done``, or the state that kept it from being acted on; ``gone``.
        """
        if act is None:
            target = {"name": spot.name, "group_id": spot.group_id, "ids": job_ids[:10], "number": len(job_ids)}
            await self.write(broker, what, target, reason=reason)
            act = self.new_act(what, reason)
        answers = ""
        for start in range(0, len(job_ids), AT_ONCE):
            some = job_ids[start : start + AT_ONCE]
            if what == "retry":
                answers += await broker.retry(spot.name, spot.keys, act, some, reset)
            elif what == "promote":
                answers += await broker.promote(spot.name, spot.keys, act, some)
            else:
                answers += await broker.remove(spot.name, spot.keys, some)
        if self._bus.wants(TOLD[what]):
            for job_id, answer in zip(job_ids, answers, strict=True):
                if answer == DONE:
                    self._bus.emit(TOLD[what], spot.name, job_id=job_id, group_id=spot.group_id)
        return ["done" if answer in (DONE, DONE_BEFORE) else STATES_BY_LETTER[answer] for answer in answers]

    async def cancel(
        self,
        broker: Broker,
        spot: Spot,
        spec: JobSpec | None,
        job_ids: Sequence[str],
        reason: str = "",
        audited: bool = False,
    ) -> list[CancelAnswer]:
        """Cancel jobs of one queue.

        Args:
            spec: of its name; None: that is not registered here, and retention is left to the processes that know it.
            audited: the act is in the audit trail already.
        Returns:
            For each job what `Job.cancel` returns.
        Raises:
            ConfigError: the reason is no text.
        """
        mark = self._mark(reason)
        if not audited:
            target = {"name": spot.name, "group_id": spot.group_id, "ids": job_ids[:10], "number": len(job_ids)}
            await self.write(broker, "cancel", target, reason=reason)
        keep = functools.partial(_kept, UNKNOWN if spec is None else spec.job_options)
        queue = Target(spot.name, spot.keys, keep, None if spec is None else bounds(spec.retention))
        answers = await broker.cancel(queue, job_ids, mark)
        if self._bus.wants("job.cancelled"):
            why = reason[:LONGEST_REASON] or None
            for job_id, answer in zip(job_ids, answers, strict=True):
                if answer == "k":
                    self._bus.emit("job.cancelled", spot.name, job_id=job_id, group_id=spot.group_id, error=why)
        return [CANCEL_ANSWERS[answer] for answer in answers]

    def _mark(self, reason: str) -> bytes:
        """What the records of jobs that are cancelled tell of that."""
        return msgspec.json.encode(
            StoredCancellation(self.by, reason_text(reason), int(clock.wall() * 1000), self.source)
        )

    async def rerun(self, broker: Broker, job: Any, changes: Mapping[str, Any], reason: str = "") -> Any:
        """Add a copy of `job`, with `changes`; the new job."""
        target = {"name": job.name, "group_id": job.group_id, "ids": [job.id], "changes": sorted(changes)}
        await self.write(broker, "rerun", target, reason=reason)
        return await self.copy(job, changes)

    async def copy(self, job: Any, changes: Mapping[str, Any]) -> Any:
        """The same for an operation, which is in the audit trail already."""
        return await self._copies.copy(job, changes, self)

    def changes_for(self, name: str | None, changes: Mapping[str, Any]) -> dict[str, Any]:
        """`changes` of a rerun of many, checked; see `Copies.checked`."""
        return self._copies.checked(name, changes)


def _kept(options: JobOptions, raw: bytes) -> str:
    """How long a job is kept once it is cancelled: by the rule for failed ones, its own where its add gave one."""
    with suppress(Exception):  # options that cannot be read have no rule
        return Overrides.decode(raw).keep(options, "k")
    return NO_OVERRIDES.keep(options, "k")
