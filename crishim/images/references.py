"""Image references as people write them, made complete: "busybox" is docker.io/library/busybox:latest. Pure.

The grammar is that of the distribution specification and of Docker's familiar names.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from crishim.errors import InvalidSpec

DEFAULT_HOST = "docker.io"
_MAX_LENGTH = 1024
_MAX_REPOSITORY = 255
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_IMAGE_ID = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Reference:
    """A complete reference: at least one of tag and digest is set. With both, the digest decides what is pulled."""

    #: "docker.io", "registry.example:5000", "[::1]:5000"
    host: str
    #: "library/busybox"
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """ "docker.io/library/busybox"."""
        return f"{self.host}/{self.repository}"

    @property
    def tagged(self) -> str | None:
        """ "docker.io/library/busybox:latest", None when a digest names the image."""
        return f"{self.name}:{self.tag}" if self.tag is not None and self.digest is None else None

    def with_digest(self, digest: str) -> str:
        """ "docker.io/library/busybox@sha256:..."."""
        return f"{self.name}@{digest}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.name}{tag}{digest}"


def parse_reference(text: str) -> Reference:
    """The complete form of `text`; InvalidSpec names it when it is not a reference."""
    if not 0 < len(text) <= _MAX_LENGTH:
        raise InvalidSpec(f"image reference {text[:80]!r} is empty or longer than {_MAX_LENGTH} characters")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise InvalidSpec(f"image reference {text!r} has the digest {digest!r}, which is not sha256:<64 hex digits>")
    head, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise InvalidSpec(f"image reference {text!r} has the tag {tag!r}, which is not a tag")
    host, repository = _split_host(head + slash + last)
    if not _is_host(host):
        raise InvalidSpec(f"image reference {text!r} has the registry {host!r}, which is not a host name")
    if not _REPOSITORY.fullmatch(repository):
        raise InvalidSpec(
            f"image reference {text!r} has the repository {repository!r}; only lower case is allowed there"
        )
    if len(repository) > _MAX_REPOSITORY:
        raise InvalidSpec(f"image reference {text[:80]!r} has a repository of more than {_MAX_REPOSITORY} characters")
    if not colon and not at:
        tag = "latest"
    return Reference(host, repository, tag or None, digest or None)


def parse_image_id(text: str) -> str | None:
    """ "sha256:<hex>" when `text` is a full image id, with or without the prefix; None when it is something else."""
    match = _IMAGE_ID.fullmatch(text)
    return f"sha256:{match[1]}" if match else None


def is_digest(text: str) -> bool:
    """Whether `text` is "sha256:<64 hex>" or "sha512:<128 hex>"."""
    return _DIGEST.fullmatch(text) is not None


def _is_host(text: str) -> bool:
    if not _HOST.fullmatch(text):
        return False
    if text.startswith("["):
        try:
            ipaddress.IPv6Address(text[1 : text.index("]")])
        except ValueError:
            return False
    return True


def _split_host(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    # a registry has a dot, a port or is localhost; upper case cannot be a repository, so it is one too
    if not slash or not ("." in first or ":" in first or first == "localhost" or first.lower() != first):
        host, repository = DEFAULT_HOST, name
    else:
        host, repository = first, rest
    if host in ("index.docker.io", DEFAULT_HOST):
        host = DEFAULT_HOST
        if "/" not in repository:
            repository = f"library/{repository}"
    return host, repository
