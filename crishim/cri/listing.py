"""Lists without work: each sandbox, container and image is serialised when it changes, and a List call joins bytes.

The store's subscriptions call `upsert_*` and `remove_*`; everything happens in the event loop's thread, so a list is
one moment of the store. Every List answer of CRI is one repeated field with number 1, so an entry is that field's tag,
its length and the message.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from google.protobuf.message import Message

from crishim.cri.convert import checks, container, image, sandbox, stats
from crishim.cri.pb import api_pb2 as pb
from crishim.model.container import Container, ContainerState
from crishim.model.image import Image
from crishim.model.sandbox import Sandbox, SandboxState
from crishim.model.stats import ContainerSample, SandboxSample

logger = logging.getLogger(__name__)

#: the kubelet finds everything of a pod by this label, every second
POD_UID: Final = "io.kubernetes.pod.uid"
#: field 1, length-delimited (protobuf encoding)
_TAG: Final = b"\x0a"
#: fields 2 and 5 of the same kind
_LINUX_TAG: Final = b"\x12"
_CONTAINERS_TAG: Final = b"\x2a"
_EVERY_SANDBOX: Final = pb.PodSandboxFilter()
_EVERY_CONTAINER: Final = pb.ContainerFilter()

T = TypeVar("T", Sandbox, Container)


def entry(message: Message) -> bytes:
    """`message` as one element of a repeated field with number 1."""
    return _element(message.SerializeToString())


def _element(body: bytes) -> bytes:
    return _TAG + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    value: T
    blob: bytes


@dataclass(frozen=True, slots=True)
class _StatsEntry:
    """Bytes of one container's stats, and what they were made of; identity and labels never change."""

    sample: ContainerSample
    attributes: bytes
    blob: bytes


