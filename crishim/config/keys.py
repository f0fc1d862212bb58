"""Every key of the configuration and its check."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from crishim.config.checks import (
    Check,
    absolute_path,
    endpoint_url,
    file_path,
    ip_and_port,
    ip_subnets,
    list_of,
    matching,
    one_of,
    registry_host,
    resource_limits,
    seconds,
    size,
    table_of,
    unix_socket,
    whole_number,
)

_PLATFORM = re.compile(r"linux/[a-z0-9]+(?:/[a-z0-9]+)?")
_CGROUP = re.compile(r"/?[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*")
#: a RuntimeClass names its handler by a DNS label
_HANDLER = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

#: path of a key to its check
CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "server.listen": unix_socket,
        "server.root": absolute_path,
        "server.state": absolute_path,
        "server.metrics": ip_and_port,
        "server.log_level": one_of("debug", "info", "warning", "error"),
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
        "containers.runtime_handlers": list_of(matching(_HANDLER, 'a name like "crishim"')),
        "containers.missing_host_path": one_of("create", "reject"),
        "containers.seccomp_profile_dir": absolute_path,
        "stop.sandbox_grace_s": seconds(0, 3600),
        "stop.kill_wait_s": seconds(0.1, 600),
    }
)
