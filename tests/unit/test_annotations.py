"""Declared types: what `add` takes a handler gets back equal; what cannot be checked is refused when it is declared."""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import annotated_types
import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncjobs import ConfigError, JobDefinition, PayloadError
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.payload import Codec

MOST = 1 << 20
T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    S = 1
    L = 2


class Tone(enum.StrEnum):
    KIND = "kind"


class Text(str):
    pass


class Ratio(float):
    pass


class Real(enum.Enum):
    HALF = 0.5


class Item(msgspec.Struct):
    sku: str
    price: Decimal
    tags: set[str] = msgspec.field(default_factory=set)


class Renamed(msgspec.Struct, rename="camel", tag="renamed", omit_defaults=True):
    unit_price: float
    by_id: dict[int, Item] = {}
    any_thing: Any = None


class Bare(msgspec.Struct, eq=False):
    a: int
    inner: Item


class Array(msgspec.Struct, array_like=True):
    a: int
    b: datetime


@dataclasses.dataclass
class Order:
    id: UUID
    at: datetime
    lines: list[Item]
    by_day: dict[date, int]
    raw: bytes = b""
    colour: Colour = Colour.RED


@dataclasses.dataclass
class Base:
    a: int


@dataclasses.dataclass
class Child(Base):
    b: int = 2


@dataclasses.dataclass
class Checked:
    count: int

    def __post_init__(self):
        if self.count < 0:
            raise KeyError("count")


@dataclasses.dataclass
class Constrained:
    count: Annotated[int, annotated_types.Gt(0)]


@dataclasses.dataclass
class Documented:
    count: Annotated[int, "how many"]


@attrs.define
class Attr:
    a: int
    when: datetime


class Pair(NamedTuple):
    left: int
    right: timedelta


class Dict(TypedDict):
    a: int
    when: datetime


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    company_id: int = pydantic.Field(alias="companyId")
    when: datetime | None = None
    by_id: dict[int, str] = {}
    raw: pydantic.Json[list[int]] = []
    tags: set[str] = set()

    @pydantic.computed_field
    def double(self) -> int:
        return self.company_id * 2


class TwoAliases(pydantic.BaseModel):
    a: int = pydantic.Field(validation_alias="readA", serialization_alias="writeA")
    b: int = pydantic.Field(1, validation_alias=pydantic.AliasChoices("b1", "b2"))
    c: int = pydantic.Field(2, validation_alias=pydantic.AliasPath("deep", "c"))


class Hidden(pydantic.BaseModel):
    a: int
    note: str = pydantic.Field("", exclude=True)
    _cache: int = pydantic.PrivateAttr(0)


class Lossy(pydantic.BaseModel):
    when: datetime

    @pydantic.field_serializer("when")
    def day(self, value: datetime) -> str:
        return f"{value:%Y-%m-%d}"


class Raw(pydantic.BaseModel):
    raw: bytes


class Secretive(pydantic.BaseModel):
    password: pydantic.SecretStr


class Nested(pydantic.BaseModel):
    models: dict[int, list[Model]]
    maybe: Model | None = None
    amount: Decimal = Decimal(0)


class Generic1(pydantic.BaseModel, Generic[T]):
    one: T


class Root(pydantic.RootModel[list[int]]):
    pass


@pydantic.dataclasses.dataclass
class PydanticData:
    a: int = pydantic.Field(gt=0)
    when: datetime | None = None


class WithModel(msgspec.Struct):
    model: Model
    text: Text = Text("t")


UserId = NewType("UserId", int)
Positive = Annotated[int, msgspec.Meta(gt=0)]


