"""The states of a job: where jobs stand that are in one, and which instant of theirs a search goes by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple

from asyncjobs.declare.values import shown
from asyncjobs.errors import ConfigError

Instant = Literal["added_at", "t", "started_at", "u", "due_at", "", "finished_at"]


class State(NamedTuple):
    """One state.

    Attributes:
        letter: as the scripts that look at many jobs call it.
        suffix: of the key in which such jobs stand, behind the tag of their queue.
        instant: which instant of a job `since` and `until` go by, and `field`, where its record has that.
        listed: jobs of all groups are listed under their name as well.
        scored: `instant` is the score in a sorted set.
    """

    name: Any
    letter: str
    suffix: str
    instant: Instant
    field: str
    listed: bool
    scored: bool


# In this order they are walked. A job that runs is looked at first: of those that go on from there while the others are
# looked at all but those that are put back have come to their next place later than the walk began.
EVERY: Final = (
    State("active", "a", "s", "started_at", "u", False, False),
    State("waiting", "w", "s", "added_at", "t", False, False),
    State("delayed", "d", "d", "due_at", "", False, True),
    State("completed", "c", "c", "finished_at", "F", True, True),
    State("failed", "f", "f", "finished_at", "F", True, True),
    State("cancelled", "k", "k", "finished_at", "F", True, True),
)
BY_NAME: Final = {one.name: one for one in EVERY}


def states(given: Any) -> tuple[State, ...]:
    """One or several states by name, all for None, in the order in which they are walked.

    Raises:
        ConfigError: something else, or none.
    """
    if given is None:
        return EVERY
    several = not isinstance(given, str) and isinstance(given, Iterable)
    names = list(given) if several else [given]
    unknown = [one for one in names if not isinstance(one, str) or one not in BY_NAME]
    if unknown or not names:
        what = shown(unknown[0]) if unknown else shown(given)
        raise ConfigError(f"state={what}: expected one or several of {', '.join(sorted(BY_NAME))}")
    return tuple(one for one in EVERY if one.name in names)
