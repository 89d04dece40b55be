"""Names: every job name that any process has left in the store, with what is known of it; names outlive their files."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from asyncjobs.broker import Broker
from asyncjobs.declare.definition import JobSpec
from asyncjobs.job import counts_of
from asyncjobs.operate.told import Told, about, read_told

logger = logging.getLogger("asyncjobs")

MOST_STRANGERS: Final = 100  # names that are looked at


async def announce(broker: Broker, specs: Mapping[str, JobSpec]) -> dict[str, Told]:
    """Leave it in the store which names there are here, and what holds for them. Returns all that any process has."""
    from asyncjobs import __version__

    if specs:
        await broker.tell_names({name: about(spec, __version__) for name, spec in specs.items()})
    return {name: read_told(raw) for name, raw in (await broker.told_names()).items()}


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
