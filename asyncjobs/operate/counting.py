"""Counting: how many jobs a selection has, without a walk over all of them."""

from __future__ import annotations

from typing import Final, NamedTuple

from asyncjobs.operate.walk import LOOKS, Walk

MOST_LOOKS: Final = 10_000  # jobs that are looked into for one count


class Count(NamedTuple):
    """How many jobs there are.

    Attributes:
        number: the number, or where it is not exact, how many were found among those that were looked at.
        exact: whether that are all.
        looked_at: how many jobs were looked into; 0 where the store knows the number.
    """

    number: int
    exact: bool
    looked_at: int


async def count(walk: Walk) -> Count:
    """How many `walk`, which has begun, would find."""
    if walk.tells_number:
        return Count(await walk.total(), True, 0)
    number = 0
    while not walk.done and walk.looked_at < MOST_LOOKS:
        number += len(await walk.further(LOOKS, whole=False))
    return Count(number, walk.done, walk.looked_at)
