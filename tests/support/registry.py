"""Debian's docker-registry on a loopback port, and images pushed to it."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
ARCHITECTURE = _MACHINES.get(os.uname().machine, os.uname().machine)


@dataclass
class Registry:
    """A registry that runs; `host` is "127.0.0.1:PORT"."""

    host: str
    directory: Path
    headers: dict[str, str] = field(default_factory=dict)

    def push_blob(self, repository: str, content: bytes) -> dict[str, Any]:
        """Upload a blob; its descriptor without media type."""
        base = f"http://{self.host}"
        digest = sha256(content)
        started = urllib3.request("POST", f"{base}/v2/{repository}/blobs/uploads/", headers=self.headers)
        assert started.status == 202, (started.status, started.data)
        location = started.headers["Location"]
        url = (location if "://" in location else base + location) + f"&digest={digest}"
        headers = {**self.headers, "Content-Type": "application/octet-stream"}
        done = urllib3.request("PUT", url, body=content, headers=headers)
        if done.status == 404:  # on a slow machine the request was repeated, and its upload was complete
            done = urllib3.request("HEAD", f"{base}/v2/{repository}/blobs/{digest}", headers=self.headers)
        assert done.status in (200, 201), (done.status, done.data)
        return {"digest": digest, "size": len(content)}

    def push_manifest(self, repository: str, name: str, document: Mapping[str, Any]) -> str:
        """Upload a manifest or index under a tag or digest; its digest."""
        body = json.dumps(document).encode()
        headers = {**self.headers, "Content-Type": str(document["mediaType"])}
        answer = urllib3.request(
            "PUT", f"http://{self.host}/v2/{repository}/manifests/{name}", body=body, headers=headers
        )
        assert answer.status == 201, (answer.status, answer.data)
        return sha256(body)

    def push_image(
        self,
        repository: str,
        tag: str,
        layers: Sequence[bytes],
        *,
        config: Mapping[str, Any] | None = None,
        architecture: str = ARCHITECTURE,
        media_type: str = OCI_MANIFEST,
        diff_ids: Sequence[str] | None = None,
    ) -> str:
        """Push an image of uncompressed layer tars, each sent as gzip; the digest of its manifest."""
        blobs = [
            {"mediaType": OCI_LAYER + "+gzip", **self.push_blob(repository, gzip.compress(layer, mtime=0))}
            for layer in layers
        ]
        document = image_config(diff_ids or [sha256(layer) for layer in layers], config or {}, architecture)
        return self.push_documents(repository, tag, document, blobs, media_type)

    def push_documents(
        self,
        repository: str,
        tag: str,
        config: bytes,
        layers: Sequence[Mapping[str, Any]],
        media_type: str = OCI_MANIFEST,
    ) -> str:
        """Push a configuration and the manifest that joins it with layers already there."""
        described = {"mediaType": OCI_CONFIG, **self.push_blob(repository, config)}
        manifest = {"schemaVersion": 2, "mediaType": media_type, "config": described, "layers": list(layers)}
        return self.push_manifest(repository, tag, manifest)

    def blob_path(self, digest: str) -> Path:
        """The registry's own file of a blob."""
        hexadecimal = digest.removeprefix("sha256:")
        return self.directory / "docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"


@contextlib.contextmanager
def running_registry(directory: Path, *, htpasswd: str = "") -> Iterator[Registry]:
    """Start a registry with its files in `directory`; it is gone when the block ends.

    htpasswd: content of a password file (bcrypt), for basic authentication.
    """
    program = shutil.which("docker-registry")
    assert program, "docker-registry is not installed"
    host = f"127.0.0.1:{free_port()}"
    storage = directory / "storage"
    storage.mkdir(parents=True)
    configuration: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": {"addr": host},
    }
    if htpasswd:
        (directory / "htpasswd").write_text(htpasswd)
        configuration["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
    (directory / "config.yml").write_text(json.dumps(configuration))  # JSON is YAML
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(directory / "config.yml")], stdout=log, stderr=log)
    try:
        wait_until_listening(host, process)
        yield Registry(host, storage)
    finally:
        process.kill()
        process.wait()


def basic(user: str, password: str) -> dict[str, str]:
    """Headers of a push that logs in."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def image_config(diff_ids: Sequence[str], config: Mapping[str, Any], architecture: str = ARCHITECTURE) -> bytes:
    """An image configuration document."""
    document = {
        "architecture": architecture,
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    return json.dumps(document).encode()


def layer_tar(entries: Sequence[tuple[str, bytes | None]]) -> bytes:
    """A tar of files (name, content) and directories (name, None), owned by root."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if content is None:
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    """The digest as registries write it."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_listening(host: str, process: subprocess.Popen[bytes], deadline_s: float = 60.0) -> None:
    """Return when the server accepts connections; AssertionError when it died or the time is over."""
    name, _, port = host.rpartition(":")
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        assert process.poll() is None, "the server ended at once"
        with contextlib.suppress(OSError), socket.create_connection((name, int(port)), timeout=1):
            return
        time.sleep(0.02)  # between two looks at the port
    raise AssertionError(f"{host} does not listen")
