"""Hooks as documents write them: OCI's object of a hook, and the files of hook directories (oci-hooks(5), 1.0.0)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crishim.errors import InvalidSpec
from crishim.model.hook import Hook, Hooks
from crishim.spec.json_object import Fields

#: OCI's name of a place to the field of `Hooks`
PLACES = {
    "prestart": "prestart",
    "createRuntime": "create_runtime",
    "createContainer": "create_container",
    "startContainer": "start_container",
    "poststart": "poststart",
    "poststop": "poststop",
}
_TIMEOUT_LIMIT_S = 24 * 3600
#: of a text of the pod that a pattern is tried on
_MATCHED_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class HookRule:
    """One file of a hook directory: a hook, its places, and when a container gets it; what is None was not asked."""

    hook: Hook
    places: tuple[str, ...]
    always: bool | None = None
    has_bind_mounts: bool | None = None
    #: (pattern of a key, pattern of its value)
    annotations: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = ()
    commands: tuple[re.Pattern[str], ...] = ()

    def matches(self, annotations: Mapping[str, str], command: str, has_bind_mounts: bool) -> bool:
        """Whether everything that the rule asks for is there; a rule that asks for nothing matches nothing."""
        asked = []
        if self.always is not None:
            asked.append(self.always)
        if self.has_bind_mounts is not None:
            asked.append(self.has_bind_mounts and has_bind_mounts)
        for key_pattern, value_pattern in self.annotations:
            asked.append(
                any(
                    key_pattern.search(key) and value_pattern.search(value[:_MATCHED_CHARACTERS])
                    for key, value in annotations.items()
                )
            )
        if self.commands:
            asked.append(any(pattern.search(command[:_MATCHED_CHARACTERS]) for pattern in self.commands))
        return bool(asked) and all(asked)


def hook_from(fields: Fields) -> Hook:
    """OCI's object of a hook; the fields that are left are the caller's. InvalidSpec names the field."""
    path = fields.text("path")
    if not path.startswith("/") or ".." in path.split("/"):
        raise InvalidSpec(f"{fields.place('path')}: {path!r} is not an absolute path")
    has_env = fields.has("env")
    env = fields.texts("env")
    for entry in env:
        if not entry.partition("=")[0] or "=" not in entry:
            raise InvalidSpec(f"{fields.place('env')}: {entry!r} is not NAME=value")
    timeout_s = fields.integer("timeout", 0, _TIMEOUT_LIMIT_S)
    return Hook(path, fields.texts("args"), env if has_env else None, timeout_s or None)


def rule_from(document: object) -> HookRule:
    """A file of a hook directory. InvalidSpec names the field."""
    fields = Fields(document, "")
    version = fields.text("version")
    if version != "1.0.0":
        raise InvalidSpec(f"version: {version!r} is not 1.0.0")
    hook_fields = fields.inner("hook")
    if hook_fields is None:
        raise InvalidSpec("hook: it is missing")
    hook = hook_from(hook_fields)
    hook_fields.end()
    when = fields.inner("when") or Fields({}, "when")
    places = fields.texts("stages")
    for place in places:
        if place not in PLACES:
            raise InvalidSpec(f"stages: {place!r} is not one of {', '.join(PLACES)}")
    if not places:
        raise InvalidSpec("stages: it is missing")
    rule = HookRule(
        hook,
        places,
        when.flag("always"),
        when.flag("hasBindMounts"),
        tuple(
            (_pattern(when.place("annotations"), key), _pattern(when.place("annotations"), value))
            for key, value in when.text_map("annotations").items()
        ),
        tuple(_pattern(when.place("commands"), text) for text in when.texts("commands")),
    )
    when.end()
    fields.end()
    return rule


def hooks_of(rules: Sequence[HookRule], annotations: Mapping[str, str], command: str, has_bind_mounts: bool) -> Hooks:
    """The hooks of a container: those of the rules that match, in the order of the rules."""
    hooks = Hooks()
    for rule in rules:
        if rule.matches(annotations, command, has_bind_mounts):
            for place in dict.fromkeys(rule.places):
                hooks += Hooks(**{PLACES[place]: (rule.hook,)})
    return hooks


def _pattern(path: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidSpec(f"{path}: {text!r} is not a regular expression: {error}") from None
