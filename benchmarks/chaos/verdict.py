"""What a chaos run proves: the ledger against what was acknowledged."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from benchmarks.chaos.kinds import LIMITS, LONGEST_LEASE
from benchmarks.chaos.worker import Note


class Fault(NamedTuple):
    """`pid`: of the worker that it befell, 0 for the store; from `began` to `ended` by the monotonic clock."""

    kind: str
    pid: int
    began: float
    ended: float


# What may make a job run twice: its process died, stopped in the middle of it or froze, or nobody could reach the store
# for a lease.
EXCUSES = ("kill", "stop", "freeze worker", "restart", "freeze store")


# What may become of a job: how it may end, by what an operator did to it.
ENDS: Final[Mapping[str, tuple[str, ...]]] = {
    "": ("completed",), "retried": ("completed",), "cancelled": ("cancelled", "completed"), "removed": ("gone",),
}  # fmt: skip


def judge(
    acknowledged: Iterable[str],
    finished: Mapping[str, str],
    notes: list[Note],
    faults: list[Fault],
    acts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """All counts that a sound run keeps at zero, and what they rest on.

    Args:
        finished: job → the state that the store holds of it at the end; ``gone`` where it holds none.
        acts: job → what an operator did to it, see `ENDS`.
    """
    acts = acts or {}
    ends: Counter[str] = Counter()
    terminal: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    told: dict[str, set[str]] = defaultdict(set)
    tries: dict[str, list[Note]] = defaultdict(list)
    for note in notes:
        if note.kind in ("start", "end"):
            tries[note.job].append(note)
            ends[note.job] += note.kind == "end"
        elif note.kind == "job.failed" and acts.get(note.job) == "retried":
            failed[note.job] += 1
        else:
            terminal[note.job] += 1
            told[note.job].add(note.kind.removeprefix("job."))
    repeated = [job for job, times in ends.items() if times > 1]
    unexplained = [job for job in repeated if not _explained(tries[job], faults)]
    ids = set(acknowledged)
    return {
        "lost": sum(finished.get(job) not in ENDS[acts.get(job, "")] for job in ids),
        "never_ran": sum(not ends[job] for job in ids if acts.get(job, "") in ("", "retried")),
        "double_terminal": sum(times > 1 for times in (*terminal.values(), *failed.values())),
        "two_ends": sum(bool(told[job] - {finished.get(job)}) for job in ids if acts.get(job) == "cancelled"),
        "ran_removed": sum(bool(tries[job]) for job in ids if acts.get(job) == "removed"),
        "unexplained": len(unexplained),
        "side_by_side": sum(_side_by_side(some) for some in tries.values()),
        "over_limit": _over_limit(notes),
        "duplicates": sum(ends[job] - 1 for job in repeated),
        "unexplained_notes": [tries[job] for job in unexplained[:10]],
    }


def _explained(notes: list[Note], faults: list[Fault]) -> bool:
    """Whether something befell one of a job's processes, or the store, while it was on its way."""
    pids = {note.pid for note in notes}
    first, last = min(note.at for note in notes), max(note.at for note in notes)
    return any(
        fault.kind in EXCUSES
        and fault.pid in (0, *pids)
        and fault.began <= last
        and fault.ended >= first - LONGEST_LEASE
        for fault in faults
    )


def _side_by_side(notes: list[Note]) -> bool:
    """Whether a process has run a job beside itself: no fault of anything around it excuses that.

    A try that fails or is cancelled has no end; what is begun after it counts one more attempt or stall.
    """
    running: set[tuple[int, int, int]] = set()
    for note in sorted(notes, key=lambda note: note.at):
        which = (note.pid, note.attempt, note.stalled)
        if note.kind == "start" and which in running:
            return True
        (running.add if note.kind == "start" else running.discard)(which)
    return False


def _over_limit(notes: list[Note]) -> int:
    """How many starts of limited jobs came too early for the `max` before them."""
    early = 0
    for names, limit in LIMITS:
        starts = sorted(note.at for note in notes if note.kind == "start" and note.name in names)
        window = float(limit.duration)  # type: ignore[arg-type]
        early += sum(later - earlier < window for earlier, later in zip(starts, starts[limit.max :], strict=False))
    return early
