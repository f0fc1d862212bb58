"""Hooks of OCI's runtime specification: programs run at six places of a container's life (config.md, POSIX hooks)."""

from __future__ import annotations

from dataclasses import dataclass, fields

#: of the runtime specification whose state and configuration hooks are given
OCI_VERSION = "1.2.0"


@dataclass(frozen=True, slots=True)
class Hook:
    """A program. `args` is its whole argv, () for the path alone; `env` its whole environment, None when not given."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] | None = None
    #: it is killed after this; None leaves the bound that every hook has
    timeout_s: int | None = None


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of one container, each place in the order of running.

    prestart, create_runtime: in the host's namespaces, when the mounts are made and before the root is entered.
    create_container: the same moment, in the container's namespaces, the host's files still in sight.
    start_container: inside the container as its process would run, right before that is executed.
    poststart: in the host's namespaces, after the process was executed and before the start is answered.
    poststop: in the host's namespaces, after the end; a failure is told and changes nothing.
    """

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) for each in fields(self))

    def __add__(self, other: Hooks) -> Hooks:
        return Hooks(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})
