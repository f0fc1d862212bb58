"""A server whose directories hold what a newer crishim wrote does not start: what it cannot read it would undo."""

from __future__ import annotations

from contextlib import suppress

from crishim.errors import Internal, NotFound, Unsupported
from crishim.model.process import ContainerSpec
from crishim.runtime.places import Places
from crishim.store.store import LoadReport, Store


def read_specs(report: LoadReport, store: Store, places: Places) -> dict[str, ContainerSpec]:
    """The specs of all containers, by container id, without those that are gone or damaged.

    Unsupported names the first record that has a field, or a version, which this crishim does not know. The databases
    refuse by themselves when they are opened. Nothing is written.
    """
    for record in report.damaged:
        if record.newer:
            raise Unsupported(
                f"{record.path} was written by a newer crishim ({record.problem}): go back to that version, or remove"
                " its pods with it first"
            )
    specs = {}
    for container in store.list_containers():
        with suppress(NotFound, Internal):  # recovery tells what is wrong with it
            specs[container.id] = places.read_spec(container.sandbox_id, container.id)
    return specs
