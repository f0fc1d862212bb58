"""From a container or exec value to the steps of its child: pure, so that tests compare plans as values.

A step is a tuple: the name of a function of `child.py` and its arguments, integers, bytes and tuples only. Descriptors
appear as indexes into the list that the preparer opens (`prepare.py`), because a plan is made before anything is open.
The order is the order of the kernel's rules; `docs/architecture.md` gives the reason of each place.
"""

from __future__ import annotations

from crishim.executor.tables import NAMESPACE_FLAGS, RLIMITS, attributes, propagation

TYPE_CHECKING = False
if TYPE_CHECKING:
    Step = tuple[object, ...]

#: the pod's user namespace is joined and clocks are set by the starter, before the clone; that of cgroups is made by
#: the child, or its root would be the monitor's cgroup
NOT_BY_CLONE = (b"user", b"time", b"cgroup")

#: SCHED_FIFO, SCHED_RR, SCHED_DEADLINE
_REAL_TIME = (1, 2, 6)

#: file systems that show what the kernel knows of a PID or network namespace
_VIEWS = (b"proc", b"sysfs")

#: file systems that have the SELinux context of their mount; policies give proc and sysfs theirs
_TAKE_CONTEXT = (b"tmpfs", b"devpts")


def init_steps(container: dict[str, object], opened: dict[bytes, int]) -> list[Step]:
    """Steps of a container's init process between clone3(2) and execve(2).

    container: the value of a ContainerSpec (`value.py`); opened: descriptors by role, as `prepare.py` names them:
    b"root" the root mount, b"mount:N" the source of mount N, b"ns:KIND" a namespace to join, b"procs:N" a
    cgroup.procs file to write, b"user" the user namespace that the process is born in.
    """
    process = container["process"]
    assert isinstance(process, dict)
    steps: list[Step] = [("set_dumpable", 0), *_before_cgroup(process)]
    steps += [("join_cgroup", fd) for role, fd in opened.items() if role.startswith(b"procs:")]
    steps.append(("new_session",))
    inside = b"user" in opened
    if inside:
        steps.append(("become_root",))
    else:
        steps += early_steps(process, opened)
    steps += [("join_namespace", opened[role], 0) for role in (b"ns:mnt", b"ns:cgroup") if role in opened]
    steps += _label_keys(process, opened)
    steps.append(("join_keyring", b"_ses." + container["id"], True))  # type: ignore[operator]
    if b"cgroup" in container["new_namespaces"]:  # type: ignore[operator]
        # after the join, or the root of the new namespace would be the monitor's cgroup
        steps.append(("unshare", NAMESPACE_FLAGS[b"cgroup"]))
    mounts = container["mounts"]
    assert isinstance(mounts, list)
    on_host = b"bundle" in opened  # a child of the host's tree, because hooks want to see it
    for index, mount in enumerate(mounts):
        if mount["kind"] == b"shm":  # the pod's, attached in the seed, which the root will cover
            steps.append(("hold_shm", index, opened[b"shm:%d" % index]) if on_host else ("take_shm", index))
    if inside:
        steps += _views(mounts, opened)
    if b"cover" in opened:
        steps.append(("show_bundle", opened[b"cover"], *container["cover"]))  # type: ignore[misc]
    if on_host:
        steps.append(("enter_root_on_host", opened[b"root"]))
    else:
        steps.append(("enter_root", opened[b"root"]))
    steps += _mount_steps(container, mounts, opened)
    if on_host:
        steps += [("await_hooks", 0), ("leave_host", opened[b"root"])]
    if process["terminal"]:
        steps.append(("open_console", True, process["console_width"], process["console_height"], process["uid"]))
    steps += _finish_root(container)
    if b"uts" in container["new_namespaces"]:  # type: ignore[operator]
        if container["hostname"]:
            steps.append(("set_hostname", container["hostname"]))
        if container["domainname"]:
            steps.append(("set_domainname", container["domainname"]))
    sysctls = container["sysctls"]
    assert isinstance(sysctls, dict)
    if sysctls:
        steps.append(("write_sysctls", tuple(sysctls.items())))
    steps += [("make_read_only", path) for path in container["readonly_paths"]]  # type: ignore[attr-defined]
    if container["masked_paths"]:
        steps.append(("mask_paths", tuple(container["masked_paths"]), *_label_of(container)))  # type: ignore[arg-type]
    rootfs = container["rootfs"]
    assert isinstance(rootfs, dict)
    if rootfs["propagation"] != b"rprivate":
        steps.append(("set_root_propagation", propagation(rootfs["propagation"])))
    hooks = container["hooks"]
    inside = hooks is not None and b"startContainer" in hooks["stages"]  # type: ignore[index]
    waits = b"user" in opened and real_time_step(process) is not None
    return steps + finish_steps(process, opened, init=True, hooks=inside, scheduler=waits)


