"""One run of every container under every runtime, as JSON: runtime to container to role to observable to value.

Started under `unshare --mount`: crun refuses to work beside a v2 tree that has a controller, so that tree is hidden.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import stat
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from crishim.linux import process as kernel
from crishim.process import close_engine, open_engine
from tests.support.observer import normal, ours, peers
from tests.support.observer.containers import CONTAINERS, Observed
from tests.support.observer.program import build, make_root

Answers = dict[str, dict[str, dict[str, dict[str, str]]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="an empty one of the caller's")
    directory: Path = parser.parse_args().directory
    kernel.default_signals()  # what make has ignored runc and crun would pass on
    unified = "/sys/fs/cgroup/unified"
    if os.path.ismount(unified):
        subprocess.run(["umount", unified], check=True)
    _hide_null(directory / "devices")
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    cgroup = f"crishim-observed-{os.getpid()}"
    try:
        answers = observe_all(directory, cgroup)
    finally:
        close_engine()
        _remove_cgroup(cgroup)
    print(json.dumps(answers))


def observe_all(directory: Path, cgroup: str) -> Answers:
    """Every container in turn, each runtime with a fresh root at the same place."""
    program = build(directory)
    node = open_engine({}).executor.node
    root = directory / "root"
    shared = directory / "shared"
    shared.mkdir()
    subprocess.run(["mount", "--bind", "--make-shared", shared, shared], check=True)
    (shared / "file").write_text("shared\n")
    words = {str(directory): "DIRECTORY", cgroup: "CGROUP"}
    answers: Answers = {name: {} for name in ("crishim", *(peer.name for peer in peers.find_peers()))}
    for make in CONTAINERS:
        observed = _placed(make(root, node), cgroup)
        container = observed.spec.id
        make_root(root, program)
        os.chown("/dev/null", 0, 0)
        answers["crishim"][container] = _normal(ours.observe(observed), words)
        for peer in peers.find_peers():
            make_root(root, program, observed.host_id)
            bundle = directory / f"bundle-{peer.name}"
            shutil.rmtree(bundle, ignore_errors=True)
            bundle.mkdir()
            os.chown("/dev/null", 0, 0)
            # a name of its own: the keyring of the last container of a name may not be gone yet
            theirs = replace(observed, spec=replace(observed.spec, id=f"{container}-{peer.name}"))
            seen = peers.observe(peer, theirs, bundle)
            answers[peer.name][container] = _normal(seen, {**words, theirs.spec.id: container})
    return answers


def _hide_null(devices: Path) -> None:
    """A /dev/null of this mount namespace's own: crun gives the one it finds as stdin to the container's user."""
    devices.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "observed", devices], check=True)
    instead = devices / "null"
    os.mknod(instead, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    instead.chmod(0o666)
    subprocess.run(["mount", "--bind", instead, "/dev/null"], check=True)


def _normal(seen: dict[str, dict[str, str]], words: dict[str, str]) -> dict[str, dict[str, str]]:
    return {role: normal.normal(said, words) for role, said in seen.items()}


def _placed(observed: Observed, cgroup: str) -> Observed:
    """In a cgroup that no runtime finds itself in."""
    spec = observed.spec
    return replace(observed, spec=replace(spec, cgroup=replace(spec.cgroup, path=f"/{cgroup}/{spec.id}")))


def _remove_cgroup(name: str) -> None:
    """Runtimes remove the cgroup of a container and leave its parent."""
    for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
        with suppress(OSError):
            (hierarchy / name).rmdir()


if __name__ == "__main__":
    main()
