"""Directories that a layer implies and does not state: they are as the layers below have them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from crishim.images.layers import LayerLimits, LayerStore
from crishim.images.manifests import chain_ids
from crishim.images.table import ImageTable
from tests.support.faults import server_with_image
from tests.support.image_archive import shell_layer, write_layers
from tests.support.layers import archive, directory, symlink
from tests.support.roles import ForkUnpacker
from tests.support.server import NEEDS_SERVER, container_config

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

OWNED = directory("a", mode=0o2700, uid=5, gid=6, mtime=1_000_000_000)


class Observed(ForkUnpacker):
    """Says when a layer is unpacked."""

    def __init__(self) -> None:
        self.unpacked = asyncio.Event()

    async def unpack(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        reply = await super().unpack(request, fds)
        self.unpacked.set()
        return reply


def unpacked(place: Path, *layers: Sequence[Any], top_first: bool = False) -> list[Path]:
    """Directories of the layers, the lowest first; with `top_first` the others come when the top one is unpacked."""
    blobs = [archive(layer) for layer in layers]
    diff_ids = [f"sha256:{hashlib.sha256(blob).hexdigest()}" for blob in blobs]
    chain = chain_ids(diff_ids)
    for index, blob in enumerate(blobs):
        (place / f"blob{index}").write_bytes(blob)

    async def run() -> list[Path]:
        unpacker = Observed()
        table = ImageTable(place / "images.db")
        store = LayerStore(place, table, unpacker, LayerLimits())

        async def fetch(index: int) -> Path:
            if top_first and index < len(layers) - 1:
                await unpacker.unpacked.wait()
            return place / f"blob{index}"

        try:
            async with store.leased(chain), asyncio.TaskGroup() as group:
                for index, (chain_id, diff_id) in enumerate(zip(chain, diff_ids, strict=True)):
                    group.create_task(store.ensure(chain_id, diff_id, chain[:index], lambda index=index: fetch(index)))
            return [Path(path) for path in reversed(store.paths(chain))]
        finally:
            table.close()

    return asyncio.run(asyncio.wait_for(run(), 60))


def shape(path: Path) -> tuple[str, int, int, int]:
    status = path.lstat()
    return oct(stat.S_IMODE(status.st_mode)), status.st_uid, status.st_gid, int(status.st_mtime)


@pytest.mark.parametrize("top_first", [False, True])
def test_a_directory_that_a_layer_implies_is_as_the_layer_below_has_it(tmp_path: Path, top_first: bool) -> None:
    below = [OWNED, directory("a/deep", mode=0o711, uid=7)]
    _, top = unpacked(tmp_path, below, [("a/deep/b", b"x")], top_first=top_first)
    assert shape(top / "a") == ("0o2700", 5, 6, 1_000_000_000)
    assert shape(top / "a/deep")[:3] == ("0o711", 7, 0)


def test_the_nearest_layer_that_has_it_counts(tmp_path: Path) -> None:
    middle = [directory("a", mode=0o750, uid=8)]
    *_, top = unpacked(tmp_path, [OWNED], middle, [("other", b"")], [("a/b", b"x")])
    assert shape(top / "a")[:3] == ("0o750", 8, 0)


def test_attributes_come_along(tmp_path: Path) -> None:
    owned = directory("a", pax_headers={"SCHILY.xattr.user.colour": "red"})
    _, top = unpacked(tmp_path, [owned], [("a/b", b"x")])
    assert os.getxattr(top / "a", "user.colour") == b"red"


@pytest.mark.parametrize(
    "layer",
    [
        [("a/b", b"x"), directory("a", mode=0o755)],  # stated after all
        [(".wh.a", b""), ("a/b", b"x")],  # a new one in place of the old
        [("a/b", b"x"), ("a/.wh..wh..opq", b"")],
        [(".wh..wh..opq", b""), ("a/b", b"x")],
    ],
    ids=["stated", "whiteout", "opaque", "opaque root"],
)
def test_what_the_layer_states_or_hides_is_not_looked_up(tmp_path: Path, layer: list[Any]) -> None:
    top = unpacked(tmp_path, [OWNED], layer)[-1]
    assert shape(top / "a")[:3] == ("0o755", 0, 0)


def test_nothing_below_or_something_else_leaves_it_as_it_was_made(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    os.chown(outside, 9, 9)
    below = [("a", b"a file"), symlink("link", str(outside)), symlink("c", "a")]
    _, top = unpacked(tmp_path, below, [("a/b", b""), ("link/b", b""), ("c/b", b""), ("new/b", b"")])
    assert {shape(top / name)[:3] for name in ("a", "link", "c", "new")} == {("0o755", 0, 0)}
    assert shape(outside)[:3] == ("0o700", 9, 9)


def test_a_name_by_a_link_of_the_layer_is_the_directory_that_it_leads_to(tmp_path: Path) -> None:
    _, top = unpacked(tmp_path, [OWNED], [symlink("link", "/a"), ("a/first", b""), ("link/b", b"x")])
    assert shape(top / "a")[:3] == ("0o2700", 5, 6) and (top / "a/b").read_bytes() == b"x"


@pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")
def test_a_container_sees_the_owner_and_mode_of_the_layer_below(tmp_path: Path) -> None:
    with server_with_image(tmp_path / "node") as server:
        layers = [shell_layer({}, {}), archive([OWNED]), archive([("a/b", b"x")])]
        image = write_layers(tmp_path / "image.tar", "crishim.local/parents:1", layers)
        server.client.load(str(image))
        sandbox, pod = server.run_pod()
        config = container_config("sleep", "1000")
        config.image.image = "crishim.local/parents:1"
        container = server.create_config(sandbox, pod, config)
        server.start_container(container)
        assert server.sh(container, "stat -c '%a %u %g' /a; cat /a/b") == "2700 5 6\nx"
