from __future__ import annotations

from dataclasses import replace

import pytest

from crishim.errors import InvalidSpec
from crishim.model.sandbox import Dns, PortMapping, SandboxConfig
from crishim.network.cni.arguments import capability_args, cni_args, runtime_config
from crishim.network.cni.conf import PluginConf

SANDBOX = SandboxConfig("pod", "uid", "ns")


def test_the_pod_is_named_in_cni_args() -> None:
    assert cni_args("id", SANDBOX) == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;K8S_POD_INFRA_CONTAINER_ID=id;K8S_POD_UID=uid"
    )


@pytest.mark.parametrize("name", ["a;IP=10.0.0.1", "a=b", "a\nb"])
def test_a_name_that_would_add_an_argument_is_refused(name: str) -> None:
    with pytest.raises(InvalidSpec, match="K8S_POD_NAME"):
        cni_args("id", replace(SANDBOX, name=name))


def test_only_mappings_with_a_host_port_are_given() -> None:
    ports = (PortMapping("tcp", 80, 8080), PortMapping("udp", 53, 53, "127.0.0.1"), PortMapping("tcp", 1, 0))
    assert capability_args(replace(SANDBOX, port_mappings=ports), "")["portMappings"] == [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
    ]


def test_bandwidth_comes_from_annotations_with_a_second_of_burst() -> None:
    annotations = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1P"}
    arguments = capability_args(replace(SANDBOX, annotations=annotations), "")
    assert arguments["bandwidth"] == {
        "ingressRate": 10_000_000,
        "ingressBurst": 10_000_000,
        "egressRate": 10**15,
        "egressBurst": 2**32 - 1,
    }
    assert arguments["io.kubernetes.cri.pod-annotations"] == annotations


def test_dns_ips_and_cgroup_are_given() -> None:
    sandbox = replace(
        SANDBOX,
        dns=Dns(("1.1.1.1",), ("a.b",), ("ndots:5",)),
        annotations={"cni.crishim.io/ips": "10.0.0.9, fd00::9/64"},
    )
    arguments = capability_args(sandbox, "kubepods/pod1")
    assert arguments["dns"] == {"servers": ["1.1.1.1"], "searches": ["a.b"], "options": ["ndots:5"]}
    assert (arguments["ips"], arguments["cgroupPath"]) == (["10.0.0.9", "fd00::9/64"], "kubepods/pod1")


def test_a_pod_that_asks_for_nothing_has_no_arguments() -> None:
    assert capability_args(SANDBOX, "") == {}


def test_a_plugin_is_given_what_it_declares() -> None:
    plugin = PluginConf("portmap", {"capabilities": {"portMappings": True, "bandwidth": False}})
    assert runtime_config(plugin, {"portMappings": [1], "bandwidth": {}, "dns": {}}) == {"portMappings": [1]}


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="'x' is not an IP address"):
        capability_args(replace(SANDBOX, annotations={"cni.crishim.io/ips": "x"}), "")
