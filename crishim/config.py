"""The configuration of one server: /etc/crishim/config.toml, then what the command line says, all of it checked.

A value is frozen and complete: every key has a default, so no other room asks whether a key is there. Errors name the
path of the key and the value. `docs/configuration.md` has the table of all keys.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import os
import platform
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from crishim.errors import InvalidSpec, NotFound
from crishim.model.process import Rlimit

DEFAULT_PATH = Path("/etc/crishim/config.toml")

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network
Check = Callable[[object, str], Any]

T = TypeVar("T")

# sockaddr_un holds 107 bytes (unix(7)); the socket is bound under a longer temporary name first.
_SOCKET_PATH_BYTES = 96
_REGISTRY = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[(?P<six>[0-9A-Fa-f:]+)\])(?::(?P<port>[0-9]{1,5}))?"
)
_PLATFORM = re.compile(r"linux/[a-z0-9]+(?:/[a-z0-9]+)?")
_CGROUP = re.compile(r"/?[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*")
_SIZE = re.compile(r"([0-9]{1,19}) ?(B|KiB|MiB|GiB|TiB)")
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_RLIMITS = re.compile(
    "AS|CORE|CPU|DATA|FSIZE|LOCKS|MEMLOCK|MSGQUEUE|NICE|NOFILE|NPROC|RSS|RTPRIO|RTTIME|SIGPENDING|STACK"
)
#: a RuntimeClass names its handler by a DNS label
_HANDLER = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
#: characters of a wrong value that an error shows
_SHOWN = 200
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def _wrong(path: str, value: object, want: str) -> InvalidSpec:
    return InvalidSpec(f"{path}: {_shown(value)} is not {want}")


def _shown(value: object) -> str:
    """A value of TOML as a sentence may hold it."""
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= _SHOWN else f'"{value[:_SHOWN]}..."'
    try:
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; lists in lists
        return "a value too large to show"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def _text(value: object, path: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise _wrong(path, value, "a text")
    return value


def _one_of(*words: str) -> Check:
    def check(value: object, path: str) -> str:
        if value not in words:
            raise _wrong(path, value, f"one of {', '.join(words)}")
        return str(value)

    return check


def _integer(low: int, high: int) -> Check:
    def check(value: object, path: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _wrong(path, value, f"a whole number from {low} to {high}")
        return value

    return check


def _seconds(low: float, high: float) -> Check:
    def check(value: object, path: str) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise _wrong(path, value, f"a number of seconds from {low:g} to {high:g}")
        return float(value)

    return check


def _size(low: int, high: int) -> Check:
    """Bytes as a number, or a text such as "16 MiB"."""

    def check(value: object, path: str) -> int:
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        size = int(match[1]) * _UNITS[match[2]] if match else value
        if not isinstance(size, int) or isinstance(size, bool) or not low <= size <= high:
            raise _wrong(path, value, f'a size from {low} to {high} bytes, as a number or like "16 MiB"')
        return size

    return check


def _directory(value: object, path: str) -> Path:
    """An absolute path, not necessarily there; "//" and "." are taken out."""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value or ".." in value.split("/"):
        raise _wrong(path, value, "an absolute path")
    return Path("/" + os.path.normpath(value).lstrip("/"))


def _listen(value: object, path: str) -> Path:
    text = _text(value, path)
    if not text.startswith("unix:///") or len(os.fsencode(text)) - len("unix://") > _SOCKET_PATH_BYTES:
        raise _wrong(path, value, f"of the form unix:///PATH with at most {_SOCKET_PATH_BYTES} bytes of path")
    return _directory(text.removeprefix("unix://"), path)


def _address(value: object, path: str) -> Address | None:
    text = _text(value, path)
    if not text:
        return None
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        ipaddress.ip_address(bare)
        good = (":" in bare) == (bare != host) and port.isascii() and port.isdigit() and int(port) <= 65535
    except ValueError:
        good = False
    if not good:
        raise _wrong(path, value, 'an address and port like "127.0.0.1:9477" or "[::1]:9477", or "" for none')
    return Address(bare, int(port))


def _file(value: object, path: str) -> Path | None:
    """An absolute path, or None for ""."""
    return None if value == "" else Path(_directory(value, path))


def _list_of(check: Check, *, empty: bool = True) -> Check:
    def check_list(value: object, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or not (value or empty):
            raise _wrong(path, value, "a list" if empty else "a list with at least one value")
        return tuple(check(part, f"{path}[{index}]") for index, part in enumerate(value))

    return check_list


def _table_of(key_check: Check, check: Check) -> Check:
    def check_table(value: object, path: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(path, value, "a table")
        table = {key_check(key, path): check(part, f'{path}."{key}"') for key, part in value.items()}
        return MappingProxyType(table)

    return check_table


def _subnets(value: object, path: str) -> tuple[Subnet, ...]:
    subnets: list[Subnet] = []
    for index, text in enumerate(_list_of(_text, empty=False)(value, path)):
        try:
            subnet = ipaddress.ip_network(text)
        except ValueError:
            raise _wrong(f"{path}[{index}]", text, 'a subnet like "10.88.0.0/16", without host bits') from None
        if subnet.num_addresses < 4:
            raise _wrong(f"{path}[{index}]", text, "large enough for a gateway and a pod")
        if subnet.version in [other.version for other in subnets]:
            raise _wrong(
                f"{path}[{index}]", text, f"the only IPv{subnet.version} subnet; one of each version is allowed"
            )
        subnets.append(subnet)
    return tuple(subnets)


def _matching(pattern: re.Pattern[str], want: str) -> Check:
    def check(value: object, path: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value) or ".." in value.split("/"):
            raise _wrong(path, value, want)
        return value

    return check


def _endpoint(value: object, path: str) -> str:
    text = _text(value, path)
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and _is_registry(parts.netloc) and not (parts.query or parts.fragment)
    except ValueError:  # a bracket that is not closed
        good = False
    if not good:
        raise _wrong(path, value, 'a URL like "https://mirror.example:5000", without a user')
    return text.rstrip("/")


def _registry(value: object, path: str) -> str:
    if not isinstance(value, str) or not _is_registry(value):
        raise _wrong(path, value, 'a registry like "registry.example:5000"')
    return value


def _is_registry(text: str) -> bool:
    match = _REGISTRY.fullmatch(text)
    if match is None or (match["port"] and not 1 <= int(match["port"]) <= 65535):
        return False
    try:
        return match["six"] is None or bool(ipaddress.IPv6Address(match["six"]))
    except ValueError:
        return False


def _rlimits(value: object, path: str) -> tuple[Rlimit, ...]:
    table = _table_of(_text, _list_of(_integer(-1, 2**63 - 1)))(value, path)
    limits = []
    for name, bounds in table.items():
        if not _RLIMITS.fullmatch(name):
            raise _wrong(path, name, f"one of {_RLIMITS.pattern.replace('|', ', ')}")
        if len(bounds) != 2 or _unlimited(bounds[0]) > _unlimited(bounds[1]):
            raise _wrong(
                f'{path}."{name}"', list(bounds), "a soft limit and a hard limit not below it (-1 is unlimited)"
            )
        limits.append(Rlimit(f"RLIMIT_{name}", bounds[0], bounds[1]))
    return tuple(limits)


def _unlimited(value: int) -> float:
    return float("inf") if value == -1 else value


def _native_platform() -> str:
    machine = platform.machine()
    return f"linux/{_MACHINES.get(machine, machine)}"


# The check of each key; it takes the TOML value and the path of the key, and returns the value of the field.
_CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "server.listen": _listen,
        "server.root": _directory,
        "server.state": _directory,
        "server.metrics": _address,
        "server.log_level": _one_of("debug", "info", "warning", "error"),
        "streaming.listen": _address,
        "streaming.cert_file": _file,
        "streaming.key_file": _file,
        "network.bridge.subnets": _subnets,
        "network.cni.conf_dir": _directory,
        "network.cni.bin_dirs": _list_of(_directory, empty=False),
        "network.mode": _one_of("bridge", "cni"),
        "images.mirrors": _table_of(_registry, _list_of(_endpoint, empty=False)),
        "images.insecure": _list_of(_registry),
        "images.ca_files": _table_of(_registry, _directory),
        "images.platform": _matching(_PLATFORM, 'a platform like "linux/amd64"'),
        "images.max_layer_bytes": _size(1 << 20, 1 << 50),
        "images.max_layer_entries": _integer(1, 10**9),
        "cgroups.driver": _one_of("auto", "cgroupfs", "systemd"),
        "cgroups.root": _directory,
        "cgroups.parent": _matching(re.compile(f"(?:{_CGROUP.pattern})?"), "a cgroup path"),
        "limits.exec_output_bytes": _size(1024, (16 << 20) - (64 << 10)),
        "limits.rlimits": _rlimits,
        "containers.runtime_handlers": _list_of(_matching(_HANDLER, 'a name like "crishim"')),
        "containers.missing_host_path": _one_of("create", "reject"),
        "containers.seccomp_profile_dir": _directory,
        "stop.sandbox_grace_s": _seconds(0, 3600),
        "stop.kill_wait_s": _seconds(0.1, 600),
    }
)


@dataclass(frozen=True, slots=True)
class Address:
    """A numeric IP address and a port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """[server]: where the server listens and keeps its things."""

    #: path of the CRI socket
    listen: Path = Path("/run/crishim/crishim.sock")
    #: what survives a power cut: images, reservations
    root: Path = Path("/var/lib/crishim")
    #: what ends with the machine's boot: sockets, statuses, exit records
    state: Path = Path("/run/crishim")
    #: None: no metrics are served
    metrics: Address | None = Address("127.0.0.1", 9477)
    log_level: str = "info"


