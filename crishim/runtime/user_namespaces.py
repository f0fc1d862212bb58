"""Whether pods can have user namespaces on this node: tried once, when the server starts."""

from __future__ import annotations

import logging
import os

from crishim.errors import CrishimError
from crishim.runtime.executor import Executor

logger = logging.getLogger(__name__)

#: name of the role that tries; `app/serve.py` gives it to the zygote
TRY_ROLE = "user_namespaces"
_TRY_S = 10.0


async def why_no_user_namespaces(executor: Executor, root_dir: str, state_dir: str) -> str:
    """A sentence about what is missing; empty when they work."""
    request = {"root": os.fsencode(root_dir), "state": os.fsencode(state_dir)}
    try:
        why_not = str((await executor.run_role(TRY_ROLE, request, timeout_s=_TRY_S))["why_not"])
    except CrishimError as error:
        why_not = str(error)
    if why_not:
        logger.info("pods cannot have user namespaces on this node: %s", why_not)
    return why_not
