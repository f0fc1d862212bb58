"""The process of a container: command, environment, user, capabilities, filters. Container and image together.

Facts are those of docker's heritage that every CRI runtime follows: which of command, arguments, entrypoint and
default arguments count, whose environment wins, and who the user is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from crishim.errors import InvalidSpec
from crishim.model.container import ContainerConfig, ContainerSecurity, ContainerUser
from crishim.model.handler import PLAIN, Handler
from crishim.model.image import ImageConfig
from crishim.model.process import ProcessSpec, SeccompFilter, User
from crishim.model.sandbox import ProfileType, SecurityProfile
from crishim.spec.apparmor import apparmor_profile
from crishim.spec.capabilities import capability_sets, default_of
from crishim.spec.facts import NodeAbilities, ResolvedUser, Users
from crishim.spec.seccomp import runtime_default

_NOTHING: Mapping[str, str] = MappingProxyType({})
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def arguments(config: ContainerConfig, image: ImageConfig) -> tuple[str, ...]:
    """argv: a command of the pod replaces entrypoint and default arguments, arguments alone keep the entrypoint."""
    if config.command:
        args = config.command + config.args
    elif config.args:
        args = image.entrypoint + config.args
    else:
        args = image.entrypoint + image.cmd
    if not args or not args[0]:
        raise InvalidSpec(f"config.command: no command is given, neither by the pod nor by image {config.image!r}")
    return args


def environment(
    config: ContainerConfig, image: ImageConfig, hostname: str, home: str, defaults: Mapping[str, str] = _NOTHING
) -> tuple[str, ...]:
    """NAME=value entries, each name once: defaults, then the image's, then the pod's."""
    merged = {"PATH": DEFAULT_PATH, **defaults}
    if hostname:
        merged["HOSTNAME"] = hostname
    if config.tty:
        merged["TERM"] = "xterm"
    for entry in image.env:
        name, mark, value = entry.partition("=")
        if name and mark:  # an image may hold anything; what is no assignment is none
            merged[name] = value
    for name, value in config.envs:
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidSpec(f"config.envs: {name!r} cannot be the name of a variable with this value")
        merged[name] = value
    if not merged.get("HOME"):
        merged["HOME"] = home
    return tuple(f"{name}={value}" for name, value in merged.items())


def user(security: ContainerSecurity, image: ImageConfig, users: Users) -> tuple[User, str]:
    """The user of init and its home directory.

    The pod's name or uid wins over the image's USER. The primary gid is among the supplementary groups
    (CVE-2022-2995). InvalidSpec: a group without a user, or a user that the image does not know.
    """
    found = _found_user(security, image, users)
    gid = found.gid if security.run_as_group is None else security.run_as_group
    groups: Iterable[int] = security.supplemental_groups
    if not security.strict_groups:
        groups = (*found.groups, *security.supplemental_groups)
    return User(found.uid, gid, tuple(dict.fromkeys((gid, *groups)))), found.home


def _found_user(security: ContainerSecurity, image: ImageConfig, users: Users) -> ResolvedUser:
    if security.run_as_username:
        return users.resolve(security.run_as_username)
    if security.run_as_user is not None:
        return users.resolve(str(security.run_as_user))
    if security.run_as_group is not None:
        raise InvalidSpec(
            f"linux.security_context.run_as_group: {security.run_as_group} needs run_as_user or run_as_username"
        )
    return users.resolve(image.user)


def reported_user(user: User) -> ContainerUser:
    """The user as ContainerStatus shows it: what the kernel was told."""
    return ContainerUser(user.uid, user.gid, user.additional_groups)


def seccomp_profile(security: ContainerSecurity, handler: Handler = PLAIN) -> SecurityProfile | None:
    """The profile that counts: the container's, or what its runtime handler gives to those that name none."""
    if security.seccomp is None and handler.unset_seccomp_profile == "runtime/default":
        return SecurityProfile(ProfileType.RUNTIME_DEFAULT)
    return security.seccomp


