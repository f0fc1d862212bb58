"""The runtime under a kubelet: ours, or containerd to run the same tests on a peer (CRISHIM_E2E_RUNTIME=containerd).

Each knows how to start in a node, when it is ready, how to be given an image and where its things lie.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e import tools
from tests.e2e.node import Node, wait_until
from tests.support.image_archive import write_image

IMAGE = "crishim.test/e2e/busybox:1"
REPOSITORY = Path(__file__).resolve().parents[2]


class Crishim:
    """`crishim serve` with directories of its own inside the node; `more` is TOML that follows its configuration."""

    def __init__(self, node: Node, more: str = "") -> None:
        self._node = node
        self._pid = 0
        self._root = node.directory / "root"
        self._state = node.directory / "state"
        self.socket = node.directory / "cri" / "cri.sock"
        self.metrics_url = "http://127.0.0.1:9477/metrics"
        self._config = node.directory / "config.toml"
        self._config.write_text(
            f"""
[network]
mode = "bridge"

{node.runtime_config()}
{more}"""
        )

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        self.socket.parent.mkdir(mode=0o700, exist_ok=True)
        flags = ("--listen", f"unix://{self.socket}", "--root", self._root, "--state", self._state)
        self._pid = self._node.start(
            *_crishim("serve", "--config", self._config, *flags, "--metrics", "127.0.0.1:9477"),
            log="crishim",
            env={"PYTHONPATH": str(REPOSITORY)},
        )
        log = self._node.log("crishim")
        wait_until(self._answers, deadline_s=120, what=lambda: f"crishim to answer: {log.read_text()[-2000:]}")

    def _answers(self) -> bool:
        code = self._node.exit_code(self._pid)
        if code is not None:
            raise RuntimeError(f"crishim ended with {code}: {self._node.log('crishim').read_text()[-2000:]}")
        return self._node.run(*self._client("ps"), check=False).returncode == 0

    def stop(self, number: signal.Signals) -> None:
        """Ends the server alone; pods stay."""
        self._node.stop(self._pid, number)

    def load(self, archive: Path) -> None:
        self._node.run(*self._client("load"), archive)

    def _client(self, command: str) -> Sequence[str | Path]:
        return ("env", f"PYTHONPATH={REPOSITORY}", *_crishim(command, "--address", f"unix://{self.socket}"))

    def pod_directories(self) -> Sequence[Path]:
        """Directories that hold something for each pod or container and are empty without them."""
        return (self._state / "sandboxes", self._root / "containers")


class Containerd:
    """containerd and runc, built from their modules, with directories of their own inside the node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pid = 0
        self._root = node.directory / "containerd"
        self.socket = self._root / "containerd.sock"
        names = ("containerd", "containerd-shim-runc-v2", "ctr", "runc")
        self._programs = dict(zip(names, tools.build(names), strict=True))

    def start(self) -> None:
        self._root.mkdir(exist_ok=True)
        config = self._root / "config.toml"
        config.write_text(
            f"""
version = 3
root = "{self._root}/root"
state = "{self._root}/state"
[grpc]
address = "{self.socket}"
[ttrpc]
address = "{self._root}/ttrpc.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{IMAGE}"
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{self._cni_directory()}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{self._programs["runc"]}"
"""
        )
        path = os.pathsep.join(
            [*dict.fromkeys(str(tool.parent) for tool in self._programs.values()), os.environ["PATH"]]
        )
        command = (self._programs["containerd"], "--config", config)
        self._pid = self._node.start(*command, log="containerd", env={"PATH": path})
        wait_until(self._answers, deadline_s=30, what=f"containerd to answer, see {self._node.log('containerd')}")

    def _cni_directory(self) -> Path:
        directory = self._root / "cni"
        directory.mkdir(exist_ok=True)
        network = """{"cniVersion": "1.0.0", "name": "e2e", "plugins": [{"type": "bridge", "bridge": "cni0",
            "isGateway": true, "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "%s",
            "ranges": [[{"subnet": "10.201.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}"""
        (directory / "10-e2e.conflist").write_text(network % (self._root / "ipam"))
        return directory

    def _answers(self) -> bool:
        return self._node.run(*self._ctr("version"), check=False).returncode == 0

    def _ctr(self, *words: str | Path) -> Sequence[str | Path]:
        return (self._programs["ctr"], "--address", self.socket, "-n", "k8s.io", *words)

    def stop(self, number: signal.Signals) -> None:
        self._node.stop(self._pid, number)

    def load(self, archive: Path) -> None:
        self._node.run(*self._ctr("images", "import", archive))

    def pod_directories(self) -> Sequence[Path]:
        state = self._root / "state"
        return (state / "io.containerd.runtime.v2.task" / "k8s.io", state / "io.containerd.grpc.v1.cri" / "sandboxes")


RUNTIMES: dict[str, type[Crishim] | type[Containerd]] = {"crishim": Crishim, "containerd": Containerd}


def chosen(node: Node) -> Crishim | Containerd:
    """The runtime that CRISHIM_E2E_RUNTIME names, ours by default, started and holding the test image."""
    runtime = RUNTIMES[os.environ.get("CRISHIM_E2E_RUNTIME", "crishim")](node)
    runtime.start()
    runtime.load(write_image(node.directory / "image.tar", IMAGE))
    return runtime


NO_HALF_CLOSE = "containerd's port-forward answers nothing after the client has ended its side"


def skip_on_containerd(runtime: Crishim | Containerd, why: str) -> None:
    """Skips the rest of a test of what this peer was seen not to do."""
    if isinstance(runtime, Containerd):
        pytest.skip(why)


def _crishim(*words: str | Path) -> Sequence[str | Path]:
    return (sys.executable, "-m", "crishim.cli.main", *words)
