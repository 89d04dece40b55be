"""Wanted: what of the jobs that are looked at is asked for: a text, an error, a tag, an instant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from asyncjobs import clock
from asyncjobs.declare import payload
from asyncjobs.declare.values import shown
from asyncjobs.errors import ConfigError
from asyncjobs.job import Job
from asyncjobs.job_record import number_of
from asyncjobs.operate.states import State

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LISTED_BEFORE_MS: Final = 60_000
LONGEST: Final = 1000  # characters
PAIR: Final = re.compile(r"([A-Za-z0-9_][\w.-]*):(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Wanted:
    """State: `pair`, where `text` may be key and value, these; `since_ms` and `until_ms`, both inclusive."""

    text: str = ""
    error: str = ""
    tag: str = ""
    since_ms: int | None = None
    until_ms: int | None = None
    pair: tuple[str, str] | None = None

    @classmethod
    def of(cls, text: Any, error: Any, tag: Any, since: Any, until: Any) -> Wanted:
        """The same, checked.

        Raises:
            ConfigError: a value that cannot be.
        """
        given = {"text": _words(text, "text"), "error": _words(error, "error"), "tag": _words(tag, "tag")}
        least, most = _instant(since, "since"), _instant(until, "until")
        if least is not None and most is not None and least > most:
            raise ConfigError(f"since={since} lies after until={until}, so nothing can be found")
        pair = PAIR.fullmatch(given["text"])
        return cls(**given, since_ms=least, until_ms=most, pair=(pair[1], pair[2]) if pair else None)

    @property
    def searches(self) -> bool:
        """Whether each job has to be looked into."""
        return bool(self.text or self.error)

    def words(self) -> str:
        """The same, to be said behind what is looked at; of what is searched for, that it is."""
        said = [
            f", {what} {given!r}"
            for what, given in (("with", self.text), ("error", self.error), ("tag", self.tag))
            if given
        ]
        if self.since_ms is not None:
            said.append(f", since {clock.from_ms(self.since_ms):%Y-%m-%d %H:%M:%S}Z")
        if self.until_ms is not None:
            said.append(f", until {clock.from_ms(self.until_ms):%Y-%m-%d %H:%M:%S}Z")
        return "".join(said)

    def packed(self) -> bytes:
        """As the scripts take it: what has to be there at least, see ``lua/include/look.lua``."""
        terms: dict[str, list[list[str]]] = {}
        if self.text:
            terms["d"] = _written(self.text)
            if self.pair is not None:
                key, value = self.pair
                terms["d"].append([*(part for part in key.split(".") if part), _inside_json(value)])
        if self.error:
            terms["e"] = _written(self.error)
        return msgspec.msgpack.encode(terms) if terms else b""

    @property
    def timed(self) -> bool:
        return self.since_ms is not None or self.until_ms is not None

    def scores(self, state: State) -> tuple[int | None, int | None]:
        """From which score to which one such jobs stand."""
        return (self.since_ms, self.until_ms) if state.scored else (None, None)

    def bounds(self, state: State, listing: bool) -> tuple[int | None, int | None]:
        """From which score, or entry, to which one such jobs can stand, in their queue or in a `listing`.

        An entry is never older than its job. A job is listed a moment before it finishes.
        """
        least, most = self.since_ms, self.until_ms
        if listing and least is not None:
            least = max(0, least - LISTED_BEFORE_MS)
        return (least if state.scored or state.letter == "w" else None), (most if state.scored else None)

    def accepts(self, job: Job, state: State, record: Mapping[str, bytes]) -> bool:
        """Whether a job that the scripts have let through is one."""
        if state.field and not self._in_time(number_of(record.get(state.field))):
            return False
        if self.tag and self.tag not in job.tags:
            return False
        if self.error and (not job.error or self.error not in job.error[-1].text):
            return False
        return not self.text or self._has_text(record.get("d", b""))

    def _in_time(self, ms: int) -> bool:
        return (self.since_ms is None or ms >= self.since_ms) and (self.until_ms is None or ms <= self.until_ms)

    def _has_text(self, raw: bytes) -> bool:
        if self.text.encode() in raw or _inside_json(self.text).encode() in raw:
            return True
        if self.pair is None:
            return False
        try:
            decoded = payload.decode(raw)
            return any(_says(found, self.pair[1]) for found in _at(decoded, self.pair[0]))
        except Exception:  # no JSON, or nested too deeply: it has no keys
            return False


def _words(given: Any, option: str) -> str:
    if given is None:
        return ""
    if not isinstance(given, str) or not given or len(given) > LONGEST:
        raise ConfigError(f"{option}={shown(given)}: expected a text of 1 to {LONGEST} characters, or None")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{option}={given!a}: a lone surrogate is no text") from None
    return given


def _instant(given: Any, option: str) -> int | None:
    if given is None:
        return None
    try:
        if isinstance(given, datetime) and given.utcoffset() is not None:
            return (given - EPOCH) // timedelta(milliseconds=1)
    except Exception:  # of a timezone of the app
        pass
    raise ConfigError(f"{option}={shown(given)}: expected a timezone-aware datetime, datetime.now(UTC) - …")


def _written(text: str) -> list[list[str]]:
    """`text` as it is, or as JSON has it."""
    inside = _inside_json(text)
    return [[text]] if inside == text else [[text], [inside]]


def _inside_json(text: str) -> str:
    """`text` as it stands within a text of JSON."""
    return msgspec.json.encode(text).decode()[1:-1]


def _at(value: Any, path: str) -> Iterator[Any]:
    """What stands at a dotted path from the top; a key may itself hold dots, and lists are gone through."""
    if isinstance(value, list):
        for one in value:
            yield from _at(one, path)
    elif isinstance(value, dict):
        for key, held in value.items():
            if key == path:
                yield from held if isinstance(held, list) else [held]
            elif path.startswith(f"{key}."):
                yield from _at(held, path[len(key) + 1 :])


def _says(value: Any, text: str) -> bool:
    """Whether a value of JSON is written as `text`."""
    if isinstance(value, str):
        return value == text
    if isinstance(value, (dict, list)):
        return False
    return msgspec.json.encode(value).decode() == text
