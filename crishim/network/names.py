"""Names of what one instance owns in the kernel, and of what belongs to one of its pods. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from crishim.network.rtnetlink import Address
from crishim.network.rules import PORT_PREFIX

SHAPER_PREFIX = "crs"
"""How the names of the devices that shape what pods send begin, those of every instance."""


@dataclass(frozen=True, slots=True)
class BridgeNames:
    """Names of what an instance owns in the kernel; several instances live side by side on one node."""

    bridge: str
    table: str

    @classmethod
    def of(cls, instance: str) -> BridgeNames:
        """ "default" is the instance of a node that has one server. A device name has at most 15 characters."""
        bridge = "crishim0" if instance == "default" else "crishim" + hashlib.sha256(instance.encode()).hexdigest()[:8]
        return cls(bridge, f"crishim-{instance}")

    def number(self, purpose: str) -> int:
        """Of a group of links or a routing table; one that nobody else on the node uses."""
        digest = hashlib.sha256(f"{self.bridge}{purpose}".encode()).digest()
        return int.from_bytes(digest[:4], "little") | 1 << 31


def port_name(sandbox_id: str) -> str:
    """Name of the pod's device in the host: 15 characters, the longest that a device may have."""
    return PORT_PREFIX + hashlib.sha256(sandbox_id.encode()).hexdigest()[:12]


def shaper_name(sandbox_id: str) -> str:
    """Name of the device in which what the pod sends waits for its turn, for those that have one."""
    return SHAPER_PREFIX + port_name(sandbox_id).removeprefix(PORT_PREFIX)


def mac_of(ip: Address) -> bytes:
    """A locally administered MAC that follows from the address, so a neighbour's cache is right when it is reused."""
    return b"\x02\xc5" + (ip.packed if ip.version == 4 else hashlib.sha256(ip.packed).digest()[:4])
