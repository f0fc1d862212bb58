"""Localhost seccomp profiles of the node: read and compiled when a container asks for one. Blocking."""

from __future__ import annotations

import json
import os
import stat

from crishim.errors import InvalidSpec
from crishim.model.process import SeccompFilter
from crishim.runtime.settings import Settings
from crishim.spec.seccomp import compile_oci

_LIMIT_BYTES = 1 << 20


class SeccompProfiles:
    """Compiled profiles by path, as long as the file stays the same; only files below one directory."""

    def __init__(self, settings: Settings) -> None:
        """The directory of the settings belongs to the node's administrator, as all that is in it."""
        self._settings = settings
        #: (path, bounding set) to (mtime ns, size, inode) and the filter
        self._known: dict[tuple[str, frozenset[str]], tuple[tuple[int, int, int], SeccompFilter]] = {}

    def compiled(self, path: str, capabilities: frozenset[str]) -> SeccompFilter:
        """The filter of a container with this bounding set; path: of the profile, in the directory or relative to it.

        InvalidSpec names the path when it is missing, not understood or, also by a link, outside of the directory.
        """
        where = f"linux.security_context.seccomp.localhost_ref: {path!r}"
        directory = self._settings.seccomp_profile_dir
        base = os.path.realpath(directory)
        path = os.path.realpath(os.path.join(base, path))
        if not path.startswith(base.rstrip("/") + "/"):
            raise InvalidSpec(f"{where}: it is not below the profile directory {directory}")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise InvalidSpec(f"{where}: {(error.strerror or '').lower()}") from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LIMIT_BYTES:
                raise InvalidSpec(f"{where}: it is not a file of at most {_LIMIT_BYTES} bytes")
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
            known = self._known.get((path, capabilities))
            if known is not None and known[0] == version:
                return known[1]
            with open(fd, "rb", closefd=False) as file:
                text = file.read(_LIMIT_BYTES)
        finally:
            os.close(fd)
        found = self._compile(where, text, capabilities)
        self._known[path, capabilities] = (version, found)
        return found

    def _compile(self, where: str, text: bytes, capabilities: frozenset[str]) -> SeccompFilter:
        try:
            profile = json.loads(text)
        except (ValueError, RecursionError):
            raise InvalidSpec(f"{where}: it is not JSON") from None
        if not isinstance(profile, dict):
            raise InvalidSpec(f"{where}: it is not a JSON object")
        try:
            node = self._settings.node
            return compile_oci(profile, capabilities=capabilities, machine=node.machine, kernel=node.kernel)
        except InvalidSpec as error:
            raise InvalidSpec(f"{where}: {error}") from None
