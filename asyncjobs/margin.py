"""The margin: by how much a start may lag behind its token, and what becomes of one that lags more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.gate import Gate
from asyncjobs.terms import Terms

if TYPE_CHECKING:
    from asyncjobs.consumer import Consumer


def least_margin(terms: Terms, gates: Sequence[Gate]) -> float:
    """Seconds; the least that one of the limits asks for, 0 without a limit."""
    margins = [gate.margin for gate in gates if gate.window]
    if terms.window:
        margins.append(terms.least_margin)
    return min(margins, default=0.0)


async def in_time(consumer: Consumer, broker: Broker, sent_at: float, margin: float) -> None:
    """Wait until a try may start. Never later than its token's margin: the window that counted it would be over.

    Tokens return `duration + margin` after they were taken, so a start that lags by less than the margin keeps every
    window exact; one that lags more takes its token again first, with a margin that fits.

    Raises:
        BrokerError: no token could be had, since the store does not answer.
    """
    terms, gates = consumer.terms, consumer.gates
    windows = [window for window in (terms.window, *(gate.window for gate in gates)) if window]
    if not windows:
        return
    shortest = min(windows)
    while (lag := clock.monotonic() - sent_at) > margin:
        if lag < shortest:
            consumer.margin = min(max(consumer.margin, 2 * lag), shortest)
            for gate in gates:
                gate.late(lag)
        sent_at, margin = await _tokens_again(consumer, broker, first_is_out=lag < shortest)
    consumer.margin = max(least_margin(consumer.terms, gates), consumer.margin * 0.98)
    for gate in gates:
        gate.punctual()


async def _tokens_again(consumer: Consumer, broker: Broker, first_is_out: bool) -> tuple[float, float]:
    """Take a token of each limit once more; the instant from which the start's lag counts, and how much it may be."""
    margin, taken = consumer.margin, []
    if consumer.terms.windows:
        since = clock.monotonic()
        while wait := await broker.spend(consumer.keys, consumer.terms.windows, round(margin * 1e6), first_is_out):
            await asyncio.sleep(wait)
            since, first_is_out = clock.monotonic(), False
        taken.append((since, margin))
    taken += [await gate.pass_again() for gate in consumer.gates if gate.window]
    return min((since for since, _ in taken), default=clock.monotonic()), min((most for _, most in taken), default=0.0)
