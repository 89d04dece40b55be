"""Payloads: what has a JSON form, checked against what a handler declares, with the path of what is wrong."""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections import OrderedDict, deque
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import PayloadError
from asyncjobs.declare.payload import Codec, decode, encode, encode_result

CIRCULAR: list = []
CIRCULAR.append(CIRCULAR)


class MailStruct(msgspec.Struct):
    to: str
    copies: int = 1


@dataclasses.dataclass
class MailClass:
    to: str
    copies: int = 1


class MailDict(TypedDict):
    to: str
    copies: int


class MailModel(pydantic.BaseModel):
    to: str
    copies: int = 1


class Markup(str):
    def __str__(self):
        return "not what is in it"


class Key(str):
    pass


class Money(float):
    pass


class Count(int):
    pass


class Level(enum.IntEnum):
    HIGH = 3


class Tone(enum.StrEnum):
    KIND = "kind"


class Place(NamedTuple):
    x: int
    y: int


class Scalar:
    """What a scalar of numpy looks like, which is no subclass of int."""

    dtype, shape = "int64", ()

    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value


@dataclasses.dataclass
class Stock:
    by_id: dict[int, str]


class Secretive(pydantic.BaseModel):
    name: str
    password: pydantic.SecretStr


TEXT = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_every_json_value_comes_back_as_it_was(value):
    assert decode(encode(value)) == value


def test_big_numbers_and_empty_containers_come_back_exactly():
    value = {"big": 2**63, "bigger": 2**80 + 1, "precise": 9007199254740993, "list": [], "dict": {}, "text": "é😀\n"}
    assert decode(encode(value)) == value


NOT_JSON = [
    ({"x": float("nan")}, "data.x is nan; JSON has only finite numbers"),
    ([1.0, float("inf")], "data[1] is inf"),
    ({"x": Money("nan")}, "data.x is nan"),
    ({"x": MailClass("a", float("inf"))}, "data.x.copies is inf"),
    ({1: "a"}, "data has the key 1; JSON keys are text, use '1'"),
    ({"a": [{None: 1}]}, "data.a[0] has the key None"),
    ({"name": "\ud800"}, "lone surrogate"),
    ({"a": [{"\ud800": 1}]}, "data.'a'[0].<key> is text with a lone surrogate"),
    ({"f": print}, "data.f is a builtin_function_or_method"),
    ({"a": {"b": [1, 10**5000]}}, "data.'a'.'b'[1] is a whole number of more digits"),
    ({"a": MailClass("a", 10**5000)}, "data.'a'.'copies' is a whole number of more digits"),
    ({"a": (object(),)}, "data.a[0] is a object"),
    ({"a": MailClass("a", object())}, "data.a.copies is a object"),
    ({"a": MailStruct("a", MailClass("b", 1j))}, "data.a.copies.copies is a complex"),
    ({"a": deque([1])}, "data.a is a deque"),
    ({"a": Fraction(1, 3)}, "data.a is a Fraction"),
    ({"a": MailClass}, "data.a is a type"),
    ({"a": pydantic.SecretStr("x")}, "data.a is a SecretStr, which is written as asterisks"),
    ({"a": [Secretive(name="n", password="p")]}, "data.a[0].password is a SecretStr"),
    ({"a": MailClass("a", [Secretive(name="n", password="p")])}, "data.a.copies[0].password is a SecretStr"),
    ({1: "a", "1": "b"}, "data has the key 1"),
    (CIRCULAR, "data contains itself"),
]


@pytest.mark.parametrize(("value", "message"), NOT_JSON)
def test_what_is_not_json_is_named_by_its_path(value, message):
    with pytest.raises(PayloadError) as caught:
        encode(value)
    assert message in str(caught.value)


@pytest.mark.parametrize(("value", "message"), NOT_JSON)
def test_a_result_that_is_not_json_is_final(value, message):
    if "has the key 1" in message:
        return
    with pytest.raises(PayloadError) as caught:
        encode_result(value, "data", 1 << 20)
    assert message in str(caught.value)
    assert caught.value.final


