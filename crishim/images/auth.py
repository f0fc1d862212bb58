"""Who we are to a registry: challenges of WWW-Authenticate, and the credentials CRI gives. Pure.

Sources: RFC 9110 section 11, the distribution token specification, api.proto AuthConfig.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from crishim.errors import InvalidSpec
from crishim.model.image import Credentials

# one class for blanks and commas: two runs of blanks side by side would be tried in every split of a long run
_SCHEME = re.compile(r"[\s,]*([A-Za-z][A-Za-z0-9._-]*)(?=\s+[A-Za-z]|\s*(?:,|$))")
_PARAMETER = re.compile(r'[\s,]*([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_MAX_HEADER = 8 << 10
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in: scheme "bearer" or "basic" in lower case, and its parameters."""

    scheme: str
    parameters: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str:
        """Value of a parameter, "" when it is not there."""
        return next((value for key, value in self.parameters if key == name), "")


@dataclass(frozen=True, slots=True)
class Login:
    """Credentials that were understood: at most one of basic, identity token and registry token."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str | None:
        """Value of an Authorization header of the basic scheme; None without a user name."""
        if not self.username:
            return None
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def parse_challenges(header: str) -> list[Challenge]:
    """Challenges of a WWW-Authenticate header in order; text that is none is passed over.

    A header of more than 8 KiB has none.
    """
    found: list[Challenge] = []
    if len(header) > _MAX_HEADER:
        return found
    at = 0
    while scheme := _SCHEME.match(header, at):
        at = scheme.end()
        parameters = []
        while parameter := _PARAMETER.match(header, at):
            at = parameter.end()
            value = parameter[3] if parameter[2] is None else re.sub(r"\\(.)", r"\1", parameter[2])
            parameters.append((parameter[1].lower(), value))
        found.append(Challenge(scheme[1].lower(), tuple(parameters)))
    return found


def is_token(text: str) -> bool:
    """Whether an Authorization header can hold `text` (RFC 9110 section 11.2)."""
    return text != "" and text.isascii() and text.isprintable()


def login_for(credentials: Credentials | None, host: str) -> Login | None:
    """What of the credentials is for the registry `host`: None when there are none, or they are another server's.

    The first that is set counts: registry_token, identity_token, auth, username. InvalidSpec when `auth` is not base64
    of "user:password", when no header can hold the registry token, or for a server address that is none.
    """
    if credentials is None or not _is_for(credentials.server_address, host):
        return None
    if credentials.registry_token:
        if not is_token(credentials.registry_token):
            raise InvalidSpec("auth.registry_token holds other characters than printable ASCII")
        return Login(registry_token=credentials.registry_token)
    if credentials.identity_token:
        return Login(identity_token=credentials.identity_token)
    if credentials.auth:
        try:
            decoded = base64.b64decode(credentials.auth, validate=True).decode()
        except ValueError:  # also binascii.Error and UnicodeDecodeError
            raise InvalidSpec("auth.auth is not base64 of user:password") from None
        username, colon, password = decoded.partition(":")
        if not colon:
            raise InvalidSpec("auth.auth is not base64 of user:password")
        return Login(username, password.rstrip("\0"))
    if credentials.username:
        return Login(credentials.username, credentials.password)
    return None


def _is_for(server_address: str, host: str) -> bool:
    if not server_address:
        return True
    address = server_address if "://" in server_address else f"//{server_address}"
    try:
        server = urlsplit(address).netloc.lower()
    except ValueError:
        raise InvalidSpec(f"auth.server_address: {server_address[:200]!r} is no address") from None
    return server == host.lower() or (server in _HUB_NAMES and host in _HUB_NAMES)
