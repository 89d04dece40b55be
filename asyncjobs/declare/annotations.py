"""Declared types: which library checks an annotation, if one can, and how JSON becomes an instance of the type."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from asyncjobs.declare.values import shown
from asyncjobs.errors import ConfigError

UNDECLARED: Final = (inspect.Parameter.empty, Any, object)
SCALARS: Final = (str, int, float)


class Declared:
    """A type that payloads are checked against.

    Attributes:
        decode: JSON → an instance, or an error of one of many kinds.
        adapter: pydantic's TypeAdapter where pydantic does the checking, else None.
    """

    def __init__(self, annotation: Any) -> None:
        found = _Found()
        found.walk(annotation)
        self.adapter: Any = None
        if found.unknown:
            raise _cannot(annotation, f"nothing checks {found.unknown[0]}")
        if found.pydantic or found.constraints:
            self.adapter = _adapter(annotation, found)
        self.decode: Callable[[bytes], Any]
        if self.adapter is not None:
            self.decode = self._by_pydantic
        else:
            self.decode = _decoder(annotation)

    def _by_pydantic(self, raw: bytes) -> Any:
        try:
            return self.adapter.validate_json(raw)
        except ValueError:
            # Written by the names of the fields, where the aliases of writing and reading differ.
            try:
                return self.adapter.validate_json(raw, by_alias=True, by_name=True)
            except Exception:
                pass
            raise

    def dump(self, value: Any, *, by_alias: bool) -> Any:
        """`value` as pydantic writes it for this type."""
        return self.adapter.dump_python(value, mode="json", by_alias=by_alias, round_trip=True, warnings=False)


def _cannot(annotation: Any, why: str) -> ConfigError:
    return ConfigError(
        f"data: {_named(annotation)} cannot be checked: {why}; declare a Struct, a dataclass, a TypedDict, a pydantic "
        "model, or what is made of those and of the types that msgspec reads"
    )


def _named(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or shown(annotation)


class _Found:
    """What an annotation is made of, at any depth."""

    def __init__(self) -> None:
        self.pydantic = self.structs = self.meta = False
        self.constraints: list[str] = []  # what pydantic alone can check
        self.unknown: list[str] = []  # what nobody checks
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # so that no id is used again

    def walk(self, hint: Any) -> None:
        if id(hint) in self._seen:
            return
        self._seen.add(id(hint))
        self._kept.append(hint)
        if hasattr(hint, "__metadata__"):
            for one in hint.__metadata__:
                self._metadata(one)
        if isinstance(hint, typing.TypeVar):
            for one in (hint.__bound__, *hint.__constraints__):
                if one is not None:
                    self.walk(one)
        if supertype := getattr(hint, "__supertype__", None):
            self.walk(supertype)
        if type(hint).__name__ == "TypeAliasType":
            self.walk(getattr(hint, "__value__", None))
        origin = typing.get_origin(hint)
        if origin is not typing.Literal:
            for one in typing.get_args(hint) if not isinstance(hint, type) or origin else ():
                if not isinstance(one, (str, list)) and one is not Ellipsis:
                    self.walk(one)
        kind = origin if isinstance(origin, type) else hint
        if isinstance(kind, type):
            self._class(kind)

    def _class(self, kind: type) -> None:
        if is_pydantic(kind):
            self.pydantic = True
            return
        record = issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind) or hasattr(kind, "__attrs_attrs__")
        self.structs |= issubclass(kind, msgspec.Struct) or hasattr(kind, "__attrs_attrs__")
        named_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
        if record or typing.is_typeddict(kind) or named_tuple:
            try:
                hints = typing.get_type_hints(kind, include_extras=True)
            except Exception as error:
                raise ConfigError(f"the fields of {kind.__name__} cannot be resolved: {error}") from error
            for one in hints.values():
                self.walk(one)

    def _metadata(self, one: Any) -> None:
        package = type(one).__module__.partition(".")[0]
        if isinstance(one, msgspec.Meta):
            self.meta = True
        elif package in ("pydantic", "pydantic_core", "annotated_types") or _has_schema(one):
            self.constraints.append(shown(one))
        elif not isinstance(one, str) and type(one).__name__ != "Doc":
            self.unknown.append(shown(one))


def is_pydantic(kind: type) -> bool:
    return hasattr(kind, "__pydantic_validator__") or _has_schema(kind)


def _has_schema(one: Any) -> bool:
    return hasattr(one, "__get_pydantic_core_schema__")


def _adapter(annotation: Any, found: _Found) -> Any:
    """pydantic's checker; None where msgspec checks and pydantic's models are fields."""
    if found.structs or found.meta:
        if found.constraints:
            raise _cannot(annotation, f"msgspec does not know the constraint {found.constraints[0]}; use msgspec.Meta")
        return None
    try:
        import pydantic
    except ImportError:
        raise _cannot(annotation, f"{found.constraints[0]} needs pydantic, which is not installed") from None
    try:
        return pydantic.TypeAdapter(annotation)
    except Exception as error:
        if found.constraints:
            raise _cannot(annotation, _line(error)) from error
        return None


def _decoder(annotation: Any) -> Callable[[bytes], Any]:
    try:
        _check_known(annotation, msgspec.inspect.type_info(annotation))
        return msgspec.json.Decoder(annotation, dec_hook=_made).decode
    except ConfigError:
        raise
    except Exception as error:
        raise _cannot(annotation, _line(error)) from error


def _line(error: Exception) -> str:
    return f"{error}".partition("\n")[0]


def _check_known(annotation: Any, info: Any) -> None:
    """Refuse what msgspec takes and never reads: classes it does not know, keys that are no text."""
    for one in _nodes(info, set()):
        if isinstance(one, msgspec.inspect.CustomType) and not _makes(one.cls):
            raise _cannot(annotation, f"nothing reads a {_named(one.cls)} from JSON")
        if isinstance(one, msgspec.inspect.DictType):
            keys = one.key_type.types if isinstance(one.key_type, msgspec.inspect.UnionType) else (one.key_type,)
            for key in keys:
                if isinstance(key, NO_KEYS):
                    raise _cannot(annotation, f"{type(key).__name__.removesuffix('Type').lower()} is no key in JSON")


NO_KEYS: Final = (
    msgspec.inspect.BoolType, msgspec.inspect.NoneType, msgspec.inspect.CollectionType, msgspec.inspect.TupleType,
    msgspec.inspect.DictType, msgspec.inspect.StructType, msgspec.inspect.DataclassType, msgspec.inspect.TypedDictType,
    msgspec.inspect.NamedTupleType,
)  # fmt: skip


def _nodes(info: Any, seen: set[int]) -> Iterator[Any]:
    """Every type within a type, each once."""
    if isinstance(info, tuple):
        for one in info:
            yield from _nodes(one, seen)
        return
    if isinstance(info, msgspec.inspect.Field):
        yield from _nodes(info.type, seen)
        return
    if not isinstance(info, msgspec.inspect.Type) or id(info) in seen:
        return
    seen.add(id(info))
    yield info
    for name in info.__struct_fields__:
        yield from _nodes(getattr(info, name), seen)


def _makes(kind: Any) -> bool:
    """Whether `_made` makes instances of `kind`."""
    if kind is object or is_pydantic(kind):
        return True
    return isinstance(kind, type) and issubclass(kind, SCALARS) and not issubclass(kind, enum.Enum)


def _made(kind: type, value: Any) -> Any:
    """An instance of what msgspec itself does not know, for its decoder."""
    if kind is object:
        return value
    if is_pydantic(kind):
        pydantic: Any = sys.modules["pydantic"]
        try:
            return pydantic.TypeAdapter(kind).validate_json(msgspec.json.encode(value))
        except pydantic.ValidationError as error:
            raise ValueError(said(error, "")) from error
    base = next(one for one in SCALARS if issubclass(kind, one))
    if isinstance(value, bool) or not isinstance(value, (int, float) if base is float else base):
        raise ValueError(f"Expected `{base.__name__}`, got `{type(value).__name__}`")
    return kind(value)


def said(error: Exception, root: str = "data") -> str:
    """The complaint on one line, with the path spelt like ours: ``$.to`` is ``data.to``."""
    details = getattr(error, "errors", None)
    if callable(details):  # pydantic
        lines = []
        for one in details():
            where = ".".join(filter(None, (root, *map(str, one["loc"]))))
            lines.append(f"{where}: {one['msg']}" if where else one["msg"])
        return "; ".join(lines)
    if isinstance(error, (msgspec.MsgspecError, ValueError, TypeError)):
        return str(error).replace("`$", "`data")
    return f"{type(error).__name__}: {error}"


# Where the annotation stands ----------------------------------------------------------------------------------
def annotation_of(function: Callable[..., Any], parameter: str) -> Any:
    """What a parameter of `function` is annotated with, resolved; `inspect.Parameter.empty` for nothing.

    Raises:
        ConfigError: a name in it cannot be resolved.
    """
    annotation = inspect.signature(function).parameters[parameter].annotation
    if annotation is inspect.Parameter.empty:
        return annotation
    return _resolved(annotation, parameter, innermost(function))


def innermost(function: Any) -> Any:
    """The plain function behind partials, methods, callable objects and decorators that use `functools.wraps`."""
    for _ in range(100):
        if hasattr(function, "func") and hasattr(function, "keywords"):  # functools.partial
            function = function.func
        elif isinstance(function, (types.MethodType, staticmethod, classmethod)):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif not inspect.isroutine(function) and not isinstance(function, type) and hasattr(function, "__call__"):  # noqa: B004
            function = type(function).__call__
        else:
            break
    return function


def _resolved(annotation: Any, parameter: str, function: Any) -> Any:
    """What an annotation means: among the function's names, or the callers' (a class defined beside it)."""
    holder = type("holder", (), {"__annotations__": {parameter: annotation}})
    names = getattr(function, "__globals__", {})
    try:
        scope: Any = inspect.getclosurevars(function).nonlocals
    except (TypeError, ValueError):  # no function of Python, or a variable that has no value yet
        scope = {}
    frame = inspect.currentframe()
    try:
        while True:
            try:
                return typing.get_type_hints(holder, names, dict(scope), include_extras=True)[parameter]
            except NameError as error:
                frame = frame.f_back if frame is not None else None
                if frame is None:
                    raise _unresolved(parameter, annotation, error) from error
                scope = frame.f_locals
            except Exception as error:
                raise _unresolved(parameter, annotation, error) from error
    finally:
        del frame


def _unresolved(parameter: str, annotation: Any, error: Exception) -> ConfigError:
    text = annotation if isinstance(annotation, str) else shown(annotation)
    return ConfigError(f"the annotation {parameter}: {text} cannot be resolved: {error}")