AS_MSGSPEC = [
    ({1, 2}, [1, 2]),
    (frozenset("a"), ["a"]),
    (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05Z"),
    (date(2026, 1, 2), "2026-01-02"),
    (timedelta(seconds=90), "PT90S"),
    (Decimal("1.50"), "1.50"),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (b"bytes", "Ynl0ZXM="),
    (bytearray(b"bytes"), "Ynl0ZXM="),
    (Level.HIGH, 3),
    (Tone.KIND, "kind"),
    (Markup("<b>"), "<b>"),
    (Money(1.5), 1.5),
    (Count(7), 7),
    (Scalar(7), 7),
    (Scalar(7.5), 7.5),
    (Fraction(1, 2), 0.5),
    (Place(1, 2), [1, 2]),
    (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    (MailStruct("a"), {"to": "a", "copies": 1}),
    (MailClass("a"), {"to": "a", "copies": 1}),
    (MailModel(to="a"), {"to": "a", "copies": 1}),
    (MailClass(Markup("a"), Count(2)), {"to": "a", "copies": 2}),
    (Stock({1: "a"}), {"by_id": {"1": "a"}}),
    ({Key("key"): 1}, {"key": 1}),
    ({Tone.KIND: 1}, {"kind": 1}),
]


@pytest.mark.parametrize(("value", "read"), AS_MSGSPEC)
@pytest.mark.parametrize("around", [lambda x: x, lambda x: {"a": [x]}, lambda x: (x, 1), lambda x: MailStruct("t", x)])
def test_what_json_lacks_is_written_as_msgspec_does(value, read, around):
    back = decode(encode(around(value)))
    wanted = decode(encode(around(read)))
    assert back == wanted
    assert decode(encode_result(around(value), "result", 1000)) == wanted


def test_a_result_may_have_keys_that_are_numbers_and_computed_fields():
    class Model(pydantic.BaseModel):
        a: int

        @pydantic.computed_field
        def double(self) -> int:
            return self.a * 2

    assert decode(encode_result({1: Model(a=2)}, "result", 1000)) == {"1": {"a": 2, "double": 4}}


def test_a_result_is_bounded_to_the_byte():
    assert encode_result("x" * 8, "result", 10)
    with pytest.raises(PayloadError, match="result is 11 bytes of JSON, more than max_result=10") as caught:
        encode_result("x" * 9, "result", 10)
    assert caught.value.final


@pytest.mark.parametrize("kind", [MailStruct, MailClass, MailDict, MailModel])
def test_a_declared_type_is_checked_and_handed_out(kind):
    codec = Codec(kind)
    raw = codec.encode({"to": "a@b", "copies": 2}, 1000)
    read = codec.decode(raw)
    assert (read["to"] if kind is MailDict else read.to) == "a@b"
    assert isinstance(read, dict if kind is MailDict else kind)
    with pytest.raises(PayloadError, match=r"copies"):
        codec.encode({"to": "a@b", "copies": "many"}, 1000)
    with pytest.raises(PayloadError, match=r"data does not fit: .*to"):
        codec.decode(b'{"copies": 1}')


@pytest.mark.parametrize("value", [MailStruct("a"), MailClass("a"), MailModel(to="a")])
def test_records_may_be_given_as_they_are(value):
    assert decode(encode(value)) == {"to": "a", "copies": 1}


def test_the_size_is_bounded_to_the_byte():
    codec = Codec()
    assert codec.encode("x" * 8, 10)
    with pytest.raises(PayloadError, match="11 bytes of JSON, more than max_payload=10"):
        codec.encode("x" * 9, 10)


def test_no_digits_are_written_that_python_does_not_read():
    assert sys.get_int_max_str_digits() == 4300
    assert decode(encode(10**4299)) == 10**4299
