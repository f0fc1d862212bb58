"""Runtime handlers: how the pods of a RuntimeClass run where the request leaves it open, and what they may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from crishim.model.process import Rlimit


@dataclass(frozen=True, slots=True)
class Handler:
    """The options of a runtime handler; a sandbox keeps those that it was run with."""

    #: capabilities before a container adds and drops ("CAP_CHOWN"); None is the set that every runtime gives
    capabilities: tuple[str, ...] | None = None
    #: seccomp profile of RuntimeDefault: a path below the profile directory, "" for the one that is built in
    seccomp_profile: str = ""
    #: a profile may leave system calls to a listener on the node (OCI's listenerPath)
    seccomp_notify: bool = False
    #: what a container has that names no seccomp profile: "unconfined" or "runtime/default"
    unset_seccomp_profile: str = "unconfined"
    #: AppArmor profile of RuntimeDefault and of containers that name none; "" leaves it to the node
    apparmor_profile: str = ""
    #: no_new_privs for every container that is not privileged, whatever it asks for
    no_new_privileges: bool = False
    #: win over those of every container, kind by kind
    rlimits: tuple[Rlimit, ...] = ()
    #: of pods with namespaces of their own; what a pod asks for wins
    sysctls: Mapping[str, str] = field(default_factory=dict)
    #: environment of every container; what image and pod say wins
    env: Mapping[str, str] = field(default_factory=dict)
    #: processes of a container that has no other limit; 0 for none
    pids_limit: int = 0
    #: no container gets a lower oom_score_adj
    min_oom_score_adj: int = -1000
    #: a privileged container sees only the devices that it asks for
    privileged_without_host_devices: bool = False
    #: a container may make cgroups below its own (cgroup v2)
    cgroup_writable: bool = False
    #: annotations of pods that are honoured: names, or the beginning of names followed by "*"
    allowed_annotations: tuple[str, ...] = ()

    def allows(self, annotation: str) -> bool:
        """Whether an annotation of that name is honoured."""
        return any(
            annotation.startswith(allowed[:-1]) if allowed.endswith("*") else annotation == allowed
            for allowed in self.allowed_annotations
        )


#: a handler that adds nothing
PLAIN = Handler()
