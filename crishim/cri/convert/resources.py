"""LinuxContainerResources, in both directions. Zero and "" mean "not given" and become None."""

from __future__ import annotations

import re
from typing import Final

from crishim.cri.convert import checks
from crishim.cri.pb import api_pb2 as pb
from crishim.errors import InvalidSpec
from crishim.model.resources import Resources

_CPU_LIST = re.compile(r"[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*")
_PAGE_SIZE = re.compile(r"[1-9][0-9]{0,6}(KB|MB|GB)")
_UNIFIED_FILE = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)+")
_MAX_INT64: Final = 2**63 - 1
#: what the kernel takes for cpu.cfs_period_us (Documentation/scheduler/sched-bwc.rst)
_PERIOD_US: Final = (1000, 1_000_000)


def from_proto(path: str, message: pb.LinuxContainerResources) -> Resources:
    """Limits to apply; -1 is "no limit" for the quota, the memory and the swap."""
    within = checks.within
    period = message.cpu_period and within(f"{path}.cpu_period", message.cpu_period, *_PERIOD_US)
    quota = within(f"{path}.cpu_quota", message.cpu_quota, -1, _MAX_INT64)
    shares = within(f"{path}.cpu_shares", message.cpu_shares, 0, _MAX_INT64)
    memory = within(f"{path}.memory_limit_in_bytes", message.memory_limit_in_bytes, -1, _MAX_INT64)
    swap_path = f"{path}.memory_swap_limit_in_bytes"
    swap = within(swap_path, message.memory_swap_limit_in_bytes, -1, _MAX_INT64)
    if 0 < swap < memory:
        checks.refuse(swap_path, swap, f"it counts memory too, so it must not be below the memory limit {memory}")
    score = within(f"{path}.oom_score_adj", message.oom_score_adj, -1000, 1000)
    return Resources(
        cpu_period_us=period or None,
        cpu_quota_us=quota or None,
        cpu_shares=shares or None,
        memory_limit_bytes=memory or None,
        memory_swap_limit_bytes=swap or None,
        oom_score_adj=score or None,
        cpuset_cpus=_cpu_list(f"{path}.cpuset_cpus", message.cpuset_cpus),
        cpuset_mems=_cpu_list(f"{path}.cpuset_mems", message.cpuset_mems),
        hugepage_limits=_hugepages(f"{path}.hugepage_limits", message),
        unified=_unified(f"{path}.unified", message),
    )


def to_proto(resources: Resources) -> pb.LinuxContainerResources:
    """Limits in force, as the kubelet compares them with those it asked for after a resize."""
    return pb.LinuxContainerResources(
        cpu_period=resources.cpu_period_us or 0,
        cpu_quota=resources.cpu_quota_us or 0,
        cpu_shares=resources.cpu_shares or 0,
        memory_limit_in_bytes=resources.memory_limit_bytes or 0,
        memory_swap_limit_in_bytes=resources.memory_swap_limit_bytes or 0,
        oom_score_adj=resources.oom_score_adj or 0,
        cpuset_cpus=resources.cpuset_cpus or "",
        cpuset_mems=resources.cpuset_mems or "",
        hugepage_limits=[pb.HugepageLimit(page_size=k, limit=v) for k, v in resources.hugepage_limits.items()],
        unified=resources.unified,
    )


def _cpu_list(path: str, value: str) -> str | None:
    if value and not _CPU_LIST.fullmatch(value):
        checks.refuse(path, value, 'it must be a list such as "0-3,5"')
    return value or None


def _hugepages(path: str, message: pb.LinuxContainerResources) -> dict[str, int]:
    limits: dict[str, int] = {}
    for index, limit in enumerate(message.hugepage_limits):
        if not _PAGE_SIZE.fullmatch(limit.page_size):
            checks.refuse(f"{path}[{index}].page_size", limit.page_size, 'it must be a size such as "2MB"')
        limits[limit.page_size] = limit.limit  # zero is a limit here: the kubelet sends it for every size
    return limits


def _unified(path: str, message: pb.LinuxContainerResources) -> dict[str, str]:
    for file, value in message.unified.items():
        if not _UNIFIED_FILE.fullmatch(file):
            checks.refuse(f"{path} key", file, "it must be the name of a file of cgroup v2")
        if file.startswith("cgroup."):  # these move, freeze and kill processes: no limits
            raise InvalidSpec(f"{path} key is {file}: only files of controllers may be written")
        checks.line(f"{path}[{file}]", value)
    return dict(message.unified)
