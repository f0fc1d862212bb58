"""One server with the systemd driver for all files that want one: its start takes a minute when it is emulated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.node.service import SystemdService, systemctl
from tests.support.server import start_with_demo_image


@pytest.fixture(scope="session")
def systemd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdService]:
    """When it is closed, no unit of its pods is left and none has failed."""
    server = SystemdService(tmp_path_factory.mktemp("driver") / "node")
    try:
        start_with_demo_image(server)
        yield server
    finally:
        server.close()
    assert "crishim" not in systemctl("list-units", "--failed", "--plain", "--no-legend")
    assert server.units() == []
