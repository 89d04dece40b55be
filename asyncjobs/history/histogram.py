"""The Histogram: how long many things took, in buckets that can be added for ever.

There are two buckets an octave, from 0.256 ms to about 38 hours. At a scale of s, 2^s of them are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

LEAST: Final = 256  # µs; what is shorter falls into the first bucket
BUCKETS: Final = 58


def bucket(micros: int) -> int:
    """Into which bucket a duration falls."""
    if micros < LEAST:
        return 0
    bits = micros.bit_length()
    return min(2 * bits - 18 + (micros >> (bits - 2) & 1), BUCKETS - 1)


def edge(index: int) -> int:
    """The µs with which a bucket begins."""
    return (2 + index % 2) << (index // 2 + 7) if index else 0


class Histogram:
    """Counts by bucket.

    State: `scale`; `samples`, how many durations were measured; `counts`, bucket → for how many they stand.
    """

    __slots__ = ("counts", "samples", "scale")

    def __init__(self, scale: int = 0, samples: int = 0, counts: dict[int, int] | None = None) -> None:
        self.scale, self.samples = scale, samples
        self.counts: dict[int, int] = {} if counts is None else counts

    @classmethod
    def of(cls, flat: Sequence[Any]) -> Histogram:
        """The histogram that is stored as `flat`: its scale, its samples, bucket, count, …"""
        if len(flat) < 2:
            return cls()
        return cls(int(flat[0]), int(flat[1]), {int(flat[i]): int(flat[i + 1]) for i in range(2, len(flat) - 1, 2)})

    def flat(self) -> list[int]:
        """The inverse of `of`."""
        return [self.scale, self.samples, *(one for pair in self.counts.items() for one in pair)]

    def add(self, micros: int, weight: int) -> None:
        """Count a duration that stands for `weight` of them; of a histogram of scale 0."""
        self.samples += 1
        found = bucket(micros)
        self.counts[found] = self.counts.get(found, 0) + weight

    def merge(self, other: Histogram) -> None:
        """Add another one; the coarser scale is that of the sum."""
        scale = max(self.scale, other.scale)
        mine, others = self._at(scale), other._at(scale)
        for index, count in others.items():
            mine[index] = mine.get(index, 0) + count
        self.scale, self.counts, self.samples = scale, mine, self.samples + other.samples

    def _at(self, scale: int) -> dict[int, int]:
        """The counts at a scale that is as coarse or coarser; a dict that nobody else has."""
        shift, found = scale - self.scale, dict[int, int]()
        for index, count in self.counts.items():
            found[index >> shift] = found.get(index >> shift, 0) + count
        return found

    def quantile(self, share: float) -> float | None:
        """The seconds that `share` of all took at most, interpolated within a bucket; None: there is none."""
        total = sum(self.counts.values())
        if total <= 0:
            return None
        left = share * total
        index = 0
        for index, count in sorted(self.counts.items()):
            if left <= count:
                return self._within(index, left / count)
            left -= count
        return self._within(index, 1.0)

    def _within(self, index: int, share: float) -> float:
        low, high = edge(index << self.scale), edge((index + 1) << self.scale)
        return (low + (high - low) * share) / 1e6