def exec_steps(process: dict[str, object], opened: dict[bytes, int], namespaces: int) -> list[Step]:
    """Steps of an exec: join what the container has, then end as an init does.

    opened: b"target" the pidfd of the init process; namespaces: clone flags of what differs from ours.
    """
    steps: list[Step] = [("set_dumpable", 0), *_before_cgroup(process)]
    steps += [("join_cgroup", fd) for role, fd in opened.items() if role.startswith(b"procs:")]
    steps.append(("new_session",))
    steps += early_steps(process, opened)
    if namespaces:
        steps.append(("join_namespace", opened[b"target"], namespaces))
    if namespaces & NAMESPACE_FLAGS[b"user"]:
        steps.append(("become_root",))
    steps += _label_keys(process, opened)
    steps.append(("join_keyring", b"_ses." + process["container_id"], False))  # type: ignore[operator]
    if process["terminal"]:
        steps.append(("open_console", False, process["console_width"], process["console_height"], process["uid"]))
    return steps + finish_steps(process, opened, init=False)


def _label_keys(process: dict[str, object], opened: dict[bytes, int]) -> list[Step]:
    """The session keyring has the SELinux context of the process."""
    return [("label_new_keys", opened[b"proc"], process["label"])] if process["label"] else []


def _label_of(container: dict[str, object]) -> tuple[bytes, ...]:
    """The SELinux context of what the container has mounted; nothing without one, as from servers before there was."""
    label = container.get("mount_label")
    return (label,) if isinstance(label, bytes) else ()


