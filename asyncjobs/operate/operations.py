"""Operations: an act on many jobs, kept in the store step by step, so that another process goes on where one has died.

The jobs of a step are kept before they are acted on. A step that is done again, since its process died, reaches no job
twice: the record of each job tells which act was the last. What comes to its state after the operation began is none of
it.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.declare import payload
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.values import shown
from asyncjobs.errors import AsyncjobsError, BrokerError, ConfigError, UnknownJobError
from asyncjobs.job_record import Origin
from asyncjobs.operate.acting import Done, Order, act_on, names_of
from asyncjobs.operate.place import Cursor
from asyncjobs.operate.states import states
from asyncjobs.operate.walk import Plan, Walk
from asyncjobs.operate.wanted import Wanted
from asyncjobs.operator import Operator
from asyncjobs.record import Record

STEP: Final = 500  # jobs
LEASE: Final = 10.0  # seconds after which another process goes on
LOOK_EVERY: Final = 0.5  # seconds between two looks at an operation that another process drives
ID: Final = re.compile(r"[0-9a-f]{1,40}", re.ASCII)
_attempts = itertools.count(1)


class StoredPlan(msgspec.Struct, omit_defaults=True):
    """What an operation selects, as the store has it; `states` in words, instants in ms."""

    states: list[str]
    name: str | None = None
    group_id: str | None = None
    text: str = ""
    error: str = ""
    tag: str = ""
    since: int | None = None
    until: int | None = None
    newest_first: bool = True

    @classmethod
    def of(cls, plan: Plan) -> StoredPlan:
        wanted = plan.wanted
        return cls(
            [one.name for one in plan.states], plan.name, plan.group_id, wanted.text, wanted.error, wanted.tag,
            wanted.since_ms, wanted.until_ms, plan.newest_first,
        )  # fmt: skip

    def plan(self) -> Plan:
        def instant(ms: int | None) -> datetime | None:
            return None if ms is None else clock.from_ms(ms)

        wanted = Wanted.of(
            self.text or None, self.error or None, self.tag or None, instant(self.since), instant(self.until)
        )
        return Plan(self.name, self.group_id, states(self.states), wanted, self.newest_first)


class Operation(Record, frozen=True):
    """An act on many jobs.

    Attributes:
        what: ``cancel``, ``retry``, ``rerun``, ``promote`` or ``remove``.
        scope: in words, which jobs.
        state: ``failed``: it cannot go on, `problem` says why.
        done, skipped: as in `Done`, so far. of: how many jobs there were when it began.
        began, ended: instants; None: not yet.
        by, source, reason: who does it, from where, and why.
    """

    id: str
    what: str
    scope: str
    state: Literal["running", "done", "stopped", "failed"]
    done: int
    skipped: dict[str, int]
    of: int
    began: datetime
    ended: datetime | None
    by: str
    source: str
    reason: str
    problem: str = ""

    @property
    def outcome(self) -> Done:
        """What it has come to so far."""
        return Done(self.done, self.skipped, self.id)


def read_operation(operation_id: str, fields: Mapping[str, str]) -> Operation:
    """An operation as the store has it."""

    def number(field: str) -> int:
        text = fields.get(field, "")
        return int(text) if text.isdigit() else 0

    skipped: dict[str, int] = {}
    with suppress(msgspec.MsgspecError):  # another release, or a hand, may have written it
        skipped = msgspec.json.decode(fields.get("skipped", ""), type=dict[str, int])
    return Operation(
        operation_id, fields.get("what", ""), fields.get("scope", ""), fields.get("state", "failed"),  # type: ignore[arg-type]
        number("done"), skipped, number("of"),
        clock.from_ms(number("began")), clock.from_ms(number("ended")) if "ended" in fields else None,
        fields.get("by", ""), fields.get("source", ""), fields.get("reason", ""), fields.get("problem", ""),
    )  # fmt: skip


class Operations:
    """The operations of an installation, as one process sees and drives them."""

    def __init__(self, broker: Broker, specs: Mapping[str, JobSpec], operator: Operator) -> None:
        self._broker, self._specs, self._operator = broker, specs, operator

    async def begin(self, plan: Plan, what: str, args: Mapping[str, Any], reason: str, of: int) -> str:
        """Keep a new one in the store, and in the audit trail; its id. From now on any process may drive it."""
        walk = Walk(self._broker, self._specs, plan)
        await walk.begin()
        cursor = walk.cursor()
        stored = StoredPlan.of(plan)
        target = {"name": plan.name, "group_id": plan.group_id, "scope": plan.words(), "number": of}
        operation_id = f"{clock.to_ms(clock.now()):x}{secrets.token_hex(4)}"
        await self._operator.write(self._broker, what, {**target, "operation": operation_id}, reason=reason)
        fields: dict[str, str | bytes] = {
            "what": what, "plan": msgspec.json.encode(stored), "args": msgspec.json.encode(args), "scope": plan.words(),
            "reason": reason, "by": self._operator.by, "source": self._operator.source, "done": "0", "skipped": "{}",
            "of": str(of), "cursor": "" if cursor is None else cursor.text(),
        }  # fmt: skip
        await self._broker.plan(operation_id, fields)
        return operation_id

    async def drive(self, operation_id: str) -> Operation:
        """Drive an operation to its end, or wait until whoever drives it has.

        Raises:
            BrokerError: the store did not answer; the operation goes on in another process, or when it is driven again.
            ConfigError: there is no such operation.
        """
        _checked(operation_id)
        driver = f"{self._broker.process_id}.{next(_attempts)}"
        while True:
            found = await self._broker.drive(operation_id, driver, LEASE, {})
            if found is None:
                raise _unknown(operation_id)
            if isinstance(found, dict):
                if found["state"] == "running" and not await self._go_on(operation_id, driver, found):
                    continue
                return await self.read(operation_id)
            await asyncio.sleep(min(found, LOOK_EVERY))

    async def _go_on(self, operation_id: str, driver: str, fields: dict[str, str]) -> bool:
        """Step by step to the end; False: another process has taken it over."""
        try:
            order, plan = self._order(operation_id, fields), msgspec.json.decode(fields["plan"], type=StoredPlan).plan()
            cursor = Cursor.read(fields["cursor"]) if fields["cursor"] else None
            done, skipped = int(fields["done"]), Counter(msgspec.json.decode(fields["skipped"], type=dict[str, int]))
            jobs = msgspec.json.decode(fields.get("step", "[]"), type=list[Origin])
            walk = Walk(self._broker, self._specs, plan, cursor)
            await walk.begin()
        except (AsyncjobsError, msgspec.MsgspecError, KeyError, ValueError) as error:
            if isinstance(error, BrokerError) and not isinstance(error, UnknownJobError):
                raise
            end = {"state": "failed", "ended": _now(), "problem": f"{type(error).__name__}: {error}"[:1000]}
            await self._broker.drive(operation_id, driver, LEASE, end)
            return True
        while True:
            if jobs:
                reached, left = await act_on(self._broker, order, jobs)
                done, skipped = done + reached, skipped + left
            jobs = names_of(await walk.further(STEP, False)) if cursor is not None and not walk.done else []
            ended, cursor = not jobs and (cursor is None or walk.done), walk.cursor()
            changes: dict[str, str | bytes] = {
                "done": str(done), "skipped": msgspec.json.encode(skipped), "step": msgspec.json.encode(jobs),
                "cursor": "" if cursor is None else cursor.text(),
            }  # fmt: skip
            if ended:
                changes |= {"state": "done", "ended": _now()}
            kept = await self._broker.drive(operation_id, driver, LEASE, changes)
            if not isinstance(kept, dict):
                return False
            if ended or kept["state"] != "running":
                return True

    def _order(self, operation_id: str, fields: Mapping[str, str]) -> Order:
        args = msgspec.json.decode(fields["args"], type=dict[str, Any])
        if "at" in args:
            args["at"] = msgspec.convert(args["at"], type=datetime)
        if "data" in args:  # whose integers may be of any size
            args["data"] = payload.decode(msgspec.json.decode(fields["args"], type=dict[str, msgspec.Raw])["data"])
        operator = self._operator.called(fields["by"], fields["source"])
        return Order(
            fields["what"], args, operator, fields["reason"],
            operator.new_act(fields["what"], fields["reason"], operation_id), self._specs,
        )  # fmt: skip

    async def read(self, operation_id: str) -> Operation:
        """One of them as it stands.

        Raises:
            ConfigError: there is none of that id.
        """
        fields = await self._broker.operation(_checked(operation_id))
        if not fields:
            raise _unknown(operation_id)
        return read_operation(operation_id, fields)

    async def all(self) -> list[Operation]:
        """Those that are kept, newest first."""
        return [read_operation(one, fields) for one, fields in await self._broker.operations()]

    async def stop(self, operation_id: str) -> Operation:
        """Let one go no further than its present step; what it has done stays done.

        Raises:
            ConfigError: there is none of that id.
        """
        await self._broker.stop_operation(_checked(operation_id))
        return await self.read(operation_id)

    async def take_up(self) -> Sequence[str]:
        """Drive those to their end that nobody drives any more; their ids."""
        found = await self._broker.open_operations()
        for operation_id in found:
            with suppress(ConfigError):  # it is kept no more
                await self.drive(operation_id)
        return found


def _checked(operation_id: Any) -> str:
    """An id as the store may be asked for it."""
    if not isinstance(operation_id, str) or not ID.fullmatch(operation_id):
        raise _unknown(operation_id)
    return operation_id


def _unknown(operation_id: Any) -> ConfigError:
    return ConfigError(f"there is no operation {shown(operation_id)}; the last hundred are kept")


def _now() -> str:
    return str(clock.to_ms(clock.now()))
