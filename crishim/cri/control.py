"""The small service of our own on the same socket (`control.proto`): archives, stories, leftovers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crishim.cri.convert import checks
from crishim.cri.pb import control_pb2
from crishim.cri.use_cases import Garbage, Images, Stories


class ControlMethods:
    """Methods of Control."""

    def __init__(self, images: Images, stories: Stories, garbage: Garbage) -> None:
        self._images = images
        self._stories = stories
        self._garbage = garbage

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
