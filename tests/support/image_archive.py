"""A small image made from the machine's static busybox, as one tar that is an OCI layout and a docker archive at once.

Every runtime can import it, so no registry is needed to run a pod. Beyond its scope: compressed layers.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

BUSYBOX = Path("/bin/busybox")
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"
GROUP = b"root:x:0:\nwww-data:x:33:\nstaff:x:50:www-data\nnobody:x:65534:\n"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_image(
    path: Path,
    name: str,
    *,
    files: Mapping[str, bytes] | None = None,
    links: Mapping[str, str] | None = None,
    **config: Any,
) -> Path:
    """Writes the archive of an image called `name` (REPOSITORY:TAG) and returns its path.

    `files` maps further absolute paths to content (mode 0755) and `links` to what symlinks name; `config` are fields of
    the OCI image config's "config" object, by default a shell that sleeps for ever.
    """
    settings = {"Env": ["PATH=/bin:/usr/bin"], "Cmd": ["/bin/sleep", "infinity"]} | config
    return write_layers(path, name, [shell_layer(files or {}, links or {})], settings)


def write_layers(
    path: Path,
    name: str,
    layers: Sequence[bytes],
    config: Mapping[str, Any] | None = None,
    edit: Callable[[Any], Any] = lambda document: document,
) -> Path:
    """Writes the archive of an image of these layers, tar archives with the bottom first, and returns its path.

    `edit` changes each JSON document before its digest is taken, so that nothing but its content is wrong.
    """

    def edited(document: object) -> bytes:
        return _json(edit(document))

    image_config = edited(
        {
            "architecture": _architecture(),
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
        }
    )
    media = "application/vnd.oci.image"
    manifest = edited(
        {
            "schemaVersion": 2,
            "mediaType": f"{media}.manifest.v1+json",
            "config": _descriptor(f"{media}.config.v1+json", image_config),
            "layers": [_descriptor(f"{media}.layer.v1.tar", layer) for layer in layers],
        }
    )
    names = {"org.opencontainers.image.ref.name": name.rpartition(":")[2], "io.containerd.image.name": name}
    top = _descriptor(f"{media}.manifest.v1+json", manifest) | {"annotations": names}
    blobs = {_blob_path(content): content for content in (*layers, image_config, manifest)}
    docker = {"Config": _blob_path(image_config), "RepoTags": [name], "Layers": [_blob_path(layer) for layer in layers]}
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(archive, "index.json", edited({"schemaVersion": 2, "manifests": [top]}))
        _add(archive, "manifest.json", edited([docker]))
        for name_in_archive, content in blobs.items():
            _add(archive, name_in_archive, content)
    return path


def write_rootfs(directory: Path) -> Path:
    """Lays the same files out in a directory, for what needs a root and no image."""
    with tarfile.open(fileobj=io.BytesIO(shell_layer({}, {}))) as layer:
        layer.extractall(directory, filter="fully_trusted")
    for name in ("dev", "proc", "sys"):
        (directory / name).mkdir()
    return directory


def shell_layer(files: Mapping[str, bytes], links: Mapping[str, str]) -> bytes:
    """The layer with the shell; `files` and `links` as for `write_image`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("var", 0o755)):
            _add(archive, name, None, mode)
        _add(archive, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
        for applet in _applets():
            _add_link(archive, f"bin/{applet}", "busybox")
        for name, content in {"/etc/passwd": PASSWD, "/etc/group": GROUP}.items():
            _add(archive, name.lstrip("/"), content)
        for name, content in files.items():
            _add(archive, name.lstrip("/"), content, 0o755)
        for name, target in links.items():
            _add_link(archive, name.lstrip("/"), target)
    return buffer.getvalue()


def _applets() -> Sequence[str]:
    listed = subprocess.run([BUSYBOX, "--list"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [name for name in listed.split() if name != "busybox"]


def _add(archive: tarfile.TarFile, name: str, content: bytes | None, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode = mode
    if content is None:
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
    else:
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


def _add_link(archive: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    archive.addfile(entry)


def _architecture() -> str:
    machine = subprocess.run(["uname", "-m"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return _MACHINES.get(machine, machine)


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}


def _blob_path(content: bytes) -> str:
    return "blobs/" + _digest(content).replace(":", "/")


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
