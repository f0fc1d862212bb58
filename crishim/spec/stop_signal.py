"""The signal that StopContainer begins with: the pod's, else the image's, else SIGTERM."""

from __future__ import annotations

import signal

from crishim.errors import InvalidSpec

_RTMIN, _RTMAX = 34, 64


def parse_signal(text: str) -> int:
    """Number of "SIGTERM", "term", "15", "SIGRTMIN+3" or "RTMAX-2"; InvalidSpec names the value. Source: signal(7)."""
    if text.isascii() and text.isdigit() and len(text) <= 2 and 1 <= int(text) <= _RTMAX:
        return int(text)
    name = text.upper().removeprefix("SIG")
    for base, start, sign in (("RTMIN", _RTMIN, "+"), ("RTMAX", _RTMAX, "-")):
        if name == base:
            return start
        offset = name.removeprefix(base + sign)
        is_number = len(offset) <= 2 and offset.isascii() and offset.isdigit()
        if offset != name and is_number and int(offset) <= _RTMAX - _RTMIN:
            return start + int(sign + offset)
    try:
        return int(signal.Signals["SIG" + name])
    except KeyError:
        raise InvalidSpec(f"stop signal {text!r} is not a signal") from None


def stop_signal(requested: int, image: str) -> int:
    """The effective signal. `requested` is 0 when the pod names none; an image's unusable one counts as none."""
    if requested:
        return requested
    try:
        return parse_signal(image) if image else int(signal.SIGTERM)
    except InvalidSpec:
        return int(signal.SIGTERM)
