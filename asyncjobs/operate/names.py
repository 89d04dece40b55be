"""Names: every job name that any process has left in the store, with what is known of it; names outlive their files."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

from asyncjobs.broker import Broker
from asyncjobs.declare.definition import JobDefinition, JobSpec
from asyncjobs.declare.options import JobOptions, Limiter, WorkerOptions
from asyncjobs.errors import ConfigError, NotRunningError
from asyncjobs.job import counts_of
from asyncjobs.operate.told import Told, about, read_told

logger = logging.getLogger("asyncjobs")

MOST_STRANGERS: Final = 100  # names that are looked at
IN_THE_STORE: Final = "in the store"  # where the spec of a stand-in comes from


async def announce(broker: Broker, specs: Mapping[str, JobSpec]) -> dict[str, Told]:
    """Leave it in the store which names there are here, and what holds for them. Returns all that any process has."""
    from asyncjobs import __version__

    if specs:
        await broker.tell_names({name: about(spec, __version__) for name, spec in specs.items()})
    return {name: read_told(raw) for name, raw in (await broker.told_names()).items()}


async def stand_ins(broker: Broker, specs: Mapping[str, JobSpec]) -> list[JobSpec]:
    """Specs of the names that the store alone knows. They can be looked at and steered; no job of theirs runs here."""
    known = {name: read_told(raw) for name, raw in (await broker.told_names()).items() if name not in specs}
    found = []
    for name, told in sorted(known.items()):
        with suppress(ConfigError):  # another release, or a hand, may have written it
            found.append(_stand_in(name, told))
    return found


def _stand_in(name: str, told: Told) -> JobSpec:
    parts = (one.partition(":") for one in told.windows.split() if ":" in one)
    windows = [Limiter(int(most), timedelta(microseconds=int(us))) for most, _, us in parts]
    worker = WorkerOptions(limiter=windows or None, ordered=told.ordered, concurrency=told.concurrency)
    options = JobOptions(attempts=told.attempts)
    definition = JobDefinition(handle=_elsewhere, job_options=options, worker_options=worker, group=told.grouped)
    return JobSpec(name, definition, IN_THE_STORE)


async def _elsewhere(data: Any) -> None:
    raise NotRunningError("this name is known from the store alone; a process that has its handler runs it")


async def all_names(broker: Broker, specs: Mapping[str, JobSpec]) -> dict[str, dict[str, int]]:
    """Every name that any process has ever registered, sorted, with how many jobs are in each state."""
    known = {*specs, *await broker.told_names()}
    return {name: await left_of(broker, name) for name in sorted(known)}


async def left_of(broker: Broker, name: str) -> dict[str, int]:
    """How many jobs of a name are in each state, over all its groups."""
    return counts_of(await broker.total_counts(name))


async def strangers(broker: Broker, specs: Mapping[str, JobSpec]) -> dict[str, dict[str, int]]:
    """The names that others have registered and this runtime has not, with what is left of them by state."""
    known = await announce(broker, specs)
    return {name: await left_of(broker, name) for name in sorted(known.keys() - specs.keys())[:MOST_STRANGERS]}


async def tell_strangers(look: Callable[[], Awaitable[Mapping[str, Mapping[str, int]]]]) -> None:
    """Warn of jobs that no handler is registered for: a file was renamed, or a release was rolled back."""
    for name, counts in (await look()).items():
        left = counts["waiting"] + counts["active"] + counts["delayed"]
        if left:
            logger.warning(
                "%d jobs of %r are left, and no job of that name is registered here: unless another process runs "
                "them they wait for ever; register that name, or give its file the old name back", left, name,
            )  # fmt: skip
