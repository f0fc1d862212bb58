"""The sections of the configuration as frozen values. Every key has a default: no other room asks if it is there.

`docs/configuration.md` has the table of all keys; `keys.py` has the check of each.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crishim.config.checks import Address, Subnet
from crishim.model.handler import PLAIN, Handler
from crishim.model.process import Rlimit

#: the runtime handler that is always there
RUNTIME = "crishim"

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def _native_platform() -> str:
    machine = platform.machine()
    return f"linux/{_MACHINES.get(machine, machine)}"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """[server]: where the server listens and keeps its things."""

    #: path of the CRI socket
    listen: Path = Path("/run/crishim/crishim.sock")
    #: what survives a power cut: images, reservations
    root: Path = Path("/var/lib/crishim")
    #: what ends with the machine's boot: sockets, statuses, exit records
    state: Path = Path("/run/crishim")
    #: None: no metrics are served
    metrics: Address | None = Address("127.0.0.1", 9477)
    log_level: str = "info"
    #: AppArmor profile of containers that name none; "unconfined" is none
    apparmor_profile: str = "crishim-default"
    #: SELinux contexts for containers: "auto" where the node has a policy that knows them, "on" or no start, "off"
    selinux: str = "auto"


@dataclass(frozen=True, slots=True)
class StreamingConfig:
    """[streaming]: where exec, attach and port-forward are served. The kubelet connects, not its clients."""

    #: port 0 is one that the kernel chooses; None: the three are refused
    listen: Address | None = Address("127.0.0.1", 0)
    #: PEM files; with both of them the server speaks TLS
    cert_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """[network.bridge]: the embedded bridge network."""

    #: at most one of each IP version; the pod CIDR of UpdateRuntimeConfig takes their place
    subnets: tuple[Subnet, ...] = (ipaddress.ip_network("10.88.0.0/16"),)


@dataclass(frozen=True, slots=True)
class CniConfig:
    """[network.cni]: plugins and their configurations."""

    conf_dir: Path = Path("/etc/cni/net.d")
    bin_dirs: tuple[Path, ...] = (Path("/opt/cni/bin"),)


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """[network]"""

    mode: str = "cni"
    bridge: BridgeConfig = BridgeConfig()
    cni: CniConfig = CniConfig()


@dataclass(frozen=True, slots=True)
class ImagesConfig:
    """[images]: registries and bounds."""

    #: registry to the endpoints that are tried before it
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: registries reached by plain HTTP; loopback addresses need no entry
    insecure: tuple[str, ...] = ()
    #: registry to a file of PEM certificates that may sign for it
    ca_files: Mapping[str, Path] = field(default_factory=dict)
    #: "linux/amd64", "linux/arm64/v8"
    platform: str = field(default_factory=_native_platform)
    #: of one layer, unpacked
    max_layer_bytes: int = 64 << 30
    max_layer_entries: int = 2_000_000


@dataclass(frozen=True, slots=True)
class CgroupsConfig:
    """[cgroups]"""

    #: "auto" asks which driver the node's init suits
    driver: str = "auto"
    root: Path = Path("/sys/fs/cgroup")
    #: where pods without a cgroup parent go; "" is named after the instance
    parent: str = ""


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """[limits]"""

    #: both streams of an ExecSync together; the kubelet takes messages of 16 MiB
    exec_output_bytes: int = (16 << 20) - (64 << 10)
    #: of every container's processes; what is not named is inherited from the server
    rlimits: tuple[Rlimit, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainersConfig:
    """[containers]"""

    #: what a missing host path of a mount becomes: a directory, or an error
    missing_host_path: str = "create"
    #: what the VOLUME directories of images become: directories beside the container, directories in its root, nothing
    image_volumes: str = "bind"
    #: the runtime handler of pods whose RuntimeClass names none
    default_runtime_handler: str = RUNTIME
    #: the only directory below which localhost seccomp profiles may lie
    seccomp_profile_dir: Path = Path("/var/lib/kubelet/seccomp")
    #: documents of CDI devices; those in a later directory win
    cdi_dirs: tuple[Path, ...] = (Path("/etc/cdi"), Path("/var/run/cdi"))
    #: hooks for containers that match (oci-hooks(5)); a file in a later directory replaces one of the same name
    hook_dirs: tuple[Path, ...] = ()
    #: devices that a container asks for belong to its run_as_user and run_as_group
    device_ownership_from_security_context: bool = False


@dataclass(frozen=True, slots=True)
class StopConfig:
    """[stop]"""

    #: between the stop signal and SIGKILL for containers that still run at StopPodSandbox
    sandbox_grace_s: float = 0.0
    #: how long an answer waits for killed processes to be gone; then they are freed in the background
    kill_wait_s: float = 10.0


@dataclass(frozen=True, slots=True)
class GcConfig:
    """[gc]: the check for things that belong to nobody."""

    #: between two checks; 0: only at the start and when `crishim gc` asks for one
    interval_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Config:
    """All of it."""

    server: ServerConfig = ServerConfig()
    streaming: StreamingConfig = StreamingConfig()
    network: NetworkConfig = NetworkConfig()
    images: ImagesConfig = ImagesConfig()
    cgroups: CgroupsConfig = CgroupsConfig()
    limits: LimitsConfig = LimitsConfig()
    containers: ContainersConfig = ContainersConfig()
    stop: StopConfig = StopConfig()
    gc: GcConfig = GcConfig()
    #: runtime handlers by name; the one called "crishim" is always there
    runtimes: Mapping[str, Handler] = field(default_factory=lambda: {RUNTIME: PLAIN})

    @property
    def instance(self) -> str:
        """Name of this server among those of the machine: "default", else 8 hexadecimal digits of its state directory.

        Bridges, nft tables, netns prefixes and cgroups carry it, so that servers live side by side.
        """
        if self.server.state == ServerConfig().state:
            return "default"
        return hashlib.sha256(os.fsencode(self.server.state)).hexdigest()[:8]

    @property
    def cgroup_root(self) -> str:
        """Cgroup of this server's processes, and of pods that name no parent: "/crishim.slice" by default."""
        if self.cgroups.parent:
            return "/" + self.cgroups.parent.strip("/")
        return "/crishim.slice" if self.instance == "default" else f"/crishim-{self.instance}.slice"
