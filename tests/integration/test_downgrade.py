"""A server does not start on what a newer crishim wrote: one sentence, status 1, nothing changed, pods go on."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cri.client import messages as m
from tests.support.faults import server_with_image
from tests.support.server import NEEDS_SERVER, Server

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with_image(tmp_path_factory.mktemp("downgrade") / "node") as server:
        yield server


@pytest.fixture(scope="module")
def container(server: Server) -> str:
    return server.started(*server.run_pod())


def _record(pattern: str, change: Callable[[Any], None]) -> Callable[[Server], Callable[[], None]]:
    def apply(server: Server) -> Callable[[], None]:
        (path,) = server.state.glob(f"sandboxes/*/{pattern}")
        before = path.read_bytes()
        value = json.loads(before)
        change(value)
        path.write_text(json.dumps(value))
        return lambda: path.write_bytes(before) and None

    return apply


def _database(name: str) -> Callable[[Server], Callable[[], None]]:
    def set_version(path: Path, version: int) -> None:
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA user_version = {version}")
        connection.close()

    def apply(server: Server) -> Callable[[], None]:
        (path,) = server.root.rglob(name)
        set_version(path, 99)
        return lambda: set_version(path, 1)

    return apply


NEWER = {
    "a record of a later version": _record("sandbox.json", lambda value: value.update(version=99)),
    "a sandbox with a later field": _record("sandbox.json", lambda value: value["sandbox"].update(colour="red")),
    "a container with a later field": _record(
        "containers/*.json", lambda value: value["container"]["config"].update(colour="red")
    ),
    "a spec with a later field": _record("specs/*", lambda value: value["spec"].update(colour="red")),
    "reservations": _database("crishim.db"),
    "images": _database("images.db"),
    "addresses": _database("network.db"),
}


@pytest.mark.parametrize("what", NEWER)
def test_what_a_newer_version_wrote_is_refused_and_left_alone(what: str, server: Server, container: str) -> None:
    monitors = server.monitors()
    server.kill()
    undo = NEWER[what](server)
    try:
        before, said = _contents(server), server.errors.read_text()
        server.start(ready=False)
        assert server.wait_ended() == 1
        lines = [line for line in server.errors.read_text()[len(said) :].splitlines() if line.startswith("crishim: ")]
        assert len(lines) == 1 and ("newer" in lines[0] or "version 99" in lines[0]), lines
        assert "Traceback" not in server.errors.read_text()
        assert (_contents(server), server.monitors()) == (before, monitors)
    finally:
        undo()
    server.start()
    assert server.status(container).state == m.CONTAINER_RUNNING
    assert server.sh(container, "echo on") == "on\n"


def test_a_cni_attachment_that_a_newer_version_recorded_is_refused_and_left_alone(tmp_path: Path) -> None:
    server = Server(tmp_path / "node", network="cni")
    records = server.root / "cni"
    records.mkdir(parents=True)
    (records / "a.json").write_text('{"version": 2}')
    try:
        server.start(ready=False)
        assert server.wait_ended() == 1
        said = [line for line in server.errors.read_text().splitlines() if line.startswith("crishim: ")]
        assert len(said) == 1 and said[0].startswith(f"crishim: {records}/a.json was written by a newer crishim"), said
        assert [path.name for path in records.iterdir()] == ["a.json"]
    finally:
        server.close()


def _contents(server: Server) -> dict[str, object]:
    """Every file of the server; of a database what is in it."""
    files = [path for base in (server.state, server.root) for path in base.rglob("*") if path.is_file()]
    skipped = ("-wal", "-shm", "lock")
    return {str(path): _content(path) for path in files if not path.name.endswith(skipped)}


def _content(path: Path) -> object:
    if path.suffix != ".db":
        return path.read_bytes()
    connection = sqlite3.connect(path)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()
