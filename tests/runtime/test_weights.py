"""Weights count wherever many queues share something scarce, however many jobs each of them runs at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest

from asyncjobs import Limiter
from asyncjobs.invariants import of_runtime
from tests.helpers import eventually

EACH = 220
SETTLED = 40  # starts after which all weights are known, and what was free at first is taken
# A queue that is late for a token, because the machine is busy, leaves it to the others; windows are long beside that.
# Of each what the runtime and the job have, and how many jobs run at once; None: tokens are what is scarce.
SCARCE: dict[str, tuple[dict[str, Any], dict[str, Any], int | None]] = {
    "total limit": ({}, {"total_limiter": Limiter(12, 0.6)}, None),
    "wide total limit": ({}, {"total_limiter": Limiter(27, 0.6)}, None),
    "named limit": ({}, {"limiter": Limiter(12, 0.6, name="shared")}, None),
    "total concurrency": ({}, {"total_concurrency": 1}, 1),
    "total concurrency 4": ({}, {"total_concurrency": 4}, 4),
    "both": ({}, {"total_concurrency": 1, "total_limiter": Limiter(20, 0.1)}, 1),
    "slots of the process": ({"concurrency": 1}, {}, 1),
    "4 slots of the process": ({"concurrency": 4}, {}, 4),
}
LONGER = {"wide total limit": 480}  # starts that are looked at, where a window has many
MIXED = ((3, 1, 8), (3, 8, 1))  # the weight of one of two groups, its concurrency, and that of the other
Groups = dict[str, tuple[int, int]]  # group → weight, concurrency


def shares(groups: Groups, slots: int | None) -> dict[str, float]:
    """What part of all starts each group is due: by its weight, but for what it cannot use."""
    left, free, due = dict(groups), float(slots or 0), dict.fromkeys(groups, 0.0)
    while left:
        each = free / sum(weight for weight, _ in left.values())
        short = [group for group, (weight, most) in left.items() if slots is not None and most < each * weight]
        if not short:
            due |= {group: (each or 1.0) * weight for group, (weight, _) in left.items()}
            break
        for group in short:
            due[group] = left.pop(group)[1]
            free -= due[group]
    return {group: of_it / sum(due.values()) for group, of_it in due.items()}


async def starts(make_runtime, scarce: str, groups: Groups, each: int, processes: int = 1, took: float = 0.001):
    """Of how many of the starts that come after the first ones each group had, of all `each` that it has work for."""
    of_runtime_, of_job, _ = SCARCE[scarce]
    runtimes = [make_runtime(**of_runtime_) for _ in range(processes)]
    ran: list[str] = []
    for runtime in runtimes:

        @runtime.job("sync", group=True, **{"limiter": None, **of_job})
        async def sync(data: int, job) -> None:
            ran.append(job.group_id)
            await asyncio.sleep(took)

    async with AsyncExitStack() as stack:
        for runtime in runtimes:
            await stack.enter_async_context(runtime)
        queue = runtimes[0].queue
        for group, (weight, concurrency) in groups.items():
            await queue.group("sync", group).set(weight=weight, concurrency=concurrency)
        await queue.job("sync").pause()
        await queue.add_bulk([("sync", n, {"group_id": group}) for n in range(each) for group in groups])
        await queue.job("sync").resume()
        await eventually(lambda: len(ran) >= each, timeout=30)
        broken = [sentence for runtime in runtimes for sentence in of_runtime(runtime)]
    assert broken == []
    return Counter(ran[SETTLED:each])


@pytest.mark.parametrize("concurrency", [1, 2, 4, 8])
@pytest.mark.parametrize("scarce", SCARCE)
async def test_weights_count_under_each_limit_over_many_queues(make_runtime, scarce: str, concurrency: int):
    groups = {"large": (3, concurrency), "small": (1, concurrency)}
    due = shares(groups, SCARCE[scarce][2])
    had = await starts(make_runtime, scarce, groups, LONGER.get(scarce, EACH))
    ratio = due["large"] / due["small"]
    assert 0.8 * ratio <= had["large"] / max(1, had["small"]) <= 1.2 * ratio, had


@pytest.mark.parametrize("mixed", MIXED, ids=str)
@pytest.mark.parametrize("scarce", SCARCE)
async def test_weights_count_between_groups_that_run_one_job_and_many_at_once(make_runtime, scarce: str, mixed):
    weight, of_large, of_small = mixed
    groups = {"large": (weight, of_large), "small": (1, of_small)}
    due = shares(groups, SCARCE[scarce][2])
    had = await starts(make_runtime, scarce, groups, LONGER.get(scarce, EACH))
    ratio = due["large"] / due["small"]
    assert 0.8 * ratio <= had["large"] / max(1, had["small"]) <= 1.2 * ratio, had


@pytest.mark.parametrize("scarce", SCARCE)
async def test_weights_count_between_many_groups(make_runtime, scarce: str):
    """Weights from 1 to 5, and groups that run one job at a time beside those that run eight."""
    groups = {f"{weight} {concurrency}": (weight, concurrency) for weight in range(1, 6) for concurrency in (1, 8)}
    slots = SCARCE[scarce][2]
    due = shares(groups, slots)
    had = await starts(make_runtime, scarce, groups, 340)
    for group, part in due.items():
        assert abs(had[group] - 300 * part) <= 3 + 0.1 * 300 * part, (group, had, due)


@pytest.mark.parametrize("scarce", ["total concurrency 4", "4 slots of the process"])
async def test_nothing_is_held_back_where_nothing_is_scarce(make_runtime, scarce: str):
    """Four at once and three that want to run: each starts its next job as soon as its last one has ended."""
    groups = {"heavy": (100, 1), "middle": (10, 1), "light": (1, 1)}
    had = await starts(make_runtime, scarce, groups, EACH)
    assert max(had.values()) - min(had.values()) <= 0.1 * EACH, had


@pytest.mark.parametrize("scarce", ["total concurrency", "total concurrency 4", "both"])
async def test_weights_count_over_two_processes(make_runtime, scarce: str):
    """Each process is fair to the groups that it serves, so that all of them together are."""
    had = await starts(make_runtime, scarce, {"large": (3, 8), "small": (1, 8)}, EACH, processes=2)
    assert 2.4 <= had["large"] / max(1, had["small"]) <= 3.6, had
