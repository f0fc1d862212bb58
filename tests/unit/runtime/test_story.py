"""What `why` tells, from records; and how the command shows it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from crishim.cli.why import lines
from crishim.errors import InvalidSpec, NotFound
from crishim.model.container import ContainerConfig, ContainerState
from crishim.model.exit import ExitRecord
from crishim.model.sandbox import NamespaceMode, NamespaceOptions
from crishim.runtime.helper import Helper
from crishim.runtime.operations import Operation, Operations
from crishim.runtime.places import Places, StopNote
from crishim.runtime.story import Moment, Stories, Story, tell
from crishim.store.store import Store
from tests.unit.store.values import CONTAINER, SANDBOX

S = 1_000_000_000
OWN_PID = NamespaceOptions(pid=NamespaceMode.CONTAINER)
POD = replace(SANDBOX, config=replace(SANDBOX.config, security=replace(SANDBOX.config.security, namespaces=OWN_PID)))
KILLED = replace(
    CONTAINER,
    config=ContainerConfig("app", image="web"),
    sandbox_id=POD.id,
    state=ContainerState.EXITED,
    created_at_ns=1 * S,
    started_at_ns=2 * S,
    finished_at_ns=5 * S,
    exit_code=137,
    reason="Error",
    message="",
    pid=0,
)
RECORD = ExitRecord(KILLED.id, 7, 2 * S, 5 * S, 137, signal=9)
NOTE = StopNote(9, "stop", 3 * S)


def test_a_stop_is_told_with_its_signal_its_sender_and_its_time() -> None:
    told = tell(KILLED, POD, RECORD, NOTE, ())
    assert (told.signal, told.sender, told.exit_code, told.signal_to_exit_s) == ("SIGKILL", "stop", 137, 2.0)
    assert [moment.at_ns for moment in told.moments] == [1 * S, 2 * S, 3 * S, 5 * S]
    assert told.moments[2].what == "we sent SIGKILL (stop)"


def test_a_kill_that_was_not_ours_is_not_said_to_be() -> None:
    assert tell(KILLED, POD, RECORD, None, ()).sender == "unknown"
    assert tell(KILLED, POD, RECORD, replace(NOTE, at_ns=6 * S), ()).sender == "unknown"


def test_an_oom_kill_is_counted() -> None:
    told = tell(replace(KILLED, reason="OOMKilled"), POD, replace(RECORD, oom_kills=2), None, ())
    assert (told.sender, told.oom_kills) == ("oom", 2)
    assert "for want of memory" in told.moments[-1].what


def test_without_a_record_the_status_is_told_and_nothing_is_made_up() -> None:
    told = tell(KILLED, POD, None, None, ())
    assert (told.sender, told.signal, told.oom_kills, told.exit_code) == ("", "", None, 137)
    assert told.moments[-1] == Moment(5 * S, "ended: Error, exit code 137")


def test_a_container_that_runs_has_no_end() -> None:
    running = replace(KILLED, state=ContainerState.RUNNING, finished_at_ns=0, exit_code=0, reason="")
    told = tell(running, POD, None, None, [Moment(0, "StopContainer is under way")])
    assert told.exit_code is None
    assert [moment.what for moment in told.moments][1:] == ["started", "StopContainer is under way"]


def test_a_failed_start_says_why() -> None:
    failed = replace(KILLED, started_at_ns=0, reason="StartError", exit_code=128, message="no such file")
    record = ExitRecord(KILLED.id, 0, 0, 5 * S, 128, start_error="no such file")
    told = tell(failed, POD, record, None, ())
    assert told.sender == "runtime"
    assert [moment.what.split()[0] for moment in told.moments] == ["created", "ended:"]


def test_the_command_shows_moments_and_the_verdict() -> None:
    container = tell(replace(KILLED, message="it was told"), POD, replace(RECORD, oom_kills=1), NOTE, ())
    story = Story(POD.id, "web", "shop", "READY", "", (Moment(1 * S, "the pod was created"),), (container,))
    text = lines(asdict(story))
    assert text[0] == f"pod shop/web {POD.id[:12]}: READY"
    assert text[1] == "  1970-01-01 00:00:01.000Z the pod was created"
    assert "  why: Error, exit code 137, killed by SIGKILL, sender: stop" in text
    assert "       it was told" in text
    assert "       the kernel killed 1 of its processes for want of memory" in text


def test_a_story_is_found_by_id_by_prefix_and_by_name(tmp_path: Path) -> None:
    async def scene() -> None:
        store, places, operations, helper = Store(tmp_path, "boot"), Places(tmp_path), Operations(), Helper()
        places.make_sandbox(POD.id)
        store.put_sandbox(POD)
        store.put_container(KILLED)
        stories = Stories(store, places, operations, helper)
        for name in (KILLED.id, KILLED.id[:9], "app"):
            assert [each.id for each in (await stories.why(name)).containers] == [KILLED.id]
        for name in (POD.id, POD.config.name, f"{POD.config.namespace}/{POD.config.name}"):
            assert (await stories.why(name)).sandbox_id == POD.id
        with pytest.raises(NotFound, match="nobody"):
            await stories.why("nobody")
        other = replace(POD, id="77" * 32, config=replace(POD.config, namespace="other"))
        store.put_sandbox(other)
        with pytest.raises(InvalidSpec, match="several namespaces"):
            await stories.why(POD.config.name)
        helper.close()

    asyncio.run(scene())


def test_what_is_under_way_is_told_as_now(tmp_path: Path) -> None:
    async def scene() -> None:
        store, places, operations, helper = Store(tmp_path, "boot"), Places(tmp_path), Operations(), Helper()
        places.make_sandbox(POD.id)
        store.put_sandbox(POD)
        store.put_container(KILLED)
        go = asyncio.Event()

        async def work(operation: Operation) -> None:
            operation.enter("remove_container.rootfs")
            await go.wait()

        call = asyncio.ensure_future(operations.run(("RemoveContainer", KILLED.id), work, stage="begun"))
        await asyncio.sleep(0)
        while not operations.under_way() or operations.under_way()[0][1] == "begun":
            await asyncio.sleep(0)
        (told,) = (await Stories(store, places, operations, helper).why(KILLED.id)).containers
        go.set()
        await call
        helper.close()
        assert told.moments[-1].at_ns == 0
        assert told.moments[-1].what.startswith("RemoveContainer is under way for ")
        assert told.moments[-1].what.endswith("and waits for the disk of the container's root")

    asyncio.run(scene())