class _Entries(Generic[T]):
    """Entries in the order in which they came, with an index by the uid of their pod."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry[T]] = {}
        #: pod uid to ids; dicts keep the order
        self._by_pod: dict[str, dict[str, None]] = {}
        #: all entries joined, until the next change: the kubelet asks for it every second
        self._joined: bytes | None = None

    def upsert(self, value: T, blob: bytes) -> None:
        """Labels never change, so the index is made once."""
        self._joined = None
        if value.id not in self._entries and POD_UID in value.config.labels:
            self._by_pod.setdefault(value.config.labels[POD_UID], {})[value.id] = None
        self._entries[value.id] = _Entry(value, blob)

    def remove(self, id: str) -> None:
        """Take an entry out; nothing when it is not there."""
        self._joined = None
        removed = self._entries.pop(id, None)
        uid = None if removed is None else removed.value.config.labels.get(POD_UID)
        if uid is not None and uid in self._by_pod:
            self._by_pod[uid].pop(id, None)
            if not self._by_pod[uid]:
                del self._by_pod[uid]

    def joined(self) -> bytes:
        """Every entry."""
        if self._joined is None:
            self._joined = b"".join([entry.blob for entry in self._entries.values()])
        return self._joined

    def get(self, id: str) -> _Entry[T] | None:
        """By the full id."""
        return self._entries.get(id)

    def matching(self, id: str, labels: Mapping[str, str]) -> Iterator[_Entry[T]]:
        """Entries with every pair of `labels`, and with that id or the only one that begins with it."""
        wanted = labels.items()
        for candidate in self._candidates(id, labels):
            if wanted <= candidate.value.config.labels.items():
                yield candidate

    def _candidates(self, id: str, labels: Mapping[str, str]) -> Iterable[_Entry[T]]:
        if id:
            exact = self._entries.get(id)
            found = [exact] if exact else [e for key, e in self._entries.items() if key.startswith(id)]
            return found if len(found) == 1 else ()
        if POD_UID in labels:
            return [self._entries[key] for key in self._by_pod.get(labels[POD_UID], ())]
        return self._entries.values()


class Listing:
    """Answers of the List methods, as bytes."""

    def __init__(self) -> None:
        self._sandboxes = _Entries[Sandbox]()
        self._containers = _Entries[Container]()
        self._images: dict[str, bytes] = {}
        self._stats: dict[str, _StatsEntry] = {}

    def upsert_sandbox(self, value: Sandbox) -> None:
        """A sandbox is new or has changed."""
        self._sandboxes.upsert(value, entry(sandbox.to_list_entry(value)))

    def remove_sandbox(self, sandbox_id: str) -> None:
        """Nothing to do when it is unknown."""
        self._sandboxes.remove(sandbox_id)

    def upsert_container(self, value: Container) -> None:
        """A container is new or has changed."""
        self._containers.upsert(value, entry(container.to_list_entry(value)))

    def remove_container(self, container_id: str) -> None:
        """Nothing to do when it is unknown."""
        self._containers.remove(container_id)
        self._stats.pop(container_id, None)

    def upsert_image(self, value: Image) -> None:
        """An image is new or has changed."""
        self._images[value.id] = entry(image.to_proto(value))

    def upsert_images(self, values: Iterable[Image]) -> None:
        """All of them, but for one that has no form in CRI: the log tells of it, and the others are listed."""
        for value in values:
            try:
                self.upsert_image(value)
            except Exception:
                logger.exception("image %s cannot be listed", value.id)
                self._images.pop(value.id, None)  # what it was before is no longer true

    def remove_image(self, image_id: str) -> None:
        """Nothing to do when it is unknown."""
        self._images.pop(image_id, None)

    def sandboxes(self, wanted: pb.PodSandboxFilter) -> bytes:
        """Bytes of a ListPodSandboxResponse."""
        if wanted == _EVERY_SANDBOX:
            return self._sandboxes.joined()
        return b"".join(self.sandbox_entries(wanted))

    def sandbox_entries(self, wanted: pb.PodSandboxFilter) -> list[bytes]:
        """The same, an element each."""
        entries = self._sandboxes.matching(wanted.id, wanted.label_selector)
        if wanted.HasField("state"):
            state = checks.one_of("filter.state.state", wanted.state.state, SandboxState)
            entries = (e for e in entries if e.value.state is state)
        return [e.blob for e in entries]

    def containers(self, wanted: pb.ContainerFilter) -> bytes:
        """Bytes of a ListContainersResponse."""
        if wanted == _EVERY_CONTAINER:
            return self._containers.joined()
        return b"".join(self.container_entries(wanted))

    def container_entries(self, wanted: pb.ContainerFilter) -> list[bytes]:
        """The same, an element each."""
        entries = self._in_sandbox(wanted.pod_sandbox_id, self._containers.matching(wanted.id, wanted.label_selector))
        if wanted.HasField("state"):
            state = checks.one_of("filter.state.state", wanted.state.state, ContainerState)
            entries = (e for e in entries if e.value.state is state)
        return [e.blob for e in entries]

    def image_entries(self, image_id: str | None = None) -> list[bytes]:
        """Elements of a ListImagesResponse: all, or the one with that id."""
        if image_id is None:
            return list(self._images.values())
        return [self._images[image_id]] if image_id in self._images else []

    def ready(self, wanted: pb.PodSandboxStatsFilter) -> list[str]:
        """Ids of the READY sandboxes that match."""
        entries = self._sandboxes.matching(wanted.id, wanted.label_selector)
        return [e.value.id for e in entries if e.value.state is SandboxState.READY]

    def members(self, sandbox_id: str) -> list[Container]:
        """Containers of a sandbox by its full id, oldest first."""
        return [e.value for e in self._containers.matching("", {}) if e.value.sandbox_id == sandbox_id]

    def running(self, wanted: pb.ContainerStatsFilter) -> list[str]:
        """Ids of the running containers that match."""
        entries = self._in_sandbox(wanted.pod_sandbox_id, self._containers.matching(wanted.id, wanted.label_selector))
        return [e.value.id for e in entries if e.value.state is ContainerState.RUNNING]

    def container_stats(self, samples: Sequence[ContainerSample]) -> list[bytes]:
        """Elements of a ListContainerStatsResponse; samples of containers that are gone are left out."""
        return [blob for sample in samples if (blob := self._stats_entry(sample))]

    def sandbox_stats(self, samples: Sequence[SandboxSample]) -> list[bytes]:
        """Elements of a ListPodSandboxStatsResponse; samples of sandboxes that are gone are left out."""
        return [blob for sample in samples if (blob := self._sandbox_stats_entry(sample))]

    def _sandbox_stats_entry(self, sample: SandboxSample) -> bytes:
        known = self._sandboxes.get(sample.sandbox_id)
        if known is None:
            return b""
        # LinuxPodSandboxStats.containers has the number 5, so their elements are made anew with that tag
        members = b"".join(_CONTAINERS_TAG + blob[1:] for blob in self.container_stats(sample.containers))
        linux = stats.pod_usage_to_proto(sample).SerializeToString() + members
        attributes = stats.pod_attributes_to_proto(known.value).SerializeToString()
        return _element(attributes + _LINUX_TAG + _varint(len(linux)) + linux)

    def _stats_entry(self, sample: ContainerSample) -> bytes:
        known = self._containers.get(sample.container_id)
        if known is None:
            return b""
        former = self._stats.get(sample.container_id)
        if former is not None and former.sample is sample:
            return former.blob
        if former is None:
            attributes = stats.attributes_to_proto(known.value).SerializeToString()
        else:
            attributes = former.attributes
        # messages are merged when their bytes are joined (protobuf encoding)
        blob = _element(attributes + stats.usage_to_proto(sample).SerializeToString())
        self._stats[sample.container_id] = _StatsEntry(sample, attributes, blob)
        return blob

    def _in_sandbox(self, sandbox_id: str, entries: Iterator[_Entry[Container]]) -> Iterator[_Entry[Container]]:
        """Those whose sandbox has that id, or the only one that begins with it; all for ""."""
        if not sandbox_id:
            return entries
        matches = [e.value.id for e in self._sandboxes.matching(sandbox_id, {})]
        return (e for e in entries if e.value.sandbox_id in matches)
