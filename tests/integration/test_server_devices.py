"""Devices and hooks through the CRI socket of a real server: CDI devices, hook directories, device nodes."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cri.client import messages as m
from crishim.errors import CrishimError
from tests.support.faults import server_with_image
from tests.support.server import NEEDS_SERVER, Server, container_config, pod_config, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")

FUSE = (10, 229)


def hook(script: str) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("devices")
    for name in ("cdi", "hooks.d", "marks"):
        (directory / name).mkdir()
    config = f"""
[containers]
cdi_dirs = ["{directory}/cdi"]
hook_dirs = ["{directory}/hooks.d"]
device_ownership_from_security_context = true
"""
    with server_with_image(directory / "node", config=config) as server:
        yield server


@pytest.fixture
def place(server: Server) -> Path:
    return server.directory.parent


@pytest.fixture
def pod(server: Server) -> Iterator[tuple[str, Any]]:
    made = server.run_pod("devices")
    yield made
    server.remove_pod(made[0])


def write_cdi(place: Path, **edits: Any) -> None:
    document = {
        "cdiVersion": "0.7.0",
        "kind": "test.crishim/thing",
        "devices": [{"name": "0", "containerEdits": edits}],
    }
    (place / "cdi" / "new").write_text(json.dumps(document))
    os.replace(place / "cdi" / "new", place / "cdi" / "test.json")


def with_thing(**changes: Any) -> Any:
    config = container_config("sleep", "1000", **changes)
    config.CDI_devices.add(name="test.crishim/thing=0")
    return config


def test_a_cdi_device_is_all_of_its_edits(server: Server, pod: tuple[str, Any], place: Path) -> None:
    (place / "lib").write_text("driver\n")
    write_cdi(
        place,
        env=["THING=0"],
        deviceNodes=[
            {
                "path": "/dev/things/thing0",
                "type": "c",
                "major": FUSE[0],
                "minor": FUSE[1],
                "permissions": "r",
                "fileMode": 0o640,
                "gid": 44,
            }
        ],
        mounts=[{"hostPath": f"{place}/lib", "containerPath": "/usr/lib/driver", "options": ["ro", "nosuid", "bind"]}],
        additionalGids=[4242],
        hooks=[
            {"hookName": "createContainer"}
            | hook('r=$(sed \'s/.*"bundle":"\\([^"]*\\)".*/\\1/\')/rootfs; ln -s driver $r/usr/lib/driver.1'),
            {"hookName": "poststop"} | hook(f"cat > {place}/marks/end"),
        ],
    )
    container = server.create_config(*pod, with_thing(name="cdi"))
    server.start_container(container)
    assert server.sh(container, "echo $THING; cat /usr/lib/driver.1; id -G") == "0\ndriver\n0 4242\n"
    assert server.sh(container, "ls -ln /dev/things/thing0").split()[:6] == ["crw-r-----", "1", "0", "44", "10,", "229"]
    assert server.sh(container, "touch /usr/lib/driver 2>&1 || true").strip().endswith("Read-only file system")
    assert server.sh(container, "exec 3< /dev/things/thing0 && echo read") == "read\n"
    assert "not permitted" in server.sh(container, "(exec 3<> /dev/things/thing0) 2>&1 || true")
    assert list(server.status(container).user.linux.supplemental_groups) == [0, 4242]
    server.stop(container, 0)
    server.remove(container)
    state = json.loads((place / "marks" / "end").read_text())
    assert (state["id"], state["status"]) == (container, "stopped")
    assert state["annotations"]["io.kubernetes.cri.sandbox-id"] == pod[0]
    assert not list(Path(server.state).glob("sandboxes/*/bundles/*"))


def test_an_unknown_device_is_refused_with_its_name(server: Server, pod: tuple[str, Any], place: Path) -> None:
    write_cdi(place)
    config = with_thing(name="unknown")
    config.CDI_devices.add(name="test.crishim/thing=none")
    with pytest.raises(CrishimError, match=r"CDI device 'test.crishim/thing=none' is in no document"):
        server.create_config(*pod, config)


def test_annotations_choose_no_device(server: Server, pod: tuple[str, Any], place: Path) -> None:
    write_cdi(place, env=["THING=0"])
    config = container_config("sleep", "1000", name="annotated")
    config.annotations["cdi.k8s.io/x"] = "test.crishim/thing=0"
    container = server.create_config(*pod, config)
    server.start_container(container)
    assert server.sh(container, "echo [$THING]") == "[]\n"


def test_a_hook_that_fails_is_the_message_of_the_container(server: Server, pod: tuple[str, Any], place: Path) -> None:
    write_cdi(place, hooks=[{"hookName": "createRuntime"} | hook("echo no such card; exit 9")])
    container = server.create_config(*pod, with_thing(name="failing"))
    with pytest.raises(CrishimError, match='createRuntime hook 0 "/bin/sh": exit code 9: no such card'):
        server.start_container(container)
    status = server.status(container)
    assert (status.state, status.reason) == (m.CONTAINER_EXITED, "StartError")
    assert "no such card" in status.message


def test_a_stop_ends_a_start_whose_hook_hangs(server: Server, pod: tuple[str, Any], place: Path) -> None:
    fifo = place / "hanging"
    os.mkfifo(fifo)
    write_cdi(place, hooks=[{"hookName": "prestart"} | hook(f"echo > {fifo}; exec sleep 1000")])
    container = server.create_config(*pod, with_thing(name="hanging"))
    failed: list[str] = []

    def start() -> None:
        try:
            server.start_container(container)
        except CrishimError as error:
            failed.append(str(error))

    starting = threading.Thread(target=start)
    starting.start()
    fifo.read_text()
    server.stop(container, 0)
    starting.join(30)
    assert len(failed) == 1
    assert server.exited(container).reason == "StartError"


def test_hooks_of_a_directory_are_for_containers_that_match(server: Server, pod: tuple[str, Any], place: Path) -> None:
    rule = {
        "version": "1.0.0",
        "hook": hook(f'touch {place}/marks/$(sed \'s/.*cri.container-name":"\\([^"]*\\)".*/\\1/\')'),
        "when": {"annotations": {"^example.org/hooked$": "^yes$"}},
        "stages": ["poststart"],
    }
    (place / "hooks.d" / "10-test.json").write_text(json.dumps(rule))
    for name, value in (("hooked", "yes"), ("free", "no")):
        config = container_config("sleep", "1000", name=name)
        config.annotations["example.org/hooked"] = value
        server.start_container(server.create_config(*pod, config))
    (place / "hooks.d" / "10-test.json").unlink()
    assert (place / "marks" / "hooked").exists()
    assert not (place / "marks" / "free").exists()


def poststop_container(server: Server, pod: tuple[str, Any], place: Path, name: str) -> tuple[str, Path, int]:
    mark = place / "marks" / name
    write_cdi(place, hooks=[{"hookName": "poststop"} | hook(f"cat > {mark}.new; mv {mark}.new {mark}")])
    container = server.create_config(*pod, with_thing(name=name))
    server.start_container(container)
    request = m.ContainerStatusRequest(container_id=container, verbose=True)
    info = json.loads(server.client.runtime("ContainerStatus", request).info["info"])
    return container, mark, int(info["pid"])


def test_the_hooks_after_the_end_run_while_no_server_does(server: Server, pod: tuple[str, Any], place: Path) -> None:
    container, mark, pid = poststop_container(server, pod, place, "serverless")
    server.kill()
    os.kill(pid, signal.SIGKILL)
    wait_until(mark.exists, "the mark of a hook")
    server.start()
    assert server.exited(container).exit_code == 137


def test_the_hooks_after_the_end_run_when_the_monitor_dies(server: Server, pod: tuple[str, Any], place: Path) -> None:
    container, mark, _ = poststop_container(server, pod, place, "monitorless")
    for monitor in server.monitors():
        os.kill(monitor, signal.SIGKILL)
    wait_until(mark.exists, "the mark of a hook")
    assert json.loads(mark.read_text())["id"] == container
    server.exited(container)


def test_the_hooks_after_the_end_run_once_after_a_reboot_that_the_state_outlived(
    server: Server, pod: tuple[str, Any], place: Path
) -> None:
    container, mark, _ = poststop_container(server, pod, place, "rebooted")
    server.kill()
    server.pretend_reboot()
    server.start()
    wait_until(mark.exists, "the mark of a hook")
    assert json.loads(mark.read_text())["id"] == container
    mark.unlink()
    server.terminate()
    server.start()
    assert server.exited(container).reason
    assert not mark.exists()


# -- devices of the request


def test_a_directory_of_devices_is_all_nodes_below_it_and_links_are_followed(
    server: Server, pod: tuple[str, Any], place: Path
) -> None:
    nodes = place / "nodes"
    (nodes / "sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        os.mknod(nodes / name, stat.S_IFCHR | 0o600, os.makedev(*FUSE))
    (nodes / "plain").write_text("no device")
    (nodes / "link").symlink_to("/dev/sda")
    (place / "by-id").symlink_to(nodes / "a")
    config = container_config("sleep", "1000", name="directory")
    config.devices.add(container_path="/dev/all", host_path=str(nodes), permissions="rw")
    config.devices.add(container_path="/dev/one", host_path=str(place / "by-id"), permissions="r")
    container = server.create_config(*pod, config)
    server.start_container(container)
    assert server.sh(container, "cd /dev/all && find . -type c | sort") == "./a\n./sub/b\n"
    assert server.sh(container, "ls /dev/all") == "a\nsub\n"
    assert re.match(r"crw-------\s+1\s+0\s+0\s+10,\s+229", server.sh(container, "ls -ln /dev/one"))
    assert server.sh(container, "exec 3<> /dev/all/sub/b && echo opened") == "opened\n"


def test_a_device_belongs_to_the_user_where_the_configuration_says_so(server: Server, pod: tuple[str, Any]) -> None:
    config = container_config("sleep", "1000", name="owner")
    config.devices.add(container_path="/dev/mine", host_path="/dev/null", permissions="rw")
    config.linux.security_context.run_as_user.value = 1000
    config.linux.security_context.run_as_group.value = 2000
    container = server.create_config(*pod, config)
    server.start_container(container)
    assert server.sh(container, "ls -ln /dev/mine").split()[2:4] == ["1000", "2000"]
    assert server.sh(container, "ls -ln /dev/null").split()[2:4] == ["0", "0"]


def test_devices_of_a_pod_in_a_user_namespace_are_those_of_the_host(server: Server, place: Path) -> None:
    maps = [m.IDMapping(host_id=300_000, container_id=0, length=65536)]
    pod = pod_config("user", server.logs)
    user = m.UserNamespace(mode=m.POD, uids=maps, gids=maps)
    pod.linux.security_context.namespace_options.userns_options.CopyFrom(user)
    sandbox = server.run_pod_config(pod)
    write_cdi(place, deviceNodes=[{"path": "/dev/given", "hostPath": "/dev/null"}])
    config = with_thing(name="user")
    config.devices.add(container_path="/dev/mine", host_path="/dev/zero", permissions="rw")
    config.linux.security_context.namespace_options.userns_options.CopyFrom(user)
    container = server.create_config(sandbox, pod, config)
    server.start_container(container)
    assert server.sh(container, "head -c 2 /dev/mine | od -An -tx1; echo lost > /dev/given && echo written") == (
        " 00 00\nwritten\n"
    )
    assert server.sh(container, "cat /proc/self/uid_map").split()[1] == "300000"
    server.remove_pod(sandbox)
