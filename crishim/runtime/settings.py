"""What the use cases are configured with; `app/settings.py` makes it from the configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from crishim.errors import InvalidSpec
from crishim.model.handler import PLAIN, Handler
from crishim.model.node import CgroupDriver
from crishim.model.process import Rlimit
from crishim.spec.facts import NodeAbilities

#: what the configuration may change while the server runs
_CHANGEABLE = (
    "handlers",
    "default_handler",
    "make_missing_sources",
    "image_volumes",
    "rlimits",
    "exec_output_bytes",
    "seccomp_profile_dir",
    "cdi_dirs",
    "hook_dirs",
    "device_owner_is_user",
    "sandbox_grace_s",
    "kill_wait_s",
)


@dataclass(slots=True)
class Settings:
    """One value that all use cases share and ask anew each time. Only the start and `adopt` change it."""

    #: kernel, machine and our own privileges
    node: NodeAbilities
    #: directory of the state, and of images and roots; shown in Status, where tools look for our file system
    state_dir: str
    root_dir: str
    #: cgroup of this instance below the hierarchy root ("/crishim.slice")
    cgroup_root: str
    #: netns pins are /run/netns/<prefix>-<sandbox id>
    netns_prefix: str
    cgroup_driver: CgroupDriver = CgroupDriver.CGROUPFS
    #: "bridge" or "cni"
    network_mode: str = "bridge"
    #: runtime handlers by name, and the name of the one that "" is
    handlers: Mapping[str, Handler] = field(default_factory=lambda: {"crishim": PLAIN})
    default_handler: str = "crishim"
    #: "bind", "mkdir" or "ignore": what the VOLUME directories of images become
    image_volumes: str = "bind"
    #: a missing source of a bind mount is made as a directory
    make_missing_sources: bool = True
    #: limits of every container that asks for none
    rlimits: tuple[Rlimit, ...] = ()
    #: bytes of both streams of one ExecSync together; beyond it output is dropped
    exec_output_bytes: int = (16 << 20) - (64 << 10)
    #: the only directory below which localhost seccomp profiles may lie
    seccomp_profile_dir: str = "/var/lib/kubelet/seccomp"
    #: directories of CDI documents, a later one before an earlier one; of hooks (oci-hooks(5))
    cdi_dirs: tuple[str, ...] = ()
    hook_dirs: tuple[str, ...] = ()
    #: devices that a container asks for belong to its run_as_user and run_as_group, not to whom they do on the host
    device_owner_is_user: bool = False
    #: between stop signal and SIGKILL for containers that still run at StopPodSandbox
    sandbox_grace_s: float = 0.0
    #: how long a caller waits for killed processes to be gone
    kill_wait_s: float = 10.0
    #: a network's attach and detach may take this long
    network_deadline_s: float = 120.0

    #: why pods cannot have user namespaces; empty when they can
    no_user_namespaces: str = "it was not tried"

    def handler(self, name: str) -> Handler:
        """The runtime handler of that name, "" for the default one. InvalidSpec when there is none."""
        found = self.handlers.get(name or self.default_handler)
        if found is None:
            raise InvalidSpec(f"runtime_handler: {name!r} is not configured on this node")
        return found

    def adopt(self, new: Settings) -> None:
        """Take over what may change while the server runs. Operations under way may see the old or the new value."""
        for name in _CHANGEABLE:
            setattr(self, name, getattr(new, name))
