"""Told: what processes leave of a job name in the store, for those that have not registered it."""

from __future__ import annotations

import msgspec

from asyncjobs.declare.definition import JobSpec, kept
from asyncjobs.declare.queue_limits import windows_text


class Told(msgspec.Struct, frozen=True):
    """What the store says of a job name; an earlier release has left `grouped` alone.

    Attributes:
        retention: how many completed jobs are kept and for how many ms, and the same for failed ones; -1: no bound.
        windows: of its limiter, ``max:µs max:µs …``; `named`: of each that it shares by its name.
        total_windows, total_concurrency: over all its groups.
        stalls: after how many it runs beside no other such job.
    """

    grouped: bool = False
    ordered: bool = False
    concurrency: int | None = None
    windows: str = ""
    attempts: int | None = None
    retention: tuple[int, int, int, int] | None = None
    lease: float | None = None
    release: str = ""
    named: dict[str, str] = {}
    total_windows: str = ""
    total_concurrency: int | None = None
    stalls: int | None = None


def about(spec: JobSpec, release: str) -> bytes:
    """What this process leaves of a name. Earlier releases look for ``"grouped":true`` in it."""
    return msgspec.json.encode(told_of(spec, release))


def told_of(spec: JobSpec, release: str = "") -> Told:
    """What this process knows of a name."""
    options = spec.job_options
    return Told(
        grouped=spec.grouped,
        ordered=spec.ordered,
        concurrency=spec.concurrency,
        windows=spec.limits.windows,
        attempts=options.attempts,
        retention=(*kept(options.remove_on_complete), *kept(options.remove_on_fail)),
        lease=spec.lease,
        release=release,
        named={one.name: windows_text((one,)) for one in spec.named_limiters if one.name},
        total_windows=windows_text(spec.total_limiters),
        total_concurrency=spec.total_concurrency,
        stalls=spec.suspect_after,
    )


def read_told(raw: bytes) -> Told:
    """The same, read from the store; what cannot be read says nothing."""
    try:
        return msgspec.json.decode(raw, type=Told)
    except Exception:  # another release, or an operator
        return Told(grouped=b'"grouped":true' in raw)
