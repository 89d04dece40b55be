"""The benchmarks run and say what they measured; how fast is not a test's business, but counts and sizes are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def output(*args: str) -> str:
    command = [sys.executable, "-m", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=110).stdout


def found(*args: str) -> dict:
    return json.loads(output(*args, "--quick", "--json"))


def medians(report: dict) -> dict[str, float]:
    return {one["measure"]: one["median"] for one in report["figures"]}


def held(report: dict, part: str) -> bool:
    """Whether the claim whose text has `part` in it holds."""
    (claim,) = (one for one in report["claims"] if part in one["claim"])
    return claim["holds"]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["memory", "embedded"])
def test_throughput(server):
    args = ("benchmarks.throughput", "--jobs", "300", "--server", server)
    table = output(*args, "--rounds", "1")
    for line in ("add one by one", "add, 50 awaiting", "add in bulk", "drain no-op at 1", "drain 10 ms at 500"):
        assert line in table
    figures = found(*args)["figures"]
    assert len(figures) == 12
    assert all(value > 0 for one in figures for value in one["values"])
    assert all(one["min"] <= one["median"] <= one["max"] for one in figures)


@pytest.mark.slow
def test_latency_starts_nothing_early():
    report = found("benchmarks.latency")
    assert held(report, "earliest delayed job")
    assert set(report["samples"]) == {
        "idle, one process", "idle, another process", "half load", "late, 1,000 due in a second",
    }  # fmt: skip
    assert all(values == sorted(values) and len(values) == 200 for values in report["samples"].values())
    assert len(medians(report)) == 19


@pytest.mark.slow
def test_memory_of_a_job_and_of_a_process_is_bounded():
    report = found("benchmarks.memory")
    assert held(report, "bytes of a waiting job")
    assert held(report, "size of the process")


@pytest.mark.slow
def test_growth_takes_no_more_connections():
    report = found("benchmarks.growth")
    assert held(report, "connections")
    assert {"drain of 1 job names", "drain of 50 job names"} <= set(medians(report))


@pytest.mark.slow
def test_cores():
    figures = medians(found("benchmarks.cores"))
    assert {"no-op, 1 process", "no-op, 2 processes", "computing 0.2 ms, 2 processes"} <= set(figures)


@pytest.mark.slow
def test_a_far_server_is_asked_as_seldom():
    report = found("benchmarks.network")
    assert held(report, "scripts called a job")
    assert medians(report)["a ping, ms, 2 ms farther"] >= 2


@pytest.mark.slow
def test_a_hundred_idle_names_ask_hardly_ever():
    """Over a whole sweep interval, or what is asked once in that could be missed."""
    report = found("benchmarks.idle", "--seconds", "16")
    assert held(report, "commands a second")
    assert held(report, "connections")


@pytest.mark.slow
def test_profile_counts_all_of_it():
    figures = found("benchmarks.profile")["figures"]
    total, *steps = (one["median"] for one in figures if one["measure"] == "client in all" or one["note"])
    assert sum(steps) == pytest.approx(total)
    assert "  xreadgroup" in {one["measure"] for one in figures}


@pytest.mark.slow
def test_side_by_side_with_the_ceiling():
    """The peers have environments of their own, which are made by hand; ours and the ceiling need none."""
    report = found("benchmarks.peers", "--only", "asyncjobs", "raw pipelines", "raw script")
    assert report["failed"] == {}
    figures = medians(report)
    assert figures["asyncjobs: add in bulk"] > 0
    assert figures["raw script: drain no-op at 100"] > 0
    table = output("benchmarks.peers", "--only", "asyncjobs", "--quick")
    assert "asyncjobs" in table
    assert "raw" not in table


@pytest.mark.slow
def test_a_guest_serves_requests_beside_each_backlog():
    """Who else can be embedded has an environment of its own; ours alone is asked for here."""
    report = found("benchmarks.guest", "--only", "asyncjobs", "--frames", "fastapi", "--seconds", "0.3")
    figures = medians(report)
    backlogs = {one.split(", ")[1] for one in figures}
    assert {"no-op", "0.5 ms of computing", "sync handlers", "groups of one job", "a dead neighbour swept"} <= backlogs
    assert all(value == 0 for one, value in figures.items() if one.endswith("failed"))
    assert figures["fastapi, no-op, asyncjobs: jobs/s"] > 0
    report = found("benchmarks.guest", "--only", "asyncjobs", "--frames", "aiohttp", "--backlogs", "5 ms of waiting")
    assert medians(report)["aiohttp, 5 ms of waiting, asyncjobs: p99"] > 0


@pytest.mark.slow
def test_a_look_at_jobs_takes_few_round_trips():
    report = found("benchmarks.operate")
    assert held(report, "round trips a page")
    figures = medians(report)
    assert {"find an id", "count over all groups", "waiting over all groups: first page"} <= set(figures)
    assert all(value > 0 for value in figures.values())


def test_nobody_is_left_out_silently():
    command = [sys.executable, "-m", "benchmarks.peers", "--only", "resque"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "nobody is called resque; there are asyncjobs, arq," in done.stderr


def test_every_script_says_what_it_does():
    from benchmarks.__main__ import SCRIPTS

    for name in SCRIPTS:
        assert f"python -m benchmarks.{name}" in output(f"benchmarks.{name}", "--help")


@pytest.mark.slow
def test_several_at_once_are_written_where_one_says(tmp_path):
    output("benchmarks", "profile", "--quick", "--results", str(tmp_path))
    assert json.loads((tmp_path / "profile.json").read_text())["figures"]
    done = subprocess.run([sys.executable, "-m", "benchmarks", "what"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no what" in done.stderr


def test_what_the_readme_shows_is_there():
    for text in (ROOT / "README.md", ROOT / "benchmarks" / "README.md"):
        for line in text.read_text().splitlines():
            if line.startswith("!["):
                assert (text.parent / line.partition("](")[2].rstrip(")")).exists(), line


@pytest.mark.slow
def test_groups_cost_what_is_promised_whatever_the_machine():
    """Counts and sizes, which do not depend on how fast it is."""
    report = found("benchmarks.groups", "--heavy", "3000")
    (scale,) = report["scale"]
    assert scale["connections"] <= 8
    assert scale["keys left"] == 0
    assert scale["Redis bytes a group, 1 waiting"] <= 6000
    assert scale["bytes alive a group"] <= 2000
    assert scale["idle commands a second"] <= 5
    assert report["fairness"]["ratio"] > 0


@pytest.mark.slow
def test_limits_are_exact_over_processes():
    runs = found("benchmarks.limits")["runs"]
    assert len(runs) == 8
    assert all(run["exact"] for run in runs), runs
    assert all(run["used"] > 0.5 for run in runs), runs
