"""What an OCI profile says besides its rules: flags of the filter, and the listener of calls that it leaves to one.

Sources: OCI runtime spec (config-linux.md, "Seccomp"), seccomp(2).
"""

from __future__ import annotations

from collections.abc import Mapping

from crishim.errors import InvalidSpec
from crishim.model.process import SeccompListener
from crishim.spec.seccomp_profile import NOTIFY, Profile

_PREFIX = "SECCOMP_FILTER_FLAG_"
#: flags of a profile to the Linux that knows them; TSYNC says nothing of a process with one thread and is left out
_SINCE = {"LOG": (4, 14), "SPEC_ALLOW": (4, 17), "WAIT_KILLABLE_RECV": (5, 19)}


def flags_of(profile: Mapping[str, object], kernel: tuple[int, int]) -> tuple[str, ...]:
    """The flags that its filter is loaded with. InvalidSpec for one that is none, or that this kernel does not know."""
    listed = profile.get("flags") or []
    if not isinstance(listed, list):
        raise InvalidSpec("seccomp: flags is not a list")
    found = []
    for flag in listed:
        name = flag.removeprefix(_PREFIX) if isinstance(flag, str) and flag.startswith(_PREFIX) else ""
        if name == "TSYNC":
            continue
        if name not in _SINCE:
            raise InvalidSpec(f"seccomp: flags: {flag!r} is not supported")
        if kernel < _SINCE[name]:
            least, ours = (".".join(map(str, version)) for version in (_SINCE[name], kernel))
            raise InvalidSpec(f"seccomp: flags: {flag!r} needs Linux {least}, and this is {ours}")
        found.append(flag)
    return tuple(dict.fromkeys(found))


def listener_of(profile: Mapping[str, object], rules: Profile) -> SeccompListener | None:
    """Who is to answer, None when no rule that holds here leaves a call to anybody. InvalidSpec names the field."""
    path, metadata = _text(profile, "listenerPath"), _text(profile, "listenerMetadata")
    if metadata and not path:
        raise InvalidSpec(f"seccomp: listenerMetadata: {metadata!r} is given, and no listenerPath")
    notifies = any(rule.action == NOTIFY for rule in rules.rules)
    if notifies and not path:
        raise InvalidSpec("seccomp: listenerPath is empty, and a rule is SCMP_ACT_NOTIFY: nobody would answer")
    listener = SeccompListener(path, metadata)
    if path and listener.fault():
        raise InvalidSpec(f"seccomp: listenerPath: {path!r} {listener.fault()}")
    return listener if notifies else None


def _text(profile: Mapping[str, object], key: str) -> str:
    text = profile.get(key)
    if not isinstance(text, str | None):
        raise InvalidSpec(f"seccomp: {key}: {text!r} is not a string")
    return text or ""
