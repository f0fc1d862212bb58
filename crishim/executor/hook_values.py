"""The hooks of a container as the executor's processes see them (part of the executor's door)."""

from __future__ import annotations

import json
import os

from crishim.errors import InvalidSpec
from crishim.model.hook import OCI_VERSION, Hook, Hooks
from crishim.model.process import ContainerSpec

#: field of `Hooks` to OCI's name of the place
STAGES = {
    "prestart": "prestart",
    "create_runtime": "createRuntime",
    "create_container": "createContainer",
    "start_container": "startContainer",
    "poststart": "poststart",
    "poststop": "poststop",
}
_TIMEOUT_LIMIT_S = 24 * 3600


def hooks_value(spec: ContainerSpec, cgroup: str) -> dict[str, object] | None:
    """Of `executor.hooks.Hooks`; None without hooks. cgroup: where they run. InvalidSpec names the hook at fault."""
    if not spec.hooks:
        return None
    if not spec.bundle.startswith("/"):
        raise InvalidSpec(f"bundle: {spec.bundle!r} is not the directory that the hooks of a container need")
    state = {
        "ociVersion": OCI_VERSION,
        "id": spec.id,
        "bundle": spec.bundle,
        "annotations": dict(spec.annotations),
    }
    return {
        "stages": _stages(spec.hooks),
        "state": json.dumps(state, separators=(",", ":")).encode("ascii")[:-1],
        "bundle": os.fsencode(spec.bundle),
        "cgroup": cgroup,
    }


def hooks_cgroup(home: str, container_id: str) -> str:
    """The cgroup of a container's hooks: below the monitors', since the limits of the container are its own."""
    return f"{home}/hooks.{container_id}"


def check_hooks(hooks: Hooks) -> None:
    """InvalidSpec names the hook and the value that cannot be honoured."""
    _stages(hooks)


def _stages(hooks: Hooks) -> dict[bytes, list[list[object]]]:
    stages = {}
    for field, name in STAGES.items():
        if wanted := getattr(hooks, field):
            stages[name.encode()] = [_hook(f"hooks.{name}[{index}]", hook) for index, hook in enumerate(wanted)]
    return stages


def _hook(where: str, hook: Hook) -> list[object]:
    if not hook.path.startswith("/"):
        raise InvalidSpec(f"{where}.path: {hook.path!r} is not an absolute path")
    for text in (hook.path, *hook.args, *(hook.env or ())):
        if "\0" in text:
            raise InvalidSpec(f"{where}: {text!r} holds a NUL character")
    for entry in hook.env or ():
        if not entry.partition("=")[0] or "=" not in entry:
            raise InvalidSpec(f"{where}.env: {entry!r} is not NAME=value")
    if hook.timeout_s is not None and not 0 < hook.timeout_s <= _TIMEOUT_LIMIT_S:
        raise InvalidSpec(f"{where}.timeout: {hook.timeout_s} is not within 1..{_TIMEOUT_LIMIT_S} seconds")
    env = None if hook.env is None else [os.fsencode(entry) for entry in hook.env]
    args = [os.fsencode(arg) for arg in hook.args or (hook.path,)]
    return [os.fsencode(hook.path), args, env, hook.timeout_s or 0]
