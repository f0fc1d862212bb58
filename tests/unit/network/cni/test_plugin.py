"""How a plugin is ended; what plugins are told and answer is in `test_network.py`."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from crishim.network.cni import plugin as module
from crishim.network.cni.plugin import run_plugin


class FakeProcess:
    """Never ends when it is waited for, whatever it is sent; `ended` is whether it was reaped before the deadline."""

    pid = 4_000_000_000  # no process has it

    def __init__(self, ended: bool) -> None:
        self.returncode: int | None = None
        self._ended = ended

    async def wait(self) -> int:
        try:
            never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            return await never
        finally:
            if self._ended:
                self.returncode = 0


def _killed_at_the_deadline(process: FakeProcess, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    killed: list[int] = []

    async def start(*_: Any, **__: Any) -> FakeProcess:
        return process

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await run_plugin(Path("/bin/plugin"), {"CNI_COMMAND": "ADD"}, b"{}")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    monkeypatch.setattr(os, "killpg", lambda group, number: killed.append(group))
    monkeypatch.setattr(module, "_REAP_S", 0.01)
    asyncio.run(asyncio.wait_for(scenario(), 30))
    return killed


def test_nobody_waits_for_ever_for_a_plugin_that_the_kernel_does_not_let_die(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert _killed_at_the_deadline(FakeProcess(ended=False), monkeypatch) == [FakeProcess.pid]
    assert "did not die of SIGKILL" in caplog.text


def test_a_plugin_that_was_reaped_is_not_killed_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _killed_at_the_deadline(FakeProcess(ended=True), monkeypatch) == []
