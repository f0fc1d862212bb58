"""Resource limits as CRI and libcontainer state them, before they are cgroup files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Resources:
    """`LinuxContainerResources` (api.proto). None leaves the kernel's value, -1 is unlimited."""

    cpu_period_us: int | None = None
    cpu_quota_us: int | None = None
    cpu_shares: int | None = None
    memory_limit_bytes: int | None = None
    #: memory + swap, as in v1's memsw; equal to the limit means no swap
    memory_swap_limit_bytes: int | None = None
    oom_score_adj: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids_limit: int | None = None
    #: page size as the kernel names it ("2MB") to bytes
    hugepage_limits: Mapping[str, int] = field(default_factory=dict)
    #: cgroup v2 file name to value, written last
    unified: Mapping[str, str] = field(default_factory=dict)
