"""Lists, event streams and caches of usage follow the store of containers and the image store."""

from __future__ import annotations

from crishim.cri.listing import Listing
from crishim.images.store import ImageStore
from crishim.model.container import Container
from crishim.model.image import Image
from crishim.model.sandbox import Sandbox
from crishim.runtime.collector import Collector
from crishim.runtime.events import Events
from crishim.runtime.images import Images
from crishim.runtime.layers import WritableLayers
from crishim.store.store import Kind, Store


class Followers:
    """Who has to hear of a change in the store."""

    def __init__(self, listing: Listing, events: Events, collector: Collector, layers: WritableLayers) -> None:
        self._listing = listing
        self._events = events
        self._collector = collector
        self._layers = layers

    def follow(self, store: Store) -> None:
        """Take over what the store has, and each change from now on."""
        for sandbox in store.list_sandboxes():
            self._listing.upsert_sandbox(sandbox)
        for container in store.list_containers():
            self._listing.upsert_container(container)
        store.subscribe(self._changed)
        store.subscribe(self._events.changed)  # after the listing, so that a list shows what an event told

    def follow_images(self, store: ImageStore, cases: Images) -> None:
        """Take over what the image store has, and what the use cases change in it from now on."""

        def added(image: Image) -> None:
            self._listing.upsert_images(store.list())  # all: a tag may have moved from another image

        self._listing.upsert_images(store.list())
        cases.on_added = added
        cases.on_removed = self._listing.remove_image

    def _changed(self, kind: Kind, old: Sandbox | Container | None, new: Sandbox | Container | None) -> None:
        if isinstance(new, Sandbox):
            self._listing.upsert_sandbox(new)
        elif isinstance(new, Container):
            self._listing.upsert_container(new)
        elif old is not None and kind is Kind.SANDBOX:
            self._listing.remove_sandbox(old.id)
            self._collector.forget(old.id)
        elif old is not None:
            self._listing.remove_container(old.id)
            self._collector.forget(old.id)
            self._layers.forget(old.id)
