"""CDI devices of the node: which documents name them, and what they are on the host. Blocking."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence

from crishim.errors import InvalidSpec
from crishim.model.cdi import CdiDocument, CdiNode, ContainerEdits
from crishim.model.process import DeviceNode
from crishim.runtime.documents import Document, Documents
from crishim.spec.cdi_documents import document_from, parsed_name

#: annotations that name devices begin with this
ANNOTATION_PREFIX = "cdi.k8s.io/"
_KINDS = {"c": stat.S_ISCHR, "b": stat.S_ISBLK}


class CdiDevices:
    """The devices of the documents in some directories, of which a later one comes before an earlier one."""

    def __init__(self, directories: Sequence[str]) -> None:
        self.directories = tuple(directories)
        self._documents = Documents(directories, (".json", ".yaml"), document_from)

    def edits_of(self, names: Iterable[str]) -> ContainerEdits:
        """What the devices change, a document's own edits once before those of its first device.

        InvalidSpec names a device that no document has, or that two documents of a directory have.
        """
        documents = self._documents.read()
        edits = ContainerEdits()
        seen: set[str] = set()
        for name in dict.fromkeys(names):
            document, device = self._find(documents, name)
            if document.path not in seen:
                seen.add(document.path)
                assert document.value is not None
                edits += document.value.edits
            edits += device
        return edits

    def _find(self, documents: list[Document[CdiDocument]], name: str) -> tuple[Document[CdiDocument], ContainerEdits]:
        kind, device = parsed_name(name)
        found = [
            (each, each.value.devices[device])
            for each in documents
            if each.value is not None and each.value.kind == kind and device in each.value.devices
        ]
        if not found:
            raise InvalidSpec(f"CDI device {name!r} is in no document of {self._places()}{_problems(documents)}")
        best = max(document.directory for document, _ in found)
        candidates = [each for each in found if each[0].directory == best]
        if len(candidates) > 1:
            paths = " and ".join(document.path for document, _ in candidates)
            raise InvalidSpec(f"CDI device {name!r} is in conflict: {paths} both have it")
        return candidates[0]

    def _places(self) -> str:
        return " and ".join(self.directories) or "no directory, since containers.cdi_dirs is empty"


def _problems(documents: list[Document[CdiDocument]]) -> str:
    unusable = [f"{each.path} cannot be used: {each.problem}" for each in documents if each.value is None]
    return "; " + "; ".join(unusable[:3]) if unusable else ""


def annotated_devices(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """The devices that annotations name, separated by commas, in the order of their keys."""
    names: list[str] = []
    for key in sorted(annotations):
        if key.startswith(ANNOTATION_PREFIX):
            names += [part.strip() for part in annotations[key].split(",") if part.strip()]
    return tuple(names)


def host_node(node: CdiNode) -> DeviceNode:
    """A document's node with what it leaves open, from the host. InvalidSpec names the path."""
    kind, major, minor = node.kind, node.major, node.minor
    if kind is None or major is None or minor is None:
        try:
            status = os.stat(node.host_path)
        except OSError as error:
            raise InvalidSpec(f"CDI device node {node.host_path!r}: {(error.strerror or '').lower()}") from None
        found = next((each for each, is_kind in _KINDS.items() if is_kind(status.st_mode)), None)
        if found is None or kind not in (None, found):
            want = "a device" if kind is None else f"a device of type {kind}"
            raise InvalidSpec(f"CDI device node {node.host_path!r} is not {want}")
        kind, major, minor = found, os.major(status.st_rdev), os.minor(status.st_rdev)
    return DeviceNode(node.path, kind, major, minor, source=node.host_path)
