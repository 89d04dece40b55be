"""Payloads and results: written as JSON, checked against the handler's declared type, bounded in size."""

from __future__ import annotations

import inspect
from typing import Any, Final

import msgspec

from asyncjobs.declare.annotations import UNDECLARED, Declared, said
from asyncjobs.declare.json_values import RESULT, TYPED, UNTYPED, How, is_model, plain, undumpable
from asyncjobs.declare.losses import lost, same
from asyncjobs.errors import PayloadError

MOST: Final = 1024 * 1024  # bytes of JSON, of a payload and of a result, unless set
CONTAINERS: Final = frozenset({dict, list})  # plain JSON, from which an instance of the declared type is made
_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder()


def encode(value: Any, what: str = "data", how: How = UNTYPED) -> bytes:
    """`value` as JSON. Types that JSON lacks are written as msgspec writes them; tuples and sets are arrays.

    Raises:
        PayloadError: something in `value` has no JSON form; the message names its path, ``data.items[3].price``.
    """
    try:
        return _encoder.encode(plain(value, what, how))
    except PayloadError:
        raise
    except Exception as error:
        raise _explained(value, what, how, error) from error


def _explained(value: Any, what: str, how: How, error: Exception) -> PayloadError:
    """The error for a value that cannot be written, or whose own property or serialiser raised."""
    try:
        made = plain(value, what, how)
        _written(made, what)
    except PayloadError as said_so:
        return said_so
    except RecursionError:
        return PayloadError(f"{what} contains itself or is nested too deeply")
    except Exception:
        pass
    return PayloadError(f"{what} cannot be written as JSON: {said(error)}")


def encode_result(value: Any, what: str, most: int) -> bytes:
    """A result or a progress as JSON, of `most` bytes.

    Raises:
        PayloadError: `value` cannot be written, or is too large. The error is final, because a second try would repeat
            the side effects of the handler and end in the same way.
    """
    try:
        raw = encode(value, what, RESULT)
    except PayloadError as error:
        raise PayloadError(str(error), final=True) from error.__cause__
    if len(raw) > most:
        raise PayloadError(
            f"{what} is {len(raw)} bytes of JSON, more than max_result={most}; store it and return its key", final=True
        )
    return raw


def decode(raw: bytes) -> Any:
    """The inverse of `encode`, untyped."""
    return _decoder.decode(raw)


def _written(value: Any, what: str) -> bytes:
    """Plain JSON as bytes. The error for a value that does not fit names the value's path."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        path = _blamed(value, what)
        raise PayloadError(f"{path} is text with a lone surrogate; UTF-8 has none") from None
    except ValueError:
        raise PayloadError(f"{_blamed(value, what)} is a whole number of more digits than Python writes") from None


def _blamed(value: Any, path: str) -> str:
    """The path of the value that cannot be written."""
    if isinstance(value, dict):
        for key, item in value.items():
            for found in (_blamed(key, f"{path}.<key>"), _blamed(item, f"{path}.{key!a}")):
                if found:
                    return found
    elif isinstance(value, list):
        for place, item in enumerate(value):
            if found := _blamed(item, f"{path}[{place}]"):
                return found
    else:
        try:
            _encoder.encode(value)
        except ValueError:  # UnicodeEncodeError is one
            return path
    return ""


class Codec:
    """Writes, checks and reads the payloads of one job.

    If the handler annotates `data`, added data must fit the annotation, and the handler gets an instance that is equal
    to the added data. Without an annotation any JSON passes.

    Raises:
        ConfigError: no library can check the annotation.
    """

    def __init__(self, annotation: Any = inspect.Parameter.empty) -> None:
        self._declared = None if any(annotation is one for one in UNDECLARED) else Declared(annotation)
        self._read = _decoder.decode if self._declared is None else self._declared.decode

    def encode(self, data: Any, most: int) -> bytes:
        """`data` in its stored form.

        Raises:
            PayloadError: `data` has no JSON form, is larger than `most` bytes, does not fit the declared type, or would
                not come back equal.
        """
        raw = encode(data) if self._declared is None else self._checked(data, self._declared)
        if len(raw) > most:
            raise PayloadError(f"data is {len(raw)} bytes of JSON, more than max_payload={most}; store it, add its key")
        return raw

    def _checked(self, data: Any, declared: Declared) -> bytes:
        if declared.adapter is None and type(data) not in CONTAINERS:  # fast where the data fit
            try:
                raw = _encoder.encode(data)
                if same(data, declared.decode(raw)):
                    return raw
            except Exception:
                pass  # the slow way below names the path
        try:
            return self._written(data, declared)
        except PayloadError:
            raise
        except RecursionError:
            raise PayloadError("data contains itself or is nested too deeply") from None
        except Exception as error:
            raise PayloadError(f"data cannot be written as JSON: {said(error)}") from error

    def _written(self, data: Any, declared: Declared) -> bytes:
        if declared.adapter is not None and not self._is_json(data):
            return self._by_pydantic(data, declared)
        made = plain(data, "data", TYPED)
        raw = _written(made, "data")
        self._compared(data, raw)
        return raw

    def _is_json(self, data: Any) -> bool:
        try:
            return not is_model(data) and plain(data, "data") is data
        except PayloadError:
            return False

    def _by_pydantic(self, data: Any, declared: Declared) -> bytes:
        """Write `data` under the aliases, or under the field names if pydantic reads other aliases than it writes."""
        first: PayloadError | None = None
        for by_alias in (True, False):
            try:
                made = declared.dump(data, by_alias=by_alias)
            except RecursionError:
                raise
            except Exception as error:
                plain(data, "data", TYPED)  # names the path, if plain JSON fails at it as well
                where = undumpable(data, "data") or "data"
                raise PayloadError(f"{where} cannot be written as JSON: {said(error, where)}") from error
            try:
                raw = _written(plain(made, "data", TYPED), "data")
                self._compared(data, raw)
            except PayloadError as error:
                first = first or error
            else:
                return raw
        plain(data, "data", TYPED)
        assert first is not None
        raise first

    def _compared(self, data: Any, raw: bytes) -> None:
        loss = lost(data, self.decode(raw), "data")
        if loss is not None:
            raise PayloadError(f"data does not come back equal: {loss}")

    def decode(self, raw: bytes) -> Any:
        """The data that the handler gets.

        Raises:
            PayloadError: `raw` does not fit any more, or a validator raised. The message names the field.
        """
        try:
            return self._read(raw)
        except Exception as error:
            raise PayloadError(f"data does not fit: {said(error)}") from error
