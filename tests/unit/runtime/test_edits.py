"""CDI devices and hooks from directories: found, replaced, read again, and refused with the reason."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import InvalidSpec
from crishim.model.cdi import CdiNode
from crishim.model.container import ContainerSecurity, Device
from crishim.model.handler import Handler
from crishim.model.process import DeviceNode
from crishim.runtime.cdi import CdiDevices, annotated_devices, host_node
from crishim.runtime.devices import host_devices
from crishim.runtime.documents import Documents
from crishim.runtime.edits import Edits
from crishim.runtime.hook_dirs import HookDirectories
from crishim.runtime.settings import Settings
from crishim.spec.facts import NodeAbilities
from tests.unit.spec.test_container import CONFIG, SANDBOX, built


def document(kind: str = "v/c", **devices: str) -> dict[str, Any]:
    """Each device sets the variable of its name to a value."""
    return {
        "cdiVersion": "0.6.0",
        "kind": kind,
        "containerEdits": {"env": [f"DOCUMENT={kind}"]},
        "devices": [{"name": n, "containerEdits": {"env": [f"{n}={value}"]}} for n, value in devices.items()],
    }


def write(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def dirs(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "etc", tmp_path / "run"


def devices_in(dirs: tuple[Path, Path]) -> CdiDevices:
    return CdiDevices([str(path) for path in dirs])


def test_the_edits_of_a_document_come_once_before_its_devices(dirs: tuple[Path, Path]) -> None:
    write(dirs[0] / "a.json", document(x="1", y="2"))
    found = devices_in(dirs).edits_of(["v/c=y", "v/c=x", "v/c=y"])
    assert found.env == ("DOCUMENT=v/c", "y=2", "x=1")


def test_yaml_is_read_too(dirs: tuple[Path, Path]) -> None:
    dirs[0].mkdir()
    text = "cdiVersion: 0.5.0\nkind: v/c\ndevices:\n- name: '0'\n  containerEdits:\n    env: [A=b]\n"
    (dirs[0] / "a.yaml").write_text(text)
    assert devices_in(dirs).edits_of(["v/c=0"]).env == ("A=b",)


def test_a_later_directory_wins_and_a_conflict_inside_of_one_is_told(dirs: tuple[Path, Path]) -> None:
    write(dirs[0] / "a.json", document(x="etc", z="etc"))
    write(dirs[1] / "a.json", document(x="run"))
    write(dirs[0] / "b.json", document(z="etc too"))
    devices = devices_in(dirs)
    assert devices.edits_of(["v/c=x"]).env[-1] == "x=run"
    with pytest.raises(InvalidSpec, match=r"CDI device 'v/c=z' is in conflict: .*/a.json and .*/b.json both have it"):
        devices.edits_of(["v/c=z"])


def test_an_unknown_device_is_named_with_what_could_not_be_read(dirs: tuple[Path, Path]) -> None:
    write(dirs[0] / "a.json", document(x="1"))
    devices = devices_in(dirs)
    with pytest.raises(InvalidSpec, match=r"CDI device 'v/c=y' is in no document of .*/etc and .*/run$"):
        devices.edits_of(["v/c=x", "v/c=y"])
    (dirs[0] / "b.json").write_text("{")
    with pytest.raises(InvalidSpec, match=r"; .*/b.json cannot be used: it is not JSON"):
        devices.edits_of(["v/c=y"])
    assert devices.edits_of(["v/c=x"]).env, "the others can be used"


def test_documents_are_read_again_when_they_change(dirs: tuple[Path, Path]) -> None:
    devices = devices_in(dirs)
    with pytest.raises(InvalidSpec):
        devices.edits_of(["v/c=x"])
    write(dirs[0] / "a.json", document(x="1"))
    assert devices.edits_of(["v/c=x"]).env[-1] == "x=1"
    write(dirs[0] / "new", document(x="22"))
    os.replace(dirs[0] / "new", dirs[0] / "a.json")
    assert devices.edits_of(["v/c=x"]).env[-1] == "x=22"
    (dirs[0] / "a.json").unlink()
    with pytest.raises(InvalidSpec):
        devices.edits_of(["v/c=x"])


def test_a_document_that_did_not_change_is_not_parsed_again(tmp_path: Path) -> None:
    parsed = []
    documents = Documents([str(tmp_path)], (".json",), parsed.append)
    write(tmp_path / "a.json", 1)
    documents.read()
    documents.read()
    assert parsed == [1]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.yaml", b"a: &x [1]\nb: *x\n", "aliases are not taken"),
        ("a.yaml", b"[" * 100 + b"]" * 100, "nests too deeply"),
        ("a.yaml", b"a: [", "it is not YAML"),
        ("a.yaml", b"!!python/object/apply:os.system [true]", "it is not YAML"),
        ("a.yaml", b"\xff\xfe\xfd", "it is not YAML"),
        ("a.json", b"[" * 100_000, "it is not JSON"),
        ("a.json", b"\xff", "it is not JSON"),
        ("a.json", b" " * (5 << 20), "not a file of at most"),
    ],
)
def test_a_hostile_document_is_left_out(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    (read,) = Documents([str(tmp_path)], (".json", ".yaml"), lambda value: value).read()
    assert read.value is None and problem in read.problem


def test_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    (tmp_path / "b.json").mkdir()
    (tmp_path / "c.json").symlink_to("nowhere")
    read = Documents([str(tmp_path)], (".json",), lambda value: value).read()
    assert [each.value for each in read] == [None, None, None]


def test_a_node_is_looked_up_on_the_host() -> None:
    assert host_node(CdiNode("/dev/x", "/dev/null")) == DeviceNode("/dev/x", "c", 1, 3, source="/dev/null")
    assert host_node(CdiNode("/dev/x", "/nowhere", "b", 7, 0)) == DeviceNode("/dev/x", "b", 7, 0, source="/nowhere")
    with pytest.raises(InvalidSpec, match="CDI device node '/nowhere': no such file"):
        host_node(CdiNode("/dev/x", "/nowhere"))
    with pytest.raises(InvalidSpec, match="'/etc' is not a device"):
        host_node(CdiNode("/dev/x", "/etc"))
    with pytest.raises(InvalidSpec, match="'/dev/null' is not a device of type b"):
        host_node(CdiNode("/dev/x", "/dev/null", "b"))


def settings(**changes: Any) -> Settings:
    return Settings(
        NodeAbilities((6, 1), "x86_64", frozenset()),
        "/s",
        "/r",
        "/c",
        "p",
        **{"cdi_dirs": (), "hook_dirs": (), **changes},
    )


def test_annotations_name_devices_only_where_the_handler_allows_them(dirs: tuple[Path, Path]) -> None:
    write(dirs[0] / "a.json", document(x="1", y="2"))
    edits = Edits(settings(cdi_dirs=(str(dirs[0]),)))
    config = replace(CONFIG, cdi_devices=("v/c=x",), annotations={"cdi.k8s.io/a": "v/c=y,v/c=x"})
    assert edits.added_to(built(), config, SANDBOX).process.env[-1] == "x=1"
    open_ = replace(SANDBOX, handler=Handler(allowed_annotations=("cdi.k8s.io/*",)))
    assert edits.added_to(built(), config, open_).process.env[-2:] == ("x=1", "y=2")
    plain = replace(CONFIG, annotations=config.annotations)
    assert not edits.concern(plain, SANDBOX) and edits.concern(plain, open_)


def test_annotations_are_lists_in_the_order_of_their_keys() -> None:
    assert annotated_devices({"cdi.k8s.io/b": "v/c=2, v/c=3", "cdi.k8s.io/a": "v/c=1", "x": "v/c=4"}) == (
        *("v/c=1", "v/c=2", "v/c=3"),
    )


def test_hooks_of_a_directory_are_told_who_the_container_is(tmp_path: Path) -> None:
    rule = {
        "version": "1.0.0",
        "hook": {"path": "/hook"},
        "when": {"annotations": {"^io.kubernetes.cri.sandbox-namespace$": "^ns$"}},
        "stages": ["poststop"],
    }
    write(tmp_path / "a.json", rule)
    made = Edits(settings(hook_dirs=(str(tmp_path),))).added_to(built(), CONFIG, SANDBOX)
    assert [hook.path for hook in made.hooks.poststop] == ["/hook"]
    assert made.annotations["io.kubernetes.cri.container-name"] == "main"


def test_a_container_without_additions_stays_as_it_is() -> None:
    edits = Edits(settings())
    assert not edits.concern(CONFIG, SANDBOX)
    assert edits.added_to(built(), CONFIG, SANDBOX) == built()


def test_a_hook_file_of_a_later_directory_replaces_its_namesake(dirs: tuple[Path, Path], caplog: Any) -> None:
    def rule(path: str) -> dict[str, Any]:
        return {"version": "1.0.0", "hook": {"path": path}, "when": {"always": True}, "stages": ["prestart"]}

    write(dirs[0] / "20.json", rule("/twenty"))
    write(dirs[0] / "10.json", rule("/ten"))
    write(dirs[1] / "20.json", rule("/other"))
    write(dirs[1] / "30.json", {"version": "0"})
    hooks = HookDirectories([str(path) for path in dirs])
    for _ in range(2):
        assert [hook.path for hook in hooks.hooks_of({}, "sh", False).prestart] == ["/ten", "/other"]
    assert [record.message for record in caplog.records] == [
        f"the hook {dirs[1]}/30.json is not used: version: '0' is not 1.0.0"
    ]


def test_directories_that_the_settings_change_are_taken(dirs: tuple[Path, Path]) -> None:
    write(dirs[0] / "a.json", document(x="1"))
    given = settings()
    edits = Edits(given)
    given.cdi_dirs = (str(dirs[0]),)
    assert edits.added_to(built(), replace(CONFIG, cdi_devices=("v/c=x",)), SANDBOX).process.env[-1] == "x=1"


@pytest.mark.parametrize(
    ("security", "owner"),
    [
        (ContainerSecurity(run_as_user=1000, run_as_group=2000), (1000, 2000)),
        (ContainerSecurity(run_as_user=1000), (1000, None)),
        (ContainerSecurity(), (None, None)),
    ],
)
def test_devices_may_belong_to_the_user_of_the_container(
    security: ContainerSecurity, owner: tuple[int | None, int | None]
) -> None:
    config = replace(CONFIG, security=security, devices=(Device("/dev/x", "/dev/null"),))
    (plain,) = host_devices(config, False)
    (owned,) = host_devices(config, False, True)
    uid, gid = owner
    assert (owned.node.uid, owned.node.gid) == (
        plain.node.uid if uid is None else uid,
        plain.node.gid if gid is None else gid,
    )
    assert plain.node.uid == os.stat("/dev/null").st_uid
    assert (plain.node.path, plain.node.source) == ("/dev/x", "/dev/null"), "what is bound where no node can be made"
