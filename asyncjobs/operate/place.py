"""The Cursor: how far a walk over jobs has come, as a text that a page hands out and another process may go on from."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from asyncjobs.broker.looking import Place
from asyncjobs.declare.values import shown
from asyncjobs.errors import ConfigError

LONGEST = 8192  # characters


class Cursor(msgspec.Struct, array_like=True, frozen=True):
    """Where a walk stands.

    Attributes:
        begun_ms: by the store's clock; what comes to a state later is none of the walk's.
        state, name, group: of the queue that is walked; the group is None for a name's own, or its listing.
        at, member: the place in there, see `Place`.
    """

    begun_ms: int
    state: str
    name: str
    group: str | None
    at: bytes
    member: bytes

    @property
    def place(self) -> Place:
        return Place(self.at, self.member)

    def text(self) -> str:
        """As a page hands it out."""
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")

    @classmethod
    def read(cls, given: Any) -> Cursor:
        """The inverse of `text`.

        Raises:
            ConfigError: it is none that a page has handed out.
        """
        try:
            if not isinstance(given, str) or len(given) > LONGEST:
                raise ValueError
            raw = base64.urlsafe_b64decode(given + "=" * (-len(given) % 4))
            return msgspec.msgpack.decode(raw, type=cls)
        except (ValueError, binascii.Error, msgspec.MsgspecError):
            raise ConfigError(
                f"after={shown(given)}: expected what a page of the same selection has as `next`"
            ) from None
