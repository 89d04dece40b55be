"""The benchmarks run and say what they measured; how fast is not a test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("server", ["memory", "embedded"])
def test_throughput(server):
    command = [sys.executable, "-m", "benchmarks.throughput", "--quick", "--jobs", "300", "--server", server]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    for line in ("add one by one", "add, 50 awaiting", "add in bulk", "drain no-op at 1", "drain no-op at 100"):
        assert line in table
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    figures = json.loads(done.stdout)["jobs_per_second"]
    assert len(figures) == 6
    assert all(value > 0 for values in figures.values() for value in values)


def figures(*args: str) -> dict:
    command = [sys.executable, "-m", *args, "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=100)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_groups_cost_what_is_promised_whatever_the_machine():
    """Counts and sizes, which do not depend on how fast it is."""
    found = figures("benchmarks.groups", "--heavy", "3000")
    (scale,) = found["scale"]
    assert scale["connections"] <= 8
    assert scale["keys left"] == 0
    assert scale["Redis bytes a group, 1 waiting"] <= 6000
    assert scale["bytes alive a group"] <= 2000
    assert scale["idle commands a second"] <= 5
    assert found["fairness"]["ratio"] > 0


@pytest.mark.slow
def test_limits_are_exact_over_processes():
    runs = figures("benchmarks.limits")["runs"]
    assert len(runs) == 8
    assert all(run["exact"] for run in runs), runs
    assert all(run["used"] > 0.5 for run in runs), runs
