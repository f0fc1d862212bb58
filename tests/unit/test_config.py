"""The configuration: defaults, files, overrides, and a sentence for every wrong value."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.config import Address, Config, load
from crishim.config.keys import CHECKS
from crishim.errors import InvalidSpec, NotFound
from crishim.model.process import Rlimit

DOCUMENT = Path(__file__).parents[2] / "docs/configuration.md"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def keys(kind: object = Config, path: str = "") -> Iterator[str]:
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]
        inner = f"{path}.{each.name}" if path else each.name
        if dataclasses.is_dataclass(each.default) and not isinstance(each.default, Address):
            yield from keys(each.default, inner)
        else:
            yield inner


def documented() -> dict[str, str]:
    """Key to the text of its default, from the table of the page."""
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.+?) \| ", DOCUMENT.read_text(), re.MULTILINE)
    return {key: default.strip("`") for key, default in rows}


def test_without_a_file_everything_is_default() -> None:
    assert load(None) == Config() and load(None, {"server.listen": None}) == Config()
    assert Config().network.mode == "cni" and Config().instance == "default"


def test_every_key_has_a_check_and_a_line_in_the_document() -> None:
    assert set(keys()) == set(CHECKS) == set(documented())


def test_the_documented_defaults_are_the_defaults() -> None:
    values = {key: text for key, text in documented().items() if key != "images.platform"}
    told = {key: tomllib.loads(f"value = {text}")["value"] for key, text in values.items()}
    assert load(None, told) == Config()


def test_the_documented_examples_are_valid(tmp_path: Path) -> None:
    example, handlers = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert list(load(write(tmp_path, handlers)).runtimes) == ["crishim", "strict", "build"]
    found = load(write(tmp_path, example))
    assert found.server.metrics == Address("0.0.0.0", 9477)
    assert found.network.bridge.subnets == (
        ipaddress.ip_network("10.88.0.0/16"),
        ipaddress.ip_network("fd00:10:88::/64"),
    )
    assert found.images.mirrors == {"docker.io": ("https://mirror.lan",)}
    assert found.images.insecure == ("registry.lan:5000",)
    assert found.limits.rlimits == (Rlimit("RLIMIT_NOFILE", 1024, 1048576),)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[server]\nstate = "/run/a"\nroot = "/srv/a"\n')
    found = load(path, {"server.state": "/run/b", "network.mode": "bridge"})
    assert (found.server.state, found.server.root) == (Path("/run/b"), Path("/srv/a"))
    assert found.network.mode == "bridge"


def test_instances_follow_the_state_directory() -> None:
    names = {load(None, {"server.state": path}).instance for path in ("/run/a", "/run/b", "/run/b/", "/run//b")}
    assert len(names) == 2 and all(re.fullmatch("[0-9a-f]{8}", name) for name in names)


def test_no_metrics_is_none() -> None:
    assert load(None, {"server.metrics": ""}).server.metrics is None
    assert load(None, {"server.metrics": "[::1]:0"}).server.metrics == Address("::1", 0)


def test_streams_may_be_off_or_over_tls() -> None:
    assert load(None, {"streaming.listen": ""}).streaming.listen is None
    files = {"streaming.cert_file": "/cert.pem", "streaming.key_file": "/key.pem"}
    assert load(None, files).streaming.key_file == Path("/key.pem")


def test_sizes_have_units() -> None:
    assert load(None, {"images.max_layer_bytes": "3 GiB"}).images.max_layer_bytes == 3 << 30
    assert load(None, {"images.max_layer_bytes": 1 << 21}).images.max_layer_bytes == 1 << 21


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("network.mode", "x", 'network.mode: "x" is not one of bridge, cni'),
        ("network.mode", True, "network.mode: true is not one of bridge, cni"),
        ("server.listen", "/run/x.sock", 'server.listen: "/run/x.sock" is not of the form unix:///PATH'),
        ("server.listen", "unix://run/x.sock", "is not of the form unix:///PATH"),
        ("server.listen", "unix:///" + "x" * 100, "at most 96 bytes"),
        ("server.root", "var/lib", 'server.root: "var/lib" is not an absolute path'),
        ("server.root", "/var/../etc", "is not an absolute path"),
        ("server.root", "/a\0b", "is not an absolute path"),
        ("server.state", "/var/lib/crishim", "is not another directory than server.root"),
        ("server.metrics", "localhost:9477", "is not an address and port"),
        ("server.metrics", "127.0.0.1:70000", "is not an address and port"),
        ("server.metrics", "127.0.0.1", "is not an address and port"),
        ("server.metrics", "::1:9477", "is not an address and port"),
        ("server.metrics", "127.0.0.1:²", "is not an address and port"),
        ("streaming.listen", "localhost:0", "is not an address and port"),
        ("streaming.cert_file", "/cert.pem", "are given together or not at all"),
        ("streaming.key_file", "/key.pem", "are given together or not at all"),
        ("streaming.key_file", "key.pem", "is not an absolute path"),
        ("network.bridge.subnets", [], "is not a list with at least one value"),
        ("network.bridge.subnets", "10.0.0.0/8", "is not a list with at least one value"),
        ("network.bridge.subnets", ["10.88.0.1/16"], r'network.bridge.subnets[0]: "10.88.0.1/16" is not a subnet'),
        ("network.bridge.subnets", ["10.0.0.0/31"], "large enough"),
        ("network.bridge.subnets", ["10.0.0.0/8", "11.0.0.0/8"], "network.bridge.subnets[1]"),
        ("network.cni.bin_dirs", ["/ok", "bad"], 'network.cni.bin_dirs[1]: "bad" is not an absolute path'),
        ("images.mirrors", {"docker.io": ["ftp://x"]}, 'images.mirrors."docker.io"[0]: "ftp://x" is not a URL'),
        ("images.mirrors", {"docker.io": ["https://user:pw@x"]}, "without a user"),
        ("images.mirrors", {"not a host": ["https://x"]}, 'images.mirrors: "not a host" is not a registry'),
        ("images.mirrors", {"a.b": ["http://[::1"]}, 'images.mirrors."a.b"[0]: "http://[::1" is not a URL'),
        ("images.mirrors", {"a.b": ["http://[::::]"]}, "is not a URL"),
        ("images.mirrors", {"a.b": ["http://a.b:65536"]}, "is not a URL"),
        ("images.mirrors", {"a.b:0": ["http://a.b"]}, "is not a registry"),
        ("images.insecure", ["http://x"], "is not a registry"),
        ("images.insecure", ["x:65536"], "is not a registry"),
        ("images.platform", "windows/amd64", "is not a platform"),
        ("images.max_layer_bytes", "3 GB", "is not a size"),
        ("images.max_layer_bytes", 5, "is not a size"),
        ("images.max_layer_bytes", "9" * 5000 + " B", "is not a size"),
        ("images.max_layer_entries", 1.5, "is not a whole number"),
        ("cgroups.parent", "a/../../b", "is not a cgroup path"),
        ("limits.exec_output_bytes", "16 MiB", "is not a size from 1024 to 16711680 bytes"),
        ("limits.rlimits", {"OPENFILES": [1, 2]}, 'limits.rlimits: "OPENFILES" is not one of AS, CORE'),
        ("limits.rlimits", {"NOFILE": [2, 1]}, "limits.rlimits.NOFILE: [2, 1] is not a soft limit"),
        ("limits.rlimits", {"NOFILE": [-1, 1]}, "a hard limit not below it"),
        ("limits.rlimits", {"NOFILE": [1]}, "a hard limit not below it"),
        ("containers.missing_host_path", "ignore", "is not one of create, reject"),
        ("stop.kill_wait_s", 0, "is not a number of seconds from 0.1 to 600"),
        ("stop.kill_wait_s", float("nan"), "is not a number of seconds"),
        ("network", "cni", 'network: "cni" is not a table'),
    ],
)
def test_a_wrong_value_is_named_with_its_key(key: str, value: object, sentence: str) -> None:
    with pytest.raises(InvalidSpec, match=re.escape(sentence)) as caught:
        load(None, {key: value})
    assert str(caught.value).startswith(key)


@pytest.mark.parametrize("key", ["images.max_layer_bytes", "stop.kill_wait_s", "network", "server.metrics"])
def test_what_has_no_text_is_still_named_by_its_key(tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidSpec, match=re.escape(f"{key}: a value too large to show is not a")):
        load(write(tmp_path, f"{key} = 0x1{'0' * 5000}"))
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(InvalidSpec, match=re.escape(f"{key}: a value too large to show is not a")):
        load(None, {key: nested})


def test_only_the_begin_of_a_long_value_is_shown() -> None:
    with pytest.raises(InvalidSpec) as caught:
        load(None, {"network.mode": "x" * 10_000})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["colour = 1", "[server]\ncolour = 1", "[network.bridge]\nname = 'x'"])
def test_an_unknown_key_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidSpec, match="there is no such key"):
        load(write(tmp_path, text))


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.toml does not exist"):
        load(tmp_path / "config.toml")
    with pytest.raises(InvalidSpec, match=r"config\.toml is not TOML: Invalid value"):
        load(write(tmp_path, "server = ["))
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidSpec, match="is not TOML"):
        load(tmp_path / "config.toml")
    with pytest.raises(InvalidSpec, match="number of thousands of digits"):
        load(write(tmp_path, "a = " + "9" * 5000))
    with pytest.raises(InvalidSpec, match="nested too deeply"):
        load(write(tmp_path, "a = " + "[" * 10_000 + "]" * 10_000))
    with pytest.raises(InvalidSpec, match="cannot be read: Is a directory"):
        load(tmp_path)
