"""References and credentials of pulls; Image and FilesystemUsage to protobuf."""

from __future__ import annotations

from crishim.cri.convert import checks
from crishim.cri.convert.texts import to_wire
from crishim.cri.pb import api_pb2 as pb
from crishim.errors import InvalidSpec
from crishim.model.image import Credentials, FilesystemUsage, Image


def reference_from_proto(message: pb.ImageSpec, path: str = "image") -> str:
    """The text that names the image; `images/` says what it means."""
    return checks.reference(f"{path}.image", message.image)


def credentials_from_proto(message: pb.AuthConfig, path: str = "auth") -> Credentials | None:
    """None when nothing is set. Messages of errors name the field and never its value."""
    credentials = Credentials(
        username=message.username,
        password=message.password,
        auth=message.auth,
        server_address=checks.line(f"{path}.server_address", message.server_address),
        identity_token=message.identity_token,
        registry_token=message.registry_token,
    )
    for field in ("username", "auth", "identity_token", "registry_token"):
        if any(ord(character) < 32 or ord(character) == 127 for character in getattr(credentials, field)):
            raise InvalidSpec(f"{path}.{field} must not hold control characters")
    return credentials if credentials != Credentials() else None


def to_proto(image: Image) -> pb.Image:
    """The image as an entry of ListImages and an answer of ImageStatus."""
    message = pb.Image(
        id=image.id,
        repo_tags=image.repo_tags,
        repo_digests=image.repo_digests,
        size=image.size_bytes,
        pinned=image.pinned,
    )
    user = image.config.user.partition(":")[0]
    # no id has more digits, and int() refuses texts of thousands
    if user.isascii() and user.isdigit() and len(user) <= 10 and int(user) <= checks.MAX_ID:
        message.uid.value = int(user)  # the kubelet's runAsNonRoot looks at the one of the two that is set
    else:
        message.username = to_wire(user)
    return message


def filesystem_to_proto(usage: FilesystemUsage) -> pb.FilesystemUsage:
    """Space taken on one file system."""
    return pb.FilesystemUsage(
        timestamp=usage.timestamp_ns,
        fs_id=pb.FilesystemIdentifier(mountpoint=usage.mountpoint),
        used_bytes=pb.UInt64Value(value=usage.used_bytes),
        inodes_used=pb.UInt64Value(value=usage.inodes_used),
    )
