"""`api.proto` against the published table of CRI v1, and the committed stubs against a fresh generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FieldDescriptor

from crishim.cri import generate
from crishim.cri.pb import api_pb2 as pb

TABLE: dict[str, Any] = json.loads((Path(__file__).parent.parent / "data/cri-v1.json").read_text())
FILE = descriptor_pb2.FileDescriptorProto()
pb.DESCRIPTOR.CopyToProto(FILE)

_TYPES = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in dir(FieldDescriptor)
    if name.startswith("TYPE_")
}


def _field(message: descriptor_pb2.DescriptorProto, field: descriptor_pb2.FieldDescriptorProto) -> dict[str, object]:
    """A field in the words of the table."""
    live = pb.DESCRIPTOR.message_types_by_name[message.name].fields_by_name[field.name]
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
    row: dict[str, object] = {
        "name": field.name,
        "number": field.number,
        "type": _TYPES[field.type],
        "label": "repeated" if field.label == FieldDescriptor.LABEL_REPEATED else "singular",
        "oneof": oneof,
        "json_name": live.json_name,
        "deprecated": field.options.deprecated,
    }
    entries = {entry.name: entry for entry in message.nested_type if entry.options.map_entry}
    if field.type_name.rsplit(".", 1)[-1] in entries:
        key, value = entries[field.type_name.rsplit(".", 1)[-1]].field
        row |= {"type": "map", "label": "map", "map_key": _TYPES[key.type], "map_value": _TYPES[value.type]}
    elif field.type_name:
        row["type_name"] = field.type_name.removeprefix(".runtime.v1.")
    if live.is_packed:
        row["packed"] = True
    if field.options.debug_redact:
        row["debug_redact"] = True
    return row


def _without_versions(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("since", "since_fine")}


def test_package_and_syntax() -> None:
    assert (FILE.package, FILE.syntax) == (TABLE["schema"]["proto_package"], TABLE["schema"]["syntax"])


def test_messages_are_those_of_the_table() -> None:
    assert {message.name for message in FILE.message_type} == set(TABLE["messages"])


@pytest.mark.parametrize("name", sorted(TABLE["messages"]))
def test_message_equals_the_table(name: str) -> None:
    message = next(m for m in FILE.message_type if m.name == name)
    row = TABLE["messages"][name]
    fields = {field.name: _field(message, field) for field in message.field}
    assert fields == {field["name"]: _without_versions(field) for field in row["fields"]}
    assert [number for span in message.reserved_range for number in range(span.start, span.end)] == row[
        "reserved_numbers"
    ]
    assert list(message.reserved_name) == row["reserved_names"]
    assert [oneof.name for oneof in message.oneof_decl] == row["oneofs"]
    assert message.options.deprecated == row["deprecated"]


def test_enums_equal_the_table() -> None:
    enums = {enum.name: enum for enum in FILE.enum_type}
    enums |= {f"{message.name}.{enum.name}": enum for message in FILE.message_type for enum in message.enum_type}
    assert set(enums) == set(TABLE["enums"])
    for name, row in TABLE["enums"].items():
        values = [(v.name, v.number, v.options.deprecated) for v in enums[name].value]
        assert values == [(v["name"], v["number"], v["deprecated"]) for v in row["values"]]
        assert enums[name].options.allow_alias == row["allow_alias"]


def test_services_equal_the_table() -> None:
    methods = {
        f"/{FILE.package}.{service.name}/{method.name}": (
            method.input_type.removeprefix(".runtime.v1."),
            method.output_type.removeprefix(".runtime.v1."),
            method.client_streaming,
            method.server_streaming,
        )
        for service in FILE.service
        for method in service.method
    }
    assert methods == {
        m["path"]: (m["request"], m["response"], m["client_streaming"], m["server_streaming"])
        for service in TABLE["services"]
        for m in service["methods"]
    }


def test_counts_are_those_of_the_table() -> None:
    assert sum(len(service.method) for service in FILE.service) == TABLE["counts"]["methods"] == 43
    assert len(FILE.message_type) == TABLE["counts"]["messages"] == 175
    assert sum(len(message.field) for message in FILE.message_type) == TABLE["counts"]["fields"]


def test_committed_stubs_are_what_protoc_generates(tmp_path: Path) -> None:
    (tmp_path / "crishim/cri/pb").mkdir(parents=True)
    generate.generate(tmp_path)
    committed = generate.REPOSITORY / "crishim/cri/pb"
    fresh = {path.name: path.read_text() for path in (tmp_path / "crishim/cri/pb").iterdir()}
    assert {path.name for path in committed.glob("*_pb2*")} == set(fresh)
    for name, text in fresh.items():
        assert (committed / name).read_text() == text, f"{name} is stale: run `make proto`"
