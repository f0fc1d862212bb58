"""Errors to gRPC codes, once for every method; what the kubelet makes of each is why the table looks as it does."""

from __future__ import annotations

from typing import Final

import grpc

from crishim import errors
from crishim.cri.convert.texts import to_wire

_CODES: Final[dict[type[BaseException], grpc.StatusCode]] = {
    errors.NotFound: grpc.StatusCode.NOT_FOUND,  # statuses: gone since the list, which the kubelet skips
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.InvalidSpec: grpc.StatusCode.INVALID_ARGUMENT,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TimedOut: grpc.StatusCode.DEADLINE_EXCEEDED,  # ExecSync: the probe failed by its timeout
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,  # the kubelet keeps what it knows and asks again
    errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.RegistryUnavailable: grpc.StatusCode.UNKNOWN,  # PullImage: the client strips the wrapper of UNKNOWN alone
    errors.StartFailed: grpc.StatusCode.UNKNOWN,  # a fault of the program or its image, shown as the reason
    errors.Internal: grpc.StatusCode.INTERNAL,
}
#: a status travels in HTTP/2 trailers, of which clients take 8 KiB and refuse the answer beyond
_MAX_MESSAGE_BYTES: Final = 4096


def unwrap(error: BaseException) -> BaseException:
    """The only member of a group of errors, however deep; a group of several stays itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def status_code(error: BaseException) -> grpc.StatusCode | None:
    """Code of the nearest mapped ancestor; None is a bug of ours, whose text must not leave the server."""
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), None)


def status_message(error: BaseException) -> str:
    """Text for the client, cut to what trailers carry."""
    encoded = to_wire(str(error)).encode()
    room = _MAX_MESSAGE_BYTES
    for index, byte in enumerate(encoded):
        room -= 1 if 0x20 <= byte <= 0x7E and byte != ord("%") else 3  # percent-encoded on the wire
        if room < 0:
            return encoded[:index].decode(errors="ignore") + " ..."
    return encoded.decode()
