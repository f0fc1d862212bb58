"""Whatever protobuf can carry becomes a value or an InvalidSpec, never another exception."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from crishim.cri.convert import container as containers
from crishim.cri.convert import image as images
from crishim.cri.convert import sandbox as sandboxes
from crishim.cri.pb import api_pb2 as pb
from crishim.errors import InvalidSpec
from tests.unit.cri.fakes import container, full_container_config, full_sandbox_config, image, sandbox

_WORDS = [
    "",
    "/",
    "..",
    "a/../b",
    "/a",
    "localhost/",
    "a\0b",
    "\n",
    "a=b",
    "2MB",
    "0-3",
    "١",
    "🂡",
    "rwm",
    "cgroup.kill",
]
_TEXTS = st.one_of(st.sampled_from(_WORDS), st.text(max_size=20))
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: _TEXTS,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=8),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: st.one_of(st.sampled_from([-1, 0, 65536]), st.integers(-(2**31), 2**31 - 1)),
    FieldDescriptor.TYPE_ENUM: st.one_of(st.integers(-1, 4), st.integers(-(2**31), 2**31 - 1)),
    FieldDescriptor.TYPE_INT64: st.one_of(st.sampled_from([-1, 0, 2**32]), st.integers(-(2**63), 2**63 - 1)),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
}


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _change(draw: st.DrawFn, message: Message, depth: int = 0) -> None:
    """Sets one field somewhere in the tree below `message` to anything of its type."""
    fields = [f for f in message.DESCRIPTOR.fields if f.message_type is None or depth < 6]
    if not fields:
        return
    field = draw(st.sampled_from(fields))
    if _is_map(field):
        getattr(message, field.name)[draw(_TEXTS)] = draw(_TEXTS)
    elif field.is_repeated:
        values = getattr(message, field.name)
        if field.message_type is None:
            values.append(draw(_SCALARS[field.type]))
        else:
            index = draw(st.integers(0, len(values)))
            _change(draw, values[index] if index < len(values) else values.add(), depth + 1)
    elif field.message_type is not None:
        if draw(st.integers(0, 9)) == 0:
            message.ClearField(field.name)
        else:
            child = getattr(message, field.name)
            child.SetInParent()
            _change(draw, child, depth + 1)
    else:
        setattr(message, field.name, draw(_SCALARS[field.type]))


@st.composite
def _changed(draw: st.DrawFn, base: Message) -> Any:
    message = type(base)()
    if draw(st.booleans()):
        message.CopyFrom(base)
    for _ in range(draw(st.integers(1, 8))):
        _change(draw, message)
    return message


def test_the_changes_reach_every_scalar_type() -> None:
    def types(descriptor: Any, seen: set[str]) -> set[int]:
        found: set[int] = set()
        for field in descriptor.fields:
            if field.message_type is None:
                found.add(field.type)
            elif field.message_type.full_name not in seen:
                found |= types(field.message_type, seen | {field.message_type.full_name})
        return found

    assert types(pb.CreateContainerRequest.DESCRIPTOR, set()) == set(_SCALARS)


@given(_changed(full_sandbox_config()))
def test_any_pod_becomes_a_value_that_can_be_answered_or_is_refused(message: pb.PodSandboxConfig) -> None:
    try:
        config = sandboxes.from_proto(message)
    except InvalidSpec as error:
        assert str(error)
        return
    pod = sandbox()
    answer = sandboxes.to_status(type(pod)(pod.id, config, pod.state, 1))
    assert dict(answer.annotations) == dict(message.annotations)


@given(_changed(full_container_config()))
def test_any_container_becomes_a_value_that_can_be_answered_or_is_refused(message: pb.ContainerConfig) -> None:
    try:
        config = containers.from_proto(message)
    except InvalidSpec as error:
        assert str(error)
        return
    of = container()
    answer = containers.to_status(type(of)(of.id, "a1", config, of.state, 1, "", "", "", of.user))
    assert [m.container_path for m in answer.mounts] == [m.container_path for m in message.mounts]


@given(_changed(pb.AuthConfig(username="a", password="b")))
def test_any_credentials_become_a_value_or_are_refused(message: pb.AuthConfig) -> None:
    try:
        images.credentials_from_proto(message)
    except InvalidSpec as error:
        assert str(error).startswith("auth.")


@given(st.text(alphabet=st.characters(), max_size=20))
def test_any_user_of_an_image_can_be_answered(user: str) -> None:
    assert images.to_proto(image(user=user)).SerializeToString()


def test_a_changed_base_can_still_be_accepted() -> None:
    """The properties above would be empty if every message were refused."""
    assert sandboxes.from_proto(full_sandbox_config()) and containers.from_proto(full_container_config())
    with pytest.raises(InvalidSpec):
        sandboxes.from_proto(pb.PodSandboxConfig())
