"""SELinux contexts of a container: which steps they add, and which contexts are refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from crishim.errors import InvalidSpec
from crishim.executor import labels, plan, value
from crishim.executor.client import PodSpec
from crishim.linux import selinux
from crishim.model.process import MountSpec, Namespace, NamespaceKind
from tests.unit.executor.values import CONTAINER, OPENED, PROCESS, V2, container_value

PROCESS_LABEL = "system_u:system_r:container_t:s0:c1,c2"
MOUNT_LABEL = "system_u:object_r:container_file_t:s0:c1,c2"
CONTEXT = b"context=" + MOUNT_LABEL.encode()
MOUNTS = (
    *CONTAINER.mounts,
    MountSpec("/dev/mqueue", "mqueue"),
    MountSpec("/run", "tmpfs", options=("mode=755",)),
    MountSpec("/scratch", "tmpfs"),
    MountSpec("/own", "tmpfs", options=("mode=755", "context=other")),
    MountSpec("/sys", "sysfs"),
)
LABELLED = replace(CONTAINER, mounts=MOUNTS, process=replace(PROCESS, label=PROCESS_LABEL), mount_label=MOUNT_LABEL)


@pytest.fixture(autouse=True)
def any_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux, "why_refused", lambda context: "")


def steps(**opened: int) -> list[plan.Step]:
    return plan.init_steps(container_value(LABELLED), {**OPENED, **{k.encode(): v for k, v in opened.items()}})


def test_new_file_systems_have_the_context_that_can_have_one() -> None:
    mounted = {step[2]: step[3] for step in steps() if step[0] == "mount_filesystem"}
    assert mounted == {
        b"/proc": (),
        b"/sys": (),
        b"/dev": (b"mode=755", CONTEXT),
        b"/dev/pts": (b"newinstance", CONTEXT),
        b"/dev/mqueue": (),
        b"/run": (b"mode=755", CONTEXT),
        b"/own": (b"mode=755", b"context=other"),
    }
    (scratch,) = [step for step in steps() if step[0] == "mount_tmpfs"]
    assert scratch[2] == (CONTEXT,)


def test_queues_are_labelled_once_they_are_mounted() -> None:
    made = steps()
    place = made.index(("label_mount", b"/dev/mqueue", MOUNT_LABEL.encode()))
    assert made[place - 1][:3] == ("mount_filesystem", b"mqueue", b"/dev/mqueue")


def test_masks_and_the_directory_of_cgroups_have_the_context() -> None:
    by_name = {str(step[0]): step for step in steps()}
    assert by_name["mask_paths"][2:] == (MOUNT_LABEL.encode(),)
    assert by_name["mount_cgroups"][4:] == (MOUNT_LABEL.encode(),)


def test_keys_are_labelled_before_the_keyring_is_made_and_the_process_at_last() -> None:
    exec_body = {**value.process_value(LABELLED.process), "container_id": b"c1"}
    inside = {**OPENED, b"user": 60, b"view:proc": 61, b"view:sys": 62, b"device:0": 63}
    userns = replace(LABELLED, namespaces=(*LABELLED.namespaces, Namespace(NamespaceKind.USER)))
    for made in (
        steps(),
        plan.exec_steps(exec_body, {**OPENED, b"target": 40}, 0),
        plan.init_steps(container_value(userns), inside),
    ):
        order = [str(step[0]) for step in made]
        keys = made.index(("label_new_keys", 36, PROCESS_LABEL.encode()))
        assert order[keys + 1] == "join_keyring"
        assert made.index(("write_exec_attribute", 36, b"", PROCESS_LABEL.encode())) < order.index("keep_descriptors")


def test_a_container_without_labels_has_no_step_for_them() -> None:
    plain = plan.init_steps(container_value(replace(CONTAINER, mounts=MOUNTS)), OPENED)
    text = repr(plain)
    assert "label" not in text and "container_file_t" not in text and "keycreate" not in text


def test_a_spec_of_a_server_that_knows_no_labels_is_started() -> None:
    body = container_value(replace(CONTAINER, mounts=MOUNTS))
    before = plan.init_steps(body, OPENED)
    del body["mount_label"]
    assert plan.init_steps(body, OPENED) == before


def test_the_pods_shared_memory_gets_its_context() -> None:
    assert PodSpec(mount_label=MOUNT_LABEL).to_value()["mount_label"] == MOUNT_LABEL.encode()
    assert PodSpec().to_value()["mount_label"] is None


@pytest.mark.parametrize("field", ["label", "mount_label"])
def test_a_label_that_the_node_does_not_have_is_refused(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux, "why_refused", lambda context: "SELinux is not enabled on this node")
    if field == "label":
        spec = replace(CONTAINER, process=replace(PROCESS, label="a:b:c"))
    else:
        spec = replace(CONTAINER, mount_label="a:b:c")
    with pytest.raises(InvalidSpec, match=f"^{field}: 'a:b:c': SELinux is not enabled on this node$"):
        value.container_value(spec, V2)


def test_the_context_of_keys_is_an_attribute_of_the_thread(tmp_path: Path) -> None:
    (tmp_path / "thread-self/attr").mkdir(parents=True)
    (tmp_path / "thread-self/attr/keycreate").touch()
    proc = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        labels.label_new_keys(proc, PROCESS_LABEL.encode())
    finally:
        os.close(proc)
    assert (tmp_path / "thread-self/attr/keycreate").read_text() == PROCESS_LABEL
