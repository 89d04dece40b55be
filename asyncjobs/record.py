"""Records: what travels with each job from the wire and back, unseen by the garbage collector.

A thousand jobs at a time are on their way. Each small tuple of theirs that outlived a moment would be counted among
what lives for long, and have the collector look through all that the app holds, tens of milliseconds each time.
"""

from __future__ import annotations

from typing import Any, Self

import msgspec


class Record(msgspec.Struct, frozen=True, gc=False):
    """Values under names, which are never changed; none of them may refer back to it."""

    def _replace(self, **values: Any) -> Self:
        """The same with other `values`."""
        return msgspec.structs.replace(self, **values)
