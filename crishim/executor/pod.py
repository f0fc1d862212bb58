"""The pod of a monitor: its namespaces, its containers, and what a start needs of them."""

from __future__ import annotations

import os

from crishim.cgroups import effects, resctrl
from crishim.cgroups.hierarchy import Hierarchy
from crishim.executor import podinit, userns
from crishim.executor.lower import Privileges
from crishim.executor.seed import Seed, make_pod_seed
from crishim.linux import mount, net, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.init import InitProcess


class Pod:
    """Owns the descriptors of its namespaces and seed, and its reaper."""

    __slots__ = ("containers", "hierarchy", "home", "init", "netns_pin", "privileges", "seed", "user")

    def __init__(self, hierarchy: Hierarchy, seed: Seed, privileges: Privileges) -> None:
        """privileges: what the monitor may do itself."""
        self.hierarchy = hierarchy
        self.seed = seed
        self.privileges = privileges
        #: by container id, running and exited, until the server forgets them
        self.containers: dict[bytes, InitProcess] = {}
        #: reaper of a shared PID namespace: (pid, pidfd), or None
        self.init: tuple[int, int] | None = None
        #: of the pod, None when it has the host's
        self.user: userns.UserNamespace | None = None
        #: path at which the network namespace is pinned, None when it is not
        self.netns_pin: bytes | None = None
        #: descriptors of the namespaces that we left, by clone flag: hooks run there
        self.home: dict[int, int] = {}

    def enter(self, request: dict[str, object]) -> None:
        """Enter new namespaces, as START_MONITOR wants them, and pin the network's.

        An OSError leaves nothing but what `tear_down` removes.
        """
        wanted = 0
        for key, flag, name in (
            ("network", process.CLONE_NEWNET, "net"),
            ("ipc", process.CLONE_NEWIPC, "ipc"),
            ("uts", process.CLONE_NEWUTS, "uts"),
        ):
            if request[key]:
                wanted |= flag
                self.home[flag] = os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        if request["uid_map"]:
            self.user = userns.make(request["uid_map"], request["gid_map"], wanted)  # type: ignore[arg-type]
        elif wanted:
            process.unshare(wanted)
        if wanted & process.CLONE_NEWNET:
            net.set_link_up(b"lo")
            self._pin_netns(request["netns_path"])
        if wanted & process.CLONE_NEWUTS and request["hostname"]:
            process.sethostname(request["hostname"])  # type: ignore[arg-type]
        if wanted & process.CLONE_NEWUTS and request["domainname"]:
            process.setdomainname(request["domainname"])  # type: ignore[arg-type]
        sysctls = request["sysctls"]
        assert isinstance(sysctls, dict)
        for key, value in sysctls.items():
            _write_sysctl(key, value)
        if wanted & process.CLONE_NEWIPC:
            root = (0, 0) if self.user is None else (self.user.host_uid(0), self.user.host_gid(0))
            label = request.get("mount_label")
            self.seed = make_pod_seed(self.seed, request["shm_bytes"], *root, label)  # type: ignore[arg-type]
        if request["shared_pid"]:
            self.init = podinit.start(self.seed, self.user)

    def _pin_netns(self, path: object) -> None:
        """A bind mount keeps the network namespace for CNI, and for its DEL when we are gone."""
        if not isinstance(path, bytes):
            return
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        mount.mount(b"/proc/self/ns/net", path, None, mount.MS_BIND)
        self.netns_pin = path

    def tear_down(self) -> None:
        """Remove what `enter` made outside of this process; what is gone already is fine."""
        if self.init is not None:
            os.kill(self.init[0], 9)
            os.waitid(os.P_PID, self.init[0], os.WEXITED)
            os.close(self.init[1])
            self.init = None
        if self.netns_pin is not None:
            try:
                mount.umount2(self.netns_pin, mount.MNT_DETACH)
                os.unlink(self.netns_pin)
            except OSError:
                pass  # the server looks after pins that stay
            self.netns_pin = None

    def reap_init(self) -> None:
        """The reaper of the shared PID namespace has died, and with it all that was in there."""
        assert self.init is not None
        os.waitid(os.P_PIDFD, self.init[1], os.WEXITED | os.WNOHANG)
        os.close(self.init[1])
        self.init = None

    # -- containers ----------------------------------------------------------------------------------------------------

    def running(self) -> list[InitProcess]:
        """Containers with a live init."""
        return [init for init in self.containers.values() if init.pidfd >= 0]

    def kill(self, init: InitProcess) -> None:
        """Kill all that is in the cgroup of a container."""
        try:
            effects.kill(self.hierarchy, init.cgroup)
        except OSError:
            pass  # the server kills again when it removes the container

    def give_net_devices_back(self, init: InitProcess) -> list[str]:
        """To the host, what the container was given of it; sentences about what could not be done."""
        devices, init.net_devices = init.net_devices, None
        if devices is None:
            return []
        home = self.home.get(process.CLONE_NEWNET, -1)
        own = os.open("self/ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.seed.proc)
        try:
            problems = devices.give_back(own if home < 0 else home)
        finally:
            os.close(own)
        return [f"container {init.id.decode('utf-8', 'replace')}: {problem}" for problem in problems]

    def remove_cgroup(self, init: InitProcess) -> None:
        """Remove the cgroup of a container, and what it has of resctrl."""
        if init.rdt is not None:
            resctrl.remove(init.rdt["root"], init.rdt)  # type: ignore[arg-type]
        if init.cgroup.endswith(".scope"):
            return  # systemd's: it would not notice that the cgroup is gone, and keep the unit
        try:
            effects.remove(self.hierarchy, init.cgroup)
        except OSError:
            pass  # the server removes again when it removes the container


def _write_sysctl(key: bytes, value: bytes) -> None:
    fd = os.open(b"/proc/sys/" + key.replace(b".", b"/"), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)
