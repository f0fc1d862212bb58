"""The configuration of one server: /etc/crishim/config.toml, then what the command line says, all of it checked."""

from crishim.config.checks import Address
from crishim.config.files import DEFAULT_PATH, Key, Loaded, load, read
from crishim.config.sections import Config, ImagesConfig, ServerConfig, StreamingConfig
from crishim.config.show import changes, flat, name_of, toml_value

__all__ = [
    "DEFAULT_PATH",
    "Address",
    "Config",
    "ImagesConfig",
    "Key",
    "Loaded",
    "ServerConfig",
    "StreamingConfig",
    "changes",
    "flat",
    "load",
    "name_of",
    "read",
    "toml_value",
]
