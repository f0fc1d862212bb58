"""Model dataclasses to JSON and back, by their type hints: one codec per class, built once.

Strict at reading: an unknown field, a missing one without a default, or a value of another type is a DecodeError that
names the path of the field. Text that holds bytes which are not UTF-8 (surrogateescape) survives, because JSON is
written in ASCII. Enums travel by name, bytes as base64, sets sorted.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import enum
import functools
import json
import operator
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

T = TypeVar("T")


class DecodeError(ValueError):
    """The JSON does not hold the expected value; the message begins with the path of the field.

    The path grows on the way out, so that what is right costs no path.
    """

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem, path)
        self.problem = problem
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" if self.path else self.problem

    def below(self, step: str) -> Self:
        """The same, seen from the value that holds this one at `step`: a field's name, or an index in brackets."""
        joint = "." if self.path and not self.path.startswith("[") else ""
        return type(self)(self.problem, f"{step}{joint}{self.path}")


class NewerRecord(DecodeError):
    """The JSON has what this version does not know, so a newer one wrote it."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Codec:
    """Both directions of one type."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    #: a JSON value of exactly this type is the decoded value; None when there is no such type
    plain: type | None = None


def to_json(value: object) -> dict[str, Any]:
    """The JSON object of a dataclass value, with every field."""
    kind: Any = type(value)
    encoded: dict[str, Any] = _codec_of(kind).encode(value)
    return encoded


def from_json(kind: type[T], value: object, path: str = "") -> T:
    """The dataclass `kind` of a JSON object. Raises DecodeError."""
    hint: Any = kind
    try:
        decoded: T = _codec_of(hint).decode(value)
    except DecodeError as error:
        raise (error.below(path) if path else error) from None
    return decoded


def to_bytes(value: object) -> bytes:
    """The JSON text of a dataclass value, ASCII."""
    return json.dumps(to_json(value), separators=(",", ":")).encode("ascii")


def from_bytes(kind: type[T], text: bytes) -> T:
    """The dataclass `kind` of a JSON text. Raises DecodeError."""
    return from_json(kind, parse(text))


def parse(text: bytes) -> object:
    """The value of a JSON text. Raises DecodeError for what is no JSON."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {error}") from None
    return value


@functools.cache
def _codec_of(hint: Any) -> _Codec:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _optional(hint)
    if origin is tuple:
        return _tuple(typing.get_args(hint))
    if origin is frozenset:
        return _frozenset(typing.get_args(hint)[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(*typing.get_args(hint))
    if isinstance(hint, typing.NewType):
        return _codec_of(hint.__supertype__)
    if hint in (str, int, bool, float):
        return _plain(hint)
    if hint is bytes:
        return _Codec(lambda value: base64.b64encode(value).decode("ascii"), _decode_bytes)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum(hint)
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint)
    raise TypeError(f"the store has no codec for {hint!r}")


def _plain(kind: type) -> _Codec:
    def decode(value: object) -> object:
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise DecodeError(f"{value!r} is not of type {kind.__name__}")
        return value

    return _Codec(_same, decode, kind)


def _optional(hint: Any) -> _Codec:
    inner_hints = [arg for arg in typing.get_args(hint) if arg is not types.NoneType]
    if len(inner_hints) != 1:
        raise TypeError(f"the store has no codec for the union {hint!r}")
    inner = _codec_of(inner_hints[0])
    return _Codec(
        _same if inner.encode is _same else lambda value: None if value is None else inner.encode(value),
        lambda value: None if value is None else inner.decode(value),
        inner.plain,
    )


def _tuple(args: tuple[Any, ...]) -> _Codec:
    if len(args) == 2 and args[1] is Ellipsis:
        item = _codec_of(args[0])
        return _Codec(
            list if item.encode is _same else lambda value: [item.encode(part) for part in value],
            lambda value: tuple(_decode_items([item] * len(_list(value)), value)),
        )
    items = [_codec_of(arg) for arg in args]

    def decode(value: object) -> tuple[Any, ...]:
        parts = _list(value)
        if len(parts) != len(items):
            raise DecodeError(f"{len(parts)} values instead of {len(items)}")
        return tuple(_decode_items(items, parts))

    return _Codec(lambda value: [codec.encode(part) for codec, part in zip(items, value, strict=True)], decode)


def _frozenset(hint: Any) -> _Codec:
    item = _codec_of(hint)
    return _Codec(
        lambda value: sorted(item.encode(part) for part in value),
        lambda value: frozenset(map(item.decode, _list(value))),
    )


def _mapping(key_hint: Any, value_hint: Any) -> _Codec:
    if key_hint is not str:
        raise TypeError(f"the store has no codec for keys of {key_hint!r}")
    item = _codec_of(value_hint)

    def decode(value: object) -> dict[str, Any]:
        found = dict(_dict(value))
        for key, part in found.items():
            if type(part) is not item.plain:
                try:
                    found[key] = item.decode(part)
                except DecodeError as error:
                    raise error.below(f"[{key!r}]") from None
        return found

    return _Codec(
        dict if item.encode is _same else lambda value: {key: item.encode(part) for key, part in value.items()}, decode
    )


def _enum(kind: type[enum.Enum]) -> _Codec:
    members = dict(kind.__members__)

    def decode(value: object) -> enum.Enum:
        if not isinstance(value, str) or value not in members:
            raise DecodeError(f"{value!r} is not one of {', '.join(members)}")
        return members[value]

    return _Codec(lambda value: value.name, decode)


def _dataclass(kind: Any) -> _Codec:
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    codecs = {field.name: _codec_of(hints[field.name]) for field in fields}
    required = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    # Most fields are JSON values already: they are taken in one go, and only the others one by one.
    encoders = [(name, codec.encode) for name, codec in codecs.items() if codec.encode is not _same]
    names = tuple(codecs)
    take = operator.attrgetter(*names) if len(names) > 1 else lambda value: (getattr(value, names[0]),)

    def encode(value: Any) -> dict[str, Any]:
        encoded = dict(zip(names, take(value)))
        for name, encode_field in encoders:
            encoded[name] = encode_field(encoded[name])
        return encoded

    plain = {name: codec.plain for name, codec in codecs.items()}

    def decode(value: object) -> Any:
        found = dict(_dict(value))
        if unknown := found.keys() - codecs.keys():
            raise NewerRecord(f"unknown field of {kind.__name__}", min(unknown))
        if missing := required - found.keys():
            raise DecodeError("missing", min(missing))
        for name, part in found.items():
            if type(part) is not plain[name]:
                try:
                    found[name] = codecs[name].decode(part)
                except DecodeError as error:
                    raise error.below(name) from None
        return kind(**found)

    return _Codec(encode, decode)


def _same(value: Any) -> Any:
    return value


def _decode_items(codecs: list[_Codec], parts: list[Any]) -> list[Any]:
    decoded = list(parts)
    for index, (codec, part) in enumerate(zip(codecs, parts, strict=True)):
        if type(part) is not codec.plain:
            try:
                decoded[index] = codec.decode(part)
            except DecodeError as error:
                raise error.below(f"[{index}]") from None
    return decoded


def _decode_bytes(value: object) -> bytes:
    try:
        return base64.b64decode(value, validate=True)  # type: ignore[arg-type]
    except (TypeError, binascii.Error, ValueError):
        raise DecodeError(f"{value!r} is not base64") from None


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise DecodeError(f"{value!r} is not a list")
    return value


def _dict(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DecodeError(f"{value!r} is not an object")
    return value
