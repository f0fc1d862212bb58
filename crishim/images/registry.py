"""How registries are reached: configuration, connection pools, endpoints and tokens that all pulls share.

`repository.py` speaks the protocol over it. Threads use a client together. Credentials and tokens are kept in memory
only and never in a message.
"""

from __future__ import annotations

import ipaddress
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import urllib3

from crishim.images.auth import Login
from crishim.images.watch import Watch, watchable

_HUB_ENDPOINT = "https://registry-1.docker.io"

TokenKey = tuple[str, str, str, Login | None]
"""Realm, service, scope and login that a token is for."""


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """How registries are reached. Loopback addresses are plain HTTP without being listed."""

    #: registry host to endpoint URLs that are tried in order before the registry itself
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: hosts ("registry.example:5000") reached by plain HTTP
    insecure: frozenset[str] = frozenset()
    #: host to a file of PEM certificates that may sign for it
    ca_files: Mapping[str, str] = field(default_factory=dict)
    #: seconds; a read without a byte for that long is a failure that is tried again
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    #: seconds before the second attempt, doubled for each one after, times 0.5 to 1.5
    backoff_s: float = 0.25
    #: an attempt that brings less than so many bytes in so many seconds is given up
    window_s: float = 120.0
    window_bytes: int = 64 << 10


class RegistryClient:
    """Connections and tokens, shared by all pulls of a server. Threads may use it together."""

    def __init__(self, config: RegistryConfig) -> None:
        self.config = config
        self.watch = Watch(config.window_s, config.window_bytes)
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, str], urllib3.PoolManager] = {}
        #: (realm, service, scope, login) to token and the monotonic time it is good until
        self._tokens: dict[TokenKey, tuple[str, float]] = {}

    def configure(self, config: RegistryConfig) -> None:
        """Another configuration for pulls that are begun from now on; files of certificates are read anew."""
        self.config = config
        self.close()

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            for pool in self._pools.values():
                pool.clear()
            self._pools.clear()

    def pool(self, url: str) -> urllib3.PoolManager:
        """The connection pool for an URL: by proxy of the environment and by trusted certificates."""
        parts = urlsplit(url)
        proxy = _proxy_for(parts.scheme, parts.hostname or "")
        key = (proxy, self.config.ca_files.get(parts.netloc, ""))
        with self._lock:
            if key not in self._pools:
                self._pools[key] = self._new_pool(*key)
            return self._pools[key]

    def _new_pool(self, proxy: str, ca_file: str) -> urllib3.PoolManager:
        timeout = urllib3.Timeout(connect=self.config.connect_timeout_s, read=self.config.read_timeout_s)
        if proxy:
            return watchable(urllib3.ProxyManager(proxy, maxsize=8, timeout=timeout, ca_certs=ca_file or None))
        return watchable(urllib3.PoolManager(num_pools=8, maxsize=8, timeout=timeout, ca_certs=ca_file or None))

    def token(self, key: TokenKey, make: Callable[[], tuple[str, float]]) -> str:
        """A cached token, or a new one of `make` (token, life in seconds)."""
        now = time.monotonic()
        with self._lock:
            held = self._tokens.get(key)
        if held and held[1] > now:
            return held[0]
        token, life_s = make()
        with self._lock:
            self._tokens = {k: v for k, v in self._tokens.items() if v[1] > now}
            self._tokens[key] = (token, now + min(life_s, 3600) - 10)
        return token

    def forget_token(self, key: TokenKey) -> None:
        """Drop a token that the registry no longer takes."""
        with self._lock:
            self._tokens.pop(key, None)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Base URL of a registry or mirror; `namespace` is the registry's host that a mirror is asked for."""

    url: str
    namespace: str = ""

    @property
    def host(self) -> str:
        """Host and port of the URL."""
        return urlsplit(self.url).netloc


def endpoints_of(config: RegistryConfig, host: str) -> tuple[Endpoint, ...]:
    """Where to ask for images of the registry `host`, in order: its mirrors, then itself."""
    mirrors = tuple(Endpoint(url.rstrip("/"), host) for url in config.mirrors.get(host, ()))
    if host == "docker.io":
        return (*mirrors, Endpoint(_HUB_ENDPOINT))
    plain = host in config.insecure or is_loopback(host)
    return (*mirrors, Endpoint(f"{'http' if plain else 'https'}://{host}"))


def is_loopback(host: str) -> bool:
    """Whether "name:port" names this machine by its loopback addresses."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _proxy_for(scheme: str, host: str) -> str:
    """Proxy URL of the environment (HTTPS_PROXY, NO_PROXY, ...) for a host, "" for a direct connection."""
    if is_loopback(f"[{host}]" if ":" in host else host) or urllib.request.proxy_bypass(host):
        return ""
    return urllib.request.getproxies().get(scheme, "")
