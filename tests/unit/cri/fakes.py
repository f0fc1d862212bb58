"""One full request of each kind, and use cases that remember how they were called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crishim.cri.pb import api_pb2 as pb
from crishim.errors import NotFound
from crishim.model.container import Container, ContainerConfig, ContainerState, ContainerUser
from crishim.model.exec import ExecResult
from crishim.model.image import Credentials, FilesystemUsage, Image, ImageConfig
from crishim.model.leftover import GarbageReport, Leftover
from crishim.model.life import LifeEvent
from crishim.model.metric import Metric, MetricDescriptor, MetricType, SandboxMetrics
from crishim.model.node import CgroupDriver, Condition, MonitorProcess, NodeFeatures, NodeStatus, RuntimeHandler
from crishim.model.resources import Resources
from crishim.model.sandbox import Sandbox, SandboxConfig, SandboxState
from crishim.model.stats import (
    ContainerSample,
    CpuSample,
    InterfaceSample,
    NetworkSample,
    ProcessSample,
    SandboxSample,
)

IMAGE_ID = "sha256:" + "ab" * 32
USERNS = pb.UserNamespace(
    mode=pb.POD,
    uids=[pb.IDMapping(host_id=65536, container_id=0, length=65536)],
    gids=[pb.IDMapping(host_id=65536, container_id=0, length=65536)],
)


def full_resources() -> pb.LinuxContainerResources:
    return pb.LinuxContainerResources(
        cpu_period=100000,
        cpu_quota=50000,
        cpu_shares=512,
        memory_limit_in_bytes=64 << 20,
        memory_swap_limit_in_bytes=64 << 20,
        oom_score_adj=999,
        cpuset_cpus="0-3,5",
        cpuset_mems="0",
        hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=0)],
        unified={"memory.oom.group": "1"},
    )


def full_sandbox_config() -> pb.PodSandboxConfig:
    """A pod as a kubelet sends it, with every field set."""
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="web-0", uid="3e7b-41", namespace="shop", attempt=2),
        hostname="web-0",
        log_directory="/var/log/pods/shop_web-0_3e7b-41",
        dns_config=pb.DNSConfig(servers=["10.96.0.10", "fd00::10"], searches=["shop.svc"], options=["ndots:5"]),
        port_mappings=[pb.PortMapping(protocol=pb.UDP, container_port=53, host_port=5353, host_ip="127.0.0.1")],
        labels={"io.kubernetes.pod.uid": "3e7b-41", "app": "web"},
        annotations={"example.org/text": "line one\nline two"},
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent="/kubepods/burstable/pod3e7b-41",
            sysctls={"net.core.somaxconn": "1024", "net/ipv4/conf/eth0.100/forwarding": "1"},
            overhead=full_resources(),
            resources=full_resources(),
            security_context=pb.LinuxSandboxSecurityContext(
                namespace_options=pb.NamespaceOption(pid=pb.CONTAINER, userns_options=USERNS),
                selinux_options=pb.SELinuxOption(level="s0:c1,c2"),
                run_as_user=pb.Int64Value(value=1000),
                run_as_group=pb.Int64Value(value=2000),
                supplemental_groups=[3000, 4000],
                supplemental_groups_policy=pb.Strict,
                seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
                apparmor=pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined),
            ),
        ),
    )


def full_container_config() -> pb.ContainerConfig:
    """A container as a kubelet sends it, with every field set."""
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="app", attempt=3),
        image=pb.ImageSpec(image=IMAGE_ID, user_specified_image="web:1", runtime_handler="fast"),
        command=["/bin/web"],
        args=["--port", "", "8080"],
        working_dir="/srv",
        envs=[pb.KeyValue(key="PLAIN", value=b"1"), pb.KeyValue(key="BYTES", value=b"\xff\xfe")],
        mounts=[
            pb.Mount(
                container_path="/dev/termination-log",
                host_path="/var/lib/kubelet/pods/x/containers/app/1",
                propagation=pb.PROPAGATION_HOST_TO_CONTAINER,
                selinux_relabel=True,
                uidMappings=USERNS.uids,
                gidMappings=USERNS.gids,
                mount_options=["noexec"],
            ),
            pb.Mount(container_path="/data", host_path="/srv/data", readonly=True, recursive_read_only=True),
            pb.Mount(container_path="/model", readonly=True, image=pb.ImageSpec(image="model:1"), image_sub_path="a/b"),
        ],
        devices=[pb.Device(container_path="/dev/fuse", host_path="/dev/fuse", permissions="rw")],
        CDI_devices=[pb.CDIDevice(name="example.org/gpu=0")],
        labels={"io.kubernetes.pod.uid": "3e7b-41", "io.kubernetes.container.name": "app"},
        annotations={"io.kubernetes.container.restartCount": "3"},
        log_path="app/3.log",
        stdin=True,
        stdin_once=True,
        tty=True,
        stop_signal=pb.SIGNAL_SIGUSR1,
        linux=pb.LinuxContainerConfig(
            resources=full_resources(),
            security_context=pb.LinuxContainerSecurityContext(
                capabilities=pb.Capability(add_capabilities=["NET_ADMIN"], drop_capabilities=["ALL"]),
                namespace_options=pb.NamespaceOption(pid=pb.TARGET, target_id="c0ffee", userns_options=USERNS),
                run_as_user=pb.Int64Value(value=0),
                run_as_group=pb.Int64Value(value=0),
                readonly_rootfs=True,
                supplemental_groups=[5],
                no_new_privs=True,
                masked_paths=["/proc/kcore"],
                readonly_paths=["/proc/sys"],
                seccomp=pb.SecurityProfile(
                    profile_type=pb.SecurityProfile.Localhost, localhost_ref="/var/lib/kubelet/seccomp/a.json"
                ),
                apparmor=pb.SecurityProfile(
                    profile_type=pb.SecurityProfile.Localhost, localhost_ref="localhost/my-profile"
                ),
            ),
        ),
    )


def sandbox(id: str = "a1b2", *, state: SandboxState = SandboxState.READY, uid: str = "u1") -> Sandbox:
    config = SandboxConfig(name="web-0", uid=uid, namespace="shop", labels={"io.kubernetes.pod.uid": uid, "app": "web"})
    return Sandbox(id=id, config=config, state=state, created_at_ns=7, ips=("10.0.0.2", "fd00::2"))


def container(
    id: str = "c0ffee",
    *,
    state: ContainerState = ContainerState.RUNNING,
    sandbox_id: str = "a1b2",
    uid: str = "u1",
    name: str = "app",
) -> Container:
    labels = {"io.kubernetes.pod.uid": uid, "io.kubernetes.container.name": name}
    return Container(
        id=id,
        sandbox_id=sandbox_id,
        config=ContainerConfig(name=name, image=IMAGE_ID, labels=labels, annotations={"x": "y"}),
        state=state,
        created_at_ns=11,
        image_id=IMAGE_ID,
        image_ref="docker.io/library/web@" + IMAGE_ID,
        image_name="docker.io/library/web:1",
        user=ContainerUser(1000, 1000, (1000, 5)),
    )


def image(id: str = IMAGE_ID, *, user: str = "") -> Image:
    return Image(
        id=id,
        repo_tags=("docker.io/library/web:1",),
        repo_digests=(),
        size_bytes=100,
        config=ImageConfig(user=user),
        chain_ids=(),
    )


def sample(container_id: str = "c0ffee") -> ContainerSample:
    return ContainerSample(container_id, cpu=CpuSample(timestamp_ns=5, usage_core_ns=6))


def sandbox_sample(sandbox_id: str = "a1b2") -> SandboxSample:
    """Of a pod with two interfaces and one container."""
    return SandboxSample(
        sandbox_id,
        cpu=CpuSample(timestamp_ns=5, usage_core_ns=7),
        network=NetworkSample(5, (InterfaceSample("eth0", 1, 2, 3, 4, 5, 6, 7, 8), InterfaceSample("b", *[0] * 8))),
        process=ProcessSample(5, 2),
        containers=(sample(),),
    )


PACKETS = MetricDescriptor(
    "container_network_receive_packets_total", "packets", ("id", "name", "image", "interface"), MetricType.COUNTER
)
THREADS = MetricDescriptor("container_threads", "threads", ("id", "name", "image"), MetricType.GAUGE)


@dataclass
class FakeRuntime:
    """What the fakes share: `calls` holds what was asked; `failure` is raised by all but reads.

    `never`, when set, is what an exec waits for.
    """

    calls: list[tuple[object, ...]] = field(default_factory=list)
    failure: BaseException | None = None
    never: asyncio.Event | None = None

    def called(self, *call: object) -> None:
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure


class FakeSandboxes:
    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    async def run(self, config: SandboxConfig) -> str:
        self._runtime.called("run", config)
        return "a1b2"

    async def stop(self, sandbox_id: str) -> None:
        self._runtime.called("stop sandbox", sandbox_id)

    async def remove(self, sandbox_id: str) -> None:
        self._runtime.called("remove sandbox", sandbox_id)

    async def update_resources(self, sandbox_id: str, overhead: Resources | None, resources: Resources | None) -> None:
        self._runtime.called("update sandbox", sandbox_id, overhead, resources)

    async def get(self, sandbox_id: str) -> Sandbox:
        if sandbox_id != "a1b2":
            raise NotFound(f"sandbox {sandbox_id} does not exist")
        return sandbox()


class FakeContainers:
    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    async def create(self, sandbox_id: str, config: ContainerConfig, sandbox_config: SandboxConfig) -> str:
        self._runtime.called("create", sandbox_id, config.name, sandbox_config.name)
        return "c0ffee"

    async def start(self, container_id: str) -> None:
        self._runtime.called("start", container_id)

    async def stop(self, container_id: str, grace_s: int) -> None:
        self._runtime.called("stop", container_id, grace_s)

    async def remove(self, container_id: str) -> None:
        self._runtime.called("remove", container_id)

    async def get(self, container_id: str) -> Container:
        if container_id != "c0ffee":
            raise NotFound(f"container {container_id} does not exist")
        return container()

    async def reopen_log(self, container_id: str) -> None:
        self._runtime.called("reopen", container_id)

    async def update_resources(self, container_id: str, resources: Resources, annotations: Mapping[str, str]) -> None:
        self._runtime.called("update", container_id, resources, annotations)


class FakeExecs:
    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    async def exec_sync(self, container_id: str, args: tuple[str, ...], timeout_s: int) -> ExecResult:
        self._runtime.called("exec", container_id, args, timeout_s)
        if self._runtime.never is not None:
            await self._runtime.never.wait()
        return ExecResult(b"out\xff", b"err", 3)


class FakeStats:
    async def container(self, container_id: str) -> ContainerSample:
        if container_id != "c0ffee":
            raise NotFound(f"container {container_id} does not exist")
        return sample()

    async def list(self, container_ids: Sequence[str]) -> Sequence[ContainerSample]:
        return [sample(container_id) for container_id in container_ids]

    async def sandbox(self, sandbox_id: str) -> SandboxSample:
        if sandbox_id != "a1b2":
            raise NotFound(f"sandbox {sandbox_id} does not exist")
        return sandbox_sample()

    async def list_sandboxes(self, sandbox_ids: Sequence[str]) -> Sequence[SandboxSample]:
        return [sandbox_sample(sandbox_id) for sandbox_id in sandbox_ids]

    def metric_descriptors(self) -> Sequence[MetricDescriptor]:
        return (PACKETS, THREADS)

    async def list_metrics(self) -> Sequence[SandboxMetrics]:
        packets = Metric(PACKETS, ("/pod", "a1b2", "", "eth0"), 3, 9)
        return (SandboxMetrics("a1b2", (packets,), (("c0ffee", (Metric(THREADS, ("/c", "c0ffee", "web"), 2, 9),)),)),)


class FakeEvents:
    """`queue` holds what the one listener gets; None ends its stream."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[LifeEvent | BaseException | None] = asyncio.Queue()
        self.listeners = 0

    def subscribe(self) -> FakeEvents:
        self.listeners += 1
        return self

    def unsubscribe(self, subscription: object) -> None:
        assert subscription is self
        self.listeners -= 1

    async def __aiter__(self) -> AsyncIterator[LifeEvent]:
        while (event := await self.queue.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event


@dataclass(frozen=True)
class FakeStory:
    name: str


class FakeStories:
    async def why(self, id: str) -> FakeStory:
        if id != "web":
            raise NotFound(f"no pod and no container is called {id!r}")
        return FakeStory(id)


class FakeGarbage:
    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    async def check(self, *, dry_run: bool) -> GarbageReport:
        self._runtime.called("collect garbage", dry_run)
        left = Leftover("netns", "/run/netns/x", "a1b2", "its sandbox does not exist", False, 1, "found")
        return GarbageReport(dry_run, (left,), ("the network: it hangs",), 0.5)


class FakeMonitors:
    async def list(self) -> list[MonitorProcess]:
        return [MonitorProcess("a1b2", 42, "0.1.0", 1, 7, None)]


class FakeImages:
    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    async def pull(self, reference: str, credentials: Credentials | None, sandbox_config: SandboxConfig | None) -> str:
        self._runtime.called("pull", reference, credentials, sandbox_config)
        return IMAGE_ID

    async def status(self, reference: str) -> Image | None:
        return image() if reference in ("web", IMAGE_ID) else None

    async def remove(self, reference: str) -> None:
        self._runtime.called("remove image", reference)

    async def usage(self) -> Sequence[FilesystemUsage]:
        return (FilesystemUsage("/var/lib/crishim", 10, 2, 99),)

    async def load(self, archive: Path) -> Sequence[Image]:
        self._runtime.called("load", archive)
        return (image(),)


class FakeNode:
    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    async def status(self, verbose: bool) -> NodeStatus:
        return NodeStatus(
            conditions=(Condition("RuntimeReady", True), Condition("NetworkReady", False, "NoNetwork", "why")),
            handlers=(RuntimeHandler("crishim", True), RuntimeHandler("", True)),
            features=NodeFeatures(supplemental_groups_policy=True),
            info={"config": "{}"} if verbose else {},
        )

    async def cgroup_driver(self) -> CgroupDriver:
        return CgroupDriver.SYSTEMD

    async def update_pod_cidr(self, pod_cidr: str) -> None:
        self._runtime.called("cidr", pod_cidr)


class FakeStreaming:
    async def exec(
        self, container_id: str, args: tuple[str, ...], *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> str:
        return f"http://127.0.0.1/exec/{container_id}"

    async def attach(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        return f"http://127.0.0.1/attach/{container_id}"

    async def port_forward(self, sandbox_id: str, ports: tuple[int, ...]) -> str:
        return f"http://127.0.0.1/portforward/{sandbox_id}/{len(ports)}"
