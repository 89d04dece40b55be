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