# Any mixture of these, and what must come back as it went.
# Offsets of half a minute, before 1950, have no form in JSON.
MOMENTS = st.datetimes(
    datetime(1950, 1, 1), timezones=st.sampled_from([UTC, ZoneInfo("America/Sao_Paulo"), ZoneInfo("Europe/London")])
).filter(lambda at: at == at.astimezone(UTC))  # in the hour that comes twice ``==`` is false between zones
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
MONEY = st.decimals(allow_nan=False, allow_infinity=False)
ITEMS = st.builds(Item, sku=TEXT, price=MONEY, tags=st.sets(TEXT, max_size=3))
MODELS = st.builds(
    Model, companyId=st.integers(), when=st.none() | MOMENTS, by_id=st.dictionaries(st.integers(), TEXT, max_size=3),
    raw=st.lists(st.integers(), max_size=3).map(json.dumps), tags=st.sets(TEXT, max_size=3),
)  # fmt: skip
ORDERS = st.builds(
    Order, id=st.uuids(), at=MOMENTS, lines=st.lists(ITEMS, max_size=2),
    by_day=st.dictionaries(st.dates(), st.integers(), max_size=2), raw=st.binary(max_size=8),
    colour=st.sampled_from(Colour),
)  # fmt: skip
RENAMED = st.builds(
    Renamed, unit_price=FLOATS, by_id=st.dictionaries(st.integers(), ITEMS, max_size=2), any_thing=st.none() | TEXT
)
DECLARED: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "int": (int, st.integers()),
    "float": (float, FLOATS),
    "str": (str, TEXT),
    "bool": (bool, st.booleans()),
    "None": (type(None), st.none()),
    "bytes": (bytes, st.binary(max_size=20)),
    "datetime": (datetime, MOMENTS | st.datetimes()),
    "date": (date, st.dates()),
    "time": (time, st.times()),
    "timedelta": (timedelta, st.timedeltas(min_value=timedelta(days=-9999), max_value=timedelta(days=9999))),
    "Decimal": (Decimal, MONEY),
    "UUID": (UUID, st.uuids()),
    "Enum": (Colour, st.sampled_from(Colour)),
    "IntEnum": (Size, st.sampled_from(Size)),
    "StrEnum": (Tone, st.sampled_from(Tone)),
    "Literal": (Literal["a", "b", 3], st.sampled_from(["a", "b", 3])),
    "subclass of str": (Text, TEXT.map(Text)),
    "subclass of float": (Ratio, FLOATS.map(Ratio)),
    "NewType": (UserId, st.integers().map(UserId)),
    "constraint": (Positive, st.integers(min_value=1)),
    "foreign constraint": (Annotated[int, annotated_types.Gt(0)], st.integers(min_value=1)),
    "optional": (Item | None, st.none() | ITEMS),
    "list": (list[Item], st.lists(ITEMS, max_size=3)),
    "Sequence": (Sequence[int], st.lists(st.integers(), max_size=3)),
    "tuple": (tuple[int, Item, str], st.tuples(st.integers(), ITEMS, TEXT)),
    "tuples": (tuple[Decimal, ...], st.lists(MONEY, max_size=3).map(tuple)),
    "set": (set[UUID], st.sets(st.uuids(), max_size=3)),
    "frozenset": (frozenset[date], st.frozensets(st.dates(), max_size=3)),
    "dict": (dict[str, Item], st.dictionaries(TEXT, ITEMS, max_size=3)),
    "dict of int": (dict[int, Colour], st.dictionaries(st.integers(), st.sampled_from(Colour), max_size=3)),
    "dict of float": (dict[float, int], st.dictionaries(FLOATS, st.integers(), max_size=3)),
    "dict of UUID": (Mapping[UUID, date], st.dictionaries(st.uuids(), st.dates(), max_size=3)),
    "dict of Enum": (dict[Size, int], st.dictionaries(st.sampled_from(Size), st.integers(), max_size=3)),
    "Struct": (Item, ITEMS),
    "Struct, renamed": (Renamed, RENAMED),
    "Struct without eq": (Bare, st.builds(Bare, a=st.integers(), inner=ITEMS)),
    "Struct as array": (Array, st.builds(Array, a=st.integers(), b=MOMENTS)),
    "dataclass": (Order, ORDERS),
    "attrs": (Attr, st.builds(Attr, a=st.integers(), when=MOMENTS)),
    "NamedTuple": (Pair, st.builds(Pair, st.integers(), st.timedeltas(max_value=timedelta(days=999)))),
    "TypedDict": (Dict, st.fixed_dictionaries({"a": st.integers(), "when": MOMENTS})),
    "model": (Model, MODELS),
    "models": (list[Model], st.lists(MODELS, max_size=3)),
    "model or none": (Model | None, st.none() | MODELS),
    "models by int": (dict[int, Model], st.dictionaries(st.integers(), MODELS, max_size=2)),
    "model in a model": (Nested, st.builds(Nested, models=st.just({}), maybe=st.none() | MODELS, amount=MONEY)),
    "two aliases": (TwoAliases, st.builds(TwoAliases, readA=st.integers())),
    "two aliases, many": (list[TwoAliases], st.lists(st.builds(TwoAliases, readA=st.integers()), max_size=3)),
    "generic": (Generic1[int], st.builds(Generic1[int], one=st.integers())),
    "root": (Root, st.lists(st.integers(), max_size=3).map(Root)),
    "pydantic dataclass": (PydanticData, st.builds(PydanticData, a=st.integers(1), when=st.none() | MOMENTS)),
    "dataclass, constrained": (Constrained, st.builds(Constrained, count=st.integers(min_value=1))),
    "model in a Struct": (WithModel, st.builds(WithModel, model=MODELS, text=TEXT.map(Text))),
}