def localhost_profile(security: ContainerSecurity, handler: Handler = PLAIN) -> str | None:
    """Path of the seccomp profile that has to be read for `container_process`, None when none has.

    A relative one is meant below the profile directory of the node.
    """
    profile = seccomp_profile(security, handler)
    if profile is None or security.privileged:
        return None
    if profile.type is not ProfileType.LOCALHOST:
        if profile.localhost_ref:
            raise InvalidSpec(
                f"linux.security_context.seccomp.localhost_ref: {profile.localhost_ref!r} is given, but the type is"
                f" {profile.type.name}"
            )
        return (handler.seccomp_profile or None) if profile.type is ProfileType.RUNTIME_DEFAULT else None
    path = profile.localhost_ref.removeprefix("localhost/")
    if not path or ".." in path.split("/") or "\0" in path:
        raise InvalidSpec(f"linux.security_context.seccomp.localhost_ref: {path!r} is not a path")
    return path


def check_listener(path: str, found: SeccompFilter, handler: Handler) -> None:
    """InvalidSpec when the profile at `path` leaves calls to a listener and the runtime handler does not let it."""
    if found.listener is not None and not handler.seccomp_notify:
        raise InvalidSpec(
            f"linux.security_context.seccomp.localhost_ref: {path!r}: its listenerPath {found.listener.path!r} needs a"
            " runtime handler with seccomp_notify"
        )


def container_process(
    config: ContainerConfig,
    image: ImageConfig,
    *,
    users: Users,
    node: NodeAbilities,
    hostname: str,
    localhost_filter: SeccompFilter | None,
    handler: Handler = PLAIN,
) -> ProcessSpec:
    """The init process. `localhost_filter` is the compiled profile that `localhost_profile` names.

    handler: what the runtime handler adds where the request leaves it open.

    InvalidSpec names the field that cannot be honoured, Unsupported what this node lacks.
    """
    security = config.security
    who, home = user(security, image, users)
    capabilities = capability_sets(security, node.capabilities, default_of(handler))
    found = _filter(security, capabilities.bounding, node, localhost_filter, handler)
    return ProcessSpec(
        args=arguments(config, image),
        env=environment(config, image, hostname, home, handler.env),
        user=who,
        cwd=_working_dir(config, image),
        capabilities=capabilities,
        apparmor_profile=apparmor_profile(security, node, handler.apparmor_profile),
        no_new_privileges=security.no_new_privs or (handler.no_new_privileges and not security.privileged),
        terminal=config.tty,
        init=True,
        oom_score_adj=_oom_score_adj(config, handler),
        seccomp=None if found is None else found.program,
        seccomp_flags=() if found is None else found.flags,
        seccomp_listener=None if found is None else found.listener,
    )


def exec_process(container: ProcessSpec, args: tuple[str, ...], *, terminal: bool = False) -> ProcessSpec:
    """A further process in a container: all of init's identity and limits, another command."""
    if not args or not args[0]:
        raise InvalidSpec("cmd is empty")
    env = container.env
    if terminal and not any(entry.startswith("TERM=") for entry in env):
        env = (*env, "TERM=xterm")
    return replace(container, args=args, env=env, terminal=terminal, init=False)


def _working_dir(config: ContainerConfig, image: ImageConfig) -> str:
    path = config.working_dir or image.working_dir or "/"
    if not path.startswith("/"):
        raise InvalidSpec(f"config.working_dir: {path!r} is not an absolute path")
    return path


def _oom_score_adj(config: ContainerConfig, handler: Handler) -> int | None:
    """Not below what the runtime handler allows; unset is 0."""
    asked = config.resources.oom_score_adj
    return handler.min_oom_score_adj if (asked or 0) < handler.min_oom_score_adj else asked


def _filter(
    security: ContainerSecurity,
    bounding: frozenset[str],
    node: NodeAbilities,
    localhost: SeccompFilter | None,
    handler: Handler,
) -> SeccompFilter | None:
    profile = seccomp_profile(security, handler)
    if security.privileged or profile is None or profile.type is ProfileType.UNCONFINED:
        return None
    if profile.type is ProfileType.LOCALHOST or handler.seccomp_profile:
        return localhost
    return SeccompFilter(runtime_default(bounding, node.kernel, node.machine))
