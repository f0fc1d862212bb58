"""The shape of a pod's traffic: token buckets where the pod cannot reach them, on the host's side of its link.

What the pod receives waits on its port in the bridge. What it sends arrives at that port, and arriving packets cannot
wait, so they take the way through a device of the pod's own (ifb), wait there, and go on as if they had just arrived.
"""

from __future__ import annotations

import errno

from crishim.errors import Unsupported
from crishim.network import rtnetlink, traffic_control
from crishim.network.bandwidth import EGRESS_ANNOTATION, INGRESS_ANNOTATION, Bandwidth
from crishim.network.kernel_access import KernelAccess
from crishim.network.names import SHAPER_PREFIX, BridgeNames, port_name, shaper_name
from crishim.network.netlink import Request

#: a rested bucket holds a tenth of a second, but some packets, and no more memory than a busy node can spare
_BURSTS_PER_S = 10
_LEAST_PACKETS = 10
_MOST_BURST = 16 << 20
#: and as much waits as leaves within a fortieth of a second more, as the CNI plugin has it
_WAITS_PER_S = 40
_MOST_WAITING = 32 << 20
#: ENOENT: no such queue, filter or action; EOPNOTSUPP: no such device
_LACKING = frozenset({errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL, errno.EAFNOSUPPORT})


class Shaping:
    """Of the pods of one instance."""

    def __init__(self, names: BridgeNames, access: KernelAccess) -> None:
        self._access = access
        #: of the devices, so that those which nobody knows any more are found
        self._group = names.number("shaping")
        self._groups = frozenset({self._group, names.number("leaving")})

    def apply(self, sandbox_id: str, bandwidth: Bandwidth, mtu: int) -> None:
        """The pod's port is there and has no shape. Unsupported names the annotation that this kernel cannot honour."""
        if not bandwidth:
            return
        port = self._index_of(port_name(sandbox_id))
        if bandwidth.ingress is not None:
            self._request(INGRESS_ANNOTATION, "tbf", [token_bucket(port, bandwidth.ingress, mtu)])
        if bandwidth.egress is not None:
            needed = "ifb, tbf, u32 and mirred"
            name = shaper_name(sandbox_id)
            # one that is there was left by an attach that a crash cut off
            self._access.route().request([rtnetlink.delete_link(name)], {errno.ENODEV})
            self._request(EGRESS_ANNOTATION, needed, [rtnetlink.add_ifb(name, mtu=mtu, group=self._group)])
            shaper = self._index_of(name)
            steps = [traffic_control.add_ingress(port), traffic_control.add_redirect(port, shaper)]
            self._request(EGRESS_ANNOTATION, needed, [token_bucket(shaper, bandwidth.egress, mtu), *steps])

    def devices(self) -> list[str]:
        """Names of the devices of this instance's pods, those included whose deletion a crash cut off."""
        links = [link for link in self._access.links() if link.group in self._groups]
        return [link.name for link in links if link.name.startswith(SHAPER_PREFIX)]

    def _index_of(self, name: str) -> int:
        return rtnetlink.parse_link(self._access.route().query(rtnetlink.get_link(name))).index

    def _request(self, annotation: str, needed: str, requests: list[Request]) -> None:
        try:
            self._access.route().request(requests)
        except OSError as error:
            if error.errno not in _LACKING:
                raise
            raise Unsupported(
                f"annotation {annotation}: this kernel lacks one of {needed}: {error.strerror}"
            ) from error


def token_bucket(device: int, bits_per_s: int, mtu: int) -> Request:
    """The bucket of a rate. Pure."""
    rate = bits_per_s // 8
    burst = min(max(rate // _BURSTS_PER_S, _LEAST_PACKETS * mtu), _MOST_BURST)
    limit = min(burst + rate // _WAITS_PER_S, _MOST_WAITING)
    return traffic_control.add_token_bucket(device, rate=rate, burst=burst, limit=limit)
