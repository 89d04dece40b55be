"""Plain JSON: how a Python value looks in JSON."""

from __future__ import annotations

import dataclasses
import datetime as dates
import enum
import math
import numbers
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from asyncjobs.declare.values import shown
from asyncjobs.errors import PayloadError

SIMPLE: Final = frozenset({bool, int, type(None)})
JSON_SCALARS: Final = frozenset({str, bool, int, float, type(None)})
TEXT_LIKE: Final = (dates.date, dates.time, dates.timedelta, uuid.UUID, Decimal, bytes, bytearray, memoryview)
MISSING: Final = object()


class How(NamedTuple):
    """How a value is turned into JSON.

    Attributes:
        keys: keys that are numbers or dates become text, because the declared type turns them back.
        round_trip: a pydantic model is written without computed fields, so that its own validation accepts the JSON.
        by_alias: a pydantic model is written under its aliases, else under the names of its fields.
    """

    keys: bool = False
    round_trip: bool = True
    by_alias: bool = True


UNTYPED: Final = How()
TYPED: Final = How(keys=True)
RESULT: Final = How(keys=True, round_trip=False)


def plain(value: Any, path: str, how: How = UNTYPED) -> Any:
    """`value` made of dict, list, str, int, float, bool and None alone; `value` itself if it is that already.

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
    """The JSON form of a value that is no plain dict, list, text or number."""
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
    """A number of another library: numpy's, or a value that is registered as an integer or a real number."""
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
    """True if `value` is an instance of a pydantic model."""
    return hasattr(type(value), "model_dump") and hasattr(type(value), "__pydantic_validator__")


def is_record(value: Any) -> bool:
    """True if `value` is an instance of a class with declared fields that msgspec writes."""
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
    """The error for the first field of `value` that cannot be written; None if there is none."""
    for name in field_names(type(value)):
        try:
            plain(getattr(value, name, None), f"{path}.{name}", how._replace(keys=True))
        except PayloadError as error:
            return error
    return None


def undumpable(value: Any, path: str) -> str:
    """The path of the part of `value` that pydantic cannot write."""
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
    """The error for the first secret in a model. pydantic would silently write asterisks."""
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
