"""What belongs to nobody is found and freed, and nothing else is; what cannot be freed is tried again."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import detect
from crishim.cgroups.planned import CgroupPlan
from crishim.cri.client import messages as m
from crishim.network.names import BridgeNames
from crishim.spec.cgroup import container_cgroup, pod_cgroup
from tests.support.faults import PATIENCE_S, counter, monitor_of, pids_of, server_with_image
from tests.support.server import NEEDS_SERVER, Server, pod_config, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")

GONE = "0" * 63
CYCLES = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = "[gc]\ninterval_s = 0\n[stop]\nkill_wait_s = 2.0\n"
    with server_with_image(tmp_path_factory.mktemp("garbage") / "node", config=config) as server:
        yield server


def gc(server: Server, *options: str) -> tuple[int, dict[str, Any]]:
    """(exit status, report) of `crishim gc`."""
    command = [sys.executable, "-m", "crishim", "gc", "--json", "--address", server.address, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def told(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    return sorted((each["kind"], each["name"], each["outcome"]) for each in report["leftovers"])


def shown(server: Server) -> list[dict[str, Any]]:
    """What a verbose Status has of leftovers."""
    info = server.client.runtime("Status", m.StatusRequest(verbose=True)).info
    found = json.loads(info["leftovers"])
    assert isinstance(found, list)
    return found


class Planted:
    """Something that a server or another program may have left; each method gives kind and name of the finding."""

    def __init__(self, server: Server, live: str) -> None:
        self.server = server
        #: a sandbox that lives
        self.live = live
        self.processes: list[subprocess.Popen[bytes]] = []

    def process_in(self, path: str, program: str = "sleep") -> subprocess.Popen[bytes]:
        """A process of a new cgroup, or of one that is there."""
        hierarchy = detect()
        effects.create(hierarchy, CgroupPlan(path, []))
        process = subprocess.Popen([program, "1000"])
        effects.join(hierarchy, path, process.pid)
        self.processes.append(process)
        return process

    def cgroup_of_a_sandbox(self) -> tuple[str, str]:
        path = pod_cgroup("", self.server.cgroup, f"{GONE}1", self.server.driver)
        self.process_in(path)
        self.process_in(container_cgroup(path, f"{GONE}2", self.server.driver))
        return "cgroup", path

    def frozen_cgroup_of_a_container(self) -> tuple[str, str]:
        path = self.server.container_cgroup(self.live, f"{GONE}3")
        self.process_in(path)
        effects.freeze(detect(), path)
        return "cgroup", path

    def process_among_monitors(self) -> tuple[str, str]:
        program = self.server.directory / "crishim-stray"
        shutil.copy("/bin/sleep", program)
        process = self.process_in(self.server.monitors_cgroup, str(program))
        return "process", f"crishim-stray {process.pid}"

    def pin(self) -> tuple[str, str]:
        path = Path(f"/run/netns/crishim-{self.server.instance}-{GONE}4")
        path.touch()
        for _ in range(2):
            subprocess.run(["mount", "--bind", "/proc/self/ns/net", str(path)], check=True)
        return "netns", str(path)

    def pin_without_a_mount(self) -> tuple[str, str]:
        path = Path(f"/run/netns/crishim-{self.server.instance}-{GONE}5")
        path.touch()
        return "netns", str(path)

    def device(self) -> tuple[str, str]:
        names = BridgeNames.of(self.server.instance)
        self.server.in_netns("ip", "link", "add", "crv0123456789ab", "type", "veth", "peer", "strange")
        self.server.in_netns("ip", "link", "set", "crv0123456789ab", "master", names.bridge)
        return "network", "device crv0123456789ab"

    def rule(self) -> tuple[str, str]:
        names = BridgeNames.of(self.server.instance)
        self.server.in_netns("nft", "add", "element", "inet", names.table, "pods4", "{ 10.209.0.77 }")
        return "network", "rule pods4 10.209.0.77"

    def host_port(self) -> tuple[str, str]:
        names = BridgeNames.of(self.server.instance)
        element = "{ tcp . 8099 : 10.209.0.77 . 80 }"
        self.server.in_netns("nft", "add", "element", "inet", names.table, "ports4", element)
        return "network", "rule ports4 tcp 8099"

    def address(self) -> tuple[str, str]:
        with closing(sqlite3.connect(self.server.root / "network.db", timeout=10)) as database:
            database.execute("INSERT INTO address VALUES ('10.209.0.78', '10.209.0.0/24', ?)", (f"{GONE}6",))
            database.commit()
        return "network", "address 10.209.0.78"

    def sandbox_directory(self) -> tuple[str, str]:
        path = self.server.state / "sandboxes" / f"{GONE}7"
        (path / "files").mkdir(parents=True)
        (path / "files" / "hosts").write_text("x")
        return "sandbox_directory", str(path)

    def container_files(self) -> tuple[str, str]:
        path = self.server.state / "sandboxes" / self.live
        (path / "specs" / f"{GONE}8").write_text("{}")
        return "container_files", f"{path}/*/{GONE}8"

    def mount_and_root(self) -> tuple[str, str]:
        path = self.server.root / "containers" / f"{GONE}9" / "upper"
        path.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(path)], check=True)
        return "mount", str(path)

    def root(self) -> tuple[str, str]:
        path = self.server.root / "containers" / f"{GONE}a"
        (path / "upper" / "etc").mkdir(parents=True)
        return "rootfs", str(path)

    def seccomp_filter(self) -> tuple[str, str]:
        (self.server.state / "filters").mkdir(exist_ok=True)
        (self.server.state / "filters" / f"{GONE}b").write_bytes(b"x")
        return "filter", f"{GONE}b"

    def layer(self) -> tuple[str, str]:
        (self.server.root / "layers" / "new-99" / "usr").mkdir(parents=True)
        return "layer", "new-99"

    def blob(self) -> tuple[str, str]:
        path = self.server.root / "images" / "partial" / "sha256-77"
        path.write_bytes(b"x")
        os.utime(path, (1, 1))
        return "blob", "partial/sha256-77"

    def archive(self) -> tuple[str, str]:
        (self.server.root / "images" / "spool" / "tmp7" / "layer").mkdir(parents=True)
        return "spool", "images/spool/tmp7"

    def spool_file(self) -> tuple[str, str]:
        (self.server.root / "tmpabcdefgh").write_bytes(b"x")
        return "spool", "tmpabcdefgh"

    def reservation(self) -> tuple[str, str]:
        with closing(sqlite3.connect(self.server.root / "crishim.db", timeout=10)) as database:
            row = (f"{GONE}c", "cut", "tests", "uid-cut", 0, None, "host", b"{}", "", "", "boot", b"{}")
            database.execute(f"INSERT INTO sandbox VALUES ({', '.join('?' * 12)})", row)
            database.commit()
        return "sandbox", f"{GONE}c"

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


KINDS = (
    *(Planted.cgroup_of_a_sandbox, Planted.frozen_cgroup_of_a_container, Planted.process_among_monitors),
    *(Planted.pin, Planted.pin_without_a_mount, Planted.device, Planted.rule, Planted.host_port),
    *(Planted.address, Planted.sandbox_directory, Planted.container_files, Planted.mount_and_root, Planted.root),
    *(Planted.seccomp_filter, Planted.layer, Planted.blob, Planted.archive, Planted.spool_file, Planted.reservation),
)


def test_each_kind_is_found_by_a_dry_run_and_freed_by_a_collection(server: Server) -> None:
    sandbox, pod = server.run_pod("lives")
    container = server.started(sandbox, pod)
    assert gc(server) == (0, {"dry_run": False, "leftovers": [], "problems": [], "seconds": pytest.approx(0, abs=30)})
    planted = Planted(server, sandbox)
    try:
        expected = sorted(plant(planted) for plant in KINDS)
        #: the root that the mount was in is one more, once nothing is mounted there
        root = ("rootfs", str(server.root / "containers" / f"{GONE}9"))
        reaper = threading.Thread(target=lambda: [each.wait() for each in planted.processes])
        reaper.start()  # the parent of the processes is not the server: they are gone when it has seen their end

        status, report = gc(server, "--dry-run")
        assert (status, report["problems"]) == (1, [])
        assert told(report) == sorted((kind, name, "found") for kind, name in [*expected, root])
        assert {(each["kind"], each["name"]) for each in shown(server)} == {*expected, root}
        assert counter(server, 'crishim_leftovers{kind="cgroup"}') == 2

        status, report = gc(server)
        assert told(report) == sorted((kind, name, "freed") for kind, name in [*expected, root])
        assert status == 0
        reaper.join(PATIENCE_S)
        assert [each.returncode for each in planted.processes] == [-9] * len(planted.processes)
        assert gc(server, "--dry-run")[0] == 0
        assert shown(server) == []
        assert counter(server, 'crishim_leftovers{kind="cgroup"}') == 0
        assert counter(server, 'crishim_leftovers_freed_total{kind="network"}') == 4
        assert server.exec(container, "true").exit_code == 0, "what lives goes on"
        server.remove_pod(sandbox)
        assert server.left_behind() == []
        assert not list((server.root / "layers").glob("new-*"))
        assert not list((server.root / "images" / "partial").iterdir())
        assert not (server.root / "tmpabcdefgh").exists()
        assert not (server.state / "filters" / f"{GONE}b").exists()
        rules = server.in_netns("nft", "list", "ruleset")
        assert "10.209.0.77" not in rules and "8099" not in rules
    finally:
        planted.close()


def test_the_command_speaks_to_people(server: Server) -> None:
    def spoken(*options: str) -> tuple[int, list[str]]:
        command = [sys.executable, "-m", "crishim", "gc", "--address", server.address, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        return done.returncode, (done.stdout or done.stderr).splitlines()

    assert spoken() == (0, ["Nothing is left behind."])
    Planted(server, "").spool_file()
    status, lines = spoken("--dry-run")
    assert (status, lines[0].split()) == (1, ["KIND", "NAME", "OF", "SINCE", "OUTCOME", "ATTEMPTS", "WHY"])
    assert lines[1].startswith("spool  tmpabcdefgh") and lines[1].endswith("nobody reads it")
    assert lines[2:] == ["1 would be freed."]
    stuck = subprocess.run(
        [sys.executable, "-m", "crishim", "stuck", "--address", server.address], capture_output=True, text=True
    )
    assert "tmpabcdefgh" in stuck.stdout
    status, lines = spoken()
    assert (status, lines[-1]) == (0, "1 freed.")
    status, lines = spoken("--address", "unix:///nowhere/crishim.sock")
    assert (status, lines) == (1, ["crishim: no server answers on unix:///nowhere/crishim.sock"])


def test_what_belongs_to_others_is_not_touched(server: Server) -> None:
    parent = f"/crishim-test-{server.instance}"
    linux = m.LinuxPodSandboxConfig(cgroup_parent=f"{parent}/pod1")
    hierarchy = detect()
    effects.create(hierarchy, CgroupPlan(f"{parent}/pod1", []))
    sandbox, _ = server.run_pod("beside", linux=linux)
    planted = Planted(server, sandbox)
    pins = [Path(f"/run/netns/crishim-{server.instance}-{name}") for name in (f"0123abcd-{GONE}1", "hand-made")]
    try:
        planted.process_in(f"{parent}/pod1/{GONE}2")  # a container of another runtime in the pod's cgroup
        planted.process_in(f"/crishim-{server.instance}.slice.other/pods/{GONE}3")
        planted.process_in(server.monitors_cgroup)  # a daemon of a hook
        for pin in pins:
            pin.touch()
        server.in_netns("ip", "link", "add", "crv111111111111", "type", "veth", "peer", "strange")
        status, report = gc(server)
        assert (status, told(report)) == (0, [])
        assert all(each.poll() is None for each in planted.processes)
        assert all(pin.exists() for pin in pins)
        assert "crv111111111111" in server.in_netns("ip", "-br", "link")
    finally:
        planted.close()
        for pin in pins:
            pin.unlink(missing_ok=True)
        server.in_netns("ip", "link", "del", "crv111111111111")
        server.remove_pod(sandbox)
        for path in (parent, f"/crishim-{server.instance}.slice.other"):
            wait_until(lambda path=path: effects.remove(hierarchy, path), "their end")  # type: ignore[misc]


def test_the_cgroup_of_a_container_that_exited_is_freed_with_what_is_in_it(server: Server) -> None:
    sandbox, pod = server.run_pod("exited")
    container = server.started(sandbox, pod, "true")
    server.exited(container)
    planted = Planted(server, sandbox)
    try:
        path = server.container_cgroup(sandbox, container)
        process = planted.process_in(path)
        reaper = threading.Thread(target=process.wait)
        reaper.start()
        status, report = gc(server)
        assert (status, told(report)) == (0, [("cgroup", path, "freed")])
        reaper.join(PATIENCE_S)
        assert server.container_cgroups(container) == []
    finally:
        planted.close()
        server.remove_pod(sandbox)


def test_a_socket_that_nobody_listens_on_goes(server: Server) -> None:
    sandbox, _ = server.run_pod("stopped")
    server.stop_pod(sandbox)
    path = server.state / "sandboxes" / sandbox / "monitor.sock"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as stale:
        stale.bind(f"/proc/self/fd/{(fd := os.open(path.parent, os.O_PATH))}/monitor.sock")
        os.close(fd)
    status, report = gc(server)
    assert (status, told(report)) == (0, [("socket", str(path), "freed")])
    server.remove_pod(sandbox)


def test_what_a_living_pod_lacks_is_said_and_not_made_up(server: Server) -> None:
    sandbox, pod = server.run_pod("lacking")
    container = server.started(sandbox, pod)
    pin = f"/run/netns/crishim-{server.instance}-{sandbox}"
    subprocess.run(["umount", pin], check=True)
    (port,) = [line.split("@")[0] for line in server.in_netns("ip", "-br", "link").splitlines() if "crv" in line]
    server.in_netns("ip", "link", "del", port)
    status, report = gc(server)
    assert status == 1
    assert told(report) == [("netns", pin, "said"), ("network", f"network of {sandbox}", "said")]
    assert all(each["missing"] for each in report["leftovers"])
    assert server.exec(container, "true").exit_code == 0
    assert server.client.runtime(
        "PodSandboxStatus", m.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
    ).status.state == (m.SANDBOX_READY)
    server.remove_pod(sandbox)
    assert gc(server)[0] == 0


def test_a_lost_state_directory_leaves_no_monitor_and_no_container(tmp_path: Path) -> None:
    with server_with_image(tmp_path / "node") as server:
        parent = f"/crishim-test-{server.instance}"
        effects.create(detect(), CgroupPlan(f"{parent}/pod1", []))
        sandbox, pod = server.run_pod("lost", linux=m.LinuxPodSandboxConfig(cgroup_parent=f"{parent}/pod1"))
        container = server.started(sandbox, pod)
        assert monitor_of(server, sandbox)
        server.kill()
        for path in sorted((server.state / "sandboxes").glob("**/*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (server.state / "sandboxes").rmdir()
        server.start()
        assert server.monitors() == []
        assert pids_of(server, container) == set()
        assert wait_until(lambda: not [each for each in server.left_behind() if "pod1" not in each], "an empty node")
        wait_until(lambda: effects.remove(detect(), parent), "the end of the pod's cgroup")


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """A file that nobody can remove meanwhile."""
    subprocess.run(["chattr", "+i", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


def test_what_cannot_be_freed_rests_is_tried_again_and_counted(tmp_path: Path) -> None:
    with server_with_image(tmp_path / "node", config="[gc]\ninterval_s = 0.2\n") as server:

        def failures() -> float:
            return counter(server, 'crishim_leftover_failures_total{kind="rootfs"}')

        planted = Planted(server, "")
        _, path = planted.root()
        file = Path(path) / "upper" / "etc" / "shadow"
        file.touch()
        with immutable(file):
            wait_until(lambda: failures() == 1, "a failed attempt", PATIENCE_S)
            checks = counter(server, "crishim_leftover_check_seconds_count")
            wait_until(
                lambda: counter(server, "crishim_leftover_check_seconds_count") > checks + 3, "more checks", PATIENCE_S
            )
            assert failures() == 1, "it rests"
            assert counter(server, 'crishim_leftovers{kind="rootfs"}') == 1
            status, report = gc(server)
            assert (status, told(report)) == (1, [("rootfs", path, "failed")])
            (entry,) = report["leftovers"]
            assert entry["attempts"] == failures() == 2
            assert "Operation not permitted" in entry["error"]

            server.kill()
            server.start()  # which tries it once more
            (again,) = shown(server)
            assert (again["name"], again["attempts"], again["outcome"]) == (path, 3, "failed")
            assert again["since_ns"] == entry["since_ns"]
        status, report = gc(server)
        assert (status, told(report)) == (0, [("rootfs", path, "freed")])
        assert shown(server) == []


def test_pods_that_come_and_go_are_never_taken_for_leftovers(tmp_path: Path) -> None:
    config = "[gc]\ninterval_s = 0.1\n"
    with server_with_image(tmp_path / "node", config=config) as server:
        failed: list[BaseException] = []
        done = threading.Event()

        def cycle(worker: int) -> None:
            try:
                for number in range(worker, CYCLES, 3):
                    config = pod_config(f"pod{number}", server.logs)
                    config.port_mappings.append(
                        m.PortMapping(protocol=m.TCP, container_port=80, host_port=21000 + number)
                    )
                    sandbox = server.run_pod_config(config)
                    container = server.started(sandbox, config)
                    assert server.exec(container, "true").exit_code == 0
                    server.started(sandbox, config, "true", name="short")
                    server.stop(container, 0)
                    if number % 2:
                        server.remove(container)
                    server.remove_pod(sandbox)
            except BaseException as error:
                failed.append(error)

        workers = [threading.Thread(target=cycle, args=(number,)) for number in range(3)]
        server.client.runtime("Version", m.VersionRequest())
        for worker in workers:
            worker.start()
        looks = 0
        while any(worker.is_alive() for worker in workers):
            report = json.loads(server.client.collect_garbage(dry_run=True))
            assert (report["leftovers"], report["problems"]) == ([], [])
            looks += 1
        done.set()
        assert failed == []
        assert looks > 10
        wait_until(lambda: counter(server, "crishim_leftover_check_seconds_count") > 3, "a check", PATIENCE_S)
        freed = [line for line in server.metrics().splitlines() if line.startswith("crishim_leftovers_freed_total")]
        assert freed == []
