"""One server with the systemd driver for all files that want one: its start takes a minute when it is emulated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crishim.images.demo import build_demo_image
from tests.node.service import SystemdService, systemctl
from tests.support.server import load_demo_image


@pytest.fixture(scope="session")
def systemd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdService]:
    """When it is closed, no unit of its pods is left and none has failed."""
    server = SystemdService(tmp_path_factory.mktemp("driver") / "node")
    try:
        server.start()
        build_demo_image(server.directory / "demo.tar")
        load_demo_image(server, server.directory / "demo.tar")
        yield server
    finally:
        server.close()
    assert "crishim" not in systemctl("list-units", "--failed", "--plain", "--no-legend")
    assert server.units() == []
