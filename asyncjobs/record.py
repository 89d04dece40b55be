"""Records: small values that travel with each job, and that the garbage collector does not see.

A thousand jobs at a time are on their way. Each of their small tuples that outlives a moment would count as long-lived,
and make the collector look through all objects of the app, for tens of milliseconds each time.
"""

from __future__ import annotations

from typing import Any, Self

import msgspec


class Record(msgspec.Struct, frozen=True, gc=False):
    """Named values that never change. No value may refer back to the record."""

    def _replace(self, **values: Any) -> Self:
        """A copy with other `values`."""
        return msgspec.structs.replace(self, **values)
