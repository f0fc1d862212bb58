"""The files of volumes get the context of their container, where the kubelet asks for that (api.proto Mount)."""

from __future__ import annotations

import os
from contextlib import suppress

from crishim.errors import InvalidSpec, TimedOut, Unavailable
from crishim.model.container import ContainerConfig
from crishim.model.process import ContainerSpec
from crishim.runtime.executor import Executor
from crishim.runtime.settings import Settings
from crishim.runtime.volumes import Volumes

#: name of the role that walks; `app/serve.py` gives it to the zygote
RELABEL_ROLE = "relabel"
#: a volume may hold millions of files; who waits less asks again, and is handed the result
_RELABEL_S = 600.0
#: directories of every host: they and what contains them keep their labels, what else is in them may be a volume
EXACT = (
    "/home", "/media", "/mnt", "/opt", "/root", "/run", "/run/user", "/srv", "/tmp", "/var", "/var/cache", "/var/lib",
    "/var/lib/kubelet", "/var/lib/kubelet/pods", "/var/log", "/var/log/pods", "/var/spool", "/var/tmp",
)  # fmt: skip
#: directories that belong to the host with everything in them
TREES = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr",
    "/var/lib/containerd", "/var/lib/containers", "/var/lib/docker",
)  # fmt: skip


async def label_layers(executor: Executor, directory: str, label: str) -> None:
    """Give image layers a context that every container may read, once; layers to come have that of their directory.

    The context of an overlay's mount does not stand for everything: mprotect(2) of a mapped file asks for the file on
    the disk below it, and programs that protect their relocations would not start. Unavailable when it cannot be done.
    """
    try:
        with suppress(OSError):
            if os.getxattr(directory, "security.selinux").rstrip(b"\0") == label.encode():
                return
        paths = [os.path.join(directory, name) for name in os.listdir(directory)]
        if paths:
            request: dict[str, object] = {
                "paths": [os.fsencode(path) for path in paths],
                "ours": [True] * len(paths),
                "label": label.encode(),
                "exact": [],
                "trees": [],
                "make": False,
            }
            answer = await executor.run_role(RELABEL_ROLE, request, timeout_s=_RELABEL_S)
            if "index" in answer:
                raise Unavailable(f"{os.fsdecode(answer['path'])!r} cannot be labelled")  # type: ignore[arg-type]
        os.setxattr(directory, "security.selinux", label.encode())  # last: it says that all is done
    except OSError as error:
        raise Unavailable(f"{directory!r} cannot be labelled: {os.strerror(error.errno or 0).lower()}") from None


async def relabel(
    executor: Executor, settings: Settings, spec: ContainerSpec, config: ContainerConfig, volumes: Volumes
) -> None:
    """Label what the mounts of a container want labelled, and the volumes that were made for it.

    InvalidSpec names a mount that cannot be or may not, TimedOut one of those that take too long.
    """
    if spec.mount_label is None:
        return
    asked = [
        (f"config.mounts[{index}]", mount.host_path, False)
        for index, mount in enumerate(config.mounts)
        if mount.selinux_relabel and mount.image is None
    ]
    asked += [("config.image: volume", mount.source, True) for mount in volumes.mounts]
    if not asked:
        return
    request: dict[str, object] = {
        "paths": [os.fsencode(path) for _, path, _ in asked],
        "ours": [ours for _, _, ours in asked],
        "label": spec.mount_label.encode(),
        "exact": [os.fsencode(path) for path in EXACT],
        # of our own, image layers above all: they are everybody's
        "trees": [os.fsencode(path) for path in (*TREES, settings.root_dir, settings.state_dir)],
        "make": settings.make_missing_sources,
    }
    try:
        answer = await executor.run_role(RELABEL_ROLE, request, timeout_s=_RELABEL_S)
    except TimedOut:
        names = ", ".join(f"{field} ({path!r})" for field, path, _ in asked)
        raise TimedOut(f"selinux_relabel: labelling {names} did not end within {_RELABEL_S:g} s") from None
    if "index" not in answer:
        return
    field, path, _ = asked[answer["index"]]  # type: ignore[call-overload]
    where = f"{field}.selinux_relabel: {path!r}"
    if "refused" in answer:
        place = os.fsdecode(answer["refused"])  # type: ignore[arg-type]
        raise InvalidSpec(f"{where} is {place!r}, a directory of the host, whose files keep their labels")
    at, code = os.fsdecode(answer["path"]), answer["errno"]  # type: ignore[arg-type]
    raise InvalidSpec(f"{where}: labelling {at!r}: {os.strerror(code).lower()}")  # type: ignore[arg-type]
