"""From the configuration to what the use cases are configured with, checked against the node."""

from __future__ import annotations

from pathlib import Path

from crishim.app.cgroups import Cgroups
from crishim.config import Config
from crishim.errors import InvalidSpec, Unsupported
from crishim.executor.client import Executor
from crishim.model.handler import Handler
from crishim.runtime.apparmor import AppArmorProfiles
from crishim.runtime.selinux import SELinux
from crishim.runtime.settings import Settings
from crishim.spec.capabilities import KNOWN
from crishim.spec.facts import NodeAbilities
from crishim.spec.sandbox import checked_sysctls


def settings_of(
    config: Config, cgroups: Cgroups, executor: Executor, apparmor: AppArmorProfiles, selinux: SELinux
) -> Settings:
    """What the use cases are configured with. InvalidSpec and Unsupported name the key that cannot be honoured."""
    node = executor.node
    abilities = NodeAbilities(
        kernel=node.kernel,
        machine=node.machine,
        capabilities=node.capabilities,
        apparmor=apparmor.enabled,
        selinux=selinux.enabled,
        selinux_labels=selinux.defaults,
        selinux_problem=selinux.problem,
        apparmor_default=apparmor.default,
        apparmor_problem=apparmor.problem,
        recursive_read_only=node.recursive_read_only,
    )
    delegated = executor.hierarchy.mode == "v2" and is_delegated(config.cgroups.root)
    for name, handler in config.runtimes.items():
        check_handler(f"runtimes.{name}", handler, abilities, delegated=delegated)
    return Settings(
        node=abilities,
        state_dir=str(config.server.state),
        root_dir=str(config.server.root),
        cgroup_root=cgroups.root,
        netns_prefix="crishim" if config.instance == "default" else f"crishim-{config.instance}",
        cgroup_driver=cgroups.driver,
        network_mode=config.network.mode,
        handlers=config.runtimes,
        default_handler=config.containers.default_runtime_handler,
        make_missing_sources=config.containers.missing_host_path == "create",
        image_volumes=config.containers.image_volumes,
        rlimits=config.limits.rlimits,
        exec_output_bytes=config.limits.exec_output_bytes,
        seccomp_profile_dir=str(config.containers.seccomp_profile_dir),
        cdi_dirs=tuple(str(path) for path in config.containers.cdi_dirs),
        hook_dirs=tuple(str(path) for path in config.containers.hook_dirs),
        device_owner_is_user=config.containers.device_ownership_from_security_context,
        sandbox_grace_s=config.stop.sandbox_grace_s,
        kill_wait_s=config.stop.kill_wait_s,
    )


def check_handler(where: str, handler: Handler, node: NodeAbilities, *, delegated: bool) -> None:
    """InvalidSpec or Unsupported names the option of a runtime handler that this node cannot honour.

    delegated: the kernel guards the limits of a cgroup from processes in its namespace.
    """
    for index, name in enumerate(handler.capabilities or ()):
        if name not in KNOWN:
            raise InvalidSpec(f"{where}.capabilities[{index}]: {name!r} is not a capability")
    checked_sysctls(handler.sysctls, own_network=True, own_ipc=True, where=f"{where}.sysctls")
    if handler.apparmor_profile and not node.apparmor:
        raise Unsupported(f"{where}.apparmor_profile: {handler.apparmor_profile!r}: this node has no AppArmor")
    if handler.cgroup_writable and not delegated:
        # elsewhere a container could lift its own limits
        raise Unsupported(f"{where}.cgroup_writable: it needs cgroup v2 mounted with nsdelegate, as systemd does")


def is_delegated(root: Path) -> bool:
    """Whether cgroup v2 is mounted at `root` so that a cgroup namespace is a border (cgroups(7), nsdelegate)."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, place, kind, options, *_ = line.split(" ")
        if place == str(root) and kind == "cgroup2":
            return "nsdelegate" in options.split(",")
    return False
