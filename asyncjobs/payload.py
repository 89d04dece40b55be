"""Payloads and results: what may travel as JSON, and checking it against what a handler declares."""

from __future__ import annotations

import dataclasses
import math
import sys
import typing
from typing import Any, Final

import msgspec

from asyncjobs.config import shown
from asyncjobs.errors import PayloadError

_encoder: Final = msgspec.json.Encoder()
_SIMPLE: Final = frozenset({bool, int, type(None)})


def encode(value: Any, what: str = "data") -> bytes:
    """`value` as JSON.

    Structs, dataclasses and pydantic models are turned into their fields first; tuples are arrays.

    Raises:
        PayloadError: something in it is not JSON; the message names its path, ``data.items[3].price``.
    """
    try:
        plain = as_plain(value)
        check_json(plain, what)
        return _encoder.encode(plain)
    except UnicodeEncodeError:
        raise PayloadError(f"{_surrogate_path(plain, what)} is text with a lone surrogate; UTF-8 has none") from None
    except RecursionError:
        raise PayloadError(f"{what} contains itself or is nested too deeply") from None


def decode(raw: bytes) -> Any:
    """The inverse of `encode`, untyped."""
    return msgspec.json.decode(raw)


def as_plain(value: Any) -> Any:
    """A typed record as plain containers; anything else as it is."""
    if isinstance(value, (dict, list, str)) or value is None:
        return value
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if hasattr(value, "model_dump") and hasattr(value, "model_fields_set"):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return msgspec.to_builtins(value)
    return value


def check_json(value: Any, path: str) -> None:
    """Raise a PayloadError that names the first place in `value` that JSON has no notion of."""
    kind = type(value)
    if kind is str or kind in _SIMPLE:
        return
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str and not isinstance(key, str):
                raise PayloadError(f"{path} has the key {shown(key)}; JSON keys are text, use {str(key)!r}")
            if type(item) is not str and type(item) not in _SIMPLE:
                check_json(item, f"{path}.{key}")
    elif kind is list or kind is tuple:
        for i, item in enumerate(value):
            if type(item) is not str and type(item) not in _SIMPLE:
                check_json(item, f"{path}[{i}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise PayloadError(f"{path} is {value}; JSON has only finite numbers")
    elif isinstance(value, (str, int)):
        return
    elif isinstance(value, (dict, list, tuple)):
        check_json(dict(value) if isinstance(value, dict) else list(value), path)
    else:
        raise PayloadError(
            f"{path} is a {kind.__name__} ({shown(value)}); data must be JSON: dict, list, str, int, float, "
            "bool or None"
        )


def _surrogate_path(value: Any, path: str) -> str:
    """Where the text is that UTF-8 cannot hold."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return path
    elif isinstance(value, dict):
        for key, item in value.items():
            for found in (_surrogate_path(key, f"{path}.<key>"), _surrogate_path(item, f"{path}.{key!a}")):
                if found:
                    return found
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            if found := _surrogate_path(item, f"{path}[{i}]"):
                return found
    return ""


class Codec:
    """How the payloads of one job are written, checked and read.

    With a msgspec Struct, a dataclass, a TypedDict or a pydantic model as the annotation of `data`, what is
    added must fit it, and the handler gets an instance (of a TypedDict: the dict). Else any JSON passes.
    """

    def __init__(self, annotation: Any = None) -> None:
        self._decode: Any = msgspec.json.Decoder().decode
        self._typed = False
        self._errors: tuple[type[Exception], ...] = (msgspec.DecodeError,)
        if annotation is None:
            return
        if _is_pydantic(annotation):
            pydantic: Any = sys.modules["pydantic"]
            self._decode = pydantic.TypeAdapter(annotation).validate_json
            self._typed, self._errors = True, (pydantic.ValidationError,)
        elif _is_record(annotation):
            self._decode = msgspec.json.Decoder(annotation).decode
            self._typed, self._errors = True, (msgspec.DecodeError, ValueError, TypeError)

    def encode(self, data: Any, most: int) -> bytes:
        """`data` as it is stored.

        Raises:
            PayloadError: not JSON, larger than `most` bytes, or not what the handler declares.
        """
        raw = encode(data)
        if len(raw) > most:
            raise PayloadError(f"data is {len(raw)} bytes of JSON, more than max_payload={most}; store it, add its key")
        if self._typed:
            self.decode(raw)
        return raw

    def decode(self, raw: bytes) -> Any:
        """What the handler gets.

        Raises:
            PayloadError: it no longer fits; the message names the field.
        """
        try:
            return self._decode(raw)
        except self._errors as error:
            raise PayloadError(f"data does not fit: {_said(error)}") from error


def _is_record(annotation: Any) -> bool:
    return isinstance(annotation, type) and (
        issubclass(annotation, msgspec.Struct)
        or dataclasses.is_dataclass(annotation)
        or typing.is_typeddict(annotation)
    )


def _is_pydantic(annotation: Any) -> bool:
    return isinstance(annotation, type) and (
        hasattr(annotation, "__pydantic_validator__") or hasattr(annotation, "model_validate_json")
    )


def _said(error: Exception) -> str:
    """The complaint on one line, with the path spelt like ours: ``$.to`` is ``data.to``."""
    details = getattr(error, "errors", None)
    if callable(details):  # pydantic
        return "; ".join(f"data.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in details())
    return str(error).replace("`$", "`data")
