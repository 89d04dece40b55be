"""Weights count wherever many queues share something scarce, also where each of them runs one job at a time."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from asyncjobs import Limiter
from tests.helpers import eventually

EACH = 160
SETTLED = 40  # starts after which all weights are known, and what was free at first is taken
# A queue that is late for a token, because the machine is busy, leaves it to the others; windows are long beside that.
SCARCE = {
    "total limit": ({}, {"total_limiter": Limiter(12, 0.3)}),
    "wide total limit": ({}, {"total_limiter": Limiter(27, 0.6)}),
    "named limit": ({}, {"limiter": Limiter(12, 0.3, name="shared")}),
    "total concurrency": ({}, {"total_concurrency": 1}),
    "both": ({}, {"total_concurrency": 1, "total_limiter": Limiter(20, 0.1)}),
    "slots of the process": ({"concurrency": 1}, {}),
}


@pytest.mark.parametrize("scarce", SCARCE)
async def test_weights_count_under_each_limit_over_many_queues(make_runtime, scarce: str):
    of_runtime, of_job = SCARCE[scarce]
    runtime = make_runtime(**of_runtime)
    ran: list[str] = []

    @runtime.job("sync", group=True, **{"limiter": None, **of_job})
    async def sync(data: int, job) -> None:
        ran.append(job.group_id)
        await asyncio.sleep(0.001)

    async with runtime:
        await runtime.queue.group("sync", "large").set(weight=3)
        await runtime.queue.job("sync").pause()
        await runtime.queue.add_bulk([("sync", n, {"group_id": g}) for n in range(EACH) for g in ("large", "small")])
        await runtime.queue.job("sync").resume()
        await eventually(lambda: len(ran) >= EACH, timeout=30)
        shares = Counter(ran[SETTLED:EACH])
    assert 2.4 <= shares["large"] / max(1, shares["small"]) <= 3.6, shares
