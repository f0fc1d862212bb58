"""Where the files of sandboxes and containers lie below the state directory, and what they hold.

    STATE/sandboxes/<id>/                    the sandbox: status records, monitor.sock, exits/, containers/
    STATE/sandboxes/<id>/files/<name>        resolv.conf, hostname and hosts, bound into its containers
    STATE/sandboxes/<id>/specs/<container>   the ContainerSpec as CreateContainer made it, without its filter
    STATE/sandboxes/<id>/bundles/<container>/  config.json, and rootfs to mount on: there for containers with hooks
    STATE/sandboxes/<id>/stops/<container>   the last signal we sent to its init, and why
    STATE/sandboxes/<id>/own_cgroup          there when the pod's cgroup is ours to remove
    STATE/filters/<sha256>                   compiled seccomp filters, shared by content

All of it is lost with the boot, as the processes are. Written under a temporary name and renamed, never synchronised.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from crishim.errors import Exhausted, Internal, NotFound, Unavailable, Unsupported
from crishim.model.process import ContainerSpec
from crishim.spec.bundle import ROOT, oci_config
from crishim.store import codec


@dataclass(frozen=True, slots=True)
class StoredSpec:
    """A spec on disk; its filter is a file of its own, because hundreds of containers share it."""

    spec: ContainerSpec
    filter_digest: str | None = None


@dataclass(frozen=True, slots=True)
class StopNote:
    """A signal that we sent to an init process; `sender` is a value of `model.events.Sender`."""

    signal: int
    sender: str
    #: CLOCK_REALTIME: an exit before it is not its doing
    at_ns: int


class Places:
    """Paths and small files of one state directory."""

    def __init__(self, state: Path) -> None:
        self.sandboxes = state / "sandboxes"
        self._filters = state / "filters"
        #: filter bytes by digest: every spec in memory shares them
        self._loaded: dict[str, bytes] = {}
        #: (sandbox, container) to the digest of its filter, of specs that were written or read here
        self._filter_of: dict[tuple[str, str], str] = {}

    def sandbox(self, sandbox_id: str) -> Path:
        """Directory of a sandbox."""
        return self.sandboxes / sandbox_id

    def make_sandbox(self, sandbox_id: str) -> Path:
        """Make the directories of a sandbox, closed to other users. Exhausted when they cannot be made."""
        directory = self.sandbox(sandbox_id)
        try:
            for path in (directory, directory / "files", directory / "specs", directory / "stops"):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Exhausted(f"the directory {directory} cannot be made: {error.strerror}") from error
        return directory

    def remove_sandbox(self, sandbox_id: str) -> None:
        """Remove all that is left of a sandbox; a missing directory is fine. Unavailable when it cannot be removed."""
        directory = self.sandbox(sandbox_id)
        for key in [each for each in list(self._filter_of) if each[0] == sandbox_id]:
            self._filter_of.pop(key, None)
        try:
            with suppress(FileNotFoundError):
                shutil.rmtree(directory)
        except OSError as error:
            raise Unavailable(f"the directory {directory} cannot be removed: {error.strerror}") from error

    def file(self, sandbox_id: str, name: str) -> Path:
        """Path of a file that containers of the sandbox see."""
        return self.sandbox(sandbox_id) / "files" / name

    def write_file(self, sandbox_id: str, name: str, text: str, label: str | None = None) -> None:
        """Make or replace such a file, 0644. Exhausted when the state directory is full, as for all that is written.

        label: its SELinux context, on a file system that has them.
        """
        _write(self.file(sandbox_id, name), text.encode("utf-8", "surrogateescape"), 0o644, label)

    def has_file(self, sandbox_id: str, name: str) -> str | None:
        """Its path, None when it was not made."""
        path = self.file(sandbox_id, name)
        return str(path) if path.exists() else None

    def own_cgroup(self, sandbox_id: str) -> None:
        """Note that nobody else had made the pod's cgroup: it goes with the sandbox."""
        _write(self.sandbox(sandbox_id) / "own_cgroup", b"")

    def owns_cgroup(self, sandbox_id: str) -> bool:
        """Whether that was noted."""
        return (self.sandbox(sandbox_id) / "own_cgroup").exists()

    def write_spec(self, sandbox_id: str, spec: ContainerSpec) -> ContainerSpec:
        """Keep a spec; the same one with the shared copy of its filter."""
        digest = None
        if spec.process.seccomp is not None:
            digest = self._keep_filter(spec.process.seccomp)
            self._filter_of[sandbox_id, spec.id] = digest
        stored = StoredSpec(replace(spec, process=replace(spec.process, seccomp=None)), digest)
        _write(self._spec(sandbox_id, spec.id), codec.to_bytes(stored))
        return self._with_filter(stored)

    def read_spec(self, sandbox_id: str, container_id: str) -> ContainerSpec:
        """NotFound when there is none; Unsupported when a newer crishim wrote it; Internal for another fault of it."""
        path = self._spec(sandbox_id, container_id)
        try:
            stored = codec.from_bytes(StoredSpec, path.read_bytes())
            if stored.filter_digest is not None:
                self._filter_of[sandbox_id, container_id] = stored.filter_digest
            return self._with_filter(stored)
        except FileNotFoundError:
            raise NotFound(f"the spec of container {container_id} is gone") from None
        except codec.NewerRecord as error:
            raise Unsupported(f"{path} was written by a newer crishim ({error}): go back to that version") from None
        except (codec.DecodeError, OSError) as error:
            raise Internal(f"{path} cannot be used: {error}") from error

    def make_bundle(self, sandbox_id: str, spec: ContainerSpec) -> ContainerSpec:
        """Make what the hooks of a container find in its bundle; the spec that names it."""
        bundle = self._bundle(sandbox_id, spec.id)
        try:
            (bundle / ROOT).mkdir(mode=0o755, parents=True, exist_ok=True)
            bundle.chmod(0o755)  # the directories above are closed; hooks in a user namespace are shown this one
        except OSError as error:
            raise Exhausted(f"the directory {bundle} cannot be made: {error.strerror}") from error
        _write(bundle / "config.json", json.dumps(oci_config(spec)).encode("ascii"), 0o644)
        return replace(spec, bundle=str(bundle))

    def write_stop(self, sandbox_id: str, container_id: str, note: StopNote) -> None:
        """Before the signal is sent: whoever reads the exit record must know that it was ours."""
        _write(self._stop(sandbox_id, container_id), codec.to_bytes(note))

    def read_stop(self, sandbox_id: str, container_id: str) -> StopNote | None:
        """The last note, None when we sent no signal."""
        try:
            return codec.from_bytes(StopNote, self._stop(sandbox_id, container_id).read_bytes())
        except (OSError, codec.DecodeError):
            return None

    def remove_container(self, sandbox_id: str, container_id: str) -> None:
        """Remove the files of a container; missing ones are fine."""
        self._filter_of.pop((sandbox_id, container_id), None)
        for path in (
            self._spec(sandbox_id, container_id),
            self._stop(sandbox_id, container_id),
            self.sandbox(sandbox_id) / "exits" / container_id,
        ):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise Unavailable(f"{path} cannot be removed: {error.strerror}") from error
        bundle = self._bundle(sandbox_id, container_id)
        try:
            with suppress(FileNotFoundError):
                shutil.rmtree(bundle)
        except OSError as error:
            raise Unavailable(f"the directory {bundle} cannot be removed: {error.strerror}") from error

    def _bundle(self, sandbox_id: str, container_id: str) -> Path:
        return self.sandbox(sandbox_id) / "bundles" / container_id

    def filters_in_use(self) -> frozenset[str]:
        """Digests of the filters of all specs that were written or read here, and not removed since."""
        return frozenset(self._filter_of.values())

    def remove_filter(self, digest: str) -> None:
        """Remove a filter that no spec refers to. Unavailable when it cannot be removed."""
        if digest in self.filters_in_use():
            return
        self._loaded.pop(digest, None)
        path = self._filters / digest
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"{path} cannot be removed: {error.strerror}") from error

    def _spec(self, sandbox_id: str, container_id: str) -> Path:
        return self.sandbox(sandbox_id) / "specs" / container_id

    def _stop(self, sandbox_id: str, container_id: str) -> Path:
        return self.sandbox(sandbox_id) / "stops" / container_id

    def _keep_filter(self, program: bytes) -> str:
        digest = hashlib.sha256(program).hexdigest()
        if digest not in self._loaded:
            try:
                self._filters.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise Exhausted(f"the directory {self._filters} cannot be made: {error.strerror}") from error
            if not (self._filters / digest).exists():
                _write(self._filters / digest, program)
            self._loaded[digest] = program
        return digest

    def _with_filter(self, stored: StoredSpec) -> ContainerSpec:
        digest = stored.filter_digest
        if digest is None:
            return stored.spec
        program = self._loaded.get(digest)
        if program is None:
            program = (self._filters / digest).read_bytes()
            if hashlib.sha256(program).hexdigest() != digest:
                raise Internal(f"the seccomp filter {digest} was changed")
            self._loaded[digest] = program
        return replace(stored.spec, process=replace(stored.spec.process, seccomp=program))


def _write(path: Path, content: bytes, mode: int = 0o600, label: str | None = None) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(content)
            os.fchmod(fd, mode)
            if label is not None:
                _set_label(fd, label)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise Exhausted(f"{path} cannot be written: {error.strerror}") from error


def _set_label(fd: int, label: str) -> None:
    try:
        os.setxattr(fd, "security.selinux", label.encode())
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
