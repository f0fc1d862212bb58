"""The client commands against a real server, for people and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim import __version__ as crishim_version
from crishim.executor import wire
from crishim.images.demo import build_demo_image
from tests.support.server import NEEDS_SERVER, Server

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("cli") / "node")
    try:
        server.start()
        build_demo_image(server.directory / "demo.tar")
        yield server
    finally:
        server.close()


def crishim(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "crishim", *words, "--address", server.address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_an_archive_is_loaded_and_listed(server: Server) -> None:
    loaded = crishim(server, "load", str(server.directory / "demo.tar"), "--json")
    assert loaded.returncode == 0, loaded.stderr
    (image,) = json.loads(loaded.stdout)
    assert image["tags"] == ["crishim.local/demo:latest"]
    (listed,) = json.loads(crishim(server, "images", "--json").stdout)
    assert (listed["id"], listed["tags"]) == (image["id"], image["tags"])
    table = crishim(server, "images").stdout.splitlines()
    assert table[0].split() == ["IMAGE", "ID", "SIZE"] and table[1].startswith("crishim.local/demo:latest")


def test_pods_and_containers_are_listed(server: Server) -> None:
    crishim(server, "load", str(server.directory / "demo.tar"))
    sandbox, pod = server.run_pod("shown")
    container = server.started(sandbox, pod)
    found = json.loads(crishim(server, "ps", "--json").stdout)
    assert [each["id"] for each in found["pods"]] == [sandbox]
    (monitor,) = server.monitors()
    told = found["pods"][0]["monitor"]
    assert (told["pid"], told["version"], told["wire_version"]) == (monitor, crishim_version, wire.VERSION)
    assert 100_000 < told["memory_bytes"] < 32 << 20
    header, line = crishim(server, "ps", "--monitors").stdout.splitlines()
    assert header.split() == ["POD", "POD", "ID", "PID", "VERSION", "WIRE", "AGE", "MEMORY"]
    assert line.split()[2:5] == [str(monitor), crishim_version, str(wire.VERSION)]
    assert crishim(server, "ps").stdout.splitlines()[1].split()[-1] == crishim_version
    assert [(each["id"], each["state"]) for each in found["containers"]] == [(container, "RUNNING")]
    server.stop(container, timeout=0)
    assert json.loads(crishim(server, "ps", "--json").stdout)["containers"] == []
    assert "EXITED" in crishim(server, "ps", "--all").stdout
    server.remove_pod(sandbox)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("serve", "--root", "FRESH", "--state", "FILE"), "server.state (--state)"),
        (("serve", "--state", "FRESH", "--root", "FILE/below"), "server.root (--root)"),
        (("demo", "--once", "--dir", "FILE"), "--dir"),
    ],
)
def test_a_place_that_is_no_directory_is_named_with_its_option(
    words: tuple[str, ...], option: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    places = {"FRESH": f"{tmp_path}/fresh", "FILE": f"{tmp_path}/file", "FILE/below": f"{tmp_path}/file/below"}
    command = [sys.executable, "-m", "crishim", *(places.get(word, word) for word in words)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"crishim: {option}: {tmp_path}/file") and ended.stderr.count("\n") == 1


def test_errors_are_one_sentence(server: Server, tmp_path: Path) -> None:
    missing = crishim(server, "load", str(tmp_path / "none.tar"))
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == f"crishim: path: {str(tmp_path / 'none.tar')!r} does not exist\n"
    nobody = subprocess.run(
        [sys.executable, "-m", "crishim", "ps", "--address", f"unix://{tmp_path}/none.sock"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert nobody.returncode == 1
    assert nobody.stderr == f"crishim: no server answers on unix://{tmp_path}/none.sock\n"
    wrong = crishim(server, "pull", "lower/UPPER")
    assert wrong.returncode == 1 and "lower/UPPER" in wrong.stderr and wrong.stderr.count("\n") == 1
