"""The one exception hierarchy. A class is named by what the caller can do about it.

`cri/status.py` maps each class to a gRPC code once. Messages are lower case and name the field, id or path at fault
together with the value; they are shown to clients, so they never hold Python text.
"""

from __future__ import annotations


class CrishimError(Exception):
    """Base of every error that crishim raises on purpose."""


class NotFound(CrishimError):
    """The named sandbox, container, image or file does not exist."""


class AlreadyExists(CrishimError):
    """The identity is taken by an object that differs from the one asked for."""


class InvalidSpec(CrishimError):
    """A field of the request cannot be honoured; the message names the field and the value."""


class WrongState(CrishimError):
    """The object exists, but its state does not allow the operation."""


class TimedOut(CrishimError):
    """The deadline of the operation passed."""


class Unavailable(CrishimError):
    """Not now: the server is starting, or a part it needs (zygote, monitor) is away. A retry may succeed."""


class Exhausted(CrishimError):
    """A bounded resource is used up: addresses, tokens, disk."""


class Unsupported(CrishimError):
    """This node or this version cannot do it, and will not after a retry."""


class RegistryUnavailable(CrishimError):
    """The registry did not answer, or answered that it cannot. The kubelet shows the message of PullImage."""


class StartFailed(CrishimError):
    """A process could not be started; the sentence says which step failed and why."""


class Internal(CrishimError):
    """An invariant of ours does not hold: a bug."""


class RegistryDenied(RegistryUnavailable):
    """The registry answered, and does not let these credentials (or nobody) pull the image."""
