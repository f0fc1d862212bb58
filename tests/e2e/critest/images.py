"""The images that critest pulls, made of Debian's busybox and two small programs, and pushed to a loopback registry.

The originals are on registries far away; what the suite asks of each is short, and the table at the end of this file
answers it. Busybox comes from the package `busybox`, whose shell looks programs up on disk; the shell of
`busybox-static` runs its applets itself, so a masked program would still run. Beyond its scope: running the suite.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.tools import cache_directory
from tests.support.registry import ARCHITECTURE, OCI_LAYER, OCI_MANIFEST, Registry, image_config, sha256

#: registries that the suite names; all of them are mirrored by the one on the loopback
REGISTRIES = ("registry.k8s.io", "gcr.io", "k8s.gcr.io", "public.ecr.aws", "docker.io")
_E2E = "e2e-test-images"
_CRI_TOOLS = "k8s-staging-cri-tools"
DIGEST_REPOSITORY = f"{_CRI_TOOLS}/test-image-digest"

_HERE = Path(__file__).parent
_ENV = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
_PASSWD = """root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUP = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"
_GROUP_MEMBERS = {
    "etc/passwd": f"{_PASSWD}default-user:x:1000:1000::/home/default-user:/bin/sh\n",
    "etc/group": f"{_GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
}
_DIRECTORIES = {"root": 0o700, "tmp": 0o1777} | dict.fromkeys(
    ("bin", "dev", "etc", "home", "mnt", "proc", "sys", "usr", "usr/sbin", "var", "var/run"), 0o755
)

# What busybox lacks, as far as the suite uses it.
_SCRIPTS = {
    "bin/pgrep": """#!/bin/sh
found=1
for directory in /proc/[0-9]*; do
    read -r name 2>/dev/null <"$directory/comm" || continue
    case $name in *"$1"*) echo "${directory#/proc/}"; found=0 ;; esac
done
exit $found
""",
    "bin/ipcs": "#!/bin/sh\nexec cat /proc/sysvipc/shm\n",
}
_LIBRARY = re.compile(r"(/\S+)\s+\(0x")


@dataclass(frozen=True)
class Image:
    """What distinguishes an image: files over the common ones, a set-user-id program, the image config."""

    files: Mapping[str, str | bytes] = field(default_factory=dict)
    setuid: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


def push_images(registry: Registry, work: Path) -> str:
    """Makes and pushes all of them; the digest of the image that the suite pulls by digest.

    `work` is a directory for compiled programs. Raises CalledProcessError without gcc, a static libc or the package.
    """
    webserver, euid = _compiled(_HERE / "webserver.c", work), _compiled(_HERE / "euid.c", work)
    base = _base_layer()
    digests = {name: _push(registry, name, base, image) for name, image in _images(webserver, euid).items()}
    return digests[f"{DIGEST_REPOSITORY}:latest"]


def _push(registry: Registry, name: str, base: bytes, image: Image) -> str:
    repository, _, tag = name.rpartition(":")
    # a file named after the image makes an image of its own of each that has nothing else
    marked = {"etc/image": repository} | dict(image.files)
    layers = [base, _tar(marked, setuid=image.setuid)]
    blobs = [{"mediaType": OCI_LAYER, **registry.push_blob(repository, layer)} for layer in layers]
    config = {"Env": _ENV, "Cmd": ["sh"]} | dict(image.config)
    document = image_config([sha256(layer) for layer in layers], config)
    return registry.push_documents(repository, tag, document, blobs, OCI_MANIFEST)


