"""The users of an image, read once per image by a confined child and kept while the image is in use."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from crishim import errors
from crishim.errors import CrishimError, Unavailable
from crishim.images.users import UserDatabase
from crishim.model.image import Image
from crishim.runtime.executor import Executor

if TYPE_CHECKING:  # `crishim run` reads users of a directory, and need not load the registry client
    from crishim.images.store import ImageStore

#: name of the role that reads the files; `app.py` gives it to the zygote
ROLE = "read_users"
_KEPT = 256
_TIMEOUT_S = 20.0


class ImageUsers:
    """User databases by image id; at most 256 are kept."""

    def __init__(self, executor: Executor, images: ImageStore) -> None:
        self._executor = executor
        self._images = images
        self._known: OrderedDict[str, UserDatabase] = OrderedDict()

    async def of(self, image: Image) -> UserDatabase:
        """The users of the image's root file system. TimedOut or Unavailable when they cannot be read."""
        known = self._known.get(image.id)
        if known is None:
            known = self._known[image.id] = await read_users(
                self._executor, self._images.layer_paths(image), f"image {image.id}"
            )
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(image.id)
        return known


async def read_users(executor: Executor, layers: Sequence[str], whose: str) -> UserDatabase:
    """The users of a root file system of these layers, topmost first. `whose` names it in TimedOut or Unavailable."""
    request = {"lowers": [os.fsencode(path) for path in layers]}
    reply = await executor.run_role(ROLE, request, timeout_s=_TIMEOUT_S)
    if "error" in reply:
        kind = getattr(errors, str(reply.get("kind")), Unavailable)
        error = kind if isinstance(kind, type) and issubclass(kind, CrishimError) else Unavailable
        raise error(f"the users of {whose} cannot be read: {reply['error']}")
    passwd, group = reply["passwd"], reply["group"]
    if not isinstance(passwd, bytes) or not isinstance(group, bytes):
        raise Unavailable(f"the users of {whose} cannot be read: the answer is no text")
    return UserDatabase.parse(passwd, group, str(reply.get("passwd_error", "")), str(reply.get("group_error", "")))
