"""The chaos run, short: nothing is lost; and with a protection left out it says so."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.chaos.kinds import KINDS, LIMITS
from benchmarks.chaos.verdict import Fault, judge
from benchmarks.chaos.worker import Note

EARLIER = "75bb1c4"  # a release that wrote no lease of its own beside its beat
ROOT = Path(__file__).parent.parent.parent
SOUND = (
    "lost", "never_ran", "double_terminal", "unexplained", "side_by_side", "over_limit", "left_over", "broken",
    "late_stops", "two_ends", "ran_removed",
)  # fmt: skip


async def chaos(*args: str) -> tuple[int, dict[str, object]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.chaos", *args, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
    assert process.returncode is not None
    return process.returncode, json.loads(out)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_whatever_breaks_nothing_is_lost():
    code, found = await chaos(
        "--jobs",
        "20000",
        "--kills",
        "25",
        "--stops",
        "6",
        "--restarts",
        "5",
        "--drops",
        "30",
        "--cuts",
        "10",
        "--freezes",
        "2",
    )
    assert {count: found[count] for count in SOUND} == dict.fromkeys(SOUND, 0), found
    assert found["stuck"] == ""
    assert code == 0, found
    assert found["acknowledged"] == 20_000
    assert found["faults"] == {
        "kill": 25, "stop": 6, "restart": 5, "drop": 30, "cut": 10, "freeze store": 2, "freeze worker": 2, "flush": 3,
    }  # fmt: skip
    assert found["duplicates"] <= 0.02 * 20_000


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_workers_that_outlive_every_cut_strand_nothing():
    """Nobody dies, so nothing that a lost reply had brought is swept: each worker has to find it by itself."""
    code, found = await chaos(
        "--jobs", "8000", "--drops", "60", "--cuts", "25", *none("kills", "stops", "restarts", "freezes")
    )
    assert {count: found[count] for count in SOUND} == dict.fromkeys(SOUND, 0), found
    assert found["stuck"] == ""
    assert code == 0, found


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_rolling_restart_from_an_earlier_release_loses_nothing(tmp_path):
    """Every second worker runs an earlier release, on the same store, while all are replaced one after the other."""
    archive = subprocess.run(["git", "archive", EARLIER, "asyncjobs"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"the earlier release {EARLIER} is not in this checkout")
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=archive.stdout, check=True)
    code, found = await chaos(
        "--jobs", "6000", "--stops", "16", "--flushes", "3", *none("kills", "restarts", "drops", "cuts", "freezes"),
        "--other-release", str(tmp_path), *none("acts"),
    )  # fmt: skip
    assert {count: found[count] for count in SOUND} == dict.fromkeys(SOUND, 0), found
    assert found["stuck"] == ""
    assert code == 0, found


@pytest.mark.slow
async def test_without_faults_nothing_runs_twice():
    code, found = await chaos(
        "--jobs", "5000", *none("kills", "stops", "restarts", "drops", "cuts", "freezes", "flushes")
    )
    assert code == 0, found
    assert found["duplicates"] == 0


@pytest.mark.slow
async def test_without_the_fence_it_goes_red():
    code, found = await chaos(
        "--jobs", "4000", "--freezes", "4", *none("kills", "stops", "restarts", "drops", "cuts"), "--without", "fence"
    )
    assert code == 1
    assert found["double_terminal"], found


@pytest.mark.slow
async def test_without_the_fence_of_an_act_it_goes_red():
    """A retry that looks at no state runs completed jobs again, and jobs that run beside themselves."""
    code, found = await chaos(
        "--jobs", "2000", *none("kills", "stops", "restarts", "drops", "cuts", "freezes", "flushes"), "--without", "act"
    )
    assert code == 1
    assert found["unexplained"], found


@pytest.mark.slow
async def test_without_adoption_it_goes_red():
    """What a lost reply had brought stays with a worker that knows nothing of it, and that is alive."""
    code, found = await chaos(
        "--jobs", "1500", "--drops", "40", "--patience", "8", *none("kills", "stops", "restarts", "cuts", "freezes"),
        "--without", "adoption",
    )  # fmt: skip
    assert code == 1
    assert found["stuck"], found
    assert found["never_ran"], found


def none(*faults: str) -> list[str]:
    return [word for fault in faults for word in (f"--{fault}", "0")]


def test_the_verdict_sees_each_kind_of_wrong():
    def run(job: str, at: float, pid: int = 1, name: str = "plain") -> list[Note]:
        return [Note("start", job, pid, at, name=name), Note("end", job, pid, at + 0.1, name=name)]

    fine = [*run("a", 1), Note("job.completed", "a", 1, 1.2)]
    assert not any(judge(["a"], {"a": "completed"}, fine, []).values())
    assert judge(["a", "b"], {"a": "completed"}, fine, [])["lost"] == 1
    assert judge(["a"], {"a": "completed"}, [], [])["never_ran"] == 1
    twice = [*fine, Note("job.completed", "a", 2, 1.3)]
    assert judge(["a"], {"a": "completed"}, twice, [])["double_terminal"] == 1
    again = [*fine, *run("a", 5, pid=2)]
    found = judge(["a"], {"a": "completed"}, again, [])
    assert (found["duplicates"], found["unexplained"]) == (1, 1)
    for fault, unexplained in ((Fault("kill", 1, 3, 3), 0), (Fault("kill", 9, 3, 3), 1), (Fault("cut", 0, 3, 3), 1)):
        assert judge(["a"], {"a": "completed"}, again, [fault])["unexplained"] == unexplained
    for act, state, wrong in (
        ("cancelled", "cancelled", "two_ends"), ("removed", "gone", "ran_removed"), ("removed", "completed", "lost"),
        ("retried", "failed", "lost"), ("cancelled", "failed", "lost"),
    ):  # fmt: skip
        assert judge(["a"], {"a": state}, fine, [], {"a": act})[wrong] == 1
    failed = Note("job.failed", "a", 1, 1.1)
    assert judge(["a"], {"a": "completed"}, [failed, *fine], [], {"a": "retried"})["double_terminal"] == 0
    assert judge(["a"], {"a": "completed"}, [failed, failed, *fine], [], {"a": "retried"})["double_terminal"] == 1
    beside = [Note("start", "a", 1, 1.05), *fine, Note("end", "a", 1, 1.2)]
    assert judge(["a"], {"a": "completed"}, beside, [])["side_by_side"] == 1
    for names, limit in LIMITS:
        crowd = [note for n in range(limit.max + 1) for note in run(f"n{n}", 1 + n / 1000, name=names[n % len(names)])]
        assert judge([], {}, crowd, [])["over_limit"] == 1


def test_the_kinds_make_a_whole():
    assert sum(kind.share for kind in KINDS.values()) == 100
