"""What is said of a step of a plan: its name in a log, and a sentence when it failed."""

from __future__ import annotations

import os

from crishim.executor.tables import RLIMITS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.plan import Step


def label(step: Step) -> bytes:
    """A line of JSON that tells of a step about to be taken: its name, and the path or program that it is about."""
    name = str(step[0]).replace("_", " ")
    about = next((item for item in step[1:] if isinstance(item, bytes) and item.startswith(b"/")), b"")
    if step[0] == "execute":
        about = step[1][0]  # type: ignore[index]
    text = f"{name} {about.decode('utf-8', 'replace')}".rstrip()
    quoted = "".join(
        f"\\{letter}" if letter in '"\\' else letter if letter >= " " else f"\\u{ord(letter):04x}" for letter in text
    )
    return b'{"level":"debug","msg":"%b"}\n' % quoted.encode("utf-8", "replace")


_SENTENCES = {
    "enter_root": "entering the root file system",
    "show_bundle": "showing the bundle to hooks",
    "enter_root_on_host": "mounting the root file system in the bundle",
    "leave_host": "entering the root file system",
    "make_devices": "making the device nodes in /dev",
    "bind_devices": "binding the device nodes in /dev",
    "become_root": "becoming root in the user namespace",
    "join_keyring": "joining a session keyring",
    "join_cgroup": "joining the cgroup",
    "join_namespace": "joining a namespace",
    "open_console": "opening the console",
    "set_capabilities": "setting the capabilities",
    "load_seccomp": "loading the seccomp filter",
    "load_flagged_seccomp": "loading the seccomp filter",
    "write_sysctls": "writing a sysctl",
    "set_no_new_privileges": "setting no_new_privs",
}


#: by number; 4 was never given
_POLICIES = ("SCHED_OTHER", "SCHED_FIFO", "SCHED_RR", "SCHED_BATCH", "SCHED_ISO", "SCHED_IDLE", "SCHED_DEADLINE")


def _scheduling(step: Step) -> str:
    """The policy of a step "set_scheduler", and the numbers that count for it."""
    policy, _, nice, priority, runtime, deadline, period = step[1:]
    assert isinstance(policy, int)
    if policy == 6:
        return f"{_POLICIES[policy]} runtime {runtime} ns, deadline {deadline} ns, period {period} ns"
    return f"{_POLICIES[policy]} " + (f"priority {priority}" if policy in (1, 2) else f"nice {nice}")


def describe(step: Step, code: int, detail: bytes) -> str:
    """A sentence about the step that failed with errno `code` (0: not a system call's failure)."""
    name = str(step[0])
    why = os.strerror(code) if code else "failed"
    text = detail.decode("utf-8", "replace")
    if name in ("execute", "execute_path"):
        executed: bytes = step[1] if name == "execute_path" else step[1][0]  # type: ignore[index, assignment]
        command = executed.decode("utf-8", "replace")
        if code == 2:
            hint = "no such file or directory" if "/" in command else "executable file not found in $PATH"
            return f'exec: "{command}": {hint}'
        return f'exec: "{command}": {why.lower()}'
    if name in (
        "attach",
        "cover_proc_file",
        "attach_shm",
        "attach_filesystem",
        "mount_filesystem",
        "mount_tmpfs",
        "mount_cgroups",
    ):
        target = next(item for item in step[1:] if isinstance(item, bytes) and item.startswith(b"/"))
        return f'mounting "{target.decode("utf-8", "replace")}": {why.lower()}{text and " (" + text + ")"}'
    if name == "make_directory":
        return f'directory "{step[1].decode("utf-8", "replace")}": {why.lower()}'  # type: ignore[attr-defined]
    if name in ("make_cwd", "enter_cwd", "enter_cwd_as_root"):
        path = step[1].decode("utf-8", "replace")  # type: ignore[attr-defined]
        return f'working directory "{path}": {why.lower()}'
    if name == "set_user":
        return f"changing to uid {step[1]} gid {step[2]}: {why.lower()}"
    if name == "set_scheduler":
        return f"scheduler.policy {_scheduling(step)}: {why.lower()}"
    if name == "set_rlimit":
        kind = next(key.decode() for key, value in RLIMITS.items() if value == step[1])
        return f"setting {kind} to {step[2]}:{step[3]}: {why.lower()}"
    if name == "write_exec_attribute":
        kind = "AppArmor profile" if step[2] else "SELinux label"
        hint = "it is not loaded on this node" if code == 2 and step[2] else why.lower()
        return f'{kind} "{step[3].decode("utf-8", "replace")}": {hint}'  # type: ignore[attr-defined]
    if name == "label_new_keys":
        return f'SELinux label "{step[2].decode("utf-8", "replace")}" of keys: {why.lower()}'  # type: ignore[attr-defined]
    if name == "label_mount":
        return f'labelling "{step[1].decode("utf-8", "replace")}": {why.lower()}'  # type: ignore[attr-defined]
    sentence = _SENTENCES.get(name, name.replace("_", " "))
    return f"{sentence}: {why.lower()}{text and ' (' + text + ')'}"