def _images(webserver: bytes, euid: bytes) -> dict[str, Image]:
    """Repository and tag of each image, and what the suite wants of it."""
    pause = Image({"etc/image": "pause"}, config={"Entrypoint": ["/bin/sleep"], "Cmd": ["infinity"]})

    def serving(name: str, port: int) -> Image:
        return Image({f"usr/sbin/{name}": webserver}, config={"Cmd": [f"/usr/sbin/{name}", str(port)]})

    def used_by(user: str) -> Image:
        return Image(config={"User": user})

    cri_tools = {
        "test-image-latest:latest": Image(),
        "test-image-1:latest": Image(),
        "test-image-2:latest": Image(),
        "test-image-3:latest": Image(),
        "test-image-tag:test": Image(),
        "test-image-tag:all": Image({"etc/tag": "all"}),
        "test-image-tags:1": Image(),
        "test-image-tags:2": Image(),
        "test-image-tags:3": Image(),
        "test-image-digest:latest": Image(),
        "test-image-user-uid:latest": used_by("1002"),
        "test-image-user-username:latest": used_by("www-data"),
        "test-image-user-uid-group:latest": used_by("1003:1003"),
        "test-image-user-username-group:latest": used_by("www-data:www-data"),
        "test-image-predefined-group:latest": Image(_GROUP_MEMBERS, config={"User": "1000"}),
        f"hostnet-nginx-{ARCHITECTURE}:latest": serving("nginx", 12003),
    }
    return {
        f"{_E2E}/busybox:1.29-2": Image(),
        f"{_E2E}/nginx:1.14-2": serving("nginx", 80),
        f"{_E2E}/httpd:2.4.39-4": serving("httpd", 80),
        f"{_E2E}/nonewprivs:1.3": Image({"bin/euid": euid}, setuid="bin/euid", config={"Entrypoint": ["/bin/euid"]}),
        "pause:3.9": pause,
        **{f"{_CRI_TOOLS}/{name}": image for name, image in cri_tools.items()},
    }


def _compiled(source: Path, work: Path) -> bytes:
    program = work / source.stem
    subprocess.run(["gcc", "-static", "-O2", "-Wall", "-Werror", "-s", "-o", program, source], check=True)
    return program.read_bytes()


def _base_layer() -> bytes:
    """Busybox under all its names, with the libraries it needs, and the files of a small system."""
    program = busybox()
    listed = subprocess.run([program, "--list"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    libraries = _LIBRARY.findall(subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout)
    files: dict[str, str | bytes] = {"etc/passwd": _PASSWD, "etc/group": _GROUP, "bin/busybox": program.read_bytes()}
    files |= {path.lstrip("/"): Path(path).read_bytes() for path in libraries}
    links = {f"bin/{name}": "bin/busybox" for name in listed if name != "busybox"}
    return _tar(files | _SCRIPTS, directories=_DIRECTORIES, links=links)


def busybox() -> Path:
    """The program of the package `busybox`, unpacked into the cache: it cannot be installed beside the static one."""
    directory = cache_directory() / "busybox"
    program = next((path for name in ("bin", "usr/bin") if (path := directory / name / "busybox").exists()), None)
    if program is not None:
        return program
    partial = directory.with_name(f".busybox-{os.getpid()}")
    partial.mkdir(parents=True)
    # apt drops its rights to a user who may not be able to write here
    download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "busybox"]
    if subprocess.run(download, cwd=partial, check=False, stderr=subprocess.DEVNULL).returncode != 0:
        subprocess.run(["apt-get", "-qq", "update"], check=True)  # a machine may have no package lists, or old ones
        subprocess.run(download, cwd=partial, check=True)
    (package,) = partial.glob("busybox_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, partial], check=True)
    partial.rename(directory)
    return busybox()


def _tar(
    files: Mapping[str, str | bytes],
    *,
    setuid: str = "",
    directories: Mapping[str, int] | None = None,
    links: Mapping[str, str] | None = None,
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, mode in (directories or {}).items():
            _add(archive, name, mode, tarfile.DIRTYPE)
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            mode = 0o644 if name.startswith("etc/") else 0o755
            _add(archive, name, 0o4755 if name == setuid else mode, tarfile.REGTYPE, data)
        for name, target in (links or {}).items():
            _add(archive, name, 0o755, tarfile.LNKTYPE, link=target)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, mode: int, kind: bytes, content: bytes = b"", link: str = "") -> None:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.type, entry.linkname, entry.size = mode, kind, link, len(content)
    archive.addfile(entry, io.BytesIO(content))
