"""A change of limits: what a container has from now on, and which of it has to be written."""

from __future__ import annotations

from dataclasses import replace

from crishim.model.resources import Resources


def merged(old: Resources, new: Resources) -> Resources:
    """`old` with what `new` sets; maps are merged by key. A new memory limit leaves the room for swap as it was.

    `oom_score_adj` stays: it belongs to processes, which may have changed their own and those of their children, and no
    kernel interface sets it for a cgroup. runc, containerd and CRI-O leave it too (runc pull request 4669).
    """
    given = {
        name: value
        for name in Resources.__dataclass_fields__
        if name not in ("hugepage_limits", "unified", "oom_score_adj") and (value := getattr(new, name)) is not None
    }
    limit, total = old.memory_limit_bytes, old.memory_swap_limit_bytes
    asked = new.memory_limit_bytes
    if asked is not None and new.memory_swap_limit_bytes is None and limit is not None and total is not None:
        given["memory_swap_limit_bytes"] = asked + total - limit if min(asked, limit, total) > 0 else None
    return replace(
        old,
        **given,
        hugepage_limits={**old.hugepage_limits, **new.hugepage_limits},
        unified={**old.unified, **new.unified},
    )


def changed(limits: Resources, new: Resources) -> Resources:
    """The part of `limits`, which are in force from now on, that `new` touches: values that go together stay so."""
    cpu = any(value is not None for value in (new.cpu_shares, new.cpu_quota_us, new.cpu_period_us))
    memory = any(value is not None for value in (new.memory_limit_bytes, new.memory_swap_limit_bytes))
    return Resources(
        cpu_period_us=limits.cpu_period_us if cpu else None,
        cpu_quota_us=limits.cpu_quota_us if cpu else None,
        cpu_shares=limits.cpu_shares if cpu else None,
        memory_limit_bytes=limits.memory_limit_bytes if memory else None,
        memory_swap_limit_bytes=limits.memory_swap_limit_bytes if memory else None,
        cpuset_cpus=new.cpuset_cpus,
        cpuset_mems=new.cpuset_mems,
        pids_limit=new.pids_limit,
        hugepage_limits=new.hugepage_limits,
        unified=new.unified,
    )
