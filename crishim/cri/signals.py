"""CRI's numbers for signals (api.proto `Signal`) and those of Linux (signal(7)).

CRI counts by a list of its own: SIGTERM is 23 there. Models hold numbers of Linux, so both directions end here.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, cast

from crishim.cri.convert.checks import refuse
from crishim.cri.pb import api_pb2 as pb

_REALTIME = re.compile(r"SIGNAL_SIGRT(MIN|MAX)(?:(PLUS|MINUS)(\d+))?")
#: names that share their number with one that is more usual
_ALIASES = frozenset({"SIGNAL_SIGCLD", "SIGNAL_SIGIOT", "SIGNAL_SIGPOLL"})


def _linux_number(name: str) -> int:
    realtime = _REALTIME.fullmatch(name)
    if realtime is None:
        return int(signal.Signals[name.removeprefix("SIGNAL_")])
    end, sign, distance = realtime.groups(default="0")
    base = signal.SIGRTMIN if end == "MIN" else signal.SIGRTMAX
    return base - int(distance) if sign == "MINUS" else base + int(distance)


def _numbers() -> Iterator[tuple[str, int, int]]:
    for name, number in pb.Signal.items():
        if number != pb.SIGNAL_RUNTIME_DEFAULT:
            yield name, number, _linux_number(name)


_LINUX: Final[Mapping[int, int]] = MappingProxyType({number: linux for _, number, linux in _numbers()})
_CRI: Final[Mapping[int, pb.Signal]] = MappingProxyType(
    {linux: cast("pb.Signal", number) for name, number, linux in _numbers() if name not in _ALIASES}
)


def from_proto(path: str, number: int) -> int:
    """Number on Linux, 0 for "not given"; InvalidSpec for a number that CRI does not have."""
    if number == pb.SIGNAL_RUNTIME_DEFAULT:
        return 0
    if number not in _LINUX:
        refuse(path, number, "it must be a signal of CRI's list")
    return _LINUX[number]


def to_proto(linux: int) -> pb.Signal:
    """CRI's number; SIGNAL_RUNTIME_DEFAULT for the two that the C library keeps for itself."""
    return _CRI.get(linux, pb.SIGNAL_RUNTIME_DEFAULT)
