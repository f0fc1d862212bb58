"""From container and image configuration to the init process, one field at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import CrishimError, InvalidSpec
from crishim.images.users import UserDatabase
from crishim.model.container import CapabilityChange, ContainerConfig, ContainerSecurity
from crishim.model.image import ImageConfig
from crishim.model.process import ProcessSpec, SeccompFilter, SeccompListener, User
from crishim.model.sandbox import ProfileType, SecurityProfile
from crishim.spec import process
from crishim.spec.capabilities import DEFAULT, KNOWN, capability_sets
from crishim.spec.facts import NodeAbilities
from crishim.spec.stop_signal import parse_signal, stop_signal

USERS = UserDatabase.parse(
    b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
    b"root:x:0:\napp:x:1000:\nwheel:x:10:app\nadm:x:4:app,root\n",
)
NODE = NodeAbilities((6, 18), "x86_64", KNOWN)
IMAGE = ImageConfig(env=("PATH=/bin", "A=image"), entrypoint=("/entry",), cmd=("default",), working_dir="/srv")
CONFIG = ContainerConfig(name="main", image="image")


def spec(config: ContainerConfig = CONFIG, image: ImageConfig = IMAGE, node: NodeAbilities = NODE) -> ProcessSpec:
    return process.container_process(
        config, image, users=USERS, node=node, hostname="pod", localhost_filter=SeccompFilter(b"localhost")
    )


def secured(**fields: object) -> ContainerConfig:
    return replace(CONFIG, security=replace(ContainerSecurity(), **fields))


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ((), (), ("/entry", "default")),
        ((), ("x",), ("/entry", "x")),
        (("/c",), (), ("/c",)),
        (("/c",), ("x",), ("/c", "x")),
    ],
)
def test_a_command_replaces_entrypoint_and_defaults(
    command: tuple[str, ...], args: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert process.arguments(replace(CONFIG, command=command, args=args), IMAGE) == expected


def test_no_command_at_all_names_the_image() -> None:
    with pytest.raises(InvalidSpec, match="'image'"):
        process.arguments(CONFIG, ImageConfig())


def test_the_environment_of_the_pod_wins_over_the_images_and_both_over_ours() -> None:
    env = spec(replace(CONFIG, envs=(("A", "pod"), ("B", "1"), ("B", "2")))).env
    assert env == ("PATH=/bin", "HOSTNAME=pod", "A=pod", "B=2", "HOME=/root")


def test_path_and_term_have_defaults_and_home_can_be_given() -> None:
    env = spec(replace(CONFIG, tty=True, envs=(("HOME", "/mine"),)), replace(IMAGE, env=("no assignment",))).env
    assert f"PATH={process.DEFAULT_PATH}" in env and "TERM=xterm" in env and "HOME=/mine" in env
    assert not any(entry.startswith("no") for entry in env)


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
def test_a_variable_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidSpec, match=r"config\.envs"):
        spec(replace(CONFIG, envs=((name, "x"),)))


@pytest.mark.parametrize(
    ("security", "image_user", "expected"),
    [
        ({}, "", User(0, 0, (0, 4))),
        ({}, "app", User(1000, 1000, (1000, 4, 10))),
        ({}, "1000:4", User(1000, 4, (4,))),
        ({}, "4242", User(4242, 0, (0,))),
        ({"run_as_user": 1000}, "root", User(1000, 1000, (1000, 4, 10))),
        ({"run_as_username": "app", "run_as_user": 5}, "", User(1000, 1000, (1000, 4, 10))),
        ({"run_as_user": 5, "run_as_group": 6}, "app", User(5, 6, (6,))),
        ({"run_as_user": 1000, "supplemental_groups": (7, 4)}, "", User(1000, 1000, (1000, 4, 10, 7))),
        ({"run_as_user": 1000, "supplemental_groups": (7,), "strict_groups": True}, "", User(1000, 1000, (1000, 7))),
    ],
)
def test_the_user_is_the_pods_then_the_images_and_its_gid_is_among_the_groups(
    security: dict[str, object], image_user: str, expected: User
) -> None:
    assert spec(secured(**security), replace(IMAGE, user=image_user)).user == expected


def test_a_group_without_a_user_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="run_as_group: 5"):
        spec(secured(run_as_group=5))


def test_capabilities_start_from_the_default_and_a_drop_wins() -> None:
    change = CapabilityChange(add=("NET_ADMIN", "cap_sys_time"), drop=("CHOWN", "NET_ADMIN"))
    sets = capability_sets(ContainerSecurity(capabilities=change), KNOWN)
    assert sets.bounding == (DEFAULT | {"CAP_SYS_TIME"}) - {"CAP_CHOWN"}
    assert sets.bounding == sets.effective == sets.permitted
    assert not sets.inheritable and not sets.ambient


def test_all_means_what_we_have_ourselves() -> None:
    ours = frozenset({"CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN"})
    add = capability_sets(ContainerSecurity(capabilities=CapabilityChange(add=("all",))), ours)
    assert add.bounding == ours
    change = CapabilityChange(add=("KILL", "SYS_ADMIN"), drop=("ALL",))
    assert capability_sets(ContainerSecurity(capabilities=change), ours).bounding == {"CAP_KILL"}
    assert capability_sets(ContainerSecurity(privileged=True), ours).effective == ours


def test_ambient_capabilities_are_in_every_set() -> None:
    change = CapabilityChange(add_ambient=("NET_ADMIN",))
    sets = capability_sets(ContainerSecurity(capabilities=change), KNOWN)
    assert sets.ambient == sets.inheritable == {"CAP_NET_ADMIN"} and "CAP_NET_ADMIN" in sets.permitted


def test_an_unknown_capability_is_named_with_its_field() -> None:
    with pytest.raises(InvalidSpec, match=r"drop_capabilities: 'FLY'"):
        capability_sets(ContainerSecurity(capabilities=CapabilityChange(drop=("FLY",))), KNOWN)


def test_the_filter_is_chosen_by_the_profile() -> None:
    default = spec(secured(seccomp=SecurityProfile())).seccomp
    assert default and default != b"localhost"
    assert spec(secured(seccomp=None)).seccomp is None
    assert spec(secured(seccomp=SecurityProfile(ProfileType.UNCONFINED))).seccomp is None
    assert spec(secured(seccomp=SecurityProfile(ProfileType.LOCALHOST, "x"))).seccomp == b"localhost"
    assert spec(secured(seccomp=SecurityProfile(), privileged=True)).seccomp is None


def test_flags_and_listener_of_a_localhost_profile_come_along() -> None:
    config = secured(seccomp=SecurityProfile(ProfileType.LOCALHOST, "x"))
    listener = SeccompListener("/run/agent.sock")
    found = process.container_process(
        config,
        IMAGE,
        users=USERS,
        node=NODE,
        hostname="pod",
        localhost_filter=SeccompFilter(b"p", ("SECCOMP_FILTER_FLAG_LOG",), listener),
    )
    assert (found.seccomp_flags, found.seccomp_listener) == (("SECCOMP_FILTER_FLAG_LOG",), listener)
    assert process.exec_process(found, ("sh",)).seccomp_listener == listener
    assert spec(config).seccomp_listener is None


def test_a_localhost_profile_loses_its_prefix_and_may_not_climb() -> None:
    profile = SecurityProfile(ProfileType.LOCALHOST, "localhost//profiles/x.json")
    assert process.localhost_profile(ContainerSecurity(seccomp=profile)) == "/profiles/x.json"
    assert process.localhost_profile(ContainerSecurity(seccomp=profile, privileged=True)) is None
    for reference in ("", "../x", "a/../../x"):
        with pytest.raises(InvalidSpec, match="localhost_ref"):
            process.localhost_profile(ContainerSecurity(seccomp=SecurityProfile(ProfileType.LOCALHOST, reference)))
    with pytest.raises(InvalidSpec, match="RUNTIME_DEFAULT"):
        process.localhost_profile(ContainerSecurity(seccomp=SecurityProfile(localhost_ref="/x")))


def test_the_working_directory_is_the_pods_then_the_images_then_the_root() -> None:
    assert spec(replace(CONFIG, working_dir="/pod")).cwd == "/pod"
    assert spec().cwd == "/srv"
    assert spec(image=replace(IMAGE, working_dir="")).cwd == "/"
    with pytest.raises(InvalidSpec, match="working_dir: 'relative'"):
        spec(replace(CONFIG, working_dir="relative"))


def test_an_exec_is_the_init_with_another_command() -> None:
    init = spec(secured(run_as_user=1000, no_new_privs=True))
    exec_ = process.exec_process(init, ("true",))
    assert exec_ == replace(init, args=("true",), init=False, terminal=False)
    with pytest.raises(InvalidSpec, match="cmd"):
        process.exec_process(init, ())


@pytest.mark.parametrize(
    ("text", "number"),
    [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-2", 62), ("SIGRTMIN", 34), ("rtmax", 64)],
)
def test_a_stop_signal_has_many_spellings(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "SIGFLY", "0", "65", "-1", "RTMIN+99", "RTMIN-1", "1e1", "RTMIN+" + "9" * 5000])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec):
        parse_signal(text)


def test_the_effective_stop_signal_is_never_zero() -> None:
    assert [stop_signal(10, "SIGINT"), stop_signal(0, "SIGINT"), stop_signal(0, ""), stop_signal(0, "junk")] == [
        10,
        2,
        15,
        15,
    ]


TEXT = st.text(max_size=8)


@given(
    st.builds(
        ContainerSecurity,
        run_as_user=st.none() | st.integers(0, 2**32),
        run_as_group=st.none() | st.integers(0, 2**31),
        run_as_username=TEXT,
        supplemental_groups=st.lists(st.integers(0, 2**31), max_size=3).map(tuple),
        capabilities=st.none() | st.builds(CapabilityChange, add=st.lists(TEXT, max_size=2).map(tuple)),
        privileged=st.booleans(),
    ),
    st.builds(
        ImageConfig, user=TEXT, env=st.lists(TEXT, max_size=3).map(tuple), cmd=st.lists(TEXT, max_size=2).map(tuple)
    ),
)
def test_any_configuration_gives_a_process_or_an_error_of_ours(security: ContainerSecurity, image: ImageConfig) -> None:
    try:
        found = spec(replace(CONFIG, security=security), image)
    except CrishimError:
        return
    assert found.user.gid in found.user.additional_groups
    assert found.capabilities is not None and found.capabilities.bounding <= KNOWN
