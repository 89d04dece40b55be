"""Payloads: JSON and nothing else, checked against what a handler declares, with the path of what is wrong."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from decimal import Decimal
from typing import TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import PayloadError
from asyncjobs.payload import Codec, decode, encode

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
    value = {"big": 2**63, "bigger": 2**80, "precise": 9007199254740993, "list": [], "dict": {}, "text": "é😀\n"}
    assert decode(encode(value)) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {"b": {1, 2}}]}, "data.a[1].b is a set"),
        ({"when": datetime.now(UTC)}, "data.when is a datetime"),
        ({"price": Decimal("1.5")}, "data.price is a Decimal"),
        ({"x": float("nan")}, "data.x is nan; JSON has only finite numbers"),
        ([1.0, float("inf")], "data[1] is inf"),
        ({1: "a"}, "data has the key 1; JSON keys are text, use '1'"),
        (b"bytes", "data is a bytes"),
        ({"name": "\ud800"}, "lone surrogate"),
        ({"f": print}, "data.f is a builtin_function_or_method"),
        (CIRCULAR, "data contains itself"),
    ],
)
def test_what_is_not_json_is_named_by_its_path(value, message):
    with pytest.raises(PayloadError) as caught:
        encode(value)
    assert message in str(caught.value)


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