@dataclass(frozen=True, slots=True)
class StreamingConfig:
    """[streaming]: where exec, attach and port-forward are served. The kubelet connects, not its clients."""

    #: port 0 is one that the kernel chooses; None: the three are refused
    listen: Address | None = Address("127.0.0.1", 0)
    #: PEM files; with both of them the server speaks TLS
    cert_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """[network.bridge]: the embedded bridge network."""

    #: at most one of each IP version; the pod CIDR of UpdateRuntimeConfig takes their place
    subnets: tuple[Subnet, ...] = (ipaddress.ip_network("10.88.0.0/16"),)


@dataclass(frozen=True, slots=True)
class CniConfig:
    """[network.cni]: plugins and their configurations."""

    conf_dir: Path = Path("/etc/cni/net.d")
    bin_dirs: tuple[Path, ...] = (Path("/opt/cni/bin"),)


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """[network]"""

    mode: str = "cni"
    bridge: BridgeConfig = BridgeConfig()
    cni: CniConfig = CniConfig()


@dataclass(frozen=True, slots=True)
class ImagesConfig:
    """[images]: registries and bounds."""

    #: registry to the endpoints that are tried before it
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: registries reached by plain HTTP; loopback addresses need no entry
    insecure: tuple[str, ...] = ()
    #: registry to a file of PEM certificates that may sign for it
    ca_files: Mapping[str, Path] = field(default_factory=dict)
    #: "linux/amd64", "linux/arm64/v8"
    platform: str = field(default_factory=_native_platform)
    #: of one layer, unpacked
    max_layer_bytes: int = 64 << 30
    max_layer_entries: int = 2_000_000


