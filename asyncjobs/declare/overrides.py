"""Overrides: the options that one add gave to its job, in the form in which the job's record keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, get_args

import msgspec

from asyncjobs.declare.definition import kept
from asyncjobs.declare.options import Backoff, BackoffType, JobOptions, Retention
from asyncjobs.declare.values import FOREVER, duration
from asyncjobs.errors import ConfigError

if TYPE_CHECKING:
    pass


BACKOFF: Final = frozenset(one.name for one in fields(Backoff))


class Overrides(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """The options that one `add` gave, as the job's record keeps them. UNSET: the option of the definition applies."""

    newer: ClassVar[bool] = False  # a newer release added the job with an option that this release does not know

    a: int | msgspec.UnsetType | None = msgspec.UNSET  # attempts
    b: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET  # backoff
    t: float | msgspec.UnsetType | None = msgspec.UNSET  # timeout
    c: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET  # remove_on_complete: count, age in ms
    f: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET  # remove_on_fail
    n: tuple[str, str | None, str] | msgspec.UnsetType = msgspec.UNSET  # copied from: name, group, id

    @classmethod
    def of(cls, given: Mapping[str, Any], checked: JobOptions) -> Overrides:
        """The options that `given` names, with their checked values."""
        made = cls()
        if "attempts" in given:
            made.a = checked.attempts
        if "backoff" in given:
            rule = checked.backoff
            if rule is not None and not isinstance(rule, Backoff):
                raise ConfigError("backoff: a function cannot travel with one job; give it to the job's JobOptions")
            made.b = (
                None if rule is None else {one: getattr(rule, one) for one in ("type", "delay", "max_delay", "jitter")}
            )
        if "timeout" in given:
            made.t = None if checked.timeout is None else duration(checked.timeout)
        if "remove_on_complete" in given:
            made.c = kept(checked.remove_on_complete)
        if "remove_on_fail" in given:
            made.f = kept(checked.remove_on_fail)
        return made

    @classmethod
    def decode(cls, raw: bytes) -> Overrides:
        """The inverse of `encode`. Options of a newer release are left out, and `newer` is set.

        Raises:
            msgspec.MsgspecError: `raw` cannot be read.
        """
        return _overrides(raw) if raw else NO_OVERRIDES

    def encode(self) -> bytes:
        raw = msgspec.json.encode(self)
        return b"" if raw == b"{}" else raw

    def over(self, other: Overrides) -> Overrides:
        """The options of `other`, and those of `self` over them."""
        mine = ((one, getattr(self, one)) for one in self.__struct_fields__)
        return msgspec.structs.replace(other, **{one: value for one, value in mine if value is not msgspec.UNSET})

    def attempts(self, options: JobOptions) -> int | None:
        return options.attempts if isinstance(self.a, msgspec.UnsetType) else self.a

    def backoff(self, options: JobOptions) -> Any:
        if isinstance(self.b, msgspec.UnsetType):
            return options.backoff
        return None if self.b is None else _backoff(self.b)

    def timeout(self, options: JobOptions) -> float | None:
        given = options.timeout if isinstance(self.t, msgspec.UnsetType) else self.t
        return None if given is None else duration(given)

    def keep(self, options: JobOptions, op: str) -> str:
        """The retention of one finished job for `lua/work.lua`: '' the defaults, '0' keep none, 'count:age'."""
        given = self.c if op == "c" else self.f
        if isinstance(given, msgspec.UnsetType):
            rule = options.remove_on_complete if op == "c" else options.remove_on_fail
            assert isinstance(rule, Retention)
            return "0" if rule.keeps_none else ""
        return "0" if 0 in given else f"{given[0]}:{given[1]}"


class NewerOverrides(Overrides, forbid_unknown_fields=False):
    """Overrides of a newer release, without the options that this release does not know."""

    newer: ClassVar[bool] = True


NO_OVERRIDES: Final = Overrides()


@lru_cache(maxsize=256)
def _overrides(raw: bytes) -> Overrides:
    made: Overrides
    try:
        made = msgspec.json.decode(raw, type=Overrides)
    except msgspec.ValidationError:
        made = msgspec.json.decode(raw, type=NewerOverrides)
    rule = made.b
    if not isinstance(rule, dict):
        return made
    if rule.get("type", "fixed") not in get_args(BackoffType):
        made = NewerOverrides(made.a, msgspec.UNSET, made.t, made.c, made.f, made.n)
    else:
        known = {key: value for key, value in rule.items() if key in BACKOFF}
        if len(known) < len(rule):
            made = NewerOverrides(made.a, known, made.t, made.c, made.f, made.n)
        try:
            _backoff(known)
        except ConfigError as error:
            raise msgspec.ValidationError(str(error)) from error
    return made


def _backoff(rule: Mapping[str, Any]) -> Backoff:
    """The backoff of a job's record. It is made of timedeltas, because large plain numbers cause a warning."""

    def pause(value: Any) -> Any:
        plain = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= FOREVER
        return timedelta(seconds=value) if plain else value

    return Backoff(**{key: pause(value) if "delay" in key else value for key, value in rule.items()})
