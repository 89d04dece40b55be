"""Losses: the parts of a value that do not come back equal from JSON."""

from __future__ import annotations

import datetime as dates
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from asyncjobs.declare.json_values import JSON_SCALARS, MISSING, field_names, is_model, is_record
from asyncjobs.declare.values import shown


# What comes back --------------------------------------------------------------------------------------------
class Loss(NamedTuple):
    """The first place at which the value that comes back differs from the value that was given."""

    path: str
    given: Any
    back: Any

    def __str__(self) -> str:
        came = "nothing" if self.back is MISSING else f"a {type(self.back).__name__} ({shown(self.back)})"
        gave = "has a value" if self.given is MISSING else f"is a {type(self.given).__name__} ({shown(self.given)})"
        return (
            f"{self.path} {gave}, and the handler would get {came}; add what the declared type takes, or declare a "
            "type that brings it back"
        )


def lost(given: Any, back: Any, path: str) -> Loss | None:
    """The first place at which `back`, which the handler gets, differs from `given`; None if both are equal.

    A difference that the declared type asks for is no loss: a dict becomes the record, a text becomes the date.
    Everything else must come back equal.
    """
    kind = type(given)
    if kind is str:
        return None
    if kind in JSON_SCALARS:
        number = kind is int and type(back) is float and given != back
        return Loss(path, given, back) if number else None
    if isinstance(given, dict):
        return _lost_items(given, back, path)
    if kind is list:
        return _lost_places(given, back, path)
    if isinstance(given, tuple) and isinstance(back, tuple) and len(back) == len(given):
        return _first(lost(one, back[place], f"{path}[{place}]") for place, one in enumerate(given))
    return difference(given, back, path)


def _lost_places(given: list[Any], back: Any, path: str) -> Loss | None:
    if isinstance(back, (list, tuple)) and len(back) == len(given):
        return _first(lost(one, back[place], f"{path}[{place}]") for place, one in enumerate(given))
    if not isinstance(back, (set, frozenset)):
        return None  # `given` is the JSON form of `back`
    for place, one in enumerate(given):
        if type(one) not in JSON_SCALARS and not _within(one, back) and type(one) not in (list, dict):
            return Loss(f"{path}[{place}]", one, MISSING)
    return None


def _lost_items(given: dict[Any, Any], back: Any, path: str) -> Loss | None:
    if isinstance(back, Mapping):
        for key, item in given.items():
            found = back.get(key, MISSING)
            if found is not MISSING:
                loss = lost(item, found, f"{path}.{key}")
            elif isinstance(key, str) and len(back) >= len(given):
                loss = None  # the JSON form of a key that is not text
            else:
                loss = Loss(f"{path}.{key}", item, MISSING)
            if loss is not None:
                return loss
        return None
    kind: Any = type(back)
    names = _json_names(kind)
    if not names or (not is_record(back) and not is_model(back)):
        return difference(given, back, path)
    for key, item in given.items():
        if key in names and (loss := lost(item, getattr(back, names[key], MISSING), f"{path}.{key}")) is not None:
            return loss
    return None


@functools.lru_cache(1024)
def _json_names(kind: Any) -> dict[str, str]:
    """The fields of a record by each name that JSON may use for them."""
    names = {name: name for name in field_names(kind)}
    if issubclass(kind, msgspec.Struct):
        names.update(zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True))
    for name, one in (getattr(kind, "__pydantic_fields__", None) or {}).items():
        for alias in (getattr(one, "alias", None), getattr(one, "validation_alias", None)):
            if isinstance(alias, str):
                names[alias] = name
            for choice in getattr(alias, "choices", ()):
                if isinstance(choice, str):
                    names[choice] = name
    return names


def _within(one: Any, many: Any) -> bool:
    try:
        return one in many
    except TypeError:
        return False


def _first(losses: Iterator[Loss | None]) -> Loss | None:
    return next((one for one in losses if one is not None), None)


def difference(given: Any, back: Any, path: str) -> Loss | None:
    """The first place at which both differ. Records without an ``==`` of their own are compared by their fields."""
    if same(given, back):
        return None
    if isinstance(given, dates.datetime) and isinstance(back, dates.datetime) and given.tzinfo and back.tzinfo:
        # By PEP 495, ``==`` between two zones is false in the hour that comes twice.
        instants = given.astimezone(dates.UTC), back.astimezone(dates.UTC)
        return None if instants[0] == instants[1] else Loss(path, given, back)
    if type(given) is not type(back):
        return Loss(path, given, back)
    pairs: Iterator[tuple[str, Any, Any]]
    if isinstance(given, dict) and given.keys() == back.keys():
        pairs = ((f"{path}.{key}", item, back[key]) for key, item in given.items())
    elif isinstance(given, (list, tuple)) and len(given) == len(back):
        pairs = ((f"{path}[{i}]", one, other) for i, (one, other) in enumerate(zip(given, back, strict=True)))
    elif names := (field_names(type(given)) if is_model(given) or is_record(given) else ()):
        pairs = ((f"{path}.{one}", getattr(given, one, MISSING), getattr(back, one, MISSING)) for one in names)
    else:
        return Loss(path, given, back)
    found = _first(difference(one, other, where) for where, one, other in pairs)
    if found is None and is_model(given):
        for name in ("__pydantic_private__", "__pydantic_extra__"):
            one, other = getattr(given, name, None) or {}, getattr(back, name, None) or {}
            for key in {**one, **other}:
                if not same(one.get(key, MISSING), other.get(key, MISSING)):
                    return Loss(f"{path}.{key}", one.get(key, MISSING), other.get(key, MISSING))
    return found


def same(one: Any, other: Any) -> bool:
    """``one == other`` as a bool. The comparison may raise, or give an array."""
    try:
        return one is other or bool(one == other)
    except Exception:
        return False
