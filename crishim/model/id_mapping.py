"""Which ids of the host the ids of a user namespace are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IdMapping:
    """A line of uid_map or gid_map (user_namespaces(7))."""

    container_id: int
    host_id: int
    length: int
