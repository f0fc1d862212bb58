"""What surrounds every method: the gate of recovery, the mapping of errors, one observation.

A method is wrapped once, when it is registered. The interceptors of grpc.aio would make a handler for every call, and
an exec probe is worth saving that.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from crishim.cri.status import status_code, status_message, unwrap
from crishim.errors import InvalidSpec, Unavailable

#: the method's name, the name of the code ("OK", "NOT_FOUND"), the duration in s
Observe = Callable[[str, str, float], None]
#: None when the server may answer, else the sentence that says why not
Ready = Callable[[], str | None]
#: request and answer are messages, the context is grpc.aio's; their types differ by method
Unary = Callable[[Any, Any], Awaitable[Any]]
Stream = Callable[[Any, Any], AsyncIterator[Any]]
#: bytes of a request to its message; DecodeError when they are none
Parse = Callable[[bytes], Any]

#: answered during recovery: the kubelet's first call, by which it knows that the server lives
_ALWAYS: Final = frozenset({"Version"})
#: met every day by a kubelet, so no news
_QUIET: Final = frozenset({grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE})
_log = logging.getLogger(__name__)


class Guard:
    """Wraps the methods of a server; `observe` is told of every call, failed and cancelled ones included."""

    def __init__(self, observe: Observe, ready: Ready) -> None:
        self._observe = observe
        self._ready = ready

    def unary(self, method: str, parse: Parse, behaviour: Unary) -> Unary:
        """`behaviour` on the message of a request's bytes, with its errors mapped; a cancelled call stays cancelled."""

        async def guarded(data: bytes, context: Any) -> Any:
            began = time.perf_counter()
            code, message = grpc.StatusCode.CANCELLED, ""
            try:
                self._check_ready(method)
                answer = await behaviour(_parsed(method, parse, data), context)
                code = grpc.StatusCode.OK
                return answer
            except Exception as error:
                code, message = _code_and_message(method, error)
            finally:  # before the client can know of it
                self._observe(method, code.name, time.perf_counter() - began)
            await context.abort(code, message)

        return guarded

    def stream(self, method: str, parse: Parse, behaviour: Stream) -> Stream:
        """The same for a method that answers with a stream; it is observed when the stream ends."""

        async def guarded(data: bytes, context: Any) -> AsyncIterator[Any]:
            began = time.perf_counter()
            code, message = grpc.StatusCode.CANCELLED, ""
            try:
                self._check_ready(method)
                async for answer in behaviour(_parsed(method, parse, data), context):
                    yield answer
                code = grpc.StatusCode.OK
            except Exception as error:
                code, message = _code_and_message(method, error)
            finally:
                self._observe(method, code.name, time.perf_counter() - began)
            if code is not grpc.StatusCode.OK:
                await context.abort(code, message)

        return guarded

    def _check_ready(self, method: str) -> None:
        reason = None if method in _ALWAYS else self._ready()
        if reason is not None:
            raise Unavailable(reason)


def _parsed(method: str, parse: Parse, data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError as error:
        raise InvalidSpec(f"the {len(data)} bytes of the request are no {method}Request: {error}") from None


def _code_and_message(method: str, error: Exception) -> tuple[grpc.StatusCode, str]:
    """What the client is told; the one place where a failed call is logged."""
    cause = unwrap(error)
    code = status_code(cause)
    if code is None:
        number = secrets.token_hex(4)
        _log.error("%s failed unexpectedly, number %s", method, number, exc_info=error)
        return grpc.StatusCode.INTERNAL, f"internal error number {number}; the log of the server has the cause"
    message = status_message(cause)
    if code is grpc.StatusCode.INTERNAL:
        _log.error("%s failed: %s", method, message, exc_info=error)
    else:
        notes = "".join(f"; {note}" for note in getattr(cause, "__notes__", ()))  # clean-ups that failed too
        _log.log(logging.DEBUG if code in _QUIET else logging.INFO, "%s: %s: %s%s", method, code.name, message, notes)
    return code, message
