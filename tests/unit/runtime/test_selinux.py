"""What the node's SELinux is found to be, and which level each pod gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crishim.errors import InvalidSpec, Unsupported
from crishim.model.sandbox import PodLabels, Sandbox, SandboxConfig, SandboxSecurity, SandboxState, SELinuxOptions
from crishim.runtime.selinux import SELinux, contexts_of
from crishim.spec.selinux import categories

SANDBOX = Sandbox("s1", SandboxConfig("pod", "uid", "ns"), SandboxState.READY, 1)


def node(
    directory: Path,
    mode: str = "auto",
    *,
    mls: str = "1",
    ours: str = "system_u:system_r:init_t:s0",
    named: str = "",
    refused: Callable[[str], str] = lambda context: "",
) -> SELinux:
    fs, etc = directory / "selinuxfs", directory / "etc"
    fs.mkdir()
    (fs / "enforce").write_text("1")
    (fs / "mls").write_text(mls)
    (directory / "current").write_text(ours)
    if named:
        (etc / "targeted/contexts").mkdir(parents=True)
        (etc / "config").write_text("# comment\nSELINUX=enforcing\nSELINUXTYPE=targeted\n")
        (etc / "targeted/contexts/lxc_contexts").write_text(named)
    return SELinux(mode, selinuxfs=fs, etc=etc, ours=directory / "current", why_refused=refused)


def prepared(directory: Path, mode: str = "auto", **changes: object) -> SELinux:
    found = node(directory, mode, **changes)  # type: ignore[arg-type]
    found.prepare()
    return found


def pod(name: str, level: str = "", asked: SELinuxOptions | None = None) -> Sandbox:
    labels = PodLabels(f"u:r:t:{level}", f"u:object_r:f:{level}") if level else None
    config = replace(SANDBOX.config, security=SandboxSecurity(selinux=asked))
    return replace(SANDBOX, id=name, config=config, selinux=labels)


def test_a_node_without_selinux_gives_no_labels_and_has_no_problem(tmp_path: Path) -> None:
    found = SELinux("auto", selinuxfs=tmp_path / "nothing")
    found.prepare()
    assert (found.enabled, found.defaults, found.problem) == (False, None, "")
    with found.labelled(SANDBOX, list) as sandbox:
        assert sandbox is SANDBOX


def test_labels_that_are_switched_off_are_not_looked_for(tmp_path: Path) -> None:
    found = prepared(tmp_path, "off")
    assert (found.enabled, found.defaults, found.problem) == (True, None, "")


def test_on_means_on_or_no_start(tmp_path: Path) -> None:
    without = SELinux("on", selinuxfs=tmp_path / "nothing")
    with pytest.raises(Unsupported, match=r'^server.selinux: "on", but SELinux is not enabled on this node$'):
        without.prepare()
    with pytest.raises(Unsupported, match=r'^server.selinux: "on", but the policy has no context'):
        prepared(tmp_path, "on", refused=lambda context: "no")


def test_the_policys_file_names_the_contexts(tmp_path: Path) -> None:
    named = 'process = "system_u:system_r:pod_t:s0"\n# x\nfile = "system_u:object_r:pod_file_t:s0"\nother\n'
    found = prepared(tmp_path, named=named)
    assert found.defaults is not None
    assert contexts_of(found.defaults) == {
        "process": "system_u:system_r:pod_t:s0",
        "file": "system_u:object_r:pod_file_t:s0",
        "privileged": "system_u:system_r:spc_t:s0",
    }


def test_without_that_file_the_names_of_container_selinux_are_taken(tmp_path: Path) -> None:
    found = prepared(tmp_path)
    assert found.defaults is not None
    assert str(found.defaults.process) == "system_u:system_r:container_t:s0"
    assert str(found.defaults.file) == "system_u:object_r:container_file_t:s0"


def test_layers_have_the_policys_type_for_what_every_container_may_read(tmp_path: Path) -> None:
    assert prepared(tmp_path).layers == "system_u:object_r:container_ro_file_t:s0"


def test_without_such_a_type_layers_have_that_of_files_and_no_categories(tmp_path: Path) -> None:
    found = prepared(tmp_path, refused=lambda context: "no" if "ro_file" in context else "")
    assert found.layers == "system_u:object_r:container_file_t:s0"


def test_a_policy_without_levels_has_contexts_without_them(tmp_path: Path) -> None:
    found = prepared(tmp_path, mls="0")
    with found.labelled(SANDBOX, list) as sandbox:
        expected = PodLabels("system_u:system_r:container_t", "system_u:object_r:container_file_t")
        assert sandbox.selinux == expected


def test_a_policy_that_knows_no_containers_is_a_problem_and_no_reason_not_to_start(tmp_path: Path) -> None:
    found = prepared(tmp_path, refused=lambda context: "no" if "container_file_t" in context else "")
    assert found.defaults is None and "container_file_t" in found.problem
    found.check_sandbox(None)
    with pytest.raises(Unsupported, match=r"^config\.linux\.security_context\.selinux_options: .*container_file_t"):
        found.check_sandbox(SELinuxOptions(level="s0"))


def test_a_policy_without_a_type_for_the_privileged(tmp_path: Path) -> None:
    found = prepared(tmp_path, refused=lambda context: "no" if "spc_t" in context else "")
    assert found.defaults is not None and found.defaults.unconfined is None
    assert contexts_of(found.defaults)["privileged"] is None


def test_a_kernel_that_was_given_no_policy_is_a_problem(tmp_path: Path) -> None:
    assert prepared(tmp_path, ours="kernel").problem == "the kernel has no SELinux policy loaded"


def test_a_file_of_the_policy_that_makes_no_sense_is_a_problem(tmp_path: Path) -> None:
    found = prepared(tmp_path, named='process = "nonsense"\n')
    assert found.defaults is None and "'nonsense' is not an SELinux context" in found.problem


def level_of(sandbox: Sandbox) -> str:
    assert sandbox.selinux is not None
    level = sandbox.selinux.mount.split(":", 3)[3]
    assert sandbox.selinux.process.endswith(f":{level}")
    return level


def test_no_two_pods_have_the_same_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prepared(tmp_path)
    drawn = iter((1, 2, 3, 4, 3, 4, 1, 2, 5, 6, 3, 4))
    monkeypatch.setattr("secrets.randbelow", lambda below: next(drawn))
    others = [pod("old", "s0:c1,c2"), pod("unlabelled")]
    with found.labelled(pod("a"), lambda: others) as first, found.labelled(pod("b"), lambda: others) as second:
        assert level_of(first) == "s0:c3,c4", "the pair of a pod in the store is not given again"
        assert level_of(second) == "s0:c5,c6", "nor that of one that is being run"
    with found.labelled(pod("c"), lambda: others) as third:
        assert level_of(third) == "s0:c3,c4", "what nobody has is free again"


def test_a_level_of_a_pod_that_failed_is_free_again(tmp_path: Path) -> None:
    found = prepared(tmp_path)
    with pytest.raises(RuntimeError), found.labelled(pod("a"), list):
        raise RuntimeError
    assert found._promised == {}


def test_a_level_that_a_pod_asks_for_is_its_own(tmp_path: Path) -> None:
    found = prepared(tmp_path)
    with found.labelled(pod("a", asked=SELinuxOptions(level="s0:c8,c9")), list) as sandbox:
        assert level_of(sandbox) == "s0:c8,c9"
        assert found._promised == {"a": categories("s0:c8,c9")}


def test_a_context_that_the_policy_does_not_know_is_refused_with_the_field(tmp_path: Path) -> None:
    found = prepared(tmp_path, refused=lambda context: "no such context" if "wrong_t" in context else "")
    message = r"^config\.linux\.security_context\.selinux_options: .*:wrong_t:s0:c\d+,c\d+': no such context$"
    wrong = pod("a", asked=SELinuxOptions(type="wrong_t"))
    with pytest.raises(InvalidSpec, match=message), found.labelled(wrong, list):
        pass
    with pytest.raises(InvalidSpec, match=r"^x\.selinux_options: .*'u:r:wrong_t:s0': no such context$"):
        found.require("x", PodLabels("u:r:wrong_t:s0", "u:object_r:f:s0"))
    found.require("x", PodLabels("", "u:object_r:f:s0"))
