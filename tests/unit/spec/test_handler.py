"""What a runtime handler changes in processes, limits, mounts, sysctls; what a pod may ask for by annotations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crishim.app.settings import check_handler
from crishim.errors import InvalidSpec, Unsupported
from crishim.images.users import UserDatabase
from crishim.model.container import CapabilityChange, ContainerConfig, ContainerSecurity
from crishim.model.handler import PLAIN, Handler
from crishim.model.image import ImageConfig
from crishim.model.process import ContainerSpec, DeviceRule, Rlimit, RootFs, SeccompFilter, SeccompListener
from crishim.model.resources import Resources
from crishim.model.sandbox import (
    NamespaceMode,
    NamespaceOptions,
    ProfileType,
    Sandbox,
    SandboxConfig,
    SandboxSecurity,
    SandboxState,
    SecurityProfile,
)
from crishim.spec.annotated import rlimits_of, umask_of
from crishim.spec.capabilities import DEFAULT, KNOWN
from crishim.spec.container import Surroundings, container_spec
from crishim.spec.facts import NodeAbilities, PodFiles
from crishim.spec.process import check_listener, localhost_profile
from crishim.spec.sandbox import NETWORK_DEFAULTS, sandbox_plan
from crishim.spec.seccomp import runtime_default

NODE = NodeAbilities((6, 18), "x86_64", KNOWN, apparmor=True)
PRIVILEGED = ContainerSecurity(privileged=True)


def translated(
    handler: Handler,
    security: ContainerSecurity = ContainerSecurity(),  # noqa: B008
    *,
    resources: Resources = Resources(),  # noqa: B008
    annotations: dict[str, str] | None = None,
    image_env: tuple[str, ...] = (),
    localhost_filter: SeccompFilter | None = None,
) -> ContainerSpec:
    sandbox = Sandbox(
        id="s" * 64,
        config=SandboxConfig(
            name="pod",
            uid="uid",
            namespace="ns",
            annotations=annotations or {},
            security=SandboxSecurity(privileged=security.privileged),
        ),
        state=SandboxState.READY,
        created_at_ns=1,
        cgroup_path="/pods/1",
        handler=handler,
    )
    config = ContainerConfig(name="main", command=("sh",), security=security, resources=resources)
    around = Surroundings(
        image=ImageConfig(env=image_env),
        users=UserDatabase(),
        node=NODE,
        files=PodFiles(None, None, None),
        hostname="pod",
        rootfs=RootFs(path="/rootfs"),
        localhost_filter=localhost_filter,
        rlimits=(Rlimit("RLIMIT_NOFILE", 10, 20), Rlimit("RLIMIT_CORE", 0, 0)),
    )
    return container_spec("c" * 64, config, sandbox, around)


def test_a_plain_handler_changes_nothing() -> None:
    spec = translated(PLAIN)
    assert spec.process.capabilities is not None and spec.process.capabilities.bounding == DEFAULT
    assert spec.process.seccomp is None and not spec.process.no_new_privileges
    assert spec.cgroup.resources == Resources() and spec.process.user.umask is None
    assert spec.process.oom_score_adj is None and spec.process.apparmor_profile is None


def test_containers_add_to_and_drop_from_the_capabilities_of_the_handler() -> None:
    change = CapabilityChange(add=("NET_ADMIN",), drop=("KILL",))
    spec = translated(Handler(capabilities=("CAP_CHOWN", "CAP_KILL")), ContainerSecurity(capabilities=change))
    assert spec.process.capabilities is not None
    assert spec.process.capabilities.bounding == {"CAP_CHOWN", "CAP_NET_ADMIN"}
    everything = translated(Handler(capabilities=()), PRIVILEGED).process.capabilities
    assert everything is not None and everything.bounding == KNOWN


def test_a_container_without_a_profile_has_what_the_handler_says() -> None:
    handler = Handler(unset_seccomp_profile="runtime/default")
    assert translated(handler).process.seccomp == runtime_default(DEFAULT, NODE.kernel, NODE.machine)
    unconfined = ContainerSecurity(seccomp=SecurityProfile(ProfileType.UNCONFINED))
    assert translated(handler, unconfined).process.seccomp is None
    assert translated(handler, PRIVILEGED).process.seccomp is None


def test_runtime_default_is_the_file_of_the_handler() -> None:
    handler = Handler(seccomp_profile="our.json")
    security = ContainerSecurity(seccomp=SecurityProfile())
    assert localhost_profile(security, handler) == "our.json" and localhost_profile(security) is None
    assert translated(handler, security, localhost_filter=SeccompFilter(b"compiled")).process.seccomp == b"compiled"
    assert localhost_profile(ContainerSecurity(), handler) is None
    assert localhost_profile(replace(security, privileged=True), handler) is None


def test_a_listener_needs_a_handler_that_lets_it() -> None:
    notifying = SeccompFilter(b"p", listener=SeccompListener("/run/agent.sock"))
    with pytest.raises(InvalidSpec, match=r"'p\.json': its listenerPath '/run/agent\.sock' needs a runtime handler"):
        check_listener("p.json", notifying, PLAIN)
    check_listener("p.json", notifying, Handler(seccomp_notify=True))
    check_listener("p.json", SeccompFilter(b"p"), PLAIN)


def test_the_apparmor_profile_of_the_handler_is_the_default_one() -> None:
    handler = Handler(apparmor_profile="strict")
    default = ContainerSecurity(apparmor=SecurityProfile())
    assert [translated(handler, each).process.apparmor_profile for each in (ContainerSecurity(), default)] == [
        "strict",
        "strict",
    ]
    other = ContainerSecurity(apparmor=SecurityProfile(ProfileType.LOCALHOST, "own"))
    assert translated(handler, other).process.apparmor_profile == "own"
    for off in (PRIVILEGED, ContainerSecurity(apparmor=SecurityProfile(ProfileType.UNCONFINED))):
        assert translated(handler, off).process.apparmor_profile is None


def test_no_new_privileges_spares_privileged_containers() -> None:
    handler = Handler(no_new_privileges=True)
    assert translated(handler).process.no_new_privileges
    assert not translated(handler, PRIVILEGED).process.no_new_privileges
    assert translated(handler, replace(PRIVILEGED, no_new_privs=True)).process.no_new_privileges


def test_limits_of_the_handler_win_kind_by_kind_over_those_of_all() -> None:
    spec = translated(Handler(rlimits=(Rlimit("RLIMIT_NOFILE", 5, 5), Rlimit("RLIMIT_NPROC", 7, 7))))
    assert {(limit.kind, limit.soft) for limit in spec.process.rlimits} == {
        ("RLIMIT_NOFILE", 5),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 7),
    }


@pytest.mark.parametrize(
    ("asked", "limit"),
    [(Resources(), 64), (Resources(pids_limit=9), 9), (Resources(unified={"pids.max": "5"}), None)],
)
def test_the_limit_of_processes_is_for_containers_without_one(asked: Resources, limit: int | None) -> None:
    assert translated(Handler(pids_limit=64), resources=asked).cgroup.resources.pids_limit == limit


@pytest.mark.parametrize(("asked", "given"), [(None, None), (-997, 0), (0, 0), (500, 500)])
def test_no_container_is_spared_by_the_oom_killer_more_than_allowed(asked: int | None, given: int | None) -> None:
    spec = translated(Handler(min_oom_score_adj=0), resources=Resources(oom_score_adj=asked))
    assert spec.process.oom_score_adj == given
    assert translated(Handler(min_oom_score_adj=100)).process.oom_score_adj == 100


def test_image_and_pod_win_over_the_environment_of_the_handler() -> None:
    env = translated(Handler(env={"A": "1", "B": "1", "PATH": "/own"}), image_env=("B=2",)).process.env
    assert {"A=1", "B=2", "PATH=/own"} <= set(env)


def test_a_privileged_container_may_be_kept_from_the_devices_of_the_host() -> None:
    assert translated(PLAIN, PRIVILEGED).cgroup.devices == (DeviceRule(True),)
    assert translated(Handler(privileged_without_host_devices=True), PRIVILEGED).cgroup.devices == (DeviceRule(False),)


def test_cgroups_are_writable_where_the_handler_says_so() -> None:
    flags = {
        writable: next(each.flags for each in spec.mounts if each.kind == "cgroup")
        for writable in (False, True)
        if (spec := translated(Handler(cgroup_writable=writable)))
    }
    assert set(flags[False]) - set(flags[True]) == {"ro"}


def test_sysctls_of_the_handler_are_for_namespaces_of_the_pod_alone() -> None:
    handler = Handler(sysctls={"net/core/somaxconn": "1024", "kernel.msgmax": "5"})
    pod = SandboxConfig(name="p", uid="u", namespace="n", sysctls={"net.core.somaxconn": "7"})
    assert sandbox_plan(pod, handler).sysctls == {
        **NETWORK_DEFAULTS,
        "net.core.somaxconn": "7",
        "kernel.msgmax": "5",
    }
    node = NamespaceOptions(network=NamespaceMode.NODE, ipc=NamespaceMode.NODE)
    host = SandboxConfig(name="p", uid="u", namespace="n", security=SandboxSecurity(namespaces=node))
    assert sandbox_plan(host, handler).sysctls == {}


# -- annotations


def test_annotations_that_are_not_allowed_are_ignored() -> None:
    asked = {"crishim.io/umask": "nonsense", "crishim.io/ulimit.nofile": "nonsense"}
    assert umask_of(asked, PLAIN) is None and rlimits_of((), PLAIN, asked) == ()


def test_allowed_annotations_set_mask_and_limits() -> None:
    handler = Handler(
        allowed_annotations=("crishim.io/umask", "crishim.io/ulimit.*"), rlimits=(Rlimit("RLIMIT_NOFILE", 1, 1),)
    )
    asked = {
        "crishim.io/umask": "0027",
        "crishim.io/ulimit.nofile": "5:6",
        "crishim.io/ulimit.core": "3",
        "crishim.io/ulimit.memlock": "-1",
    }
    spec = translated(handler, annotations=asked)
    assert spec.process.user.umask == 0o027
    assert set(spec.process.rlimits) == {
        Rlimit("RLIMIT_NOFILE", 5, 6),
        Rlimit("RLIMIT_CORE", 3, 3),
        Rlimit("RLIMIT_MEMLOCK", -1, -1),
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("umask", "8"),
        ("umask", "01000"),
        ("umask", ""),
        ("umask", "-1"),
        ("ulimit.nofile", "6:5"),
        ("ulimit.nofile", "-1:5"),
        ("ulimit.nofile", "1:2:3"),
        ("ulimit.nofile", ""),
        ("ulimit.nofile", "9" * 5000),
        ("ulimit.nofile", "\u0665"),
        ("ulimit.files", "5"),
    ],
)
def test_a_wrong_value_of_an_allowed_annotation_is_named(name: str, value: str) -> None:
    handler = Handler(allowed_annotations=("crishim.io/*",))
    with pytest.raises(InvalidSpec, match=f"config.annotations.'crishim.io/{name}'"):
        translated(handler, annotations={f"crishim.io/{name}": value})


# -- what the node cannot honour


@pytest.mark.parametrize(
    ("handler", "sentence"),
    [
        (Handler(capabilities=("CAP_CHOWN", "CAP_X")), r"r.x.capabilities\[1\]: 'CAP_X' is not a capability"),
        (Handler(sysctls={"vm.swappiness": "1"}), r"r.x.sysctls\['vm.swappiness'\]: it does not belong to a namespace"),
        (Handler(sysctls={"net.a": "1\n"}), "is not the value of a sysctl"),
    ],
)
def test_an_option_that_cannot_be_is_refused(handler: Handler, sentence: str) -> None:
    with pytest.raises(InvalidSpec, match=sentence):
        check_handler("r.x", handler, NODE, delegated=True)


def test_what_the_node_lacks_is_refused() -> None:
    bare = replace(NODE, apparmor=False)
    check_handler("r.x", Handler(cgroup_writable=True, apparmor_profile="p"), NODE, delegated=True)
    with pytest.raises(Unsupported, match=r"r\.x\.cgroup_writable: it needs cgroup v2"):
        check_handler("r.x", Handler(cgroup_writable=True), NODE, delegated=False)
    with pytest.raises(Unsupported, match=r"r\.x\.apparmor_profile: 'p': this node has no AppArmor"):
        check_handler("r.x", Handler(apparmor_profile="p"), bare, delegated=True)
