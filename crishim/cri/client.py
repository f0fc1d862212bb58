"""A client of a CRI socket for the command line: blocking, with errors of our own."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final

import grpc

from crishim import errors
from crishim.cri.pb import api_pb2 as pb
from crishim.cri.pb import api_pb2_grpc, control_pb2, control_pb2_grpc
from crishim.cri.server import MAX_MESSAGE_BYTES

_ERRORS: Final[dict[grpc.StatusCode, type[errors.CrishimError]]] = {
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidSpec,
    grpc.StatusCode.FAILED_PRECONDITION: errors.WrongState,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.TimedOut,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Exhausted,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
    grpc.StatusCode.INTERNAL: errors.Internal,
}

#: the messages of both services, so that callers need no protobuf
messages = pb


class Client:
    """Calls by method name: `client.runtime("Version", messages.VersionRequest())`."""

    def __init__(self, address: str) -> None:
        """address: "unix://PATH". InvalidSpec for another form; nothing is connected yet."""
        if not address.startswith("unix:///"):
            raise errors.InvalidSpec(f"address {address!r} is not of the form unix:///PATH")
        self._address = address
        options = (
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        )
        self._channel = grpc.insecure_channel(address, options=options)
        self._runtime = api_pb2_grpc.RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._images = api_pb2_grpc.ImageServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._control = control_pb2_grpc.ControlStub(self._channel)  # type: ignore[no-untyped-call]

    def runtime(self, method: str, request: object, timeout_s: float | None = 120.0) -> Any:
        """A call of RuntimeService; the error class says what the code was."""
        return self._call(getattr(self._runtime, method), request, timeout_s)

    def images(self, method: str, request: object, timeout_s: float | None = 600.0) -> Any:
        """A call of ImageService."""
        return self._call(getattr(self._images, method), request, timeout_s)

    def load(self, path: str, timeout_s: float | None = 600.0) -> Any:
        """Put the images of an archive on the server's machine into its store."""
        return self._call(self._control.Load, control_pb2.LoadRequest(path=path), timeout_s)

    def why(self, id: str, timeout_s: float | None = 30.0) -> str:
        """JSON text of what happened to a pod or container."""
        return str(self._call(self._control.Why, control_pb2.WhyRequest(id=id), timeout_s).story)

    def collect_garbage(self, *, dry_run: bool, timeout_s: float | None = 600.0) -> str:
        """JSON text of what belonged to nobody, and what became of it."""
        request = control_pb2.CollectGarbageRequest(dry_run=dry_run)
        return str(self._call(self._control.CollectGarbage, request, timeout_s).report)

    def monitors(self, timeout_s: float | None = 30.0) -> Any:
        """Monitors of pods, as the processes that they are; Unsupported when the server is too old to tell."""
        return self._call(self._control.Monitors, control_pb2.MonitorsRequest(), timeout_s).monitors

    def stream(self, method: str, request: object, timeout_s: float | None = 120.0) -> Iterator[Any]:
        """Messages of a streaming call of RuntimeService, which the server has taken at return."""
        call = getattr(self._runtime, method)(request, timeout=timeout_s)
        try:
            call.initial_metadata()
        except grpc.RpcError as error:
            raise self._translated(error) from None
        return self._messages(call)

    def _messages(self, call: Any) -> Iterator[Any]:
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._translated(error) from None
        finally:
            call.cancel()

    def _call(self, call: Any, request: object, timeout_s: float | None) -> Any:
        try:
            return call(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._translated(error) from None

    def _translated(self, error: Any) -> errors.CrishimError:
        code, text = error.code(), str(error.details())
        if code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in text.lower():
            return errors.Unavailable(f"no server answers on {self._address}")
        return _ERRORS.get(code, errors.CrishimError)(text)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
