"""The configuration read again while the server runs.

What can be applied is, for what is begun from then on; the log says what waits for a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from crishim.app.image_store import layer_limits, platform_of, registry_config
from crishim.config import Config, Key, changes, name_of
from crishim.images.store import ImageStore
from crishim.network.cni.network import CniNetwork
from crishim.network.door import Network
from crishim.runtime.settings import Settings

logger = logging.getLogger(__name__)

#: tables and keys that take effect without a restart, for what is begun from then on
LIVE: tuple[Key, ...] = (
    ("containers",),
    ("gc",),
    ("images",),
    ("limits",),
    ("network", "cni"),
    ("runtimes",),
    ("server", "log_level"),
    ("stop",),
)


class Reload:
    """Takes over new configurations. `started` is the one that the server was started with."""

    def __init__(
        self,
        started: Config,
        settings: Settings,
        translate: Callable[[Config], Settings],
        images: ImageStore,
        network: Network,
        set_gc_interval: Callable[[float], None],
    ) -> None:
        """settings: made of `started`; translate: makes those of another configuration, or says what is wrong."""
        self._started = started
        self._config = started
        self._settings = settings
        self._translate = translate
        self._images = images
        self._network = network
        self._set_gc_interval = set_gc_interval

    def apply(self, new: Config) -> None:
        """All of what can change without a restart, or nothing: InvalidSpec and Unsupported name the key at fault."""
        settings = self._translate(new)
        applied = [key for key in changes(self._config, new) if is_live(key)]
        waiting = [key for key in changes(self._started, new) if not is_live(key)]
        self._settings.adopt(settings)
        self._images.configure(registry_config(new.images), platform_of(new.images), layer_limits(new.images))
        if isinstance(self._network, CniNetwork):
            self._network.configure(new.network.cni.conf_dir, new.network.cni.bin_dirs)
        if new.gc.interval_s != self._config.gc.interval_s:
            self._set_gc_interval(new.gc.interval_s)
        self._config = new
        logging.getLogger().setLevel(new.server.log_level.upper())
        if waiting:
            logger.warning("these keys of the configuration need a restart: %s", _names(waiting))
        logger.info("the configuration was read again; changed: %s", _names(applied))


def is_live(key: Key) -> bool:
    """Whether a change of the key takes effect without a restart."""
    return any(key[: len(table)] == table for table in LIVE)


def _names(keys: Iterable[Key]) -> str:
    return ", ".join(map(name_of, keys)) or "nothing"
