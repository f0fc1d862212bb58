"""SELinux as a file system: whether it is there, and whether a context is one of its policy. Source: selinux(8)."""

from __future__ import annotations

import errno
import os

SELINUXFS = "/sys/fs/selinux"
#: the extended attribute that holds a file's context
ATTRIBUTE = "security.selinux"


def why_refused(context: str, selinuxfs: str = SELINUXFS) -> str:
    """Why no process or file can have a context, "" when one can.

    The kernel checks user, role, type and level against the policy that is loaded, and changes nothing.
    """
    try:
        fd = os.open(f"{selinuxfs}/context", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return "SELinux is not enabled on this node"
    except OSError as error:
        return f"{selinuxfs} cannot be asked: {os.strerror(error.errno or 0).lower()}"
    try:
        os.write(fd, os.fsencode(context))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return "the SELinux policy of this node has no such context"
        return f"{selinuxfs} cannot be asked: {os.strerror(error.errno or 0).lower()}"
    finally:
        os.close(fd)
    return ""
