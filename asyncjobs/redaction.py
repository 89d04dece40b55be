"""Redaction: payloads as they are shown, without what looks like a secret."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

REDACT_DEFAULT: Final = (
    "*password*", "*passwd*", "*secret*", "*token*", "*api_key*", "*apikey*", "authorization", "cookie",
    "*credential*", "*private_key*",
)  # fmt: skip
HIDDEN: Final = "•••"
DEEPEST: Final = 100
# What is a secret wherever it stands: JSON web tokens, keys of payment services, private keys.
SHAPES: Final = re.compile(
    r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|\b[srp]k_(?:live|test)_\w{8,}|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----)?",
    re.DOTALL,
)
CARD: Final = re.compile(r"(?<![\w.])(?:\d[ -]?){12,18}\d(?![\w.])", re.ASCII)


def redacted(value: Any, keys: Sequence[str] = REDACT_DEFAULT, depth: int = 0) -> Any:
    """A copy of decoded JSON in which the values of such keys, and what has the shape of a secret, are hidden."""
    if depth > DEEPEST:
        return HIDDEN
    if isinstance(value, dict):
        return {key: HIDDEN if _is_secret(key, keys) else redacted(one, keys, depth + 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(one, keys, depth + 1) for one in value]
    return text(value) if isinstance(value, str) else value


def _is_secret(key: Any, keys: Sequence[str]) -> bool:
    name = str(key).lower().replace("-", "").replace("_", "")
    return any(fnmatchcase(name, one.replace("_", "")) for one in keys)


def text(value: str) -> str:
    """A text without what has the shape of a secret."""
    return CARD.sub(lambda found: HIDDEN if _is_card(found[0]) else found[0], SHAPES.sub(HIDDEN, value))


def _is_card(digits: str) -> bool:
    """By Luhn's sum."""
    numbers = [int(one) for one in digits if one.isdigit()][::-1]
    doubled = [one * 2 - 9 * (one > 4) for one in numbers[1::2]]
    return len(set(numbers)) > 1 and (sum(numbers[::2]) + sum(doubled)) % 10 == 0
