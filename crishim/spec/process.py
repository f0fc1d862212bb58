"""The process of a container: command, environment, user, capabilities, filters. Container and image together.

Facts are those of docker's heritage that every CRI runtime follows: which of command, arguments, entrypoint and
default arguments count, whose environment wins, and who the user is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from crishim.errors import InvalidSpec, Unsupported
from crishim.model.container import ContainerConfig, ContainerSecurity, ContainerUser
from crishim.model.image import ImageConfig
from crishim.model.process import ProcessSpec, User
from crishim.model.sandbox import ProfileType, SecurityProfile
from crishim.spec.capabilities import capability_sets
from crishim.spec.facts import NodeAbilities, ResolvedUser, Users
from crishim.spec.seccomp import runtime_default

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


def environment(config: ContainerConfig, image: ImageConfig, hostname: str, home: str) -> tuple[str, ...]:
    """NAME=value entries, each name once: defaults, then the image's, then the pod's."""
    merged = {"PATH": DEFAULT_PATH}
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


def localhost_profile(profile: SecurityProfile | None, privileged: bool) -> str | None:
    """Path of the seccomp profile that has to be read for `container_process`, None when none has.

    A relative one is meant below the profile directory of the node.
    """
    if profile is None or privileged:
        return None
    if profile.type is not ProfileType.LOCALHOST:
        if profile.localhost_ref:
            raise InvalidSpec(
                f"linux.security_context.seccomp.localhost_ref: {profile.localhost_ref!r} is given, but the type is"
                f" {profile.type.name}"
            )
        return None
    path = profile.localhost_ref.removeprefix("localhost/")
    if not path or ".." in path.split("/") or "\0" in path:
        raise InvalidSpec(f"linux.security_context.seccomp.localhost_ref: {path!r} is not a path")
    return path


def container_process(
    config: ContainerConfig,
    image: ImageConfig,
    *,
    users: Users,
    node: NodeAbilities,
    hostname: str,
    localhost_filter: bytes | None,
) -> ProcessSpec:
    """The init process. `localhost_filter` is the compiled profile that `localhost_profile` names.

    InvalidSpec names the field that cannot be honoured, Unsupported what this node lacks.
    """
    security = config.security
    who, home = user(security, image, users)
    capabilities = capability_sets(security, node.capabilities)
    return ProcessSpec(
        args=arguments(config, image),
        env=environment(config, image, hostname, home),
        user=who,
        cwd=_working_dir(config, image),
        capabilities=capabilities,
        apparmor_profile=_apparmor(security, node),
        no_new_privileges=security.no_new_privs,
        terminal=config.tty,
        init=True,
        oom_score_adj=config.resources.oom_score_adj,
        seccomp=_filter(security, capabilities.bounding, node, localhost_filter),
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


def _filter(
    security: ContainerSecurity, bounding: frozenset[str], node: NodeAbilities, localhost: bytes | None
) -> bytes | None:
    if security.privileged or security.seccomp is None or security.seccomp.type is ProfileType.UNCONFINED:
        return None
    if security.seccomp.type is ProfileType.LOCALHOST:
        return localhost
    return runtime_default(bounding, node.kernel, node.machine)


def _apparmor(security: ContainerSecurity, node: NodeAbilities) -> str | None:
    profile = security.apparmor
    if profile is None or profile.type is ProfileType.UNCONFINED:
        return None
    if not node.apparmor:
        raise Unsupported(
            f"linux.security_context.apparmor: type {profile.type.name} is asked for, but this node has no AppArmor"
        )
    if profile.type is ProfileType.LOCALHOST:
        return profile.localhost_ref.removeprefix("localhost/")
    return None
