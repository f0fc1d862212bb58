"""How fast a pod may receive and send: the annotations of Kubernetes' network plugin documentation. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from crishim.errors import InvalidSpec

INGRESS_ANNOTATION = "kubernetes.io/ingress-bandwidth"
EGRESS_ANNOTATION = "kubernetes.io/egress-bandwidth"

#: the lengths keep a hostile annotation from being a number that takes long, or that int() refuses
_QUANTITY = re.compile(r"([0-9]{1,30})(?:\.([0-9]{1,30}))?(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_SHOWN_CHARACTERS = 40
_DECIMAL, _BINARY = "kMGTPE", "KMGTPE"
#: what Kubernetes accepts, in bits per second
_LEAST_RATE, _MOST_RATE = 1000, 10**15


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bits per second of what the pod receives (ingress) and of what it sends; None is not limited."""

    ingress: int | None = None
    egress: int | None = None

    def __bool__(self) -> bool:
        return self != _UNLIMITED


_UNLIMITED = Bandwidth()


def bandwidth_of(annotations: Mapping[str, str]) -> Bandwidth:
    """What a pod asks for. InvalidSpec names the annotation."""
    asked = (INGRESS_ANNOTATION, EGRESS_ANNOTATION)
    return Bandwidth(*(parse_rate(annotations[each], each) if each in annotations else None for each in asked))


def parse_rate(text: str, field: str) -> int:
    """Bits per second of a quantity such as "10M". InvalidSpec outside 1k..1P or when it is not one."""
    text = text.strip()
    shown = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
    match = _QUANTITY.fullmatch(text)
    if not match:
        raise InvalidSpec(f"annotation {field}: {shown!r} is not a rate such as 10M")
    whole, fraction, unit = match[1], match[2] or "", match[3] or ""
    factor: int = 1
    if unit.endswith("i"):
        factor = 1024 ** (_BINARY.index(unit[0]) + 1)
    elif unit:
        factor = 1000 ** (_DECIMAL.index(unit) + 1)
    rate = int(int(whole + fraction) * factor // 10 ** len(fraction))
    if not _LEAST_RATE <= rate <= _MOST_RATE:
        raise InvalidSpec(f"annotation {field}: {shown!r} is not within 1k..1P")
    return rate
