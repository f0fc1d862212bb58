"""Documents of CDI devices as values, and what they make of a container."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from crishim.errors import InvalidSpec, Unsupported
from crishim.model.cdi import CdiMount, CdiNode, ContainerEdits
from crishim.model.hook import Hook, Hooks
from crishim.model.process import DeviceNode, DeviceRule, IntelRdt, MountSpec, Propagation
from crishim.spec.cdi import edited
from crishim.spec.cdi_documents import document_from, parsed_name
from tests.unit.spec.test_container import built

DOCUMENT: dict[str, Any] = {
    "cdiVersion": "0.7.0",
    "kind": "vendor.com/gpu",
    "annotations": {"a": "b"},
    "containerEdits": {"env": ["ALL=1"]},
    "devices": [
        {
            "name": "gpu0",
            "annotations": {"c": "d"},
            "containerEdits": {
                "env": ["GPU=0"],
                "deviceNodes": [
                    {"path": "/dev/gpu0"},
                    {
                        "path": "/dev/ctl",
                        "hostPath": "/dev/vendor/ctl",
                        "type": "c",
                        "major": 195,
                        "minor": 255,
                        "fileMode": 0o640,
                        "permissions": "rw",
                        "uid": 1,
                        "gid": 2,
                    },
                ],
                "mounts": [
                    {"hostPath": "/usr/lib/v.so", "containerPath": "/lib/v.so", "options": ["ro", "nosuid", "bind"]}
                ],
                "hooks": [
                    {
                        "hookName": "createContainer",
                        "path": "/usr/bin/hook",
                        "args": ["hook", "x"],
                        "env": ["A=1"],
                        "timeout": 5,
                    },
                    {"hookName": "poststop", "path": "/usr/bin/end"},
                ],
                "additionalGids": [44, 0],
            },
        }
    ],
}


def with_edits(**edits: Any) -> dict[str, Any]:
    return {**DOCUMENT, "devices": [{"name": "gpu0", "containerEdits": edits}]}


def test_a_document_is_a_value() -> None:
    document = document_from(DOCUMENT)
    assert document.kind == "vendor.com/gpu"
    assert document.edits == ContainerEdits(env=("ALL=1",))
    assert document.devices == {
        "gpu0": ContainerEdits(
            env=("GPU=0",),
            nodes=(
                CdiNode("/dev/gpu0", "/dev/gpu0"),
                CdiNode("/dev/ctl", "/dev/vendor/ctl", "c", 195, 255, 0o640, "rw", 1, 2),
            ),
            mounts=(CdiMount("/usr/lib/v.so", "/lib/v.so", ("ro", "nosuid", "bind")),),
            hooks=Hooks(
                create_container=(Hook("/usr/bin/hook", ("hook", "x"), ("A=1",), 5),), poststop=(Hook("/usr/bin/end"),)
            ),
            additional_groups=(44,),
        )
    }


@pytest.mark.parametrize("version", ["0.3.0", "0.5.0", "0.8.0", "1.0.0", "1.1.0"])
def test_versions_that_are_known(version: str) -> None:
    assert document_from({**DOCUMENT, "cdiVersion": version}).devices


def interface(name: str, inside: str) -> dict[str, Any]:
    return {"hostInterfaceName": name, "name": inside}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "the document: it is not an object"),
        ({**DOCUMENT, "cdiVersion": "2.0.0"}, "cdiVersion: '2.0.0' is not a version"),
        ({**DOCUMENT, "kind": "vendor"}, "kind: 'vendor' is not of the form"),
        ({**DOCUMENT, "kind": "-v/c"}, "kind: "),
        ({**DOCUMENT, "surprise": 1}, "surprise: there is no such field"),
        ({"kind": "v/c"}, "cdiVersion: it is missing"),
        ({**DOCUMENT, "devices": [{"name": "a"}, {"name": "a"}]}, r"devices\[1\].name: 'a' is there twice"),
        ({**DOCUMENT, "devices": [{"name": "a b"}]}, r"devices\[0\].name: 'a b'"),
        (with_edits(env=["X"]), r"devices\[0\].containerEdits.env: 'X' is not NAME=value"),
        (with_edits(env="X=1"), r"devices\[0\].containerEdits.env: 'X=1' is not a list of texts"),
        (with_edits(new=[]), r"devices\[0\].containerEdits.new: there is no such field"),
        (with_edits(deviceNodes=[{"path": "dev/x"}]), r"deviceNodes\[0\].path: 'dev/x' is not an absolute path"),
        (with_edits(deviceNodes=[{"path": "/dev/../etc/x"}]), r"deviceNodes\[0\].path: "),
        (with_edits(deviceNodes=[{"path": "/dev/x", "hostPath": "x"}]), r"deviceNodes\[0\].hostPath: 'x'"),
        (with_edits(deviceNodes=[{"path": "/dev/x", "type": "z"}]), r"deviceNodes\[0\].type: 'z' is not one of"),
        (with_edits(deviceNodes=[{"path": "/dev/x", "permissions": "rx"}]), r"permissions: 'rx' is not made of"),
        (with_edits(deviceNodes=[{"path": "/dev/x", "major": -1}]), r"major: -1 is not a number within"),
        (with_edits(deviceNodes=[{"path": "/dev/x", "major": True}]), r"major: True is not a number"),
        (with_edits(mounts=[{"hostPath": "/a"}]), r"mounts\[0\].containerPath: it is missing"),
        (with_edits(mounts=[{"hostPath": "/a\0", "containerPath": "/b"}]), r"mounts\[0\].hostPath: .* is not a text"),
        (with_edits(hooks=[{"hookName": "later", "path": "/x"}]), r"hooks\[0\].hookName: 'later' is not one of"),
        (with_edits(hooks=[{"hookName": "prestart", "path": "x"}]), r"hooks\[0\].path: 'x' is not an absolute path"),
        (with_edits(hooks=[{"hookName": "prestart", "path": "/x", "timeout": -1}]), r"hooks\[0\].timeout: -1"),
        (with_edits(netDevices=[{"name": "x"}]), r"netDevices\[0\].hostInterfaceName: it is missing"),
        (
            with_edits(netDevices=[interface("a/b", "x")]),
            r"hostInterfaceName: 'a/b' is not the name of a network device",
        ),
        (with_edits(netDevices=[interface("eth1", "x" * 16)]), r"netDevices\[0\].name: 'x+' is not the name"),
        (with_edits(netDevices=[interface("eth1", "..")]), r"netDevices\[0\].name: '..' is not the name"),
        (with_edits(netDevices=[interface("eth1", "eth%d")]), r"netDevices\[0\].name: 'eth%d' is not the name"),
        (with_edits(netDevices=[interface("eth1", "x") | {"mtu": 1}]), r"netDevices\[0\].mtu: there is no such field"),
        (with_edits(intelRdt={"closID": 1}), r"intelRdt.closID: 1 is not a text"),
        (with_edits(intelRdt={"l4": ""}), r"intelRdt.l4: there is no such field"),
        (with_edits(additionalGids=[-1]), "additionalGids: .* is not a list of numbers"),
    ],
)
def test_a_document_that_cannot_be_used_names_the_field(document: object, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        document_from(document)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"deviceNodes": [{"path": "/dev/x", "type": "p"}]}, "'p' is not supported"),
        ({"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "tmpfs"}]}, "'tmpfs' is not supported"),
    ],
)
def test_what_is_not_supported_is_a_sentence(edits: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        document_from(with_edits(**edits))


@pytest.mark.parametrize("name", ["v/c=d", "vendor.com/a.b_c-d=0", "v/c=a:b.c", "v/c=GPU-6b0c"])
def test_names_that_are_fully_qualified(name: str) -> None:
    assert "=".join(parsed_name(name)) == name


@pytest.mark.parametrize("name", ["", "c=d", "v/c", "v/c=", "/c=d", "v/=d", "v/c=d=e", "v/c/x=d", "1v/c=d", "v/c=-d"])
def test_names_that_are_not(name: str) -> None:
    with pytest.raises(InvalidSpec, match="is not a fully qualified name"):
        parsed_name(name)


def found(node: CdiNode) -> DeviceNode:
    return DeviceNode(node.path, "c", 10, 229, 0o660, 7, 7)


def test_edits_become_parts_of_the_container() -> None:
    spec = replace(built(), process=replace(built().process, env=("PATH=/bin", "GPU=none", "X=y")))
    edits = ContainerEdits(
        env=("GPU=0", "NEW=1"),
        nodes=(CdiNode("/dev/fuse", "/dev/fuse", permissions="r"),),
        mounts=(CdiMount("/h/lib", "/etc/hosts", ("ro", "nosuid", "nodev", "rbind", "rslave")),),
        hooks=Hooks(prestart=(Hook("/h"),)),
        additional_groups=(44,),
    )
    made = edited(spec, edits, found)
    assert made.process.env == ("PATH=/bin", "GPU=0", "X=y", "NEW=1")
    assert made.process.user.additional_groups == (*spec.process.user.additional_groups, 44)
    assert made.device_nodes[-1] == DeviceNode("/dev/fuse", "c", 10, 229, 0o666, 0, 0)
    assert made.cgroup.devices == (*spec.cgroup.devices, DeviceRule(True, "c", 10, 229, "r"))
    assert [mount for mount in made.mounts if mount.target == "/etc/hosts"] == [
        MountSpec("/etc/hosts", "bind", "/h/lib", ("ro", "nosuid", "nodev"), (), Propagation.HOST_TO_CONTAINER)
    ]
    assert made.hooks == edits.hooks
    depths = [mount.target.count("/") for mount in made.mounts]
    assert depths == sorted(depths)


def test_network_devices_of_a_document_go_into_the_container() -> None:
    document = document_from(with_edits(netDevices=[interface("eth1", "net0"), interface("eth2", "eth2")]))
    (edits,) = document.devices.values()
    assert edits.net_devices == (("eth1", "net0"), ("eth2", "eth2"))
    assert edited(built(), edits + edits, found).net_devices == {"eth1": "net0", "eth2": "eth2"}
    with pytest.raises(InvalidSpec, match="CDI network device 'eth1' would be 'net0' and 'net1' in the container"):
        edited(built(), edits + ContainerEdits(net_devices=(("eth1", "net1"),)), found)


def test_the_class_of_service_of_a_document_is_the_containers() -> None:
    schema = {"l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=50", "schemata": ["L2:0=1"], "enableCMT": True}
    (edits,) = document_from(with_edits(intelRdt={"closID": "gold"} | schema)).devices.values()
    made = edited(built(), ContainerEdits(intel_rdt=IntelRdt("other")) + edits + ContainerEdits(), found)
    assert made.intel_rdt == IntelRdt("gold", ("L3:0=f", "MB:0=50", "L2:0=1"), monitoring=True)
    (edits,) = document_from(with_edits(intelRdt={"closID": "gold", "enableMonitoring": False})).devices.values()
    assert edits.intel_rdt == IntelRdt("gold")


def test_a_node_belongs_to_whom_the_document_says_or_to_the_user() -> None:
    spec = built()
    spec = replace(spec, process=replace(spec.process, user=replace(spec.process.user, uid=1000, gid=2000)))
    nodes = (CdiNode("/dev/a", "/dev/a"), CdiNode("/dev/b", "/dev/b", file_mode=0o20640, uid=0, gid=5))
    made = edited(spec, ContainerEdits(nodes=nodes), found)
    assert made.device_nodes[-2:] == (
        DeviceNode("/dev/a", "c", 10, 229, 0o666, 1000, 2000),
        DeviceNode("/dev/b", "c", 10, 229, 0o640, 0, 5),
    )


@pytest.mark.parametrize(
    "edits",
    [
        ContainerEdits(mounts=(CdiMount("/x", "/proc/self"),)),
        ContainerEdits(mounts=(CdiMount("/x", "/"),)),
        ContainerEdits(mounts=(CdiMount("/x", "/y", ("loud",)),)),
        ContainerEdits(nodes=(CdiNode("/proc/x", "/dev/null"),)),
    ],
)
def test_what_cannot_be_in_a_container_is_refused(edits: ContainerEdits) -> None:
    with pytest.raises(InvalidSpec, match="CDI"):
        edited(built(), edits, found)
