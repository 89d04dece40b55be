"""The options of an add: which there are, and the checks of those that say where and when a job is to run."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from asyncjobs import clock
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.values import FOREVER, seconds, shown
from asyncjobs.errors import ConfigError

ADD_OPTIONS: Final = (
    "group_id", "job_id", "delay", "at", "attempts", "backoff", "timeout", "remove_on_complete", "remove_on_fail",
)  # fmt: skip
LONGEST_ID: Final = 512  # bytes of UTF-8
AT_ONCE: Final = ("in", 0)


def group_of(spec: JobSpec, group_id: Any) -> str | None:
    if not spec.grouped:
        if group_id is not None:
            raise ConfigError(f"{spec.name} has no groups, so it takes no group_id; set group=True to give it some")
        return None
    if group_id is None:
        raise ConfigError(f"{spec.name} is a grouped job: name its group, group_id='…'")
    return group_text(group_id)


def group_text(group_id: Any) -> str:
    if isinstance(group_id, int) and not isinstance(group_id, bool):
        return str(group_id)
    return id_text(group_id, "group_id")


def id_text(value: Any, option: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{option}={shown(value)}: expected a text that is not empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"{option}={value!a}: a lone surrogate is no text") from None
    if size > LONGEST_ID:
        raise ConfigError(f"{option}={shown(value)}: {size} bytes of UTF-8, at most {LONGEST_ID}")
    return value


def _is_aware(at: datetime) -> bool:
    """Whether it says which instant it is; a timezone may be the app's own, and raise anything."""
    try:
        return at.utcoffset() is not None
    except Exception:
        return False


def due_of(delay: Any, at: Any) -> tuple[str, int]:
    """When a job is due, as the script takes it; rounded up, so never too early."""
    if at is not None:
        if delay is not None:
            raise ConfigError("delay and at both say when a job is due; give one of them")
        if not isinstance(at, datetime) or not _is_aware(at):
            raise ConfigError(f"at={shown(at)}: expected a timezone-aware datetime, datetime.now(UTC) + …")
        due = clock.to_ms(at)
        if due / 1000 - clock.wall() > FOREVER:
            raise ConfigError(f"at={shown(at)}: expected an instant that is at most 100 years away")
        return "at", max(0, due)
    return "in", -int(-seconds(delay, "delay") * 1000 // 1)