@pytest.mark.parametrize("name", DECLARED)
@settings(max_examples=30)
@given(data=st.data())
def test_what_is_added_comes_back_equal(name, data):
    annotation, values = DECLARED[name]
    value = data.draw(values)
    codec = Codec(annotation)
    raw = codec.encode(value, MOST)
    back = codec.decode(raw)
    assert type(back) is type(value)
    if annotation is Bare:
        back, value = (back.a, back.inner), (value.a, value.inner)
    assert back == value


class Wrong(NamedTuple):
    annotation: Any
    value: Any
    path: str


WRONG = [
    Wrong(Item | None, {"sku": 1, "price": "1"}, "data.sku"),
    Wrong(list[Item], [Item("a", Decimal(1)), {"sku": "a", "price": "x"}], "data[1].price"),
    Wrong(int, "1", "data"),
    Wrong(Literal["a", "b"], "c", "data"),
    Wrong(Positive, 0, "data"),
    Wrong(Annotated[int, annotated_types.Gt(0)], 0, "data"),
    Wrong(Annotated[str, pydantic.StringConstraints(max_length=2)], "abc", "data"),
    Wrong(dict[str, list[Positive]], {"a": [0]}, "data[...][0]"),
    Wrong(Constrained, Constrained(0), "data.count"),
    Wrong(Checked, {"count": -1}, "KeyError"),
    Wrong(Base, Child(1), "data"),
    Wrong(dict, {"a": {"when": datetime(2026, 1, 1)}}, "data.a.when"),
    Wrong(dict[str, Any], {"a": [{1, 2}]}, "data.a[0]"),
    Wrong(dict[str, Any], {"a": {1: 2}}, "data.a.1"),
    Wrong(dict[str, Any], {"a": [(1, 2)]}, "data.a[0]"),
    Wrong(list, [Colour.RED], "data[0]"),
    Wrong(str, date(2026, 1, 1), "data"),
    Wrong(str, b"abc", "data"),
    Wrong(list[int], (1, 2), "data"),
    Wrong(Renamed, Renamed(1.5, any_thing=(1, 2)), "data.any_thing"),
    Wrong(Renamed, Renamed(1.5, any_thing={"a": {1: 2}}), "data.any_thing"),
    Wrong(Order, {"id": "x"}, "data.id"),
    Wrong(Dict, {"a": 1, "when": datetime(2026, 1, 1), "more": 1}, "data.more"),
    Wrong(Dict, {"a": 1, "when": "2026-01-01T00:00:00", "more": 1}, "data.more"),
    Wrong(Renamed, Renamed(2**60 + 1), "data.unit_price"),
    Wrong(float, 2**60 + 1, "data"),
    Wrong(dict[str, list[float]], {"a": [1, 2**60 + 1]}, "data.a[1]"),
    Wrong(Constrained, {"count": datetime(2026, 1, 1)}, "data.count"),
    Wrong(list[Raw], [Raw(raw=b"a"), Raw(raw=b"\xff")], "data[1].raw cannot be written"),
    Wrong(Raw, Raw(raw=b"\xff"), "data.raw cannot be written"),
    Wrong(datetime, datetime(1900, 1, 1, tzinfo=ZoneInfo("America/Sao_Paulo")), "data"),
    Wrong(Model, {"companyId": "x"}, "data.companyId"),
    Wrong(Model, {"companyId": 1, "when": "soon"}, "data.when"),
    Wrong(Hidden, Hidden(a=1, note="n"), "data.note"),
    Wrong(list[Hidden], [Hidden(a=1), Hidden(a=1, note="n")], "data[1].note"),
    Wrong(Lossy, Lossy(when=datetime(2026, 1, 1, 5)), "data.when"),
    Wrong(Secretive, Secretive(password="p"), "data.password is a SecretStr"),
    Wrong(Nested, Nested(models={1: [Model(companyId=1)]}).model_copy(update={"amount": object()}), "data.amount"),
    Wrong(WithModel, {"model": {"companyId": "x"}}, "companyId"),
    Wrong(Text, 5, "data"),
    Wrong(list[pydantic.PositiveInt], [1, 0], "data.1"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda one: f"{one.path} of {one.annotation!s:.40}".replace(" at 0x", ""))
def test_what_does_not_fit_is_refused_by_its_path(wrong):
    with pytest.raises(PayloadError) as caught:
        Codec(wrong.annotation).encode(wrong.value, MOST)
    assert wrong.path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_private_attributes_are_part_of_a_model():
    changed = Hidden(a=1)
    changed._cache = 5
    assert Codec(Hidden).encode(Hidden(a=1), MOST)
    with pytest.raises(PayloadError, match=r"data\._cache"):
        Codec(Hidden).encode(changed, MOST)


JSON_FORMS = [
    (Item, {"sku": "a", "price": "1.5"}, Item("a", Decimal("1.5"))),
    (Item, {"sku": Text("a"), "price": Decimal("1.5"), "tags": {"x"}}, Item("a", Decimal("1.5"), {"x"})),
    (set[int], [1, 2], {1, 2}),
    (Root, [1, 2], Root([1, 2])),
    (list[Root], [[1, 2]], [Root([1, 2])]),
    (Array, [1, "2026-01-01T00:00:00"], Array(1, datetime(2026, 1, 1))),
    (Array, [1, datetime(2026, 1, 1)], Array(1, datetime(2026, 1, 1))),
    (set[tuple[int, int]], [[1, 2]], {(1, 2)}),
    (Pair, [1, "PT1S"], Pair(1, timedelta(seconds=1))),
    (set[date], ["2026-01-01", date(2026, 1, 1)], {date(2026, 1, 1)}),
    (dict[int, str], {"1": "a"}, {1: "a"}),
    (tuple[int, int], [1, 2], (1, 2)),
    (datetime, "2026-01-01T00:00:00Z", datetime(2026, 1, 1, tzinfo=UTC)),
    (float, 1, 1.0),
    (int, Size.L, 2),
    (int, True.__index__(), 1),
    (Model, {"companyId": 1}, Model(companyId=1)),
    (Model, {"companyId": 1, "when": datetime(2026, 1, 1)}, Model(companyId=1, when=datetime(2026, 1, 1))),
    (list[Model], [{"companyId": 1}, Model(companyId=2)], [Model(companyId=1), Model(companyId=2)]),
    (Secretive, {"password": "p"}, Secretive(password="p")),
    (dict, {"a": Text("b"), "n": Ratio(1.5)}, {"a": "b", "n": 1.5}),
    (object, {"a": {1}}, {"a": [1]}),
    (Any, {"a": (1, 2)}, {"a": [1, 2]}),
]


@pytest.mark.parametrize(("annotation", "value", "read"), JSON_FORMS)
def test_json_becomes_what_is_declared(annotation, value, read):
    codec = Codec(annotation)
    assert codec.decode(codec.encode(value, MOST)) == read


def test_the_hour_that_comes_twice_comes_back():
    zone = ZoneInfo("Europe/London")
    codec = Codec(Dict)
    for fold in (0, 1):
        when = datetime(2026, 10, 25, 1, 30, tzinfo=zone, fold=fold)
        back = codec.decode(codec.encode({"a": 1, "when": when}, MOST))["when"]
        assert back.astimezone(UTC) == when.astimezone(UTC)


class Custom:
    pass


@dataclasses.dataclass
class HasCustom:
    inner: list[Custom]


class HasConstraint(msgspec.Struct):
    count: Annotated[int, annotated_types.Gt(0)]


class OldModel(pydantic.v1.BaseModel if hasattr(pydantic, "v1") else Custom):
    pass


UNCHECKABLE = [
    Custom, HasCustom, HasConstraint, OldModel, list[Custom], Custom | None, dict[str, dict[str, Custom]], complex,
    Callable[[int], int], Iterable[int], collections.deque, collections.deque[int], Real, list["NoSuchName"],  # noqa: F821
    bytes | str, list[int] | set[int], dict[tuple[int, int], str], dict[bool, str], Item | Model | int,
    Annotated[int, object()], list[Annotated[int, Custom()]], 5, Annotated[Item, annotated_types.Len(1)],
    typing.Self, type, range, list[Annotated[Model, msgspec.Meta(min_length=1)] | int | list[Custom]],
]  # fmt: skip


@pytest.mark.parametrize("annotation", UNCHECKABLE, ids=range(len(UNCHECKABLE)))
def test_what_cannot_be_checked_is_refused_when_it_is_declared(annotation):
    def handle(data):
        pass

    handle.__annotations__["data"] = annotation
    with pytest.raises(ConfigError, match=r"data.* cannot be (checked|resolved)|fields of"):
        JobSpec("a-job", JobDefinition(handle=handle))


@pytest.mark.parametrize("annotation", [Annotated[int, "how many"], Documented, "Item", list["Item"], "Item | None"])
def test_what_is_only_said_is_no_constraint(annotation):
    def handle(data):
        pass

    handle.__annotations__["data"] = annotation
    assert JobSpec("a-job", JobDefinition(handle=handle))
