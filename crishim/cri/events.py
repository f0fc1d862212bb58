"""RuntimeService, the stream of events (api.proto GetContainerEvents)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from crishim.cri.convert import events
from crishim.cri.pb import api_pb2 as pb
from crishim.cri.use_cases import Events


class EventMethods:
    """The method of RuntimeService that goes on for as long as its client listens."""

    def __init__(self, source: Events) -> None:
        self._source = source

    async def GetContainerEvents(
        self, _request: pb.GetEventsRequest, context: Any
    ) -> AsyncIterator[pb.ContainerEventResponse]:
        subscription = self._source.subscribe()
        try:
            await context.send_initial_metadata(())  # tells the client that nothing is missed from here on
            async for event in subscription:
                yield events.to_proto(event)
        finally:
            self._source.unsubscribe(subscription)
