"""A real `crishim serve` in directories of its own, driven through its CRI socket.

By default it lives in a network namespace of its own, so that bridge, addresses and packet rules never touch the
machine's; `network="cni"` with host network pods stays in the machine's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import Hierarchy, detect
from crishim.cri.client import Client
from crishim.cri.client import messages as m
from crishim.images.demo import build_demo_image
from crishim.model.node import CgroupDriver
from crishim.spec.cgroup import container_cgroup, own_monitors, own_pods, pod_cgroup, slice_path

T = TypeVar("T")

#: how much slower than usual this machine may be: tests on an emulated node wait longer
PATIENCE = float(os.environ.get("CRISHIM_TEST_PATIENCE", "1"))
DEADLINE_S = 20.0 * PATIENCE
#: of every server that names none; with systemd the machine must be booted with it and have cgroup v2 alone
DRIVER = os.environ.get("CRISHIM_TEST_DRIVER", "cgroupfs")
SUBNET = "10.209.0.0/24"


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = DEADLINE_S) -> T:
    """The first true result; AssertionError names what did not come."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s} s"
        time.sleep(0.01)
    return result


class Server:
    """One server; it can be killed and started again on the same directories."""

    def __init__(self, directory: Path, *, network: str = "bridge", config: str = "") -> None:
        self.directory = directory
        self.state = directory / "state"
        self.root = directory / "root"
        self.logs = directory / "logs"
        self.address = f"unix://{self.state}/crishim.sock"
        self.instance = hashlib.sha256(os.fsencode(self.state)).hexdigest()[:8]
        self.driver = CgroupDriver.SYSTEMD if 'driver = "systemd"' in _driver(config) else CgroupDriver.CGROUPFS
        name = f"crishim-{self.instance}.slice"
        #: what the server makes itself, and below it the pods that name no parent
        self.cgroup = f"/{name}" if self.driver is CgroupDriver.CGROUPFS else slice_path(name)
        self.pods_cgroup = own_pods(self.cgroup, self.driver)
        self.monitors_cgroup = own_monitors(self.cgroup, self.driver)
        self._network = network
        self._config = directory / "config.toml"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.configure(config)
        self.process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None
        #: holds the network namespace over restarts of the server
        self._holder: subprocess.Popen[bytes] | None = None
        self.errors = directory / "stderr"

    def configure(self, config: str) -> None:
        """Write the configuration file: what every server of tests has, and `config`."""
        self._config.write_text(f'[network.bridge]\nsubnets = ["{SUBNET}"]\n{_driver(config)}')

    def drop_in(self, name: str) -> Path:
        """Path of a drop-in file of the configuration; its directory is there."""
        directory = Path(f"{self._config}.d")
        directory.mkdir(exist_ok=True)
        return directory / name

    def reread(self) -> str:
        """What the server's log says about reading its configuration again."""
        assert self.process is not None
        before = self.errors.stat().st_size
        self.process.send_signal(signal.SIGHUP)
        ends = (b"was read again", b"stays as it was")
        wait_until(lambda: any(self._said(before, end) for end in ends), "a configuration read again")
        return wait_until(lambda: text if (text := self.errors.read_text()[before:]).endswith("\n") else "", "a line")

    @property
    def client(self) -> Client:
        """Connected to the server that runs now."""
        if self._client is None:
            self._client = Client(self.address)
        return self._client

    def start(
        self, environment: Mapping[str, str] | None = None, *, ready: bool = True, package: Path | None = None
    ) -> None:
        """Start it; with `ready` wait until it says so. package: directory of another crishim than the one tested."""
        command = [sys.executable, "-m", "crishim", "serve", "--config", str(self._config), "--listen", self.address]
        command += ["--root", str(self.root), "--state", str(self.state), "--metrics", "127.0.0.1:0"]
        command += ["--network", self._network, "--log-level", "info"]
        if self._network == "bridge":
            command = ["nsenter", f"--net=/proc/{self._namespace()}/ns/net", *command]
        with open(self.errors, "ab") as log:
            offset = log.tell()
            self.process = subprocess.Popen(command, stderr=log, cwd=package, env={**os.environ, **(environment or {})})
        if ready:
            wait_until(lambda: self._said(offset, b"is ready") or self._ended(), "a ready server", 60 * PATIENCE)
            assert self.process.poll() is None, self.errors.read_text()[offset:]

    def _said(self, offset: int, text: bytes) -> bool:
        return text in self.errors.read_bytes()[offset:]

    def _ended(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def _namespace(self) -> int:
        """Pid of a process that does nothing but live in the network namespace."""
        if self._holder is None:
            script = "ip link set lo up && echo up && exec sleep infinity"
            self._holder = subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE)
            assert self._holder.stdout is not None
            assert self._holder.stdout.readline() == b"up\n"
        return self._holder.pid

    def in_netns(self, *command: str) -> str:
        """Output of a command in the server's network namespace."""
        full = ["nsenter", f"--net=/proc/{self._namespace()}/ns/net", *command]
        return subprocess.run(full, check=True, capture_output=True, text=True, timeout=30).stdout

    def metrics(self) -> str:
        """The page of metrics."""
        text = self.errors.read_text()
        url = text.rsplit("crishim has metrics on ", 1)[1].split()[0]
        script = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=10).read().decode())"
        return self.in_netns(sys.executable, "-c", script)

    def terminate(self) -> None:
        """SIGTERM, then its end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: nothing of it is tidied up by itself."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.wait_ended()

    def wait_ended(self) -> int:
        """Exit status once it has ended."""
        assert self.process is not None
        status = self.process.wait(60)
        if self._client is not None:
            self._client.close()
            self._client = None
        return status

    def close(self) -> None:
        """End it, removing its pods before: the last word of every test."""
        try:
            if self.process is not None and self.process.poll() is None:
                for pod in self.client.runtime("ListPodSandbox", m.ListPodSandboxRequest()).items:
                    self.remove_pod(pod.id)
                self.terminate()
        finally:
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._clear()
            if self._holder is not None:
                assert self._holder.stdout is not None
                self._holder.stdout.close()
                self._holder.kill()
                self._holder.wait()

    def _clear(self) -> None:
        """After a test that failed: nothing of this instance may stay on the machine."""
        for pid in self.monitors():
            os.kill(pid, signal.SIGKILL)
        for pin in Path("/run/netns").glob(f"crishim-{self.instance}-*"):
            subprocess.run(["umount", "--lazy", str(pin)], check=False, capture_output=True)
            pin.unlink()
        hierarchy = detect()
        wait_until(lambda: _removed(hierarchy, self.cgroup), f"an empty {self.cgroup}")

    # -- calls

    def run_pod(self, name: str = "pod", **changes: Any) -> tuple[str, Any]:
        """(id, configuration) of a new sandbox."""
        config = pod_config(name, self.logs, **changes)
        return self.run_pod_config(config), config

    def run_pod_config(self, config: Any) -> str:
        return str(self.client.runtime("RunPodSandbox", m.RunPodSandboxRequest(config=config)).pod_sandbox_id)

    def create(self, sandbox: str, pod: Any, *command: str, **changes: Any) -> str:
        """Id of a new container that runs `command`."""
        return self.create_config(sandbox, pod, container_config(*command, **changes))

    def create_config(self, sandbox: str, pod: Any, config: Any) -> str:
        request = m.CreateContainerRequest(pod_sandbox_id=sandbox, config=config, sandbox_config=pod)
        return str(self.client.runtime("CreateContainer", request).container_id)

    def start_container(self, container: str) -> None:
        self.client.runtime("StartContainer", m.StartContainerRequest(container_id=container))

    def started(self, sandbox: str, pod: Any, *command: str, **changes: Any) -> str:
        """Id of a container that runs."""
        container = self.create(sandbox, pod, *command, **changes)
        self.start_container(container)
        return container

    def status(self, container: str) -> Any:
        return self.client.runtime("ContainerStatus", m.ContainerStatusRequest(container_id=container)).status

    def exited(self, container: str) -> Any:
        """The status once it is EXITED."""
        return wait_until(
            lambda: status if (status := self.status(container)).state == m.CONTAINER_EXITED else None, "an exit"
        )

    def exec(self, container: str, *command: str, timeout: int = 10) -> Any:
        request = m.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout)
        return self.client.runtime("ExecSync", request)

    def sh(self, container: str, script: str) -> str:
        """Standard output of a script in the container."""
        answer = self.exec(container, "sh", "-c", script)
        assert answer.exit_code == 0, answer
        return str(answer.stdout.decode())

    def stop(self, container: str, timeout: int = 10) -> None:
        self.client.runtime("StopContainer", m.StopContainerRequest(container_id=container, timeout=timeout))

    def remove(self, container: str) -> None:
        self.client.runtime("RemoveContainer", m.RemoveContainerRequest(container_id=container))

    def stop_pod(self, sandbox: str) -> None:
        self.client.runtime("StopPodSandbox", m.StopPodSandboxRequest(pod_sandbox_id=sandbox))

    def remove_pod(self, sandbox: str) -> None:
        self.client.runtime("RemovePodSandbox", m.RemovePodSandboxRequest(pod_sandbox_id=sandbox))

    # -- what is left

    def left_behind(self) -> list[str]:
        """Everything of pods that is still there: processes, cgroups, mounts, namespaces, directories, devices."""
        found = [str(path) for path in (self.state / "sandboxes").glob("*")]
        found += [str(path) for path in (self.root / "containers").glob("*")]
        found += [str(path) for path in Path("/run/netns").glob(f"crishim-{self.instance}-*")]
        found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if self.instance in line]
        for parent in (self.pods_cgroup, f"/crishim-test-{self.instance}"):
            found += [str(path) for tree in cgroup_directories(parent) for path in tree.glob("*/")]
        found += [f"monitor {pid}" for pid in self.monitors()]
        if self._network == "bridge":
            found += [line for line in self.in_netns("ip", "-br", "link").splitlines() if "veth" in line or "@" in line]
        return found

    def container_cgroup(self, sandbox: str, container: str) -> str:
        """Cgroup of a container of a pod that names no parent."""
        return container_cgroup(pod_cgroup("", self.cgroup, sandbox, self.driver), container, self.driver)

    def container_cgroups(self, container: str) -> list[Path]:
        """Directories of such a container's cgroup, of whichever pod, in each tree of this node."""
        name = container_cgroup(self.pods_cgroup, container, self.driver).rpartition("/")[2]
        return sorted(path for tree in cgroup_directories(self.pods_cgroup) for path in tree.glob(f"*/{name}"))

    def monitors(self) -> list[int]:
        """Pids of this instance's monitors, but not of their children: a starter ends a moment after its answer."""
        named = [pid for pid in effects.pids(detect(), self.monitors_cgroup) if _name(pid) == "crishim-monitor"]
        return [pid for pid in named if _parent(pid) not in named]

    def pretend_reboot(self) -> None:
        """Of a server that does not run: the monitors die, and every record is one of another boot."""
        for monitor in self.monitors():
            os.kill(monitor, signal.SIGKILL)
        wait_until(lambda: not self.monitors(), "the end of the monitors")
        for path in (self.state / "sandboxes").glob("**/*.json"):
            record = json.loads(path.read_text())
            if "boot_id" in record:  # the configuration in a bundle is no record
                record["boot_id"] = "00000000-0000-0000-0000-000000000000"
                path.write_text(json.dumps(record))


