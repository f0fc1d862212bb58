from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import InvalidSpec
from crishim.network.cni.conf import document_of, load, network_of, parse_network, signature

FULL: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [
        {"type": "bridge", "ipam": {"type": "host-local"}},
        {"type": "portmap", "capabilities": {"portMappings": True, "dns": False}},
    ],
}


def test_a_list_keeps_what_it_does_not_understand() -> None:
    network = parse_network(json.dumps(FULL))
    assert (network.name, network.version) == ("pods", "1.0.0")
    assert network.plugins[0].fields["ipam"] == {"type": "host-local"}
    assert network.plugins[1].capabilities == {"portMappings"}


def test_a_single_plugin_is_a_chain_of_one() -> None:
    network = parse_network('{"cniVersion": "0.4.0", "name": "x", "type": "bridge", "isGateway": true}')
    assert [plugin.type for plugin in network.plugins] == ["bridge"]
    assert network.plugins[0].fields["isGateway"] is True


@pytest.mark.parametrize(
    ("version", "previous", "check", "status"),
    [
        ("0.3.1", False, False, False),
        ("0.4.0", True, True, False),
        ("1.0.0", True, True, False),
        ("1.1.0", True, True, True),
    ],
)
def test_the_version_decides_which_commands_there_are(version: str, previous: bool, check: bool, status: bool) -> None:
    network = network_of(FULL | {"cniVersion": version})
    assert (network.has_previous_result, network.has_check, network.has_status) == (previous, check, status)
    assert network.has_gc is status


def test_check_and_gc_can_be_disabled_also_by_strings() -> None:
    network = network_of(FULL | {"cniVersion": "1.1.0", "disableCheck": "true", "disableGC": True})
    assert (network.has_check, network.has_gc) == (False, False)


def test_the_newest_of_several_versions_that_is_spoken_is_taken() -> None:
    assert network_of(FULL | {"cniVersions": ["0.3.1", "1.1.0", "9.9.9"]}).version == "1.1.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "name: ''"),
        ({"name": "../x"}, r"name: '../x'"),
        ({"cniVersion": "0.2.0"}, "cniVersion: '0.2.0' is not one of 0.3.0"),
        ({"plugins": []}, "plugins: there is none"),
        ({"plugins": [{"type": "/bin/sh"}]}, r"plugins\[0\].type: '/bin/sh'"),
        ({"plugins": [{}]}, r"plugins\[0\].type: None"),
        ({"plugins": ["x"]}, r"plugins\[0\]: it is not an object"),
        ({"plugins": [{"type": "x", "capabilities": []}]}, r"plugins\[0\].capabilities"),
        ({"disableCheck": 1}, "disableCheck: 1"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        network_of(FULL | change)


def test_a_document_is_read_back_to_an_equal_network() -> None:
    network = network_of(FULL | {"cniVersion": "1.1.0", "disableGC": True})
    assert network_of(json.loads(json.dumps(document_of(network)))) == network


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["name", "type", "plugins", "cniVersion", "cniVersions", "capabilities", "x"]), inner
            )
        ),
    )
)
def test_any_json_is_a_network_or_an_error(document: Any) -> None:
    try:
        parse_network(json.dumps(document))
    except InvalidSpec:
        return


def test_the_first_valid_file_in_the_order_of_names_wins(tmp_path: Path) -> None:
    (tmp_path / "00-broken.conf").write_text("{")
    (tmp_path / "05-other.txt").write_text(json.dumps(FULL | {"name": "ignored"}))
    (tmp_path / "10-first.conflist").write_text(json.dumps(FULL | {"name": "first"}))
    (tmp_path / "20-second.json").write_text(json.dumps(FULL | {"name": "second"}))
    loaded = load(tmp_path)
    assert loaded.network is not None and loaded.network.name == "first"
    assert len(loaded.problems) == 1 and "00-broken.conf: it is not JSON" in loaded.problems[0]


def test_a_directory_that_is_empty_or_missing_holds_no_network(tmp_path: Path) -> None:
    assert load(tmp_path).network is None
    assert load(tmp_path / "missing").network is None
    assert signature(tmp_path / "missing") == ()


@pytest.mark.parametrize("content", [b"\xff\xfe", b" " * ((1 << 20) + 1)])
def test_a_file_of_strange_content_is_a_problem_and_no_failure(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.conf").write_bytes(content)
    assert len(load(tmp_path).problems) == 1


def test_a_file_that_comes_changes_or_goes_changes_the_signature(tmp_path: Path) -> None:
    seen = [signature(tmp_path)]
    path = tmp_path / "a.conf"
    path.write_text("{}")
    seen.append(signature(tmp_path))
    path.write_text("{ }")
    seen.append(signature(tmp_path))
    path.unlink()
    assert len(set(seen)) == 3 and signature(tmp_path) == seen[0]
