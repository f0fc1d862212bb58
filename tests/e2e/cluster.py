"""A cluster of one node, in its plainest form: etcd, an API server, a kubelet and kubectl, on any runtime.

No scheduler (pods name the node) and no controllers. One token is good for everything, and nobody outside the node's
network can reach any of it.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e import tools
from tests.e2e.kubelet import Kubelet
from tests.e2e.node import Node, wait_until
from tests.e2e.pods import Pod
from tests.e2e.runtimes import Containerd, Crishim, chosen
from tests.e2e.terminal import Terminal, running

PROGRAMS = ("etcd", "kube-apiserver", "kubelet", "kubectl")
_PORT = 6443
#: what a newer kubectl does not do by itself any more
SPDY = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}
_COMMAND_S = 120.0


def missing_programs() -> list[str]:
    """Names of the programs that were never built."""
    return [name for name in PROGRAMS if tools.find(name) is None]


class ControlPlane:
    """etcd and an API server in a node; `start` does not wait for them, `wait` does."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._directory = node.directory / "control"
        self._directory.mkdir()
        self._token = secrets.token_hex(16)
        self.kubeconfig = self._directory / "kubeconfig"
        self.kubeconfig.write_text(json.dumps(self._kubeconfig()))  # YAML, and JSON is YAML

    def _kubeconfig(self) -> dict[str, Any]:
        server = {"server": f"https://{self._node.address}:{_PORT}", "insecure-skip-tls-verify": True}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "node", "cluster": server}],
            "users": [{"name": "admin", "user": {"token": self._token}}],
            "contexts": [{"name": "node", "context": {"cluster": "node", "user": "admin"}}],
            "current-context": "node",
        }

    def start(self) -> None:
        """Starts both; the API server waits for etcd by itself."""
        tokens, key = self._directory / "tokens.csv", self._directory / "accounts.key"
        tokens.write_text(f"{self._token},admin,admin,system:masters\n")
        make_key: list[str | Path] = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key]
        subprocess.run(make_key, check=True, capture_output=True)
        etcd, apiserver = tools.build(("etcd", "kube-apiserver"))
        client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        self._node.start(
            etcd,
            f"--data-dir={self._directory}/etcd",
            "--unsafe-no-fsync",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            log="etcd",
        )
        self._node.start(
            apiserver,
            f"--etcd-servers={client}",
            f"--secure-port={_PORT}",
            f"--bind-address={self._node.address}",
            f"--advertise-address={self._node.address}",
            f"--cert-dir={self._directory}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            # its tokens are made by a controller
            "--disable-admission-plugins=ServiceAccount",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.202.0.0/24",
            "--allow-privileged",
            log="kube-apiserver",
        )

    def wait(self) -> None:
        """Until the API server calls itself ready."""
        url = f"https://{self._node.address}:{_PORT}/readyz"
        wait_until(
            lambda: self._node.http("GET", url).status == 200,
            deadline_s=60,
            what=f"the API server, see {self._node.log('kube-apiserver')}",
        )


class Kubectl:
    """kubectl inside the node; `environ` chooses among its protocols."""

    def __init__(self, node: Node, kubeconfig: Path, environ: Mapping[str, str] | None = None) -> None:
        self._node = node
        self._kubeconfig = kubeconfig
        self._program = tools.build(["kubectl"])[0]
        # its caches are in its home
        self._environ = {**os.environ, "HOME": str(node.directory), **(environ or {})}

    def with_environ(self, environ: Mapping[str, str]) -> Kubectl:
        """The same with further environment variables."""
        return Kubectl(self._node, self._kubeconfig, environ)

    def __call__(self, *words: str | Path, stdin: bytes = b"") -> str:
        """What a command that succeeds writes to stdout. Raises RuntimeError with its stderr when it fails."""
        ended = self.run(*words, stdin=stdin)
        if ended.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(map(str, words))}: {ended.returncode}: {ended.stderr.decode()}")
        return ended.stdout.decode()

    def run(self, *words: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """The end of a command, whatever it is."""
        command = self._command(words)
        return subprocess.run(command, input=stdin, capture_output=True, env=self._environ, timeout=_COMMAND_S)

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "-o", "json"))

    def running(self, *words: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """A command that goes on, with pipes to its stdio; ended with the block."""
        return running(self._command(words), self._environ)

    def terminal(self, *words: str, rows: int = 24, columns: int = 80) -> Terminal:
        """A command on a terminal of its own, to be closed by the caller."""
        return Terminal(self._command(words), self._environ, rows=rows, columns=columns)

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Creates objects, or changes them."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self("apply", "-f", "-", stdin=json.dumps(listed).encode())

    def _command(self, words: tuple[str | Path, ...]) -> list[str]:
        return self._node.inside(self._program, f"--kubeconfig={self._kubeconfig}", *words)


@dataclass(frozen=True)
class Cluster:
    """Everything that runs in the node."""

    node: Node
    runtime: Crishim | Containerd
    kubelet: Kubelet
    kubectl: Kubectl

    def run(self, *pods: Pod) -> None:
        """Creates pods on the node and waits until they are ready."""
        self.create(*pods)
        names = [f"pod/{pod['metadata']['name']}" for pod in pods]
        self.kubectl("wait", "--for=condition=Ready", "--timeout=60s", *names)

    def create(self, *pods: Pod) -> None:
        """Creates pods on the node."""
        placed = {"nodeName": self.node.hostname, "automountServiceAccountToken": False}
        self.kubectl.apply(*({**pod, "spec": {**pod["spec"], **placed}} for pod in pods))

    def status(self, pod: str, container: str, kind: str = "containerStatuses") -> dict[str, Any]:
        """One container's status of a pod; empty before there is one."""
        statuses = self.kubectl.json("get", "pod", pod)["status"].get(kind, [])
        return next((status for status in statuses if status["name"] == container), {})

    def address(self, pod: str) -> str:
        return str(self.kubectl.json("get", "pod", pod)["status"]["podIP"])


def start_cluster(node: Node) -> Cluster:
    """A cluster whose node is ready; it ends with the node."""
    control = ControlPlane(node)
    control.start()
    runtime = chosen(node)
    kubelet = Kubelet(node, runtime.socket, control.kubeconfig)
    control.wait()
    kubelet.start()
    kubectl = Kubectl(node, control.kubeconfig)

    def is_ready() -> bool:
        ended = kubectl.run("wait", "--for=condition=Ready", "--timeout=1s", f"node/{node.hostname}")
        return ended.returncode == 0

    wait_until(is_ready, deadline_s=60, what="the node to be ready")
    return Cluster(node, runtime, kubelet, kubectl)
