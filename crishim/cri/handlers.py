"""From service descriptors and family objects to what a gRPC server registers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from crishim.cri.interceptors import Guard


def service_handler(
    service: ServiceDescriptor, families: Iterable[object], guard: Guard
) -> grpc.GenericRpcHandler[Any, Any]:
    """A handler for the methods of `service` that any of `families` has under the method's name.

    The others answer UNIMPLEMENTED, which tells a kubelet to do without. A method answers with a message, or with the
    bytes of one.
    """
    methods = dict(_methods(service, tuple(families), guard))
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _methods(
    service: ServiceDescriptor, families: tuple[object, ...], guard: Guard
) -> Iterator[tuple[str, grpc.RpcMethodHandler[Any, Any]]]:
    for method in service.methods:
        behaviours = [getattr(family, method.name) for family in families if hasattr(family, method.name)]
        if behaviours:
            (behaviour,) = behaviours
            yield method.name, _method_handler(method, behaviour, guard)


def _method_handler(method: MethodDescriptor, behaviour: Any, guard: Guard) -> grpc.RpcMethodHandler[Any, Any]:
    # gRPC would answer UNKNOWN with Python's text to bytes that are no message: the guard parses them
    parse = message_factory.GetMessageClass(method.input_type).FromString
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(guard.stream(method.name, parse, behaviour), None, _serialise)
    return grpc.unary_unary_rpc_method_handler(guard.unary(method.name, parse, behaviour), None, _serialise)


def _serialise(answer: Message | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()
