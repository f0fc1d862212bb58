"""Every key of the configuration and its check."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from crishim.config.checks import (
    Check,
    a_line,
    a_text,
    absolute_path,
    boolean,
    endpoint_url,
    file_path,
    ip_and_port,
    ip_subnets,
    list_of,
    matching,
    one_of,
    registry_host,
    relative_path,
    resource_limits,
    seconds,
    size,
    table_of,
    unix_socket,
    whole_number,
    wrong,
)
from crishim.config.sections import RUNTIME
from crishim.errors import InvalidSpec
from crishim.model.handler import PLAIN, Handler

_PLATFORM = re.compile(r"linux/[a-z0-9]+(?:/[a-z0-9]+)?")
_CGROUP = re.compile(r"/?[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*")
#: a RuntimeClass names its handler by a DNS label
_HANDLER_NAME = matching(re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"), 'a name like "crishim"')
_CAPABILITY = re.compile(r"CAP_[A-Z_]{1,60}")
#: what can be written to attr/exec as one name
_PROFILE = re.compile(r"[A-Za-z0-9_./:-][A-Za-z0-9_./: -]{0,254}")
_ANNOTATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,315}\*?")

#: option of a runtime handler to its check
HANDLER_CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "capabilities": list_of(matching(_CAPABILITY, 'a capability like "CAP_CHOWN"')),
        "seccomp_profile": relative_path,
        "seccomp_notify": boolean,
        "unset_seccomp_profile": one_of("unconfined", "runtime/default"),
        "apparmor_profile": a_line,
        "no_new_privileges": boolean,
        "rlimits": resource_limits,
        "sysctls": table_of(a_line, a_line),
        "env": table_of(matching(re.compile(r"[^=\0]+"), "the name of a variable"), a_text),
        "pids_limit": whole_number(0, 2**22),
        "min_oom_score_adj": whole_number(-1000, 1000),
        "privileged_without_host_devices": boolean,
        "cgroup_writable": boolean,
        "allowed_annotations": list_of(
            matching(_ANNOTATION, 'an annotation like "example.com/name", or with "*" behind')
        ),
    }
)


def _handler(value: object, path: str) -> Handler:
    if not isinstance(value, dict):
        raise wrong(path, value, "a table")
    for name in value:
        if name not in HANDLER_CHECKS:
            raise InvalidSpec(f"{path}.{name}: there is no such key; {path} has {', '.join(sorted(HANDLER_CHECKS))}")
    return Handler(**{name: HANDLER_CHECKS[name](part, f"{path}.{name}") for name, part in value.items()})


def _runtimes(value: object, path: str) -> Mapping[str, Handler]:
    given: Mapping[str, Handler] = table_of(_HANDLER_NAME, _handler)(value, path)
    return MappingProxyType({RUNTIME: PLAIN, **given})


#: path of a key to its check
CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "server.listen": unix_socket,
        "server.root": absolute_path,
        "server.state": absolute_path,
        "server.metrics": ip_and_port,
        "server.log_level": one_of("debug", "info", "warning", "error"),
        "server.apparmor_profile": matching(_PROFILE, 'the name of an AppArmor profile, or "unconfined"'),
        "server.selinux": one_of("auto", "on", "off"),
        "streaming.listen": ip_and_port,
        "streaming.cert_file": file_path,
        "streaming.key_file": file_path,
        "network.bridge.subnets": ip_subnets,
        "network.cni.conf_dir": absolute_path,
        "network.cni.bin_dirs": list_of(absolute_path, empty=False),
        "network.mode": one_of("bridge", "cni"),
        "images.mirrors": table_of(registry_host, list_of(endpoint_url, empty=False)),
        "images.insecure": list_of(registry_host),
        "images.ca_files": table_of(registry_host, absolute_path),
        "images.platform": matching(_PLATFORM, 'a platform like "linux/amd64"'),
        "images.max_layer_bytes": size(1 << 20, 1 << 50),
        "images.max_layer_entries": whole_number(1, 10**9),
        "cgroups.driver": one_of("auto", "cgroupfs", "systemd"),
        "cgroups.root": absolute_path,
        "cgroups.parent": matching(re.compile(f"(?:{_CGROUP.pattern})?"), "a cgroup path"),
        "limits.exec_output_bytes": size(1024, (16 << 20) - (64 << 10)),
        "limits.rlimits": resource_limits,
        "containers.default_runtime_handler": _HANDLER_NAME,
        "containers.missing_host_path": one_of("create", "reject"),
        "containers.image_volumes": one_of("bind", "mkdir", "ignore"),
        "containers.seccomp_profile_dir": absolute_path,
        "containers.cdi_dirs": list_of(absolute_path),
        "containers.hook_dirs": list_of(absolute_path),
        "containers.device_ownership_from_security_context": boolean,
        "stop.sandbox_grace_s": seconds(0, 3600),
        "stop.kill_wait_s": seconds(0.1, 600),
        "gc.interval_s": seconds(0, 86400),
        "runtimes": _runtimes,
    }
)
