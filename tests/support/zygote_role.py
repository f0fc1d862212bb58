"""Roles for tests: what the zygote holds, seen from one of its children."""

from __future__ import annotations

import os
import sys


def loaded_modules(request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
    """The names of all modules."""
    return {"modules": sorted(sys.modules)}


def add(request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
    """The sum of "numbers", written to the descriptor as well."""
    numbers = request["numbers"]
    assert isinstance(numbers, list)
    os.write(descriptors[0], b"%d" % sum(numbers))
    return {"sum": sum(numbers)}


def refuse(request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
    """An error with a sentence."""
    raise OSError(28, "the disk is full")


def hang(request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
    """Never an answer; end of file on the descriptor tells that this process is gone."""
    while True:
        os.read(descriptors[1], 1)


def die(request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
    """No answer, since there is no process any more."""
    os._exit(3)
