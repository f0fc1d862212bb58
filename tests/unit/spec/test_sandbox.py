"""Sandboxes: namespaces of the monitor, sysctls, and the text of files."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import InvalidSpec
from crishim.model.id_mapping import IdMapping
from crishim.model.sandbox import (
    Dns,
    NamespaceMode,
    NamespaceOptions,
    SandboxConfig,
    SandboxSecurity,
    UserNamespace,
)
from crishim.spec.sandbox import NETWORK_DEFAULTS, checked_sysctls, hosts_file, resolv_conf, sandbox_plan

CONFIG = SandboxConfig(name="pod", uid="uid", namespace="ns", hostname="pod")


def config(**fields: object) -> SandboxConfig:
    return replace(CONFIG, security=replace(SandboxSecurity(), **fields))


def test_a_plain_pod_has_everything_of_its_own() -> None:
    plan = sandbox_plan(config(namespaces=NamespaceOptions(pid=NamespaceMode.CONTAINER)))
    assert (plan.network, plan.ipc, plan.uts, plan.shared_pid, plan.hostname) == (True, True, True, False, "pod")
    assert plan.sysctls == NETWORK_DEFAULTS


def test_a_pod_on_the_host_has_nothing_of_its_own() -> None:
    node = NamespaceMode.NODE
    plan = sandbox_plan(config(namespaces=NamespaceOptions(node, node, node)))
    assert (plan.network, plan.ipc, plan.uts, plan.shared_pid, plan.hostname) == (False, False, False, False, None)
    assert plan.sysctls == {}


def test_the_zero_value_shares_processes() -> None:
    assert sandbox_plan(CONFIG).shared_pid


@pytest.mark.parametrize(
    "options",
    [
        NamespaceOptions(network=NamespaceMode.CONTAINER),
        NamespaceOptions(ipc=NamespaceMode.TARGET),
        NamespaceOptions(pid=NamespaceMode.TARGET),
    ],
)
def test_modes_that_a_sandbox_cannot_have_are_refused(options: NamespaceOptions) -> None:
    with pytest.raises(InvalidSpec, match="namespace_options"):
        sandbox_plan(config(namespaces=options))


def test_only_the_groups_of_a_user_namespace_may_ping() -> None:
    users = UserNamespace(NamespaceMode.POD, (IdMapping(0, 65536, 65536),), (IdMapping(0, 131072, 65536),))
    plan = sandbox_plan(config(namespaces=NamespaceOptions(user=users)))
    assert plan.users == users
    assert plan.sysctls["net.ipv4.ping_group_range"] == "131072 196607"
    with pytest.raises(InvalidSpec, match="privileged: true cannot go with a user namespace"):
        sandbox_plan(config(namespaces=NamespaceOptions(user=users), privileged=True))


def test_a_pods_own_sysctl_wins_over_our_default() -> None:
    plan = sandbox_plan(replace(CONFIG, sysctls={"net.ipv4.ip_unprivileged_port_start": "1024"}))
    assert plan.sysctls["net.ipv4.ip_unprivileged_port_start"] == "1024"


def test_slashes_are_dots() -> None:
    assert checked_sysctls({"net/ipv4/tcp_syncookies": "1"}, own_network=True, own_ipc=True) == {
        "net.ipv4.tcp_syncookies": "1"
    }


@pytest.mark.parametrize(
    ("key", "own_network", "own_ipc", "fits"),
    [
        ("net.core.somaxconn", True, False, True),
        ("net.core.somaxconn", False, True, False),
        ("kernel.shm_rmid_forced", False, True, True),
        ("kernel.shmmax", True, False, False),
        ("kernel.msgmax", False, True, True),
        ("kernel.sem", False, True, True),
        ("fs.mqueue.msg_max", False, True, True),
        ("fs.mqueue.msg_max", True, False, False),
        ("kernel.domainname", True, True, True),
        ("kernel.domainname", False, True, False),
        ("kernel.hostname", True, True, False),
        ("kernel.core_pattern", True, True, False),
        ("vm.swappiness", True, True, False),
        ("user.max_user_namespaces", True, True, False),
    ],
)
def test_a_sysctl_must_belong_to_a_namespace_of_the_pod(key: str, own_network: bool, own_ipc: bool, fits: bool) -> None:
    if fits:
        assert checked_sysctls({key: "1"}, own_network=own_network, own_ipc=own_ipc) == {key: "1"}
    else:
        with pytest.raises(InvalidSpec) as caught:
            checked_sysctls({key: "1"}, own_network=own_network, own_ipc=own_ipc)
        assert key in str(caught.value)


@given(st.text(max_size=30), st.text(max_size=30))
def test_whatever_passes_names_one_file_below_proc_sys_and_has_one_line(key: str, value: str) -> None:
    try:
        found = checked_sysctls({key: value}, own_network=True, own_ipc=True)
    except InvalidSpec:
        return
    for name, text in found.items():
        assert ".." not in name and "/" not in name and "\n" not in text and "=" not in text


def test_resolv_conf_has_what_the_kubelet_sends() -> None:
    dns = Dns(("10.0.0.10", "fd00::10"), ("a.example", "b.example"), ("ndots:5",))
    assert resolv_conf(dns) == (
        "search a.example b.example\nnameserver 10.0.0.10\nnameserver fd00::10\noptions ndots:5\n"
    )
    assert resolv_conf(None) is None and resolv_conf(Dns()) is None


@pytest.mark.parametrize("word", ["10.0.0.1\nnameserver 6.6.6.6", "a b", ""])
def test_resolv_conf_takes_one_word_at_a_time(word: str) -> None:
    with pytest.raises(InvalidSpec, match=r"dns_config\.servers"):
        resolv_conf(Dns(servers=(word,)))


def test_hosts_names_the_pod_for_each_of_its_addresses() -> None:
    assert hosts_file("pod", ("10.0.0.2", "fd00::2")).endswith("10.0.0.2\tpod\nfd00::2\tpod\n")