@dataclass(frozen=True, slots=True)
class CgroupsConfig:
    """[cgroups]"""

    #: "auto" asks which driver the node's init suits
    driver: str = "auto"
    root: Path = Path("/sys/fs/cgroup")
    #: where pods without a cgroup parent go; "" is named after the instance
    parent: str = ""


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """[limits]"""

    #: both streams of an ExecSync together; the kubelet takes messages of 16 MiB
    exec_output_bytes: int = (16 << 20) - (64 << 10)
    #: of every container's processes; what is not named is inherited from the server
    rlimits: tuple[Rlimit, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainersConfig:
    """[containers]"""

    #: what a missing host path of a mount becomes: a directory, or an error
    missing_host_path: str = "create"
    #: what a RuntimeClass may name besides "", the default; all run alike
    runtime_handlers: tuple[str, ...] = ("crishim",)
    #: the only directory below which localhost seccomp profiles may lie
    seccomp_profile_dir: Path = Path("/var/lib/kubelet/seccomp")


@dataclass(frozen=True, slots=True)
class StopConfig:
    """[stop]"""

    #: between the stop signal and SIGKILL for containers that still run at StopPodSandbox
    sandbox_grace_s: float = 0.0
    #: how long an answer waits for killed processes to be gone; then they are freed in the background
    kill_wait_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Config:
    """All of it."""

    server: ServerConfig = ServerConfig()
    streaming: StreamingConfig = StreamingConfig()
    network: NetworkConfig = NetworkConfig()
    images: ImagesConfig = ImagesConfig()
    cgroups: CgroupsConfig = CgroupsConfig()
    limits: LimitsConfig = LimitsConfig()
    containers: ContainersConfig = ContainersConfig()
    stop: StopConfig = StopConfig()

    @property
    def instance(self) -> str:
        """Name of this server among those of the machine: "default", else 8 hexadecimal digits of its state directory.

        Bridges, nft tables, netns prefixes and cgroups carry it, so that servers live side by side.
        """
        if self.server.state == ServerConfig().state:
            return "default"
        return hashlib.sha256(os.fsencode(self.server.state)).hexdigest()[:8]

    @property
    def cgroup_root(self) -> str:
        """Cgroup of this server's processes, and of pods that name no parent: "/crishim.slice" by default."""
        if self.cgroups.parent:
            return "/" + self.cgroups.parent.strip("/")
        return "/crishim.slice" if self.instance == "default" else f"/crishim-{self.instance}.slice"


def load(path: Path | None, overrides: Mapping[str, object] | None = None) -> Config:
    """The configuration of a TOML file, or the defaults without one, changed by `overrides`.

    overrides: path of a key ("server.listen") to its value as TOML would give it; None leaves the key alone.
    Raises NotFound without the file, InvalidSpec for what is not TOML, unknown keys and wrong values.
    """
    table = _parsed(path) if path is not None else {}
    for key, value in (overrides or {}).items():
        if value is not None:
            *sections, name = key.split(".")
            inner = table
            for section in sections:
                inner = inner.setdefault(section, {})
                if not isinstance(inner, dict):
                    raise _wrong(section, inner, "a table")
            inner[name] = value
    config = _checked(Config, table, "")
    if config.server.root == config.server.state:
        raise _wrong("server.state", str(config.server.state), "another directory than server.root")
    if (config.streaming.cert_file is None) != (config.streaming.key_file is None):
        given = "cert_file" if config.streaming.key_file is None else "key_file"
        raise InvalidSpec(f"streaming.{given}: a certificate and its key are given together or not at all")
    return config


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"configuration {path} does not exist") from None
    except OSError as error:
        raise InvalidSpec(f"configuration {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"configuration {path} is not TOML: {error}") from error
    except ValueError:  # int() refuses more than 4300 digits
        raise InvalidSpec(f"configuration {path} holds a number of thousands of digits") from None
    except RecursionError:
        raise InvalidSpec(f"configuration {path} holds lists or tables nested too deeply") from None


def _checked(kind: type[T], table: object, path: str) -> T:
    """The section `kind` of a TOML table; keys that are not given keep their defaults."""
    if not isinstance(table, dict):
        raise _wrong(path, table, "a table")
    values: dict[str, Any] = {}
    known = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name, value in table.items():
        inner = f"{path}.{name}" if path else name
        if name not in known:
            raise InvalidSpec(
                f"{inner}: there is no such key; {path or 'the top level'} has {', '.join(sorted(known))}"
            )
        check = _CHECKS.get(inner)
        values[name] = check(value, inner) if check else _checked(type(known[name].default), value, inner)
    return kind(**values)
