"""How long things took, in buckets: what they say of it, and that they can be added whatever their scales."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from asyncjobs.history.histogram import BUCKETS, LEAST, Histogram, bucket, edge
from asyncjobs.history.sketch import ROOM, Sketch

LONGEST = 36 * 3600 * 1_000_000


def test_a_bucket_holds_what_lies_between_its_edges():
    for micros in [0, 1, LEAST - 1, LEAST, 383, 384, 511, 512, 1000, 10**6, 10**9, LONGEST]:
        found = bucket(micros)
        assert edge(found) <= micros < edge(found + 1)
    assert [edge(one) for one in range(6)] == [0, 384, 512, 768, 1024, 1536]
    assert bucket(LONGEST) == BUCKETS - 1
    assert bucket(10**15) == BUCKETS - 1, "what is longer falls into the last one"


@pytest.mark.parametrize("scale", [0, 1])
def test_percentiles_are_near_the_true_ones(scale):
    rng = random.Random(1)
    values = sorted(rng.lognormvariate(0, 1.5) * 0.02 for _ in range(20_000))
    histogram = Histogram()
    for value in values:
        histogram.add(int(value * 1e6), 1)
    histogram.merge(Histogram(scale))
    assert histogram.scale == scale
    for share in (0.5, 0.95, 0.99):
        assert histogram.quantile(share) == pytest.approx(values[int(share * len(values))], rel=0.1 * (scale + 1))


def test_nothing_says_nothing():
    assert Histogram().quantile(0.5) is None
    assert Histogram.of([]).flat() == [0, 0]


def test_histograms_of_different_scales_are_added_in_any_order():
    def one(scale: int, values: list[int]) -> Histogram:
        made = Histogram()
        for value in values:
            made.add(value, 3)
        made.merge(Histogram(scale))
        return Histogram.of(made.flat())

    parts = [(0, [300, 900, 10**6]), (2, [400, 10**5]), (1, [10**9, 5, 900])]
    sums = []
    for order in (parts, parts[::-1], [parts[1], parts[0], parts[2]]):
        total = Histogram()
        for scale, values in order:
            total.merge(one(scale, values))
        sums.append((total.scale, total.samples, total.counts))
    assert sums[0] == sums[1] == sums[2]
    assert sums[0][:2] == (2, 8)
    assert sum(sums[0][2].values()) == 24


def test_the_heaviest_groups_are_found_among_many_more_than_there_is_room_for():
    rng, sketch, true = random.Random(2), Sketch(), Counter()
    for n in range(60_000):
        group = f"heavy-{rng.randrange(10)}" if n % 3 == 0 else f"light-{rng.randrange(5000)}"
        sketch.add(group, 1, 0)
        true[group] += 1
    assert len(sketch.groups) <= ROOM
    flat = sketch.flat(10)
    assert set(flat[::3]) == {f"heavy-{n}" for n in range(10)}
    for group, starts in zip(flat[::3], flat[1::3], strict=True):
        assert starts <= true[group], "nothing is invented"
        assert starts > 0.8 * true[group]
