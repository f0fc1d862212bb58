"""Containers in a class of resctrl: a directory stands for it, which shows who writes what, and no effect."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crishim.cgroups import resctrl
from crishim.errors import InvalidSpec, StartFailed, Unsupported
from crishim.executor.client import ExecSpec
from crishim.model.process import IntelRdt
from tests.support.container import IDLE, Container, Pod, program


@pytest.fixture
def gold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A class that the administrator made."""
    root = tmp_path / "resctrl"
    (root / "gold/mon_groups").mkdir(parents=True)
    (root / "gold/tasks").touch()
    (root / "gold/schemata").write_text("L3:0=ff\n")
    monkeypatch.setattr(resctrl, "find", lambda: os.fsencode(root))
    return root / "gold"


def execute(container: Container, rdt: IntelRdt) -> None:
    node = container.pod.node
    spec = ExecSpec(
        container.id,
        container.pidfd,
        program("/bin/true"),
        container.spec.cgroup.path,
        namespaces=container.namespaces(),
        intel_rdt=rdt,
    )
    started = node.run(node.executor.exec(spec))
    assert node.run(started.wait()).code == 0
    node.call(started.close)


def test_init_and_execs_put_themselves_into_the_class(pod: Pod, gold: Path) -> None:
    rdt = IntelRdt("gold", schemata=("L3:0=0ff",))
    container = pod.start(program(*IDLE), intel_rdt=rdt)
    assert (gold / "tasks").read_text() == "0"
    (gold / "tasks").write_text("")
    execute(container, rdt)
    assert (gold / "tasks").read_text() == "0"
    container.kill()
    assert gold.is_dir()


def test_what_cannot_be_had_is_refused(pod: Pod, gold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartFailed, match=r'intel_rdt\.clos_id "silver": there is no such class of service'):
        pod.start(program(*IDLE), intel_rdt=IntelRdt("silver"))
    with pytest.raises(StartFailed, match=r'intel_rdt\.clos_id "gold": the class has other schemata'):
        pod.start(program(*IDLE), intel_rdt=IntelRdt("gold", schemata=("L3:0=1",)))
    for name in ("../x", "info", "a/b"):
        with pytest.raises(InvalidSpec, match=r"intel_rdt\.clos_id: .* cannot be the name"):
            pod.start(program(*IDLE), intel_rdt=IntelRdt(name))
    with pytest.raises(InvalidSpec, match=r"intel_rdt\.schemata: 'L3' is not a line"):
        pod.start(program(*IDLE), intel_rdt=IntelRdt("gold", schemata=("L3",)))
    monkeypatch.setattr(resctrl, "find", lambda: b"")
    with pytest.raises(Unsupported, match="intel_rdt: resctrl is not mounted on this node"):
        pod.start(program(*IDLE), intel_rdt=IntelRdt("gold"))
