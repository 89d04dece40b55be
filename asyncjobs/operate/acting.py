"""Acting on many jobs: a page of them at a time, one script for each queue that is on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from asyncjobs.broker import Act, Broker
from asyncjobs.declare.definition import JobSpec
from asyncjobs.errors import AsyncjobsError, JobGoneError
from asyncjobs.job import Job
from asyncjobs.job_record import Origin
from asyncjobs.operator import Operator, Spot

# The states that an act goes with; a selection that names no state is one of these.
GOES_WITH: Final[Mapping[str, tuple[str, ...]]] = {
    "cancel": ("active", "waiting", "delayed"),
    "retry": ("failed", "cancelled"),
    "rerun": ("active", "waiting", "delayed", "completed", "failed", "cancelled"),
    "promote": ("delayed",),
    "remove": ("waiting", "delayed", "completed", "failed", "cancelled"),
}
AT_ONCE: Final = 20  # jobs that are copied together


class Done(NamedTuple):
    """What an act on a selection has come to.

    Attributes:
        done: how many jobs it has reached. Of a cancel: those that are cancelled, and those that run and are told. Of a
            remove: those that are gone.
        skipped: why others were left as they are → how many: the state that they were in, or ``gone``.
        operation: the id of the operation that it was, where there were many jobs.
    """

    done: int
    skipped: dict[str, int]
    operation: str | None = None


class DryRun(NamedTuple):
    """What an act on a selection would reach.

    Attributes:
        number: how many jobs; see `exact`.
        exact: False: `number` were found among those that were looked at, and there may be more.
        sample: five of them.
    """

    number: int
    exact: bool
    sample: list[Job]


class Order(NamedTuple):
    """What is done to each job: the verb, its arguments, who does it, why, and the act that reaches each job once.

    `specs`: the jobs that are registered here, by name.
    """

    what: str
    args: Mapping[str, Any]
    operator: Operator
    reason: str
    act: Act
    specs: Mapping[str, JobSpec]


async def act_on(broker: Broker, order: Order, jobs: Sequence[Origin]) -> tuple[int, Counter[str]]:
    """Do what `order` says to `jobs`; how many it has reached, and why others were left as they are."""
    if order.what == "rerun":
        answers = await _copied(broker, order, jobs)
    else:
        queues: dict[tuple[str, str | None], list[str]] = {}
        for job in jobs:
            queues.setdefault((job.name, job.group_id), []).append(job.id)
        found = await broker.loop.gather(_reach(broker, order, spot, ids) for spot, ids in queues.items())
        answers = [answer for some in found for answer in some]
    counts = Counter(answers)
    done = counts.pop("done", 0)
    return done, counts


async def _reach(broker: Broker, order: Order, queue: tuple[str, str | None], job_ids: Sequence[str]) -> list[str]:
    name, group_id = queue
    spot = Spot(name, group_id, broker.queue_keys(name, group_id))
    if order.what == "cancel":
        spec = order.specs.get(name)
        told = await order.operator.cancel(broker, spot, spec, job_ids, order.reason, audited=True)
        return ["done" if answer in ("cancelled", "requested") else answer for answer in told]
    reset = bool(order.args.get("reset"))
    answers = await order.operator.act(
        broker, order.what, spot, job_ids, reason=order.reason, reset=reset, act=order.act
    )
    if order.what == "remove":  # where its reply, or its process, was lost, a removed job is gone at the next try
        answers = ["done" if answer == "gone" else answer for answer in answers]
    return answers


async def _copied(broker: Broker, order: Order, jobs: Sequence[Origin]) -> list[str]:
    """A copy of each, under an id that tells of which: what is done again adds nothing."""

    async def one(job: Origin) -> str:
        changes = {**order.args, "job_id": "-".join((order.act.id, job.id))[-500:]}
        try:
            await order.operator.copy(job, changes)
        except JobGoneError:
            return "gone"
        except AsyncjobsError as error:
            if type(error).__name__ in ("BrokerError", "BrokerUnavailableError"):
                raise
            return type(error).__name__
        return "done"

    answers: list[str] = []
    for start in range(0, len(jobs), AT_ONCE):
        answers += await broker.loop.gather(one(job) for job in jobs[start : start + AT_ONCE])
    return answers


def names_of(jobs: Sequence[Job]) -> list[Origin]:
    """Which jobs they are."""
    return [Origin(job.name, job.group_id, job.id) for job in jobs]
