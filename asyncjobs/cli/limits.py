"""``asyncjobs limits``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from asyncjobs import words
from asyncjobs.cli import output, project, steering
from asyncjobs.cli.command import Given, made
from asyncjobs.cli.figures import info_of
from asyncjobs.cli.output import Cell, Column

if TYPE_CHECKING:
    from asyncjobs.declare.definition import JobSpec
    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

BINDING: Final = ("paused", "held", "rate_limited", "total_limit", "named_limit", "concurrency_full", "slots_busy")


@made("limits")
def command(given: Given) -> int:
    """Show what is limited: by name, over all groups, and by name shared; who runs under it, and what waits for it."""

    async def work(queue: Queue, runtime: Runtime) -> int:
        counts = await queue.all_names()
        found: list[dict[str, Any]] = []
        for name in counts:
            spec = queue.spec(name) if name in queue.names else None
            found += await _limits(queue, name, spec, counts[name])
        if given.as_json:
            output.emit(found)
            return 0 if found else 1
        rows = [
            (
                one["job"], one["kind"], one["allows"], one["running"], one["waiting"],
                Cell(one["binds"], "magenta") if one["binds"] else None,
            )
            for one in found
        ]  # fmt: skip
        numbers = [Column("running", number=True), Column("waiting", number=True)]
        output.table(
            ["job", "limit", "allows", *numbers, Column("binds now", flexible=True)], rows, "nothing is limited"
        )
        return 0 if found else 1

    return project.ask(given, work)


async def _limits(queue: Queue, name: str, spec: JobSpec | None, counts: dict[str, int]) -> list[dict[str, Any]]:
    """The limits of one job name."""
    from asyncjobs.declare.queue_limits import windows_text

    info = await info_of(queue, name, counts)
    reasons = await queue.job(name).why() if spec is not None and info["waiting"] else []
    binds = "; ".join(f"{one.code.replace('_', ' ')}: {one.text}" for one in reasons if one.code in BINDING)
    found: list[tuple[str, str]] = []
    a_group = " a group" if spec is not None and spec.grouped else ""
    own = steering.windows(info["limiter"])
    if own is None and spec is not None and spec.limiters:
        own = steering.windows(windows_text(spec.limiters))
    if own is not None and own != steering.NONE:
        found.append((f"rate{a_group}", own))
    concurrency = info["concurrency"] or (spec.concurrency if spec is not None else None)
    if concurrency is not None:
        found.append((f"concurrency{a_group or ' a process'}", str(concurrency)))
    if spec is not None:
        found += _shared(spec)
    if info["max_waiting"] is not None:
        found.append(("max waiting", words.number(info["max_waiting"])))
    keys = {"job": name, "running": info["active"], "waiting": info["waiting"]}
    return [
        {**keys, "kind": kind, "allows": allows, "binds": binds if not at else ""}
        for at, (kind, allows) in enumerate(found)
    ]


def _shared(spec: JobSpec) -> list[tuple[str, str]]:
    """What holds over several queues."""
    from asyncjobs.declare.queue_limits import windows_text

    options = spec.worker_options
    found = [(f"named {one.name}", f"{one.max}/{words.duration(float(one.duration))}") for one in spec.named_limiters]  # type: ignore[arg-type]
    total = getattr(options, "total_limiter", None)
    if total is not None:
        several = total if isinstance(total, (list, tuple)) else (total,)
        found.append(("rate over all groups", steering.windows(windows_text(tuple(several))) or ""))
    if getattr(options, "total_concurrency", None) is not None:
        found.append(("concurrency over all groups", str(options.total_concurrency)))
    return found
