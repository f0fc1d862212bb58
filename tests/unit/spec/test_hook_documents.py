"""Files of hook directories, and which containers they are for."""

from __future__ import annotations

from typing import Any

import pytest

from crishim.errors import InvalidSpec
from crishim.model.hook import Hook, Hooks
from crishim.spec.hook_documents import hooks_of, rule_from

HOOK = {"path": "/usr/libexec/hook", "args": ["hook", "-v"], "env": ["A=1"], "timeout": 3}
VALUE = Hook("/usr/libexec/hook", ("hook", "-v"), ("A=1",), 3)


def document(when: dict[str, Any], *stages: str) -> dict[str, Any]:
    return {"version": "1.0.0", "hook": HOOK, "when": when, "stages": list(stages or ("prestart",))}


def test_a_rule_that_matches_gives_its_hook_to_its_places() -> None:
    rules = [rule_from(document({"always": True}, "prestart", "poststop")), rule_from(document({"always": False}))]
    assert hooks_of(rules, {}, "/bin/sh", False) == Hooks(prestart=(VALUE,), poststop=(VALUE,))


def test_an_environment_that_is_not_given_is_none_and_an_empty_one_is_empty() -> None:
    given = document({"always": True})
    assert rule_from({**given, "hook": {"path": "/x"}}).hook.env is None
    assert rule_from({**given, "hook": {"path": "/x", "env": []}}).hook.env == ()


@pytest.mark.parametrize(
    ("when", "matches"),
    [
        ({}, False),
        ({"always": True}, True),
        ({"hasBindMounts": True}, True),
        ({"hasBindMounts": False}, False),
        ({"annotations": {"^example.com/gpu$": "^(a|b)$"}}, True),
        ({"annotations": {"^example.com/gpu$": "^c$"}}, False),
        ({"annotations": {"gpu": "a", "other": ".*"}}, False),
        ({"commands": ["^/bin/sh$"]}, True),
        ({"commands": ["^/no", "sh"]}, True),
        ({"commands": ["^sh"]}, False),
        ({"always": True, "commands": ["^sh"]}, False),
        ({"hasBindMounts": True, "annotations": {"gpu": "^a"}, "commands": ["sh$"]}, True),
    ],
)
def test_everything_that_is_asked_for_has_to_be_there(when: dict[str, Any], matches: bool) -> None:
    rule = rule_from(document(when))
    assert rule.matches({"example.com/gpu": "a", "x": "y"}, "/bin/sh", True) is matches


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({**document({}), "version": "0.1.0"}, "version: '0.1.0' is not 1.0.0"),
        ({**document({}), "stages": ["late"]}, "stages: 'late' is not one of"),
        ({**document({}), "stages": []}, "stages: it is missing"),
        ({**document({}), "extra": 1}, "extra: there is no such field"),
        (document({"sometimes": True}), "when.sometimes: there is no such field"),
        (document({"commands": ["("]}), r"when.commands: '\(' is not a regular expression"),
        (document({"annotations": {"a": "["}}), "when.annotations: "),
        ({**document({}), "hook": {"path": "hook"}}, "hook.path: 'hook' is not an absolute path"),
        ({"version": "1.0.0", "stages": ["prestart"]}, "hook: it is missing"),
    ],
)
def test_a_file_that_cannot_be_used_names_the_field(value: object, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        rule_from(value)
