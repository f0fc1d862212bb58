"""The value between `plan` and `effects`: what to write for one cgroup. Travels to the monitor as a dict."""

from __future__ import annotations

#: (controller, file, value, required): a file that is missing is an error only when required
Write = tuple[str, str, str, bool]


class CgroupPlan:
    """A cgroup and what is written into it, in this order.

    path: "/kubepods/pod1/ID", below the root of each tree.
    writes: the limits.
    devices_v1: (file, line) for the v1 devices controller, empty leaves access as the parent has it.
    device_program: eBPF for the v2 tree, None attaches nothing.
    """

    __slots__ = ("device_program", "devices_v1", "path", "writes")

    def __init__(
        self,
        path: str,
        writes: list[Write],
        devices_v1: list[tuple[str, str]] | None = None,
        device_program: bytes | None = None,
    ) -> None:
        self.path = path
        self.writes = writes
        self.devices_v1 = devices_v1 or []
        self.device_program = device_program

    def to_value(self) -> dict[str, object]:
        """A dict of str, bytes, bool, None and lists, for a message."""
        return {
            "path": self.path,
            "writes": [list(write) for write in self.writes],
            "devices_v1": [list(line) for line in self.devices_v1],
            "device_program": self.device_program,
        }

    @classmethod
    def from_value(cls, value: dict[str, object]) -> CgroupPlan:
        """The inverse of `to_value`; KeyError, TypeError or ValueError for another shape."""
        path, writes, lines, program = (value[k] for k in ("path", "writes", "devices_v1", "device_program"))
        if not (isinstance(path, str) and isinstance(writes, list) and isinstance(lines, list)):
            raise TypeError("a cgroup plan is a path, writes and device lines")
        if not (program is None or isinstance(program, bytes)):
            raise TypeError("the device program is bytes or None")
        planned = [(str(c), str(f), str(v), bool(required)) for c, f, v, required in writes]
        return cls(path, planned, [(str(file), str(line)) for file, line in lines], program)
