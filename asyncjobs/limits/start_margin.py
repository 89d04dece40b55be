"""The margin: how far a start may lag behind its token, and the second token for a start that lags more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.declare.queue_limits import QueueLimits
from asyncjobs.limits.shared_limit import SharedLimit
from asyncjobs.limits.waiting import Waiting


def least_margin(limits: QueueLimits, shared_limits: Sequence[SharedLimit]) -> float:
    """Seconds: the smallest margin of the limits; 0 without a limit."""
    margins = [shared_limit.margin for shared_limit in shared_limits if shared_limit.window]
    if limits.window:
        margins.append(limits.least_margin)
    return min(margins, default=0.0)


async def in_time(consumer: Waiting, broker: Broker, sent_at: float, margin: float) -> None:
    """Wait until a try may start. It starts within its token's margin, else its window would be over.

    A token returns `duration + margin` after it was taken. So a start that lags by less than the margin keeps each
    window exact. A start that lags more takes its token again first, with a margin that fits. Each limit has a token of
    its own. Waiting for one token must not cost the tokens that are still in time, or jobs would take tokens from each
    other, and no job would ever have all of its tokens.

    Raises:
        BrokerError: the store does not answer, so no token can be taken.
    """
    shared_limits = consumer.shared_limits
    limits: list[SharedLimit | None] = [shared_limit for shared_limit in shared_limits if shared_limit.window]
    if consumer.limits.window:
        limits.insert(0, None)  # the queue's own limit
    if not limits:
        return
    taken = dict.fromkeys(limits, (sent_at, margin))
    while late := {limit: lag for limit in limits if (lag := clock.monotonic() - taken[limit][0]) > taken[limit][1]}:
        for limit, lag in late.items():
            window = consumer.limits.window if limit is None else limit.window
            if limit is not None:
                limit.late(lag)
            elif lag < window:
                consumer.margin = min(max(consumer.margin, 2 * lag), window)
            taken[limit] = (
                await _own_again(consumer, broker, lag < window) if limit is None else await limit.pass_again()
            )
    consumer.margin = max(least_margin(consumer.limits, shared_limits), consumer.margin * 0.98)
    for shared_limit in shared_limits:
        shared_limit.punctual()


async def _own_again(consumer: Waiting, broker: Broker, first_is_out: bool) -> tuple[float, float]:
    """Take a token of the queue's own limit once more. Returns the instant of the take, and the margin of the start."""
    since, margin = clock.monotonic(), consumer.margin
    while wait := await broker.spend(consumer.keys, consumer.limits.windows, round(margin * 1e6), first_is_out):
        await asyncio.sleep(wait)
        since, first_is_out = clock.monotonic(), False
    return since, margin
