"""What plugins answer: the result of a chain, and errors. Pure. Source: CNI specification, section 5."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Any

from crishim.errors import Unavailable
from crishim.network.door import POD_INTERFACE, NetworkResult


def parse_result(output: bytes) -> dict[str, Any]:
    """The JSON object that a plugin wrote; an empty answer is an empty object. Unavailable when it is neither."""
    if not output.strip():
        return {}
    try:
        document = json.loads(output)
    except (ValueError, RecursionError):
        raise Unavailable(f"its answer is not JSON: {_shortened(output)}") from None
    if not isinstance(document, dict):
        raise Unavailable(f"its answer is not an object: {_shortened(output)}")
    return document


def network_result(result: Mapping[str, Any]) -> NetworkResult:
    """The pod's addresses: those of its device, or all when they name no device. Unavailable when there is none."""
    interfaces = [each for each in _list(result, "interfaces") if isinstance(each, dict)]
    own = {
        index for index, each in enumerate(interfaces) if each.get("name") == POD_INTERFACE and each.get("sandbox", "")
    }
    ips, gateways = [], []
    for entry in _list(result, "ips"):
        if not isinstance(entry, dict) or _interface_of(entry, default=next(iter(own), -1)) not in (own or {-1}):
            continue
        ips.append(_address_of(entry))
        if entry.get("gateway"):
            gateways.append(str(entry["gateway"]))
    if not ips:
        raise Unavailable(f"the result has no IP address for {POD_INTERFACE}")
    mac = next((str(interfaces[index].get("mac", "")) for index in sorted(own)), "")
    return NetworkResult(tuple(ips), mac=mac, gateways=tuple(gateways))


def _interface_of(entry: Mapping[str, Any], default: int) -> int:
    index = entry.get("interface")
    if index is None:
        return default
    if not isinstance(index, int) or isinstance(index, bool):
        raise Unavailable(f"the result has an address of interface {_quoted(index)}, which is not a number")
    return index


def _address_of(entry: Mapping[str, Any]) -> str:
    address = entry.get("address")
    try:
        if not isinstance(address, str):  # a number would be taken for the bits of an address
            raise ValueError
        return str(ipaddress.ip_interface(address).ip)
    except ValueError:
        raise Unavailable(f"the result has the address {_quoted(address)}") from None


def describe_failure(output: bytes, diagnostics: bytes, exit_code: int) -> str:
    """One sentence from what a failed plugin wrote on stdout (an error object) and on stderr."""
    try:
        document = json.loads(output)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and document.get("msg"):
        details = document.get("details")
        said = f"{document['msg']}" + (f"; {details}" if details else "") + f" (CNI code {document.get('code')})"
    else:
        said = f"it ended with {exit_code}" + (f" and wrote {_shortened(output)}" if output.strip() else "")
    return said + (f"; stderr: {_shortened(diagnostics)}" if diagnostics.strip() else "")


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    return value if isinstance(value, list) else []


def _quoted(value: Any) -> str:
    return _shortened(json.dumps(value, ensure_ascii=False).encode(errors="replace"), most=100)


def _shortened(output: bytes, most: int = 500) -> str:
    text = output.decode(errors="replace").strip()
    return text if len(text) <= most else "…" + text[-most:]
