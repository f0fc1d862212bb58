"""Traffic control as netlink messages: token buckets, and sending what a device receives through another one. Pure.

Source: tc(8), tc-tbf(8), tc-u32(8), tc-mirred(8), linux/pkt_sched.h and linux/pkt_cls.h.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from crishim.network.netlink import NLM_F_CREATE, NLM_F_EXCL, Request, attribute, nested, text

_RTM_NEWQDISC, _RTM_NEWTFILTER = 36, 44
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_TBF_PARMS, _TCA_TBF_RATE64, _TCA_TBF_BURST = 1, 4, 6
_TCA_U32_SEL, _TCA_U32_ACT = 5, 7
_TCA_ACT_KIND, _TCA_ACT_OPTIONS, _TCA_MIRRED_PARMS = 1, 2, 2

_ROOT, _INGRESS = 0xFFFFFFFF, 0xFFFFFFF1
_ROOT_HANDLE, _INGRESS_HANDLE = 0x00010000, 0xFFFF0000
_ETH_P_ALL = 0x0003
_LINKLAYER_ETHERNET = 1
_U32_TERMINAL = 1
_ACT_STOLEN, _EGRESS_REDIR = 4, 1
_MOST: Final = 2**32 - 1

#: tcmsg: family, device, handle, parent, info
_MESSAGE = struct.Struct("=BxxxiIII")
#: tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate in bytes per second
_RATE = struct.Struct("=BBHhHI")
#: after two rates: limit in bytes, buffer in ticks, mtu
_TBF = struct.Struct("=III")
#: tc_u32_sel with one key that every packet matches: flags, offshift, nkeys, offmask, off, offoff, hoff, hmask;
#: mask, value, offset, offset mask
_MATCH_ALL = struct.pack("=BBBxHHhhIIIii", _U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
#: tc_mirred: index, capabilities, action, references, bindings; what to do; device
_MIRRED = struct.Struct("=IIiiiiI")


def add_token_bucket(device: int, *, rate: int, burst: int, limit: int) -> Request:
    """What the device sends waits for tokens. rate: bytes per second; burst, limit: bytes, below 4 GiB.

    `limit` is what may wait, `burst` what a rested bucket lets pass at once and the largest packet. EEXIST when it has
    one, ENOENT when the kernel lacks tbf.
    """
    parameters = _RATE.pack(0, _LINKLAYER_ETHERNET, 0, 0, 0, min(rate, _MOST)) + bytes(_RATE.size)
    parameters += _TBF.pack(limit, 0, 0)  # the burst in bytes has an attribute of its own, which needs no clock's ticks
    options = attribute(_TCA_TBF_PARMS, parameters)
    options += attribute(_TCA_TBF_RATE64, struct.pack("=Q", rate)) + attribute(_TCA_TBF_BURST, struct.pack("=I", burst))
    body = _MESSAGE.pack(socket.AF_UNSPEC, device, _ROOT_HANDLE, _ROOT, 0)
    body += text(_TCA_KIND, "tbf") + nested(_TCA_OPTIONS, options)
    return Request(f"add token bucket to link {device}", _RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)


def add_ingress(device: int) -> Request:
    """A place for filters of what the device receives. EEXIST when it has one, ENOENT when the kernel lacks it."""
    body = _MESSAGE.pack(socket.AF_UNSPEC, device, _INGRESS_HANDLE, _INGRESS, 0) + text(_TCA_KIND, "ingress")
    return Request(f"add ingress to link {device}", _RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)


def add_redirect(device: int, target: int) -> Request:
    """What the device receives is sent by `target` (an ifb, which gives it back). The device has `add_ingress`.

    ENOENT when the kernel lacks u32 or mirred.
    """
    action = text(_TCA_ACT_KIND, "mirred") + nested(
        _TCA_ACT_OPTIONS, attribute(_TCA_MIRRED_PARMS, _MIRRED.pack(0, 0, _ACT_STOLEN, 0, 0, _EGRESS_REDIR, target))
    )
    options = attribute(_TCA_U32_SEL, _MATCH_ALL) + nested(_TCA_U32_ACT, nested(1, action))
    info = 1 << 16 | socket.htons(_ETH_P_ALL)  # priority and protocol
    body = _MESSAGE.pack(socket.AF_UNSPEC, device, 0, _INGRESS_HANDLE, info)
    body += text(_TCA_KIND, "u32") + nested(_TCA_OPTIONS, options)
    return Request(f"redirect link {device} to {target}", _RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, body)
