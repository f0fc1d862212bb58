"""A configuration that is read again: what is told to the rooms, and that a wrong one tells them nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crishim.app.reload import LIVE, Reload, is_live
from crishim.config import Config, flat
from crishim.config.sections import CniConfig, GcConfig, ImagesConfig, LimitsConfig, NetworkConfig, ServerConfig
from crishim.errors import InvalidSpec
from crishim.network.cni.network import CniNetwork
from crishim.runtime.settings import Settings
from crishim.spec.facts import NodeAbilities

NODE = NodeAbilities((6, 18), "x86_64", frozenset())


class Images:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def configure(self, *values: Any) -> None:
        self.told.append(values)


class Scene:
    """A reload with fakes around it."""

    def __init__(self, tmp_path: Path) -> None:
        self.settings = self.translate(Config())
        self.images = Images()
        self.network = CniNetwork(tmp_path / "conf", [tmp_path / "bin"], tmp_path / "records")
        self.intervals: list[float] = []
        self.reload = Reload(
            Config(),
            self.settings,
            self.translate,
            self.images,  # type: ignore[arg-type]
            self.network,
            self.intervals.append,
        )

    def translate(self, config: Config) -> Settings:
        if config.cgroups.parent == "wrong":
            raise InvalidSpec("cgroups.parent: wrong")
        return Settings(NODE, config.cgroup_root, "/r", "/c", "n", exec_output_bytes=config.limits.exec_output_bytes)


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def test_every_table_that_needs_no_restart_is_there() -> None:
    keys = list(flat(Config()))
    assert all(any(key[: len(table)] == table for key in keys) for table in LIVE)
    assert is_live(("runtimes", "new", "env", "A")) and not is_live(("network", "mode")) and not is_live(("server",))


def test_changes_reach_settings_images_network_and_checks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(tmp_path)
    conf = tmp_path / "other"
    conf.mkdir()
    (conf / "10.conf").write_text('{"name": "n", "cniVersion": "1.0.0", "type": "p"}')
    new = replace(
        Config(),
        images=ImagesConfig(mirrors={"a.b": ("https://c",)}, max_layer_entries=7),
        limits=LimitsConfig(exec_output_bytes=4096),
        network=NetworkConfig(cni=CniConfig(conf, (tmp_path / "bin",))),
        gc=GcConfig(interval_s=5.0),
        server=ServerConfig(log_level="error"),
    )
    before = scene.settings.state_dir
    with caplog.at_level(logging.INFO):
        scene.reload.apply(new)
        assert logging.getLogger().level == logging.ERROR
    registry, platform, limits = scene.images.told[0]
    assert registry.mirrors == {"a.b": ("https://c",)} and limits.max_entries == 7 and platform.os == "linux"
    assert scene.settings.exec_output_bytes == 4096 and scene.settings.state_dir == before
    assert scene.intervals == [5.0]
    assert scene.network._reload() is not None
    scene.reload.apply(new)
    assert scene.intervals == [5.0], "what did not change is left alone"


def test_what_needs_a_restart_is_named_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(tmp_path)
    new = replace(Config(), server=ServerConfig(root=Path("/elsewhere")))
    with caplog.at_level(logging.INFO):
        scene.reload.apply(new)
        scene.reload.apply(new)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == ["these keys of the configuration need a restart: server.root"] * 2


def test_a_wrong_configuration_tells_nobody_anything(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    wrong = replace(
        Config(),
        cgroups=replace(Config().cgroups, parent="wrong"),
        limits=LimitsConfig(exec_output_bytes=4096),
        gc=GcConfig(interval_s=5.0),
    )
    with pytest.raises(InvalidSpec):
        scene.reload.apply(wrong)
    assert scene.images.told == [] and scene.intervals == []
    assert scene.settings.exec_output_bytes != 4096
