"""Fixtures of the attacks: a hostile layer, a directory of the host that nothing may change, and a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cri.client import messages as m
from tests.support.faults import server_with_image
from tests.support.hostile import tree
from tests.support.image_archive import write_image
from tests.support.server import NEEDS_SERVER, Server


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A layer of an image that the attacker wrote."""
    place = tmp_path / "hostile-layer"
    place.mkdir()
    return place


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host that nothing may change."""
    place = tmp_path / "victim"
    (place / "sub").mkdir(parents=True)
    (place / "file").write_text("precious")
    before = tree(place)
    yield place
    assert tree(place) == before, "the host's directory was changed"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the demo's image; whatever the attacks did, it must be able to give everything back."""
    if not NEEDS_SERVER:
        pytest.skip("a server needs root, nsenter and ip")
    with server_with_image(tmp_path_factory.mktemp("attacked") / "node") as server:
        yield server


@pytest.fixture(scope="module")
def sandbox(server: Server) -> tuple[str, Any]:
    """Id and configuration of a pod that the attacks of a module share."""
    return server.run_pod("attacked")


@pytest.fixture
def load_image(server: Server, tmp_path: Path) -> Callable[..., m.ImageSpec]:
    """Loads an image with content as `write_image` takes it, and names it."""

    def load(name: str, **content: Any) -> m.ImageSpec:
        reference = f"attacker.example/{name}:1"
        server.client.load(str(write_image(tmp_path / f"{name}.tar", reference, **content)))
        return m.ImageSpec(image=reference)

    return load
