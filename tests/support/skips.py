"""The skips that continuous integration may show; any other one there means that a test silently stopped running."""

from __future__ import annotations

import re
from collections.abc import Iterable

EXPECTED: tuple[tuple[str, str, str], ...] = (
    (r"^tests/(integration|e2e)/", r"this host has no cgroup v1", "a hybrid host shows it"),
    (r"^tests/(integration|e2e)/", r"this host has no pure cgroup v2", "the hybrid host proves v2 on its unified tree"),
    (r"^tests/(integration|e2e)/", r"cgroup v1 .*(hugetlb|net_cls|perf_event)", "controllers some kernels lack"),
    (r"^tests/integration/test_faults", r"/dev/fuse cannot be opened", "a container may lack the device"),
    (r"^tests/(integration|e2e)/", r"CAP_SYS_RESOURCE", "a sandboxed root may lack it, then limits cannot be raised"),
    (r"^tests/(integration|e2e)/", r"CAP_SYS_NICE", "a sandboxed root may lack it, then nobody is more urgent"),
    (r"^tests/integration/test_differences", r"crun here is \d", "the page is about the crun of one release of Debian"),
    (r"^tests/e2e/test_chart", r"helm is not built", "a minute of building for a chart that seldom changes"),
    (r"^tests/node/", r"no package mirror answers debootstrap", "a network that has wheels need not have packages"),
    (r"^tests/node/", r"4 GiB of memory that nobody uses", "a small machine"),
    (r"^tests/node/", r"built by root on x86_64", "another kind of machine"),
    (r"^tests/(integration|e2e)/", r"(AppArmor|SELinux) is not enabled", "needs a kernel with that module"),
)
"""(pattern of the node id, pattern of the reason, why it is fine)."""


def unexpected_skips(skipped: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each skip (node id, reason) that no entry above explains."""
    return [
        f"{nodeid}: {reason}"
        for nodeid, reason in skipped
        if not any(re.search(node, nodeid) and re.search(why, reason) for node, why, _ in EXPECTED)
    ]
