"""crishim: a Kubernetes node's container runtime with its own executor of process specs.

The server is `crishim serve`. The executor is a library too (`docs/library.md`):
`from crishim import Container, Process, ProcessSpec, isolated`. Names are loaded on first use: importing the package
loads nothing but this file, because the server starts its zygote before anything large exists in the process.
"""

from __future__ import annotations

__version__ = "0.1.0"

_LIBRARY = {
    "Container": "crishim.process",
    "ContainerEvent": "crishim.process",
    "ContainerStatus": "crishim.process",
    "EventKind": "crishim.process",
    "ExitStatus": "crishim.process",
    "Process": "crishim.process",
    "ProcessIO": "crishim.process",
    "State": "crishim.process",
    "isolated": "crishim.process",
    "ContainerSpec": "crishim.model.process",
    "Hook": "crishim.model.hook",
    "Hooks": "crishim.model.hook",
    "IdMapping": "crishim.model.id_mapping",
    "ProcessSpec": "crishim.model.process",
    "RootFs": "crishim.model.process",
    "User": "crishim.model.process",
}


def __getattr__(name: str) -> object:
    if name not in _LIBRARY:
        raise AttributeError(f"module 'crishim' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LIBRARY[name]), name)


def __dir__() -> list[str]:
    return [*_LIBRARY, "__version__"]
