"""The small service of our own on the same socket (`control.proto`): archives, stories, leftovers, monitors."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crishim.cri.convert import checks
from crishim.cri.pb import control_pb2
from crishim.cri.use_cases import Garbage, Images, Monitors, Stories


class ControlMethods:
    """Methods of Control."""

    def __init__(self, images: Images, stories: Stories, garbage: Garbage, monitors: Monitors) -> None:
        self._images = images
        self._stories = stories
        self._garbage = garbage
        self._monitors = monitors

    async def Load(self, request: control_pb2.LoadRequest, _: Any) -> control_pb2.LoadResponse:
        loaded = await self._images.load(Path(checks.absolute("path", request.path)))
        images = [control_pb2.LoadedImage(id=one.id, repo_tags=one.repo_tags) for one in loaded]
        return control_pb2.LoadResponse(images=images)

    async def Why(self, request: control_pb2.WhyRequest, _: Any) -> control_pb2.WhyResponse:
        story = await self._stories.why(checks.word("id", request.id))
        return control_pb2.WhyResponse(story=json.dumps(asdict(story)))

    async def CollectGarbage(
        self, request: control_pb2.CollectGarbageRequest, _: Any
    ) -> control_pb2.CollectGarbageResponse:
        report = await self._garbage.check(dry_run=request.dry_run)
        return control_pb2.CollectGarbageResponse(report=json.dumps(asdict(report)))

    async def Monitors(self, _: control_pb2.MonitorsRequest, __: Any) -> control_pb2.MonitorsResponse:
        monitors = [
            control_pb2.Monitor(
                pod_sandbox_id=each.sandbox_id,
                pid=each.pid,
                version=each.version,
                wire_version=each.wire_version,
                began_at=each.began_at_ns,
                memory_bytes=each.memory_bytes,
            )
            for each in await self._monitors.list()
        ]
        return control_pb2.MonitorsResponse(monitors=monitors)
