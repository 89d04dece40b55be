"""The Sketch: the groups that take the most of a name, in a bounded room."""

from __future__ import annotations

from typing import Final

ROOM: Final = 256  # groups that are counted; where there are more, the lighter half of them goes


class Sketch:
    """Counts the heaviest groups. One that is new may have been dropped before, and ranks as the heaviest that was.

    State: `groups`, group id → its rank, starts, busy µs. A start counts a millisecond in the rank. `_least`, the rank
    of one that is new.
    """

    __slots__ = ("_least", "groups")

    def __init__(self) -> None:
        self.groups: dict[str, list[int]] = {}
        self._least = 0

    def add(self, group_id: str, starts: int, busy: int) -> None:
        """Count starts and busy µs of a group."""
        one = self.groups.get(group_id)
        if one is None:
            if len(self.groups) >= ROOM:
                self._drop()
            one = self.groups[group_id] = [self._least, 0, 0]
        one[0] += 1000 * starts + busy
        one[1] += starts
        one[2] += busy

    def _drop(self) -> None:
        """Let the lighter half go."""
        ranked = sorted(self.groups.items(), key=lambda one: -one[1][0])
        self._least = ranked[ROOM // 2][1][0]
        self.groups = dict(ranked[: ROOM // 2])

    def flat(self, most: int) -> list[str | int]:
        """Group id, starts, busy ms, … of the `most` that are heaviest."""
        heaviest = sorted(self.groups.items(), key=lambda one: -one[1][0])[:most]
        return [one for group_id, (_, starts, busy) in heaviest for one in (group_id, starts, round(busy / 1000))]
