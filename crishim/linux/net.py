"""Interfaces of the calling thread's network namespace, by ioctl (netdevice(7))."""

from __future__ import annotations

import fcntl
import struct
from _socket import AF_INET, SOCK_CLOEXEC, SOCK_DGRAM, socket

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


def set_link_up(name: bytes) -> None:
    """Bring an interface up; OSError ENODEV when there is none of that name."""
    with_name = struct.pack("16sH22x", name, 0)
    sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    try:
        flags = struct.unpack_from("H", fcntl.ioctl(sock.fileno(), _SIOCGIFFLAGS, with_name), 16)[0]
        fcntl.ioctl(sock.fileno(), _SIOCSIFFLAGS, struct.pack("16sH22x", name, flags | _IFF_UP))
    finally:
        sock.close()