def _driver(config: str) -> str:
    """The configuration with the driver that the tests run with, unless it says something of cgroups itself."""
    return config if "[cgroups]" in config else f'[cgroups]\ndriver = "{DRIVER}"\n{config}'


def cgroup_directories(path: str) -> list[Path]:
    """The directory of a cgroup in each tree of this node, whether it is there or not."""
    return [Path(os.fsdecode(directory)) for _, directory in effects.directories(detect(), path)]


def _removed(hierarchy: Hierarchy, path: str) -> bool:
    effects.kill(hierarchy, path)
    return effects.remove(hierarchy, path)


def _parent(pid: int) -> int:
    """0 for a process that is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):  # gone, or about to be
        return ""


def pod_config(name: str, logs: Path, *, attempt: int = 0, host_network: bool = False, **changes: Any) -> Any:
    """A full PodSandboxConfig as a kubelet sends it; `changes` replaces fields."""
    config = m.PodSandboxConfig(
        metadata=m.PodSandboxMetadata(name=name, namespace="tests", uid=f"uid-{name}", attempt=attempt),
        hostname="" if host_network else name,
        log_directory=str(logs / name),
        labels={"io.kubernetes.pod.uid": f"uid-{name}"},
        linux=m.LinuxPodSandboxConfig(
            security_context=m.LinuxSandboxSecurityContext(
                namespace_options=m.NamespaceOption(network=m.NODE if host_network else m.POD, pid=m.CONTAINER),
            )
        ),
    )
    (logs / name).mkdir(exist_ok=True)
    _change(config, changes)
    return config


def container_config(*command: str, name: str = "main", attempt: int = 0, **changes: Any) -> Any:
    """A full ContainerConfig as a kubelet sends it; `changes` replaces fields."""
    config = m.ContainerConfig(
        metadata=m.ContainerMetadata(name=name, attempt=attempt),
        image=m.ImageSpec(image="crishim.local/demo:latest"),
        command=command or ("sleep", "1000"),
        log_path=f"{name}/{attempt}.log",
        linux=m.LinuxContainerConfig(
            resources=m.LinuxContainerResources(),
            security_context=m.LinuxContainerSecurityContext(namespace_options=m.NamespaceOption(pid=m.CONTAINER)),
        ),
    )
    _change(config, changes)
    return config


def _change(config: Any, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        field = getattr(config, name)
        if isinstance(value, (str, int, bool)):
            setattr(config, name, value)
        elif hasattr(field, "CopyFrom"):
            field.CopyFrom(value)
        elif isinstance(value, Mapping):
            field.clear()
            field.update(value)
        else:
            del field[:]
            field.extend(value)


def load_demo_image(server: Server, archive: Path) -> str:
    """Id of the demo's image, in the server's store."""
    return str(server.client.load(str(archive)).images[0].id)


def start_with_demo_image(server: Server) -> None:
    """Start a server, and give its store the demo's image."""
    server.start()
    build_demo_image(server.directory / "demo.tar")
    load_demo_image(server, server.directory / "demo.tar")


NEEDS_SERVER = os.geteuid() == 0 and shutil.which("nsenter") is not None and shutil.which("ip") is not None
