"""The gRPC server on its unix socket."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.internal import api_implementation

from crishim.errors import Unsupported

#: what a kubelet takes in one message; gRPC's own default is a quarter of it
MAX_MESSAGE_BYTES: Final = 16 << 20
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)


class Server:
    """Serves `handlers` on a unix socket that only its owner may open.

    The socket is bound in a private directory beside `path`, gets its mode there and is renamed: it never has the
    mode of the umask, and a client that connects in the meantime reaches the former server or nothing.
    """

    def __init__(self, path: Path, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """Unsupported when protobuf would run in pure Python, a hundred times slower: libstdc++ is missing then."""
        if api_implementation.Type() != "upb":
            raise Unsupported(f"protobuf runs as {api_implementation.Type()}: its compiled form needs libstdc++.so.6")
        self._path = path
        #: what we bound, so that stop() leaves the socket of a successor alone
        self._inode: tuple[int, int] | None = None
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers(tuple(handlers))

    async def start(self) -> None:
        """Answers from now on; a missing directory is made with mode 0700. OSError when the path is refused."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._path.parent, prefix=".") as private:
            bound = Path(private) / "s"
            try:
                self._server.add_insecure_port(f"unix:{bound}")
            except RuntimeError as error:  # grpc gives no errno: the usual cause is sun_path's 107 bytes
                raise OSError(f"cannot listen on {self._path}: the path may be too long") from error
            os.chmod(bound, 0o600)
            os.rename(bound, self._path)
        status = os.stat(self._path)
        self._inode = (status.st_dev, status.st_ino)
        await self._server.start()

    async def stop(self, grace_s: float | None) -> None:
        """Refuses new calls, gives running ones `grace_s` and removes the socket; None cancels them at once."""
        await self._server.stop(grace_s)
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return
        if (status.st_dev, status.st_ino) == self._inode:
            os.unlink(self._path)
