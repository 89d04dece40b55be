"""Plain JSON: what a Python value looks like in JSON, and whether it comes back from there equal."""

from __future__ import annotations

import dataclasses
import datetime as dates
import enum
import functools
import math
import numbers
import uuid
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from asyncjobs.declare.options import shown
from asyncjobs.errors import PayloadError

SIMPLE: Final = frozenset({bool, int, type(None)})
JSON_SCALARS: Final = frozenset({str, bool, int, float, type(None)})
TEXT_LIKE: Final = (dates.date, dates.time, dates.timedelta, uuid.UUID, Decimal, bytes, bytearray, memoryview)
MISSING: Final = object()


class How(NamedTuple):
    """How a value is turned into JSON.

    Attributes:
        keys: a key that is a number, a date or the like becomes text, because the declared type turns it back.
        round_trip: a pydantic model is written so that its own validation takes it: without computed fields.
        by_alias: a pydantic model is written under its aliases, else under the names of its fields.
    """

    keys: bool = False
    round_trip: bool = True
    by_alias: bool = True


UNTYPED: Final = How()
TYPED: Final = How(keys=True)
RESULT: Final = How(keys=True, round_trip=False)


def plain(value: Any, path: str, how: How = UNTYPED) -> Any:
    """`value` as nothing but dict, list, str, int, float, bool and None; `value` itself where it is that already.

    Raises:
        PayloadError: something in `value` has no JSON form; the message names its path, ``data.items[3].price``.
    """
    kind = type(value)
    if kind is str or kind in SIMPLE:
        return value
    if kind is dict:
        return _plain_dict(value, path, how)
    if kind is list:
        made = value
        for place, item in enumerate(value):
            if type(item) is not str and type(item) not in SIMPLE:
                new = plain(item, f"{path}[{place}]", how)
                if new is not item:
                    made = list(value) if made is value else made
                    made[place] = new
        return made
    if kind is float:
        if not math.isfinite(value):
            raise PayloadError(f"{path} is {value}; JSON has only finite numbers")
        return value
    return _other(value, path, how)


def _plain_dict(value: dict[Any, Any], path: str, how: How) -> dict[Any, Any]:
    made = value
    for key, item in value.items():
        name = key if type(key) is str else _key(key, path, how)
        new = item if type(item) is str or type(item) in SIMPLE else plain(item, f"{path}.{key}", how)
        if new is item and name is key:
            continue
        made = dict(value) if made is value else made
        if name is not key:
            del made[key]
            if name in made:
                raise PayloadError(f"{path} has two keys that JSON writes as {shown(name)}")
        made[name] = new
    return made


def _key(key: Any, path: str, how: How) -> str:
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, str):
        return str.__str__(key)
    if not how.keys:
        raise PayloadError(f"{path} has the key {shown(key)}; JSON keys are text, use {shown(str(key))}")
    if not isinstance(key, bool):
        new = plain(key, f"{path}.<key {shown(key)}>", how) if isinstance(key, (*TEXT_LIKE, numbers.Real)) else None
        if isinstance(new, str):
            return new
        if isinstance(new, (int, float)):
            return str(new)
    raise PayloadError(f"{path} has the key {shown(key)}; a key in JSON is text, or a number or date written as text")


def _other(value: Any, path: str, how: How) -> Any:
    """The JSON form of what is no plain dict, list, text or number itself."""
    if isinstance(value, enum.Enum):
        return plain(value.value, path, how)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return plain(float.__float__(value), path, how)
    if isinstance(value, dict):
        return plain(dict(value), path, how)
    if isinstance(value, (list, tuple)):
        return plain(list(value), path, how)
    if isinstance(value, (set, frozenset)):
        return [plain(item, f"{path}{{{shown(item, 20)}}}", how) for item in value]
    if isinstance(value, TEXT_LIKE):
        return _text_of(value)
    if isinstance(value, type):
        raise _refused(value, path)
    if is_model(value):
        return plain(_dumped(value, path, how), path, how._replace(keys=True))
    if is_record(value):
        return plain(_fields_of(value, path, how), path, how._replace(keys=True))
    if isinstance(value, msgspec.Raw):
        return plain(msgspec.json.decode(value), path, how)
    return _number_of(value, path, how)


def _text_of(value: Any) -> Any:
    try:
        return msgspec.to_builtins(value)
    except TypeError:  # a subclass, as freezegun's
        if isinstance(value, dates.datetime):
            parts = (value.hour, value.minute, value.second, value.microsecond, value.tzinfo)
            return msgspec.to_builtins(dates.datetime(value.year, value.month, value.day, *parts, fold=value.fold))
        if isinstance(value, dates.date):
            return msgspec.to_builtins(dates.date(value.year, value.month, value.day))
        return msgspec.to_builtins(bytes(value)) if isinstance(value, (bytes, bytearray, memoryview)) else str(value)


def _number_of(value: Any, path: str, how: How) -> Any:
    """A number of another library: one of numpy's, or whatever says that it is an integer or a real number."""
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():
        item = value.item()
        if item is not value and type(item) is not type(value):
            return plain(item, path, how)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and float(value) == value:
        return plain(float(value), path, how)
    raise _refused(value, path)


