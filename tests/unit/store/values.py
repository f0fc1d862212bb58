"""Full values of the model for the tests of the store: every kind of field is set."""

from __future__ import annotations

from crishim.model.container import (
    CapabilityChange,
    Container,
    ContainerConfig,
    ContainerSecurity,
    ContainerState,
    ContainerUser,
    Device,
    Mount,
)
from crishim.model.id_mapping import IdMapping
from crishim.model.process import Propagation
from crishim.model.resources import Resources
from crishim.model.sandbox import (
    Dns,
    NamespaceMode,
    NamespaceOptions,
    PortMapping,
    ProfileType,
    Sandbox,
    SandboxConfig,
    SandboxSecurity,
    SandboxState,
    SecurityProfile,
    UserNamespace,
)
from crishim.store.store import POD_UID_LABEL

SANDBOX = Sandbox(
    id="5a" * 32,
    config=SandboxConfig(
        name="web",
        uid="u-1",
        namespace="shop",
        attempt=2,
        dns=Dns(servers=("10.96.0.10",), searches=("shop.svc",), options=("ndots:5",)),
        port_mappings=(PortMapping("tcp", 80, 8080, "127.0.0.1"),),
        labels={POD_UID_LABEL: "u-1", "app": "web"},
        annotations={"note": "line\nbreak \u2028 and \udc80 byte"},
        sysctls={"net.ipv4.ip_forward": "1"},
        security=SandboxSecurity(
            namespaces=NamespaceOptions(
                pid=NamespaceMode.CONTAINER,
                user=UserNamespace(NamespaceMode.POD, (IdMapping(0, 65536, 65536),), (IdMapping(0, 65536, 65536),)),
            ),
            seccomp=SecurityProfile(ProfileType.LOCALHOST, "audit.json"),
        ),
        resources=Resources(memory_limit_bytes=1 << 30, hugepage_limits={"2MB": 0}, unified={"memory.high": "max"}),
    ),
    state=SandboxState.READY,
    created_at_ns=1_700_000_000_000_000_001,
    ips=("10.88.0.2", "fd00::2"),
    netns_path="/run/netns/crishim-5a",
    cgroup_path="/kubepods/podu-1",
)

CONTAINER = Container(
    id="c0" * 32,
    sandbox_id=SANDBOX.id,
    config=ContainerConfig(
        name="app",
        attempt=1,
        image="busybox",
        command=("/bin/sh", "-c"),
        args=("exit \udcff",),
        envs=(("A", "1"), ("A", "2")),
        mounts=(Mount("/data", "/srv/data", readonly=True, propagation=Propagation.HOST_TO_CONTAINER),),
        devices=(Device("/dev/fuse", "/dev/fuse", "rw"),),
        labels={POD_UID_LABEL: "u-1"},
        security=ContainerSecurity(capabilities=CapabilityChange(add=("NET_ADMIN",)), run_as_user=0),
    ),
    state=ContainerState.CREATED,
    created_at_ns=1_700_000_000_000_000_002,
    image_id="sha256:" + "1" * 64,
    image_ref="docker.io/library/busybox@sha256:" + "2" * 64,
    image_name="docker.io/library/busybox:latest",
    user=ContainerUser(0, 0, (10, 20)),
)
