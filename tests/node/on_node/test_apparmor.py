"""AppArmor on a node that has it: profiles that pods name, and the default one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cri.client import messages as m
from crishim.errors import CrishimError
from tests.node.service import SystemdService
from tests.support.server import container_config

pytestmark = pytest.mark.skipif(
    not Path("/sys/kernel/security/apparmor/profiles").exists() or os.geteuid() != 0,
    reason="AppArmor is not enabled, or root is missing",
)

PROFILE = "crishim-node-test"


@pytest.fixture
def server(systemd_server: SystemdService) -> SystemdService:
    return systemd_server


@pytest.fixture
def profile(tmp_path: Path) -> Iterator[str]:
    """A loaded AppArmor profile that lets a container do all but write below /tmp/denied."""
    source = tmp_path / "profile"
    rules = "file, capability, network, signal, unix, deny /tmp/denied/** w,"
    source.write_text(f"profile {PROFILE} flags=(attach_disconnected,mediate_deleted) {{ {rules} }}\n")
    subprocess.run(["apparmor_parser", "--replace", "--skip-cache", str(source)], check=True, timeout=600)
    yield PROFILE
    subprocess.run(["apparmor_parser", "--remove", str(source)], check=True, timeout=600)


def with_apparmor(kind: Any, reference: str = "") -> Any:
    config = container_config("sleep", "1000")
    config.linux.security_context.apparmor.CopyFrom(m.SecurityProfile(profile_type=kind, localhost_ref=reference))
    config.linux.security_context.no_new_privs = True  # which must not keep the profile from coming into force
    return config


def test_a_loaded_apparmor_profile_confines_init_and_execs(server: SystemdService, profile: str) -> None:
    sandbox, pod = server.run_pod("apparmor")
    container = server.create_config(sandbox, pod, with_apparmor(m.SecurityProfile.Localhost, profile))
    server.start_container(container)
    assert server.sh(container, "cat /proc/1/attr/current /proc/self/attr/current") == f"{profile} (enforce)\n" * 2
    script = "mkdir -p /tmp/denied; echo x > /tmp/allowed && ! echo x > /tmp/denied/file"
    assert server.exec(container, "sh", "-c", script).exit_code == 0
    server.remove_pod(sandbox)


def test_a_profile_that_is_not_loaded_is_refused(server: SystemdService, profile: str) -> None:
    sandbox, pod = server.run_pod("missing")
    with pytest.raises(CrishimError, match="no-such-profile"):
        container = server.create_config(
            sandbox, pod, with_apparmor(m.SecurityProfile.Localhost, "localhost/no-such-profile")
        )
        server.start_container(container)
    server.remove_pod(sandbox)


def started_with(server: SystemdService, sandbox: str, pod: Any, config: Any) -> str:
    container = server.create_config(sandbox, pod, config)
    server.start_container(container)
    return container


def test_containers_without_a_profile_of_their_own_have_ours(server: SystemdService) -> None:
    sandbox, pod = server.run_pod("default")
    for number, kind in enumerate((m.SecurityProfile.RuntimeDefault, None)):
        config = container_config("sleep", "1000") if kind is None else with_apparmor(kind)
        config.metadata.name = f"c{number}"
        container = started_with(server, sandbox, pod, config)
        profiles = server.sh(container, "cat /proc/1/attr/current /proc/self/attr/current")
        assert profiles == "crishim-default (enforce)\n" * 2, "init and exec"
    server.remove_pod(sandbox)


def test_an_unconfined_container_has_no_profile(server: SystemdService) -> None:
    sandbox, pod = server.run_pod("unconfined")
    container = started_with(server, sandbox, pod, with_apparmor(m.SecurityProfile.Unconfined))
    assert server.sh(container, "cat /proc/1/attr/current").strip() == "unconfined"
    server.remove_pod(sandbox)


#: (what is done, by a root with all capabilities whose /proc and /sys are writable; how it ends without the profile)
FORBIDDEN = (
    "echo h > /proc/sysrq-trigger",
    "echo 1 > /proc/sys/vm/drop_caches",
    "cat /proc/sys/kernel/core_pattern > /proc/sys/kernel/core_pattern",
    "cat /sys/kernel/mm/ksm/run > /sys/kernel/mm/ksm/run",
    "cat /sys/kernel/security/lsm",
    "mount -t tmpfs tmpfs /mnt",
)


def open_container(name: str, profile: Any) -> Any:
    """All capabilities, no filter, nothing masked or read-only: AppArmor alone stands before the node."""
    config = with_apparmor(profile)
    config.metadata.name = name
    security = config.linux.security_context
    security.no_new_privs = False
    security.capabilities.add_capabilities.append("ALL")
    security.seccomp.profile_type = m.SecurityProfile.Unconfined
    del security.masked_paths[:], security.readonly_paths[:]
    config.mounts.add(host_path="/sys", container_path="/sys")
    return config


def test_the_default_profile_alone_keeps_a_root_from_the_node(server: SystemdService) -> None:
    sandbox, pod = server.run_pod("open")
    free = started_with(server, sandbox, pod, open_container("free", m.SecurityProfile.Unconfined))
    confined = started_with(server, sandbox, pod, open_container("confined", m.SecurityProfile.RuntimeDefault))
    for script in FORBIDDEN:
        without = server.exec(free, "sh", "-c", f"mkdir -p /mnt; {script}")
        assert without.exit_code == 0, (script, without.stderr)
        within = server.exec(confined, "sh", "-c", f"mkdir -p /mnt; {script}")
        assert within.exit_code != 0 and b"denied" in within.stderr, (script, within.stderr)
    allowed = "echo x > /tmp/file && kill -0 1 && cat /proc/1/environ > /dev/null"
    ended = server.exec(confined, "sh", "-c", allowed)
    assert ended.exit_code == 0, ended.stderr
    server.remove_pod(sandbox)


def test_a_default_profile_that_was_unloaded_is_loaded_again(server: SystemdService) -> None:
    remove = ["apparmor_parser", "--remove", str(server.root / "apparmor/crishim-default")]
    subprocess.run(remove, check=True, timeout=600)
    sandbox, pod = server.run_pod("reloaded")
    container = started_with(server, sandbox, pod, container_config("sleep", "1000"))
    assert server.sh(container, "cat /proc/1/attr/current") == "crishim-default (enforce)\n"
    server.remove_pod(sandbox)
