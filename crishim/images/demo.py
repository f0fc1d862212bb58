"""A small image made from programs of this machine, as an OCI archive: for `make run` and for tests. No network.

Its programs are one busybox under many names when the machine has one, else a shell and coreutils with the libraries
they need. The same machine makes the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

from crishim.errors import Unavailable
from crishim.images.documents import config_document, document, manifest_document
from crishim.images.manifests import OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST, digest_of, host_platform
from crishim.images.references import parse_reference
from crishim.model.image import ImageConfig

_PASSWD = (
    b"root:x:0:0:root:/root:/bin/sh\n"
    b"nobody:x:65534:65534:nobody:/:/bin/false\n"
    b"user:x:1000:1000:user:/home/user:/bin/sh\n"
)
_GROUP = b"root:x:0:\nnogroup:x:65534:\nuser:x:1000:\nwheel:x:10:user\n"
_DIRECTORIES = (
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("home/user", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
)
#: what a pod needs when there is no busybox
_PROGRAMS = ("sh", "ls", "id", "cat", "sleep", "env", "echo", "true", "false", "mkdir", "rm", "touch", "head", "sort")
_CONFIG = ImageConfig(env=("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",), cmd=("sh",))
_LIBRARY = re.compile(r"(?:=>\s+)?(/\S+)\s+\(0x")


def build_demo_image(path: Path, reference: str = "crishim.local/demo:latest") -> str:
    """Write the archive to `path` and return the image's id. Unavailable when the machine has no programs for it."""
    layer_tar = _layer()
    layer = gzip.compress(layer_tar, mtime=0)
    platform = host_platform()
    configuration = document(
        {
            "architecture": platform.architecture,
            "os": platform.os,
            "config": config_document(_CONFIG),
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer_tar)]},
        }
    )
    blob = {"mediaType": OCI_LAYER_GZIP, "digest": digest_of(layer), "size": len(layer)}
    manifest = manifest_document(configuration, [blob])
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        _add_file(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644)
        _add_file(archive, "index.json", _index(manifest, reference), 0o644)
        for content in (manifest, configuration, layer):
            _add_file(archive, "blobs/" + digest_of(content).replace(":", "/"), content, 0o644)
    return digest_of(configuration)


def _index(manifest: bytes, reference: str) -> bytes:
    name = str(parse_reference(reference))
    entry = {
        "mediaType": OCI_MANIFEST,
        "digest": digest_of(manifest),
        "size": len(manifest),
        "annotations": {"io.containerd.image.name": name},
    }
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()


def _layer() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, mode in _DIRECTORIES:
            _add_directory(archive, name, mode)
        _add_file(archive, "etc/passwd", _PASSWD, 0o644)
        _add_file(archive, "etc/group", _GROUP, 0o644)
        busybox = shutil.which("busybox")
        if busybox:
            _add_busybox(archive, busybox)
        else:
            _add_programs(archive)
    return buffer.getvalue()


def _add_busybox(archive: tarfile.TarFile, busybox: str) -> None:
    _add_file(archive, "bin/busybox", Path(busybox).read_bytes(), 0o755)
    _add_libraries(archive, [busybox])
    listed = subprocess.run([busybox, "--list"], capture_output=True, check=True, text=True).stdout.split()
    for name in sorted(set(listed) - {"busybox"}):
        link = tarfile.TarInfo(f"bin/{name}")
        link.type = tarfile.LNKTYPE
        link.linkname = "bin/busybox"
        link.mode = 0o755
        archive.addfile(link)


def _add_programs(archive: tarfile.TarFile) -> None:
    found = {name: path for name in _PROGRAMS if (path := shutil.which(name))}
    if "sh" not in found:
        raise Unavailable("this machine has no busybox and no sh to make an image from; install busybox-static")
    for name, path in found.items():
        _add_file(archive, f"bin/{name}", Path(path).read_bytes(), 0o755)
    _add_libraries(archive, found.values())


def _add_libraries(archive: tarfile.TarFile, programs: Iterable[str]) -> None:
    """Shared libraries and the loader at the paths where programs look for them; none for static programs."""
    libraries: set[str] = set()
    for program in programs:
        listed = subprocess.run(["ldd", program], capture_output=True, text=True)  # fails for a static program
        libraries |= set(_LIBRARY.findall(listed.stdout))
    directories = {str(parent) for library in libraries for parent in Path(library).parents}
    for directory in sorted(directories - {"/"} - {f"/{name}" for name, _ in _DIRECTORIES}):
        _add_directory(archive, directory.lstrip("/"), 0o755)
    for library in sorted(libraries):
        _add_file(archive, library.lstrip("/"), Path(library).read_bytes(), 0o755)


def _add_directory(archive: tarfile.TarFile, name: str, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.DIRTYPE
    entry.mode = mode
    archive.addfile(entry)


def _add_file(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = mode
    archive.addfile(entry, io.BytesIO(content))
