"""crishim: a Kubernetes node's container runtime with its own executor of process specs.

The server is `crishim serve`; the executor is usable as a library (`docs/library.md`). Importing this package loads
nothing but this file: the zygote is forked before grpc or asyncio exist in the process, so every name is lazy.
"""

from __future__ import annotations

__version__ = "0.1.0"