def _labelled(mount: dict[str, object], label: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Options of a mount with the context, where the file system takes one and nobody asks for another."""
    options: tuple[bytes, ...] = tuple(mount["options"])  # type: ignore[arg-type]
    if label and mount["kind"] in _TAKE_CONTEXT and not any(b"context=" in option for option in options):
        return (*options, b"context=" + label[0])
    return options


def _before_cgroup(process: dict[str, object]) -> list[Step]:
    initial = process["initial_affinity"]
    return [("set_affinity", tuple(initial))] if initial else []  # type: ignore[arg-type]


def real_time_step(process: dict[str, object]) -> Step | None:
    """The step that takes a real-time policy, None when the process has none: `scheduling.py` says what of it."""
    scheduler = process["scheduler"]
    if scheduler is None or scheduler[0] not in _REAL_TIME:  # type: ignore[index]
        return None
    return ("set_scheduler", *scheduler)  # type: ignore[misc]


def early_steps(process: dict[str, object], opened: dict[bytes, int]) -> list[Step]:
    """What needs the host's /proc and privileges: limits, priorities, affinity.

    Inherited by children: for a container in a user namespace the starter takes these steps before it joins that.
    """
    steps: list[Step] = []
    if process["oom_score_adj"] is not None:
        steps.append(("set_oom_score_adj", opened[b"proc"], str(process["oom_score_adj"]).encode()))
    # raised while we have the privilege, lowered when we need no more descriptors and memory ourselves
    steps += [("raise_hard_limit", RLIMITS[kind], hard) for kind, _, hard in process["rlimits"]]  # type: ignore[attr-defined]
    if process["affinity"]:  # otherwise all CPUs, as the zygote has them
        steps.append(("set_affinity", tuple(process["affinity"])))  # type: ignore[arg-type]
    if process["scheduler"] is not None:
        steps.append(("set_scheduler", *process["scheduler"]))  # type: ignore[misc]
    if process["io_priority"] is not None:
        steps.append(("set_io_priority", process["io_priority"]))
    if process["memory_policy"] is not None:
        steps.append(("set_memory_policy", *process["memory_policy"]))  # type: ignore[misc]
    return steps


def _views(mounts: list[dict[str, object]], opened: dict[bytes, int]) -> list[Step]:
    """New proc and sysfs, made while those of the host can be seen: in a user namespace the kernel asks for that."""
    made: list[Step] = [
        ("make_filesystem", index, item["kind"], tuple(item["options"]), attributes(item["flags"])[0])  # type: ignore[arg-type]
        for index, item in enumerate(mounts)
        if item["kind"] in _VIEWS
    ]
    if not made:
        return []
    shown: list[Step] = [("show", opened[b"view:" + name], b"/" + name) for name in (b"proc", b"sys")]
    return [*shown, *made, ("hide", b"/proc"), ("hide", b"/sys")]


def _mount_steps(container: dict[str, object], mounts: list[dict[str, object]], opened: dict[bytes, int]) -> list[Step]:
    steps: list[Step] = []
    label = _label_of(container)
    for index, mount in enumerate(mounts):
        kind = mount["kind"]
        target = mount["target"]
        set_, clear, _ = attributes(mount["flags"])  # type: ignore[arg-type]
        if kind == b"bind" and target.startswith(b"/proc/"):  # type: ignore[attr-defined]
            steps.append(("cover_proc_file", opened[b"mount:%d" % index], target))
        elif kind in (b"bind", b"image"):
            # attributes were set on the detached tree, where nothing can race
            steps.append(("attach", opened[b"mount:%d" % index], target, bool(mount["source_is_file"])))
        elif kind == b"shm":
            steps.append(("attach_shm", index, target, set_, clear))
        elif kind == b"cgroup":
            trees = tuple(
                (role.split(b":", 2)[2], fd) for role, fd in opened.items() if role.startswith(b"cgroup:%d:" % index)
            )
            steps.append(("mount_cgroups", target, set_, trees, *label))
        elif kind in _VIEWS and b"user" in opened:
            steps.append(("attach_filesystem", index, kind, target))
        elif kind == b"tmpfs" and _is_special(mount):
            steps.append(("mount_tmpfs", target, _labelled(mount, label), set_, clear, mount["copy_up"]))
        else:
            steps.append(("mount_filesystem", kind, target, _labelled(mount, label), set_, clear))
        if label and kind == b"mqueue":
            steps.append(("label_mount", target, *label))
        if target == b"/dev" and kind == b"tmpfs":
            steps.append(_devices(container, opened))
            steps.append(("link_devices",))
        if target == b"/dev/pts" and kind == b"devpts":
            steps.append(("link_ptmx",))
    return steps


def _is_special(tmpfs: dict[str, object]) -> bool:
    """Whether a tmpfs wants more than to be mounted; that of /dev does not, nor what every container has."""
    has_mode = any(option.startswith(b"mode=") for option in tmpfs["options"])  # type: ignore[attr-defined]
    return bool(not has_mode or tmpfs["copy_up"] or b"ro" in tmpfs["flags"] or b"rro" in tmpfs["flags"])  # type: ignore[operator]


def _devices(container: dict[str, object], opened: dict[bytes, int]) -> Step:
    nodes = container["device_nodes"]
    assert isinstance(nodes, list)
    if b"user" in opened:  # nobody can make a node there
        return ("bind_devices", tuple((node[0], opened[b"device:%d" % index]) for index, node in enumerate(nodes)))
    return ("make_devices", tuple(tuple(node) for node in nodes))


def _finish_root(container: dict[str, object]) -> list[Step]:
    process = container["process"]
    rootfs = container["rootfs"]
    assert isinstance(process, dict) and isinstance(rootfs, dict)
    steps: list[Step] = []
    steps += [("make_directory", path) for path in container.get("directories", ())]  # type: ignore[attr-defined]
    if process["cwd"]:
        steps.append(("make_cwd", process["cwd"]))
    if any(mount["kind"] == b"tmpfs" and _is_special(mount) for mount in container["mounts"]):  # type: ignore[attr-defined]
        steps.append(("finish_tmpfs",))
    if rootfs["readonly"]:
        steps.append(("make_root_read_only",))
    return steps


def finish_steps(
    process: dict[str, object], opened: dict[bytes, int], *, init: bool, hooks: bool = False, scheduler: bool = False
) -> list[Step]:
    """The last steps, the same for init and exec; each needs what the next one gives away.

    hooks: of startContainer; scheduler: somebody else gives the process its scheduling policy.
    """
    steps: list[Step] = []
    umask = process["umask"]
    if umask is not None or init:
        steps.append(("set_umask", 0o022 if umask is None else umask))
    if process["personality"] is not None:
        steps.append(("set_personality", process["personality"]))
    steps.append(("set_stdio", tuple(opened[name] for name in (b"stdin", b"stdout", b"stderr")), process["terminal"]))
    extra = tuple(fd for role, fd in opened.items() if role.startswith(b"extra:"))
    nnp = bool(process["no_new_privileges"])
    capabilities = process["capabilities"]
    seccomp = process["seccomp"]
    steps.append(("reset_signals",))
    if process["apparmor_profile"]:
        steps.append(("write_exec_attribute", opened[b"proc"], b"apparmor", process["apparmor_profile"]))
    if process["label"]:
        steps.append(("write_exec_attribute", opened[b"proc"], b"", process["label"]))
    if nnp:
        steps.append(("set_no_new_privileges",))
    steps.append(("keep_descriptors", extra))
    steps += [("set_rlimit", RLIMITS[kind], soft, hard) for kind, soft, hard in process["rlimits"]]  # type: ignore[attr-defined]
    if process["cwd"] and process["cwd"] != b"/":
        steps.append(("enter_cwd_as_root", process["cwd"]))
    if seccomp and not nnp:
        steps.append(_filter_step(process))  # loading without no_new_privs needs CAP_SYS_ADMIN
    if capabilities is not None:
        assert isinstance(capabilities, list)
        steps.append(("drop_bounding", capabilities[0]))
    steps.append(("set_user", process["uid"], process["gid"], tuple(process["groups"]), capabilities is not None))  # type: ignore[arg-type]
    if process["cwd"] and process["cwd"] != b"/":
        steps.append(("enter_cwd", process["cwd"]))
    if capabilities is not None:
        steps.append(("set_capabilities", *capabilities))
    steps.append(("die_with_parent",))  # any change of credentials clears it, so it comes after all of them
    if hooks:
        steps.append(("await_hooks", 1))
    if scheduler:
        steps.append(("await_scheduler",))
    steps.append(("announce",))
    if seccomp and nnp:
        steps.append(_filter_step(process))
    steps.append(("execute", tuple(process["args"]), dict(_environment(process["env"]))))  # type: ignore[arg-type]
    return steps


def _filter_step(process: dict[str, object]) -> Step:
    flags = process.get("seccomp_flags")  # a server of an earlier version does not say it
    return ("load_flagged_seccomp", process["seccomp"], flags) if flags else ("load_seccomp", process["seccomp"])


def _environment(entries: list[bytes]) -> list[tuple[bytes, bytes]]:
    return [tuple(entry.split(b"=", 1)) for entry in entries]  # type: ignore[misc]
