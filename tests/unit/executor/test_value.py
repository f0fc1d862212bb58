"""From the model to the slim values: what cannot be honoured is refused with its field and value."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from crishim.errors import InvalidSpec
from crishim.executor import value, wire
from crishim.model.process import (
    Capabilities,
    CpuAffinity,
    IoPriority,
    MemoryPolicy,
    MountSpec,
    Rlimit,
    RootFs,
    Scheduler,
    SeccompListener,
)
from tests.unit.executor.values import CONTAINER, PROCESS, V2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"args": ()}, "args is empty"),
        ({"args": ("a\0b",)}, r"args: 'a\\x00b' holds a NUL character"),
        ({"env": ("NOVALUE",)}, "env: 'NOVALUE' is not NAME=value"),
        ({"env": ("=x",)}, "env: '=x' is not NAME=value"),
        ({"cwd": "/a\0"}, "cwd: "),
        ({"scheduler": Scheduler("SCHED_NICE")}, "scheduler.policy: 'SCHED_NICE' is not a scheduling policy"),
        ({"scheduler": Scheduler("SCHED_RR", flags=("X",))}, r"scheduler.flags: 'X' is not a flag"),
        ({"io_priority": IoPriority("BEST", 1)}, "io_priority: 'BEST' 1 is not a class"),
        ({"io_priority": IoPriority("IOPRIO_CLASS_BE", 8)}, "io_priority: 'IOPRIO_CLASS_BE' 8 is not a class"),
        ({"rlimits": (Rlimit("RLIMIT_X", 1, 1),)}, "rlimits: 'RLIMIT_X' is not a resource limit"),
        ({"rlimits": (Rlimit("RLIMIT_NOFILE", 2, 1),)}, "rlimits: RLIMIT_NOFILE soft 2 is above hard 1"),
        ({"rlimits": (Rlimit("RLIMIT_NOFILE", -1, 1),)}, "rlimits: RLIMIT_NOFILE soft -1 is above hard 1"),
        ({"capabilities": Capabilities(bounding=frozenset({"CAP_X"}))}, "capabilities: 'CAP_X' is not a capability"),
        ({"cpu_affinity": CpuAffinity(final="0-x")}, "cpu_affinity: '0-x' is not a list of CPUs"),
        ({"memory_policy": MemoryPolicy("BIND")}, "memory_policy.mode: 'BIND' is not a mode"),
        ({"memory_policy": MemoryPolicy("MPOL_BIND", "2-1")}, "memory_policy.nodes: '2-1' is no range of NUMA nodes"),
        ({"memory_policy": MemoryPolicy("MPOL_BIND", "0", ("X",))}, "memory_policy.flags: 'X' is not a flag"),
        ({"personality": "BSD"}, "personality: 'BSD' is neither LINUX nor LINUX32"),
        ({"label": "a\0"}, "label: "),
        ({"seccomp_flags": ("X",)}, "seccomp_flags: 'X' is not a flag of a filter"),
        ({"seccomp_listener": SeccompListener("agent")}, "seccomp_listener.path: 'agent' is neither an absolute path"),
        ({"seccomp_listener": SeccompListener("@")}, "seccomp_listener.path: '@' is neither an absolute path"),
        ({"seccomp_listener": SeccompListener("/a\0b")}, "seccomp_listener.path: "),
        ({"seccomp_listener": SeccompListener("/" + "a" * 107)}, "seccomp_listener.path: .* is longer than 107 bytes"),
        (
            {"seccomp_listener": SeccompListener("/a"), "seccomp": None},
            "seccomp_flags and seccomp_listener: there is no",
        ),
    ],
)
def test_a_process_field_that_cannot_be_honoured(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec, match=f"^{message}"):
        value.process_value(replace(PROCESS, **change))


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        (MountSpec("/x", "nfs"), r"mounts\[1\].kind: 'nfs' is not one of "),
        (MountSpec("x", "tmpfs"), r"mounts\[1\].target: 'x' is not an absolute path"),
        (MountSpec("/a/../b", "tmpfs"), r"mounts\[1\].target: '/a/../b' has a .. component"),
        (MountSpec("/", "tmpfs"), r"mounts\[1\].target: '/' cannot be mounted over"),
        (MountSpec("//.", "tmpfs"), r"mounts\[1\].target: '//.' cannot be mounted over"),
        (MountSpec("/proc", source="/x"), r"mounts\[1\].target: '/proc' cannot be mounted over"),
        (MountSpec("/proc/self", source="/x"), r"mounts\[1\].target: '/proc/self' cannot be mounted over"),
        (MountSpec("/proc/meminfo", "tmpfs"), r"mounts\[1\].target: '/proc/meminfo' cannot be mounted over"),
        (MountSpec("/proc/./sys/", "tmpfs"), r"mounts\[1\].target: '/proc/./sys/' cannot be mounted over"),
        (MountSpec("/x", "tmpfs", flags=("loud",)), r"mounts\[1\].flags: 'loud' is not a mount flag"),
        (MountSpec("/x", "image"), r"mounts\[1\].layers: an image has layers"),
        (MountSpec("/x", source="/x", layers=("/l",)), r"mounts\[1\].layers: an image has layers"),
        (MountSpec("/x", source="relative"), r"mounts\[1\].source: 'relative' is not an absolute path"),
        (MountSpec("/x", source="/a\0b"), r"mounts\[1\].source: "),
        (MountSpec("/a\0b", "tmpfs"), r"mounts\[1\].target: "),
    ],
)
def test_a_mount_that_cannot_be_honoured_is_named_by_its_place(mount: MountSpec, message: str) -> None:
    with pytest.raises(InvalidSpec, match=f"^{message}"):
        value.container_value(replace(CONTAINER, mounts=(CONTAINER.mounts[0], mount)), V2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rootfs": RootFs()}, "rootfs has neither layers nor a path"),
        ({"id": "a\0"}, "id: "),
        ({"hostname": "a\0"}, "hostname: "),
        ({"masked_paths": ("/a\0",)}, "masked_paths: "),
        ({"readonly_paths": ("/a\0",)}, "readonly_paths: "),
        ({"sysctls": {"a\0": "x"}}, "sysctls: "),
        ({"net_devices": {"": ""}}, "net_devices: '' is not the name of a network device"),
        ({"net_devices": {"eth1": "x" * 16}}, "net_devices: 'x+' is not the name"),
        ({"net_devices": {"a/b": ""}}, "net_devices: 'a/b' is not the name"),
        ({"net_devices": {"eth1": "a b"}}, "net_devices: 'a b' is not the name"),
        ({"net_devices": {"eth1": ".."}}, "net_devices: '..' is not the name"),
        ({"net_devices": {"eth1": "eth%d"}}, "net_devices: 'eth%d' has a %, which the kernel would replace"),
        ({"net_devices": {"eth1": "x", "x": ""}}, "net_devices: 'x' would be the name of two devices"),
    ],
)
def test_a_container_field_that_cannot_be_honoured(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec, match=f"^{message}"):
        value.container_value(replace(CONTAINER, **change), V2)


def test_every_value_can_travel() -> None:
    for made in (value.container_value(CONTAINER, V2), value.process_value(PROCESS)):
        assert wire.decode(wire.encode(made)) == made


def test_names_are_numbers_and_strings_bytes() -> None:
    made = value.process_value(PROCESS)
    assert made["capabilities"] == [0b100001, 1, 1, 0, 0]
    assert made["scheduler"] == [3, 0, 3, 0, 0, 0, 0]
    assert made["io_priority"] == 2 << 13 | 4
    assert made["affinity"] == [0, 2, 3]
    assert made["args"] == [b"prog", b"arg"]


def test_bytes_that_are_no_text_stay_themselves() -> None:
    odd = os.fsdecode(b"\xff\x80")
    assert value.process_value(replace(PROCESS, args=(odd,)))["args"] == [b"\xff\x80"]


def test_the_last_of_equal_names_wins_in_the_place_of_the_first() -> None:
    made = value.process_value(replace(PROCESS, env=("A=1", "B=2", "A=3", "C=")))
    assert made["env"] == [b"A=3", b"B=2", b"C="]


def test_paths_that_are_named_twice_are_masked_once() -> None:
    assert value.container_value(CONTAINER, V2)["masked_paths"] == [b"/proc/kcore", b"/proc/keys"]


def test_mount_targets_are_put_into_their_plain_form() -> None:
    mounts = (MountSpec("//etc/./hosts/", source="/x"),)
    (mount,) = value.container_value(replace(CONTAINER, mounts=mounts), V2)["mounts"]  # type: ignore[attr-defined, misc]
    assert mount["target"] == b"/etc/hosts"


@pytest.mark.parametrize(("level", "number"), [("", -1), ("debug", 5), ("DEBUG", 5), ("5", 5), ("error", 2), ("0", 0)])
def test_log_levels_have_names_and_numbers(level: str, number: int) -> None:
    assert value.log_level(replace(PROCESS, log_level=level)) == number


def test_a_log_level_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="log_level: 'loud' is not one of panic"):
        value.process_value(replace(PROCESS, log_level="loud"))


def test_the_set_up_is_only_logged_at_debug_and_to_somebody() -> None:
    def logged(level: str, fd: int | None) -> object:
        return value.process_value(replace(PROCESS, log_level=level, log_fd=fd))["log"]

    assert [logged("debug", 3), logged("trace", 3), logged("info", 3), logged("debug", None)] == [
        *(True, True, False, False),
    ]
