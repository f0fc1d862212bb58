"""critest against a server in a node of its own: started, run and read. `python -m tests.e2e.critest` runs it by hand.

The suite names one image by a digest that can only be had from the registry it was pushed to, so the run uses a copy
of critest in which that digest is ours. Everything else is as upstream built it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e import tools
from tests.e2e.critest.images import DIGEST_REPOSITORY, REGISTRIES, push_images
from tests.e2e.node import Node, wait_until
from tests.e2e.runtimes import Crishim
from tests.support.registry import running_registry

PROGRAMS = ("critest", "ginkgo")
_PROCESSES = 4
DEADLINE_S = 900.0


@dataclass(frozen=True)
class Spec:
    """A spec of the suite and how it ended: "passed", "failed", "skipped" or another word of ginkgo's."""

    name: str
    state: str
    #: of a failure or a skip
    reason: str
    seconds: float


def problems(specs: Sequence[Spec]) -> list[str]:
    """A line for each spec that did not pass, nor is skipped for a reason that this host or this version has."""
    expected = _expected_skips()
    return [
        f"{spec.state}: {spec.name}: {spec.reason}"
        for spec in specs
        if spec.state != "passed"
        and not (
            spec.state == "skipped"
            and any(re.search(name, spec.name) and re.search(reason, spec.reason) for name, reason in expected)
        )
    ]


def _expected_skips() -> list[tuple[str, str]]:
    """(pattern of the name, pattern of the reason) of specs that cannot run here; docs/critest.md says why."""
    skips = []
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    if not enabled.exists() or enabled.read_text().strip() != "Y":
        skips.append((r"\bAppArmor\b", r"^AppArmor is disabled on this host"))
    return skips


@contextlib.contextmanager
def serving(node: Node) -> Iterator[Suite]:
    """A registry with the images and a server that mirrors to it, both inside the node."""
    directory = node.directory / "registry"
    work = node.directory / "programs"
    work.mkdir()
    with running_registry(directory) as registry:
        digest = push_images(registry, work)
    # the same configuration and files again, this time where the server sees the port
    node.start("docker-registry", "serve", directory / "config.yml", log="registry")
    url = f"http://{registry.host}"
    wait_until(lambda: node.http("GET", f"{url}/v2/").status == 200, deadline_s=60, what="the registry in the node")
    mirrors = "".join(f'"{name}" = ["{url}"]\n' for name in REGISTRIES)
    runtime = Crishim(node, more=f'[containers]\nseccomp_profile_dir = "/tmp"\n[images.mirrors]\n{mirrors}')
    runtime.start()
    try:
        yield Suite(node, runtime, _with_digest(work / "critest.test", digest))
    finally:
        with contextlib.suppress(ConnectionError, RuntimeError):
            runtime.stop(signal.SIGTERM)


@dataclass(frozen=True)
class Suite:
    """The program, and the server it is for."""

    node: Node
    runtime: Crishim
    program: Path

    def run(
        self,
        *flags: str,
        parallel: bool,
        focus: str = "",
        skip: Sequence[str] = (),
        deadline_s: float = DEADLINE_S,
    ) -> list[Spec]:
        """Runs the specs that the expressions choose and returns how each ended; never the benchmarks.

        Raises RuntimeError when there is no report, TimeoutError when there is no end.
        """
        endpoint = f"unix://{self.runtime.socket}"
        own = [f"--runtime-endpoint={endpoint}", f"--image-endpoint={endpoint}", *flags]
        report = self.node.directory / "critest.json"
        report.unlink(missing_ok=True)
        choice = [f"skip={text}" for text in ("benchmark", *skip)] + ([f"focus={focus}"] if focus else [])
        if parallel:
            ginkgo = [
                f"--{each}" for each in (*choice, f"nodes={_PROCESSES}", f"json-report={report.name}", "no-color")
            ]
            command: list[str | Path] = [
                tools.TOOLS["ginkgo"].path,
                *ginkgo,
                f"--output-dir={report.parent}",
                self.program,
                "--",
                *own,
            ]
        else:
            # critest itself adds the filter of the benchmarks
            ginkgo = [f"--ginkgo.{each}" for each in (*choice[1:], f"json-report={report}", "no-color", "v")]
            command = [self.program, *ginkgo, *own]
        return self._ended(command, report, deadline_s)

    def _ended(self, command: Sequence[str | Path], report: Path, deadline_s: float) -> list[Spec]:
        environment = {"TMPDIR": str(_temporary(self.node)), "PATH": f"{os.environ['PATH']}:{_sudo(self.node)}"}
        pid = self.node.start(*command, log="critest", env=environment)
        wait_until(lambda: self.node.exit_code(pid) is not None, deadline_s=deadline_s, what="the end of critest")
        if not report.exists():
            raise RuntimeError(f"critest wrote no report: {self.node.log('critest').read_text()[-4000:]}")
        return _read(report)


def _temporary(node: Node) -> Path:
    directory = node.directory / "tmp"
    directory.mkdir(exist_ok=True)
    return directory


def _sudo(node: Node) -> Path:
    """Directory of a `sudo` for hosts without one: the suite loads AppArmor profiles by it, and is root already."""
    directory = node.directory / "bin"
    directory.mkdir(exist_ok=True)
    (directory / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (directory / "sudo").chmod(0o755)
    return directory


def _with_digest(copy: Path, digest: str) -> Path:
    """A copy of critest in which the digest of the image that it pulls by digest is this one."""
    marker = f"{DIGEST_REPOSITORY}@sha256:".encode()
    content = tools.TOOLS["critest"].path.read_bytes()
    places = [at + len(marker) for at in _positions(content, marker) if content[at - 4 : at] != b"win-"]
    assert places, "this critest names no image by digest"
    patched = bytearray(content)
    hexadecimal = digest.removeprefix("sha256:").encode()
    for place in places:
        patched[place : place + len(hexadecimal)] = hexadecimal
    copy.write_bytes(patched)
    copy.chmod(0o755)
    return copy


def _positions(content: bytes, marker: bytes) -> Iterator[int]:
    at = content.find(marker)
    while at >= 0:
        yield at
        at = content.find(marker, at + 1)


def _read(report: Path) -> list[Spec]:
    (suite,) = json.loads(report.read_text())
    specs = [
        Spec(
            " ".join([*(each["ContainerHierarchyTexts"] or ()), each["LeafNodeText"]]),
            each["State"],
            (each.get("Failure") or {}).get("Message", ""),
            each["RunTime"] / 1e9,
        )
        for each in suite["SpecReports"]
        if each["LeafNodeType"] == "It"
    ]
    # a spec that skips itself says why; the others were left out by the filters
    return [spec for spec in specs if spec.state != "skipped" or spec.reason]


def missing_programs() -> list[str]:
    """Names of the programs that are not built."""
    return [name for name in PROGRAMS if tools.find(name) is None]
