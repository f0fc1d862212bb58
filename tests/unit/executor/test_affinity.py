"""CPU lists of an exec's affinity, refused by the field and the value."""

from __future__ import annotations

import pytest

from crishim.errors import InvalidSpec
from crishim.executor.value import process_value
from crishim.model.process import CpuAffinity, ProcessSpec


def _affinity(text: str) -> object:
    return process_value(ProcessSpec(args=("true",), cpu_affinity=CpuAffinity(final=text)))["affinity"]


def test_a_list_of_cpus_may_have_ranges() -> None:
    assert _affinity("0-2,5") == [0, 1, 2, 5]


@pytest.mark.parametrize("text", ["a", "1-", "-1", "5-2", "0-99999999999", "1,,2", " "])
def test_what_is_no_list_of_cpus_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match="cpu_affinity"):
        _affinity(text)
