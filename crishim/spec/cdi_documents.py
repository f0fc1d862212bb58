"""Documents of the Container Device Interface as values, and the names of their devices. Source: CDI SPEC.md 1.0.0.

Pure: files are read by `runtime/cdi.py`. A field that is not known is refused, because an edit that is dropped in
silence leaves a device half there.
"""

from __future__ import annotations

import re

from crishim.errors import InvalidSpec, Unsupported
from crishim.model.cdi import CdiDocument, CdiMount, CdiNode, ContainerEdits
from crishim.model.hook import Hooks
from crishim.model.process import IntelRdt
from crishim.spec.hook_documents import PLACES, hook_from
from crishim.spec.json_object import Fields

_VERSION = re.compile(r"(?:0\.[1-9][0-9]?|1\.[01])\.[0-9]{1,3}")
_VENDOR = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]{0,250}[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]{0,250}[A-Za-z0-9])?")
_INTERFACE = re.compile(r"[^\s/:%\0]{1,15}")
_ID_LIMIT = 0xFFFFFFFE
#: of what the kernel's dev_t holds
_NUMBER_LIMIT = (1 << 20) - 1


def parsed_name(name: str) -> tuple[str, str]:
    """("vendor.com/class", "device") of a fully qualified name; InvalidSpec for one that is none."""
    kind, mark, device = name.partition("=")
    if not mark or not _is_kind(kind) or not _DEVICE.fullmatch(device):
        raise InvalidSpec(f"CDI device {name!r} is not a fully qualified name such as vendor.com/class=device")
    return kind, device


def document_from(value: object) -> CdiDocument:
    """A document. InvalidSpec and Unsupported name the field."""
    fields = Fields(value, "")
    version = fields.text("cdiVersion")
    if not _VERSION.fullmatch(version):
        raise InvalidSpec(f"cdiVersion: {version!r} is not a version from 0.1.0 to 1.1")
    kind = fields.text("kind")
    if not _is_kind(kind):
        raise InvalidSpec(f"kind: {kind!r} is not of the form vendor.com/class")
    fields.text_map("annotations")
    edits = _edits(fields.inner("containerEdits"))
    devices: dict[str, ContainerEdits] = {}
    for device in fields.objects("devices"):
        name = device.text("name")
        if not _DEVICE.fullmatch(name):
            raise InvalidSpec(f"{device.place('name')}: {name!r} is not the name of a device")
        if name in devices:
            raise InvalidSpec(f"{device.place('name')}: {name!r} is there twice")
        device.text_map("annotations")
        devices[name] = _edits(device.inner("containerEdits"))
        device.end()
    fields.end()
    return CdiDocument(kind, edits, devices)


def _is_kind(text: str) -> bool:
    vendor, mark, class_ = text.partition("/")
    return bool(mark and _VENDOR.fullmatch(vendor) and _VENDOR.fullmatch(class_))


def _edits(fields: Fields | None) -> ContainerEdits:
    if fields is None:
        return ContainerEdits()
    env = fields.texts("env")
    for entry in env:
        if not entry.partition("=")[0] or "=" not in entry:
            raise InvalidSpec(f"{fields.place('env')}: {entry!r} is not NAME=value")
    hooks = Hooks()
    for each in fields.objects("hooks"):
        place = each.text("hookName")
        if place not in PLACES:
            raise InvalidSpec(f"{each.place('hookName')}: {place!r} is not one of {', '.join(PLACES)}")
        hooks += Hooks(**{PLACES[place]: (hook_from(each),)})
        each.end()
    edits = ContainerEdits(
        env,
        tuple(_node(each) for each in fields.objects("deviceNodes")),
        tuple(_mount(each) for each in fields.objects("mounts")),
        hooks,
        tuple(_groups(fields)),
        tuple(_net_device(each) for each in fields.objects("netDevices")),
        _intel_rdt(fields.inner("intelRdt")),
    )
    fields.end()
    return edits


def _intel_rdt(fields: Fields | None) -> IntelRdt | None:
    if fields is None:
        return None
    lines = [fields.text(name, "") for name in ("l3CacheSchema", "memBwSchema")]
    monitoring = [fields.flag(name) for name in ("enableCMT", "enableMBM", "enableMonitoring")]
    found = IntelRdt(
        fields.text("closID", ""), (*(line for line in lines if line), *fields.texts("schemata")), any(monitoring)
    )
    fields.end()
    return found


def _net_device(fields: Fields) -> tuple[str, str]:
    found = fields.text("hostInterfaceName"), fields.text("name")
    for key, name in zip(("hostInterfaceName", "name"), found):
        if not _INTERFACE.fullmatch(name) or name in (".", ".."):
            raise InvalidSpec(f"{fields.place(key)}: {name!r} is not the name of a network device")
    fields.end()
    return found


def _groups(fields: Fields) -> list[int]:
    """Under both names that are in use; the root group is nobody's to hand out."""
    groups = (*fields.integers("additionalGids", _ID_LIMIT), *fields.integers("additionalGIDs", _ID_LIMIT))
    return [group for group in groups if group]


def _node(fields: Fields) -> CdiNode:
    path = _path(fields, "path")
    host_path = _path(fields, "hostPath") if fields.text("hostPath", "", keep=True) else path
    kind = fields.text("type", "")
    if kind == "p":
        raise Unsupported(f"{fields.place('type')}: 'p' is not supported, a device is b or c")
    if kind not in ("", "b", "c", "u"):
        raise InvalidSpec(f"{fields.place('type')}: {kind!r} is not one of b, c, u")
    permissions = fields.text("permissions", "") or "rwm"
    if not set(permissions) <= set("rwm"):
        raise InvalidSpec(f"{fields.place('permissions')}: {permissions!r} is not made of r, w and m")
    major, minor = (fields.integer(name, 0, _NUMBER_LIMIT) for name in ("major", "minor"))
    given = bool(major or minor)  # 0:0 is no device
    node = CdiNode(
        path=path,
        host_path=host_path,
        kind={"": None, "u": "c"}.get(kind, kind),
        major=(major or 0) if given else None,
        minor=(minor or 0) if given else None,
        file_mode=fields.integer("fileMode", 0, 0o7777),
        permissions=permissions,
        uid=fields.integer("uid", 0, _ID_LIMIT),
        gid=fields.integer("gid", 0, _ID_LIMIT),
    )
    fields.text("hostPath", "")
    fields.end()
    return node


def _mount(fields: Fields) -> CdiMount:
    kind = fields.text("type", "")
    if kind not in ("", "bind", "none"):  # "none" is what OCI's documents write for a bind
        raise Unsupported(f"{fields.place('type')}: {kind!r} is not supported, only bind is")
    mount = CdiMount(_path(fields, "hostPath"), _path(fields, "containerPath"), fields.texts("options"))
    fields.end()
    return mount


def _path(fields: Fields, name: str) -> str:
    path = fields.text(name)
    if not path.startswith("/") or ".." in path.split("/"):
        raise InvalidSpec(f"{fields.place(name)}: {path!r} is not an absolute path")
    return path
