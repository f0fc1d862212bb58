"""The users of an image, read once per image by a confined child and kept while the image is in use."""

from __future__ import annotations

import asyncio
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

#: name of the role that reads the files; `app/serve.py` gives it to the zygote
ROLE = "read_users"
_KEPT = 256
#: names, lines and members of all that is kept: an image may have a hundred thousand, at some hundred bytes each
_KEPT_WEIGHT = 50_000
_TIMEOUT_S = 20.0
#: files of more bytes are parsed in a thread
_LARGE_BYTES = 1 << 16


class ImageUsers:
    """User databases by image id; the latest are kept, up to 256 images and 50,000 lines."""

    def __init__(self, executor: Executor, images: ImageStore) -> None:
        self._executor = executor
        self._images = images
        self._known: OrderedDict[str, UserDatabase] = OrderedDict()
        self._weight = 0

    async def of(self, image: Image) -> UserDatabase:
        """The users of the image's root file system. TimedOut or Unavailable when they cannot be read."""
        known = self._known.get(image.id)
        if known is None:
            known = await read_users(self._executor, self._images.layer_paths(image), f"image {image.id}")
            if known.weight > _KEPT_WEIGHT:
                return known
            self._keep(image.id, known)
        self._known.move_to_end(image.id)
        return known

    def _keep(self, image_id: str, users: UserDatabase) -> None:
        before = self._known.pop(image_id, None)  # two containers may have asked at the same time
        self._weight += users.weight - (before.weight if before is not None else 0)
        self._known[image_id] = users
        while len(self._known) > _KEPT or self._weight > _KEPT_WEIGHT:
            self._weight -= self._known.popitem(last=False)[1].weight


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
    errors_of_files = str(reply.get("passwd_error", "")), str(reply.get("group_error", ""))
    if len(passwd) + len(group) > _LARGE_BYTES:
        return await asyncio.to_thread(UserDatabase.parse, passwd, group, *errors_of_files)
    return UserDatabase.parse(passwd, group, *errors_of_files)
