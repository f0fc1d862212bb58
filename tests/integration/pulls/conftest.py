"""A registry for the files of this directory, and a store that pulls from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.images.registry import RegistryConfig
from crishim.images.store import ImageStore
from tests.support.pulls import FAST
from tests.support.registry import Registry, running_registry
from tests.support.roles import ForkUnpacker


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    store = ImageStore(tmp_path / "root", ForkUnpacker(), RegistryConfig(**FAST))
    yield store
    store.close()
