"""Requests of every method of CRI as hypothesis strategies: valid ones, and what can be done to them.

A request is drawn field by field, or is the full one that a kubelet would send; then fields are replaced by hostile
values. It ends as bytes, so that what no library would encode can be sent too. Fields that name places of the machine
stay below the directory of the test, whatever is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

_DEPTH = 7
_BIG = 1 << 16
_HOSTILE_TEXTS = (
    "", "/", ".", "..", "../..", "a/../b", "/a/../../b", "a\0b", "a\nb", "\n", " ", "=", "a=b", "%s%n", "-1", "0",
    "1e9", "99999999999999999999", "١", "🂡", "\u202e", "\ufeff", "x" * _BIG, "/" * 5000, "a/" * 3000, "[::1]",
    "300.1.1.1", "10.0.0.0/8", "sha256:" + "0" * 64, "a@sha256:" + "f" * 64, "localhost/x", "cgroup.kill", "rwm", "2MB",
    "0-3", "0-4294967296", "1,,2", "memory.max", "net.ipv4.ip_forward", "kernel.core_pattern", "CAP_SYS_ADMIN", "ALL",
)  # fmt: skip
_TEXTS = st.one_of(st.sampled_from(_HOSTILE_TEXTS), st.text(max_size=12))
_NUMBERS = {
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
}
#: one byte that begins no character and continues none
_NOT_UTF8 = b"\xff"


@dataclass(frozen=True)
class Ground:
    """What requests may name: ids that exist, and where on the machine they may point to.

    bases: full requests by the name of their message; places: values that fields of a name are kept to; commands: what
    is executed, nothing of which lasts.
    """

    sandboxes: tuple[str, ...]
    containers: tuple[str, ...]
    bases: Mapping[str, Message]
    places: Mapping[str, tuple[str, ...]]
    commands: tuple[tuple[str, ...], ...]


def raw_requests(kind: type[Message], ground: Ground) -> st.SearchStrategy[bytes]:
    """Bytes of requests of a message class, valid ones and others."""
    return _raw(kind, ground)


@st.composite
def _raw(draw: st.DrawFn, kind: type[Message], ground: Ground) -> bytes:
    message = kind()
    base = ground.bases.get(kind.DESCRIPTOR.name)
    if base is not None and draw(st.integers(0, 5)):
        message.CopyFrom(base)
    else:
        _fill(draw, message, ground, 0)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 2, 4]))):
        _change(draw, message, ground, 0)
    return _damaged(draw, message.SerializeToString())


def _damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Mostly as it is; else with unknown fields behind, cut short, with a byte that is no text, or replaced."""
    way = draw(st.integers(0, 19))
    if way == 0:
        return data + b"\xaa\xf4\x01\x03abc" + b"\xf8\xff\xff\xff\x0f\x07"  # field 3909, and the last field number
    if way == 1:
        return data[: draw(st.integers(0, len(data)))]
    if way == 2 and data:
        at = draw(st.integers(0, len(data) - 1))
        return data[:at] + _NOT_UTF8 + data[at + 1 :]
    if way == 3:
        return draw(st.binary(max_size=64))
    return data


def _fill(draw: st.DrawFn, message: Message, ground: Ground, depth: int) -> None:
    """Some of the fields, each with a value of its type."""
    for field in message.DESCRIPTOR.fields:
        if draw(st.booleans()) and (field.message_type is None or depth < _DEPTH):
            _set(draw, message, field, ground, depth)


def _change(draw: st.DrawFn, message: Message, ground: Ground, depth: int) -> None:
    """Give one field somewhere in the tree another value."""
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = draw(st.sampled_from(fields))
    if field.message_type is None or _is_map(field) or depth >= _DEPTH:
        _set(draw, message, field, ground, depth)
    elif field.is_repeated:
        values = getattr(message, field.name)
        way = draw(st.integers(0, 3))
        if values and way == 0:
            values.add().CopyFrom(values[0])  # two of a name
        elif values and way == 1:
            del values[:]
        else:
            at = draw(st.integers(0, len(values)))
            _change(draw, values[at] if at < len(values) else values.add(), ground, depth + 1)
    elif draw(st.integers(0, 9)) == 0:
        message.ClearField(field.name)
    else:
        child = getattr(message, field.name)
        child.SetInParent()
        _change(draw, child, ground, depth + 1)


def _set(draw: st.DrawFn, message: Message, field: Any, ground: Ground, depth: int) -> None:
    if field.name in ("cmd", "command", "args"):
        del getattr(message, field.name)[:]
        getattr(message, field.name).extend(draw(st.sampled_from(ground.commands)))
    elif _is_map(field):
        _set_map(draw, getattr(message, field.name), field)
    elif field.is_repeated and field.message_type is not None:
        for _ in range(draw(st.integers(0, 3))):
            _fill(draw, getattr(message, field.name).add(), ground, depth + 1)
    elif field.is_repeated:
        values = [draw(_scalar(field, ground)) for _ in range(draw(st.integers(0, 3)))]
        getattr(message, field.name).extend(values * draw(st.sampled_from([1, 1, 1, 1, 500])))
    elif field.message_type is not None:
        child = getattr(message, field.name)
        child.SetInParent()
        _fill(draw, child, ground, depth + 1)
    else:
        setattr(message, field.name, draw(_scalar(field, ground)))


def _set_map(draw: st.DrawFn, values: Any, field: Any) -> None:
    if field.message_type.fields_by_name["value"].message_type is not None:
        return
    for _ in range(draw(st.integers(1, 3))):
        values[draw(_TEXTS)] = draw(_TEXTS)
    if draw(st.integers(0, 9)) == 0:
        values.update({f"key{number}": "v" for number in range(5000)})


def _scalar(field: Any, ground: Ground) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_STRING:
        return _text(field.name, ground)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.one_of(st.binary(max_size=8), st.just(b"\0" * _BIG))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.name == "timeout":  # of a stop or an exec: a long one is not a hang
        return st.sampled_from([-(1 << 63), -1, 0, 1])
    low, high = _NUMBERS[field.type]
    near = [number for number in (-1, 0, 1, 2, 3, 1000, 65536, 1 << 32) if low <= number <= high]
    return st.one_of(st.sampled_from([low, *near, high]), st.integers(low, high))


def _text(name: str, ground: Ground) -> st.SearchStrategy[str]:
    if name in ground.places:
        return st.sampled_from(ground.places[name])
    unknown = ("0" * 64, "", "..", "a\0b", "x" * _BIG)
    if name in ("pod_sandbox_id", "id"):
        return st.sampled_from([*ground.sandboxes, *ground.sandboxes, *ground.containers, *unknown])
    if name in ("container_id", "target_id"):
        return st.sampled_from([*ground.containers, *ground.containers, *ground.sandboxes, *unknown])
    return _TEXTS


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)