def _refused(value: Any, path: str) -> PayloadError:
    if is_secret(value):
        return PayloadError(
            f"{path} is a {type(value).__name__}, which is written as asterisks; add the key under which the handler "
            "finds the secret, or its .get_secret_value()"
        )
    return PayloadError(
        f"{path} is a {type(value).__name__} ({shown(value)}); data must be JSON: dict, list, str, int, float, bool or "
        "None, or what is written as such: datetime, UUID, Decimal, Enum, set, bytes, dataclass, Struct, pydantic model"
    )


# Records ----------------------------------------------------------------------------------------------------
def is_secret(value: Any) -> bool:
    return hasattr(type(value), "get_secret_value")


def is_model(value: Any) -> bool:
    """Whether `value` is an instance of a pydantic model."""
    return hasattr(type(value), "model_dump") and hasattr(type(value), "__pydantic_validator__")


def is_record(value: Any) -> bool:
    """Whether `value` is an instance of a class with declared fields that msgspec writes."""
    kind = type(value)
    return isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(kind) or hasattr(kind, "__attrs_attrs__")


def field_names(kind: type) -> tuple[str, ...]:
    """The fields of a record, or of a pydantic model, by their Python names."""
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_fields__
    if dataclasses.is_dataclass(kind):
        return tuple(one.name for one in dataclasses.fields(kind))
    if hasattr(kind, "__attrs_attrs__"):
        return tuple(one.name for one in kind.__attrs_attrs__)
    return tuple(getattr(kind, "__pydantic_fields__", None) or ())


def _fields_of(value: Any, path: str, how: How) -> Any:
    def hook(inner: Any) -> Any:
        return plain(inner, path, how)

    try:
        return msgspec.to_builtins(value, enc_hook=hook)
    except RecursionError:
        raise
    except Exception as error:
        raise _deeper(value, path, how) or PayloadError(f"{path} cannot be written as JSON: {error}") from error


def _dumped(value: Any, path: str, how: How) -> Any:
    """A pydantic model as its own serialisers write it."""
    if found := _secret(value, path):
        raise found
    try:
        return value.model_dump(mode="json", by_alias=how.by_alias, round_trip=how.round_trip, warnings=False)
    except RecursionError:
        raise
    except Exception as error:
        where = undumpable(value, path) or path
        raise _deeper(value, path, how) or PayloadError(f"{where} cannot be written as JSON: {error}") from error


def _deeper(value: Any, path: str, how: How) -> PayloadError | None:
    """The complaint about the first field that is to blame."""
    for name in field_names(type(value)):
        try:
            plain(getattr(value, name, None), f"{path}.{name}", how._replace(keys=True))
        except PayloadError as error:
            return error
    return None


def undumpable(value: Any, path: str) -> str:
    """Where the part of `value` is that pydantic cannot write."""
    inner: list[tuple[str, Any]] = []
    if is_model(value):
        for name in field_names(type(value)):
            try:
                value.model_dump(mode="json", include={name}, warnings=False)
            except Exception:
                inner.append((f"{path}.{name}", getattr(value, name, None)))
        if not inner:
            return ""
    elif isinstance(value, dict):
        inner = [(f"{path}.{key}", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        inner = [(f"{path}[{place}]", item) for place, item in enumerate(value)]
    found = next((deeper for where, item in inner if (deeper := undumpable(item, where))), "")
    return found or (inner[0][0] if is_model(value) else "")


def _secret(value: Any, path: str) -> PayloadError | None:
    """The complaint about the first secret in a model: pydantic would write asterisks and say nothing."""
    if is_secret(value):
        return _refused(value, path)
    inner: Iterator[tuple[str, Any]]
    if is_model(value):
        extra = getattr(value, "__pydantic_extra__", None) or {}
        inner = ((f"{path}.{name}", item) for name, item in ({**vars(value), **extra}).items())
    elif isinstance(value, dict):
        inner = ((f"{path}.{key}", item) for key, item in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = ((f"{path}[{place}]", item) for place, item in enumerate(value))
    elif is_record(value) and not isinstance(value, type):
        inner = ((f"{path}.{name}", getattr(value, name, None)) for name in field_names(type(value)))
    else:
        return None
    return next((found for where, item in inner if (found := _secret(item, where))), None)


# What comes back --------------------------------------------------------------------------------------------
class Loss(NamedTuple):
    """The first place where what comes back is not what was given."""

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
    """Where `back`, which a handler gets, is not what was `given`.

    JSON that is given becomes what is declared: a dict becomes the record, text becomes the date. Everything else
    must come back equal.
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
        return None  # the JSON form of something else
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
                loss = None  # the JSON form of a key that is no text
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
    """The fields of a record by every name that they may have in JSON."""
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
    """The first place where the two are not equal; records without an ``==`` of their own are equal by their fields."""
    if same(given, back):
        return None
    if isinstance(given, dates.datetime) and isinstance(back, dates.datetime) and given.tzinfo and back.tzinfo:
        # In the hour that comes twice ``==`` is false between zones, by PEP 495.
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
    """``one == other``, where that may raise, or be an array."""
    try:
        return one is other or bool(one == other)
    except Exception:
        return False
