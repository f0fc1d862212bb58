"""A server as a service of the node's systemd, from the unit that is shipped."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from crishim.cri.client import messages as m
from tests.support.server import Server

SERVICE = "crishim-node-test.service"
UNIT = Path("/run/systemd/system") / SERVICE
SHIPPED = Path(__file__).resolve().parents[2] / "packaging/crishim.service"


def systemctl(*arguments: str) -> str:
    return subprocess.run(["systemctl", *arguments], check=True, capture_output=True, text=True, timeout=600).stdout


class Service(Server):
    """The shipped unit with a command line of this test; `process` stays None, systemd has it."""

    def start(self, environment: object = None, *, ready: bool = True) -> None:
        if not UNIT.exists():
            command = f"{sys.executable} -m crishim serve --config {self._config} --listen {self.address}"
            command += f" --root {self.root} --state {self.state} --metrics 127.0.0.1:0 --network bridge"
            text = SHIPPED.read_text().replace("/opt/crishim/bin/crishim serve", command)
            assert command in text
            text = text.replace("RuntimeDirectory=crishim\n", f"RuntimeDirectory={SERVICE.removesuffix('.service')}\n")
            text = text.replace("[Service]\n", "[Service]\nTimeoutStartSec=600\n")  # emulated, it takes its time
            UNIT.write_text(text)
            systemctl("daemon-reload")
        systemctl("start", SERVICE)  # Type=notify: it returns when the server is ready

    def restart(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        systemctl("restart", SERVICE)

    def close(self) -> None:
        try:
            for pod in self.client.runtime("ListPodSandbox", m.ListPodSandboxRequest()).items:
                self.remove_pod(pod.id)
        finally:
            if self._client is not None:
                self._client.close()
            subprocess.run(["systemctl", "stop", SERVICE], check=False)
            UNIT.unlink(missing_ok=True)
            shutil.rmtree(Path("/run", SERVICE).with_suffix(""), ignore_errors=True)  # the unit asks to keep it
            systemctl("daemon-reload")
            subprocess.run(["ip", "link", "delete", self._bridge()], check=False, capture_output=True)
            self._clear()

    def _namespace(self) -> int:
        return 1  # the service lives in the node's own network namespace

    def _bridge(self) -> str:
        links = subprocess.run(["ip", "-br", "link", "show", "type", "bridge"], capture_output=True, text=True).stdout
        return next((line.split()[0] for line in links.splitlines()), "none")


class SystemdService(Service):
    """The same with the systemd cgroup driver."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, config='[cgroups]\ndriver = "systemd"\n')

    def units(self) -> list[str]:
        """Every unit that may be of a pod or a container of ours, whatever its state."""
        text = systemctl("list-units", "--all", "--plain", "--no-legend", "crishim-*.scope", "crishim-*-pods-*.slice")
        names = [line.split()[0] for line in text.splitlines()]
        return [name for name in names if not name.endswith("-monitors.scope")]

    def left_behind(self) -> list[str]:
        return super().left_behind() + self.units()
