"""AppArmor profiles of the node: which are loaded, and ours loaded when it is not. Blocking.

The kernel takes compiled policy alone, and apparmor_parser(8) is the compiler of every distribution that has AppArmor.
It keeps what it compiled in a cache of ours, so that a start with the same profile compiles nothing.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

from crishim.errors import InvalidSpec, Unavailable
from crishim.spec.apparmor import DEFAULT_PROFILE, UNCONFINED, default_profile

_LOADED = Path("/sys/kernel/security/apparmor/profiles")
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
_PARSER_S = 60.0


class AppArmorProfiles:
    """The profiles of this kernel, asked anew each time: an administrator may unload them."""

    def __init__(self, default: str, directory: Path, loaded: Path = _LOADED, parser: str = "apparmor_parser") -> None:
        """default: profile of containers that name none, "unconfined" for none; directory: of our source and cache.

        loaded: the kernel's list, which is there when AppArmor is enabled and securityfs is mounted.
        """
        self.enabled = loaded.exists()
        #: why containers that name no profile are unconfined although they should not be
        self.problem = ""
        self.default = default if self.enabled and default != UNCONFINED else None
        self._directory = directory
        self._loaded = loaded
        self._parser = parser

    def prepare(self) -> None:
        """Load the default profile anew, so that it is the one of this version; `problem` says why there is none."""
        if self.default is None:
            return
        try:
            if self.default == DEFAULT_PROFILE:
                self._load()
            self.require(self.default)
        except (InvalidSpec, Unavailable) as error:
            self.problem = str(error)
            self.default = None

    def require(self, name: str) -> None:
        """Returns when the profile is loaded; ours is loaded again. InvalidSpec names another, Unavailable says why."""
        if self._is_loaded(name):
            return
        if name != DEFAULT_PROFILE:
            raise InvalidSpec(f"linux.security_context.apparmor: profile {name!r} is not loaded on this node")
        self._load()

    def _is_loaded(self, name: str) -> bool:
        """A line is "NAME (MODE)"; a name may hold blanks."""
        with suppress(OSError):
            lines = self._loaded.read_text(errors="surrogateescape").splitlines()
            return any(line.rpartition(" (")[0] == name for line in lines)
        return False

    def _load(self) -> None:
        """By apparmor_parser. One that is missing is no problem when somebody else has loaded the profile."""
        try:
            source = self._directory / DEFAULT_PROFILE
            self._directory.mkdir(mode=0o700, exist_ok=True)
            if not source.exists() or source.read_text() != default_profile():
                source.write_text(default_profile())
            subprocess.run(
                [self._parser, "--replace", "--write-cache", f"--cache-loc={self._directory}/cache", str(source)],
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PARSER_S,
                env={"PATH": _PATH},
            )
        except FileNotFoundError:
            if not self._is_loaded(DEFAULT_PROFILE):
                raise Unavailable(f"{self._parser} is not installed, so {DEFAULT_PROFILE} cannot be loaded") from None
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{self._parser} did not load {DEFAULT_PROFILE} within {_PARSER_S:g} s") from None
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
            raise Unavailable(f"{self._parser} cannot load {DEFAULT_PROFILE}: {said[-1]}") from None
        except OSError as error:
            raise Unavailable(f"{self._directory} cannot be written: {(error.strerror or '').lower()}") from None
