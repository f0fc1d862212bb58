"""Model values to JSON and back: nothing is lost, and nothing odd is let in."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.model.container import Container, ContainerConfig
from crishim.model.image import Image
from crishim.model.process import Capabilities, ContainerSpec
from crishim.model.resources import Resources
from crishim.model.sandbox import Sandbox
from crishim.store import codec
from tests.unit.store.values import CONTAINER, SANDBOX


class Colour(enum.Enum):
    RED = 1


@dataclass(frozen=True)
class Every:
    text: str
    number: int
    part: float
    raw: bytes
    flag: bool = False
    pair: tuple[str, int] = ("", 0)
    names: frozenset[str] = frozenset()
    colour: Colour | None = None
    table: Mapping[str, tuple[int, ...]] | None = None


FULL = Every("a", 1, 0.5, b"\0\xff", True, ("x", 2), frozenset({"b", "a"}), Colour.RED, {"k": (1, 2)})


@pytest.mark.parametrize("value", [SANDBOX, CONTAINER, FULL, Every("", 0, 0.0, b"")])
def test_a_value_comes_back_equal(value: object) -> None:
    assert codec.from_bytes(type(value), codec.to_bytes(value)) == value


@given(st.text(alphabet=st.characters(exclude_categories=())), st.integers(), st.floats(allow_nan=False), st.binary())
def test_any_field_comes_back_equal(text: str, number: int, part: float, raw: bytes) -> None:
    value = Every(text, number, part, raw, table={text: (number,)})
    assert codec.from_bytes(Every, codec.to_bytes(value)) == value


@pytest.mark.parametrize("kind", [Sandbox, Container, ContainerConfig, Resources, Capabilities, ContainerSpec, Image])
def test_every_value_of_the_model_has_a_codec(kind: type) -> None:
    with pytest.raises(codec.DecodeError, match="unknown field"):
        codec.from_json(kind, {"surprise": 1})


def test_the_text_is_ascii_and_has_no_order_of_its_own() -> None:
    text = codec.to_bytes(FULL)
    assert text.isascii()
    assert json.loads(text)["names"] == ["a", "b"]


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("number", "1", "number: '1' is not of type int"),
        ("number", True, "number: True is not of type int"),
        ("text", None, "text: None is not of type str"),
        ("raw", "%", "raw: '%' is not base64"),
        ("raw", 5, "raw: 5 is not base64"),
        ("pair", ["x"], "pair: 1 values instead of 2"),
        ("pair", ["x", "y"], r"pair\[1\]: 'y' is not of type int"),
        ("names", "ab", "names: 'ab' is not a list"),
        ("colour", "BLUE", "colour: 'BLUE' is not one of RED"),
        ("table", {"k": [1, None]}, r"table\['k'\]\[1\]: None is not of type int"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(field: str, value: object, problem: str) -> None:
    with pytest.raises(codec.DecodeError, match=problem):
        codec.from_json(Every, codec.to_json(FULL) | {field: value})


def test_a_field_of_a_nested_value_is_named_by_its_path() -> None:
    found = codec.to_json(SANDBOX)
    found["config"]["dns"]["colour"] = 1
    with pytest.raises(codec.DecodeError, match=r"config\.dns\.colour: unknown field of Dns"):
        codec.from_json(Sandbox, found)


def test_a_missing_field_takes_its_default_or_is_an_error() -> None:
    found = codec.to_json(FULL)
    del found["flag"]
    assert codec.from_json(Every, found) == replace(FULL, flag=False)
    del found["text"]
    with pytest.raises(codec.DecodeError, match="text: missing"):
        codec.from_json(Every, found)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_json_is_a_decode_error(text: bytes) -> None:
    with pytest.raises(codec.DecodeError, match="not JSON"):
        codec.from_bytes(Every, text)
