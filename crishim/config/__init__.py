"""The configuration of one server: /etc/crishim/config.toml, then what the command line says, all of it checked."""

from crishim.config.checks import Address
from crishim.config.files import DEFAULT_PATH, load
from crishim.config.sections import Config, ImagesConfig, ServerConfig

__all__ = ["DEFAULT_PATH", "Address", "Config", "ImagesConfig", "ServerConfig", "load"]
