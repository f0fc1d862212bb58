"""crictl, as a person at a node uses it: one pod's life, and what it says about it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import tools
from tests.e2e.node import Node, wait_until
from tests.e2e.runtimes import IMAGE, Containerd, Crishim, chosen

#: a PID namespace for each container, as a kubelet asks for
OWN_PROCESSES = {"namespace_options": {"pid": 1}}


@dataclass(frozen=True)
class Crictl:
    """crictl on one runtime, with the configuration files of one pod."""

    node: Node
    runtime: Crishim | Containerd
    program: Path

    def __call__(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        endpoint = f"unix://{self.runtime.socket}"
        flags = (f"--runtime-endpoint={endpoint}", f"--image-endpoint={endpoint}", "--timeout=30s")
        return self.node.run(self.program, *flags, *words, check=check)

    def json(self, command: str, *words: str | Path) -> Any:
        return json.loads(self(command, "-o", "json", *words).stdout)

    def write(self, name: str, config: dict[str, Any]) -> Path:
        path = self.node.directory / f"{name}.json"
        path.write_text(json.dumps(config))
        return path


@pytest.fixture(scope="module")
def crictl(node: Node) -> Iterator[Crictl]:
    program = tools.find("crictl")
    if program is None:
        pytest.skip("crictl is not built: make e2e-tools")
    yield Crictl(node, chosen(node), program)


@dataclass(frozen=True)
class Pod:
    """Ids of a running pod with one container that wrote a line and sleeps."""

    sandbox_id: str
    container_id: str


@pytest.fixture
def pod(crictl: Crictl) -> Iterator[Pod]:
    logs = crictl.node.directory / "logs"
    logs.mkdir(exist_ok=True)
    (logs / "main.log").unlink(missing_ok=True)  # of the pod before, which a runtime would go on writing to
    sandbox = crictl.write(
        "sandbox",
        {
            "metadata": {"name": "hand", "uid": "hand-made", "namespace": "default", "attempt": 0},
            "hostname": "hand",
            "log_directory": str(logs),
            "linux": {"cgroup_parent": f"{crictl.node.cgroup}/hand", "security_context": OWN_PROCESSES},
        },
    )
    container = crictl.write(
        "container",
        {
            "metadata": {"name": "main", "attempt": 0},
            "image": {"image": IMAGE, "user_specified_image": IMAGE},
            "command": ["/bin/sh", "-c", "echo hello; exec sleep infinity"],
            "log_path": "main.log",
            "linux": {"security_context": OWN_PROCESSES},
        },
    )
    sandbox_id = crictl("runp", sandbox).stdout.strip()
    try:
        container_id = crictl("create", sandbox_id, container, sandbox).stdout.strip()
        crictl("start", container_id)
        yield Pod(sandbox_id, container_id)
    finally:
        crictl("stopp", sandbox_id)
        crictl("rmp", sandbox_id)


def test_it_says_which_runtime_it_talks_to(crictl: Crictl) -> None:
    said = crictl("version").stdout
    name = "containerd" if isinstance(crictl.runtime, Containerd) else "crishim"
    assert f"RuntimeName:  {name}" in said
    assert "RuntimeApiVersion:  v1" in said


def test_the_runtime_and_its_network_are_ready(crictl: Crictl) -> None:
    conditions = {each["type"]: each["status"] for each in crictl.json("info")["status"]["conditions"]}
    assert conditions["RuntimeReady"] is True
    assert conditions["NetworkReady"] is True


def test_the_loaded_image_is_listed_with_its_size(crictl: Crictl) -> None:
    (image,) = [each for each in crictl.json("images")["images"] if IMAGE in each["repoTags"]]
    assert int(image["size"]) > 100_000


def test_a_pod_and_its_container_are_listed_and_run(crictl: Crictl, pod: Pod) -> None:
    (container,) = crictl.json("ps")["containers"]
    assert (container["id"], container["podSandboxId"]) == (pod.container_id, pod.sandbox_id)
    assert (container["metadata"]["name"], container["state"]) == ("main", "CONTAINER_RUNNING")
    (sandbox,) = crictl.json("pods")["items"]
    assert (sandbox["id"], sandbox["state"]) == (pod.sandbox_id, "SANDBOX_READY")


def test_inspection_names_the_image_and_the_address(crictl: Crictl, pod: Pod) -> None:
    assert crictl.json("inspect", pod.container_id)["status"]["image"]["image"]
    assert crictl.json("inspectp", pod.sandbox_id)["status"]["network"]["ip"].count(".") == 3


def test_a_command_runs_in_the_container_and_its_exit_code_comes_back(crictl: Crictl, pod: Pod) -> None:
    assert crictl("exec", "--sync", pod.container_id, "hostname").stdout.strip() == "hand"
    failed = crictl("exec", "--sync", pod.container_id, "sh", "-c", "exit 3", check=False)
    assert failed.returncode != 0
    assert "3" in failed.stderr


def test_the_log_is_shown(crictl: Crictl, pod: Pod) -> None:
    wait_until(lambda: crictl("logs", pod.container_id).stdout == "hello\n", deadline_s=10, what="the line in the log")


def test_statistics_are_shown_for_the_container(crictl: Crictl, pod: Pod) -> None:
    def memory() -> int:
        stats = crictl.json("stats", pod.container_id)["stats"]
        return int((stats[0].get("memory") or {}).get("workingSetBytes", {}).get("value", 0)) if stats else 0

    assert wait_until(memory, deadline_s=15, what="memory of the container") > 0


def test_a_limit_is_changed_while_the_container_runs(crictl: Crictl, pod: Pod) -> None:
    crictl("update", "--memory", str(48 << 20), pod.container_id)
    status = crictl.json("inspect", pod.container_id)["status"]
    assert int(status["resources"]["linux"]["memoryLimitInBytes"]) == 48 << 20


def test_a_stopped_container_is_kept_until_it_is_removed(crictl: Crictl, pod: Pod) -> None:
    crictl("stop", "--timeout", "1", pod.container_id)
    status = crictl.json("inspect", pod.container_id)["status"]
    assert (status["state"], status["exitCode"]) == ("CONTAINER_EXITED", 137)
    crictl("rm", pod.container_id)
    assert crictl.json("ps", "-a")["containers"] == []


def test_an_unknown_container_is_not_found(crictl: Crictl) -> None:
    failed = crictl("inspect", "0123456789abcdef", check=False)
    assert failed.returncode != 0
    assert "not found" in failed.stderr.lower() or "NotFound" in failed.stderr
