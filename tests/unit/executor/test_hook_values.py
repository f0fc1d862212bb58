"""Hooks as the executor's processes see them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from crishim.errors import InvalidSpec
from crishim.executor import hook_values, wire
from crishim.model.hook import Hook, Hooks
from tests.unit.executor.values import CONTAINER

HOOKS = Hooks(
    prestart=(Hook("/a", ("a", "b"), ("X=1",), 5),), create_container=(Hook("/b"),), poststop=(Hook("/c", env=()),)
)
SPEC = replace(CONTAINER, hooks=HOOKS, bundle="/bundle", annotations={"k": "v"})


def test_places_have_the_names_of_the_specification_and_empty_ones_are_left_out() -> None:
    made = hook_values.hooks_value(SPEC, "/m/hooks.c1")
    assert made is not None and wire.decode(wire.encode(made)) == made
    assert made["stages"] == {
        b"prestart": [[b"/a", [b"a", b"b"], [b"X=1"], 5]],
        b"createContainer": [[b"/b", [b"/b"], None, 0]],
        b"poststop": [[b"/c", [b"/c"], [], 0]],
    }
    assert (made["bundle"], made["cgroup"]) == (b"/bundle", "/m/hooks.c1")


def test_the_state_is_a_json_object_that_wants_status_and_pid() -> None:
    made = hook_values.hooks_value(SPEC, "/x")
    assert made is not None and isinstance(made["state"], bytes)
    text = made["state"] + b',"status":"creating"}'
    assert json.loads(text) == {
        "ociVersion": "1.2.0",
        "id": "c1",
        "status": "creating",
        "bundle": "/bundle",
        "annotations": {"k": "v"},
    }


def test_a_container_without_hooks_has_no_value() -> None:
    assert hook_values.hooks_value(CONTAINER, "/x") is None


def test_hooks_need_a_bundle() -> None:
    with pytest.raises(InvalidSpec, match=r"^bundle: '' is not the directory"):
        hook_values.hooks_value(replace(SPEC, bundle=""), "/x")


def test_hooks_are_added_place_by_place() -> None:
    both = Hooks(prestart=(Hook("/1"),)) + Hooks(prestart=(Hook("/2"),), poststart=(Hook("/3"),))
    assert both == Hooks(prestart=(Hook("/1"), Hook("/2")), poststart=(Hook("/3"),))
    assert not Hooks() and both
