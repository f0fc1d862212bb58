"""`python -m tests.node.reboot before|after`, on a node: what one boot leaves to the next, and what that makes of it.

The state directory is on a tmpfs, as /run is, and so is gone afterwards; the root directory is on the disk. No pytest:
the first half has to leave a pod behind.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from pathlib import Path

from crishim.cri.client import messages as m
from tests.support.server import Server, pod_config, start_with_demo_image, wait_until

HOME = Path("/var/lib/rebooted")
NOTES = HOME / "notes.json"


class RebootedServer(Server):
    """A server in the node's own network, whose state does not outlive the boot."""

    def __init__(self) -> None:
        super().__init__(HOME)
        self.state = Path("/run/rebooted")
        self.address = f"unix://{self.state}/crishim.sock"

    def _namespace(self) -> int:
        return 1


def before() -> None:
    """Run a pod with an address of the bridge."""
    server = RebootedServer()
    start_with_demo_image(server)
    sandbox, pod = server.run_pod("steady")
    container = server.started(sandbox, pod)
    assert server.sh(container, "echo runs") == "runs\n"
    assert addresses(server) == 1
    NOTES.write_text(json.dumps({"boot": boot_id(), "sandbox": sandbox}))


def after() -> None:
    """The pod is gone, its network was taken down, its name and address are free."""
    notes = json.loads(NOTES.read_text())
    assert boot_id() != notes["boot"]
    server = RebootedServer()
    server.start()
    items = server.client.runtime("ListPodSandbox", m.ListPodSandboxRequest()).items
    assert notes["sandbox"] not in {item.id for item in items}, items
    assert not server.client.runtime("ListContainers", m.ListContainersRequest()).containers
    wait_until(lambda: not server.left_behind() and addresses(server) == 0, "a node without the pod")
    again = server.run_pod_config(pod_config("steady", server.logs))
    assert addresses(server) == 1
    server.remove_pod(again)
    server.terminate()


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def addresses(server: Server) -> int:
    """How many pods have one, by the bridge network's records."""
    database = sqlite3.connect(f"file:{server.root / 'network.db'}?mode=ro", uri=True)
    (count,) = database.execute("SELECT count(*) FROM address").fetchone()
    database.close()
    return int(count)


if __name__ == "__main__":
    {"before": before, "after": after}[sys.argv[1]]()
    sys.stdout.flush()
    os._exit(0)  # the server of the first half stays
