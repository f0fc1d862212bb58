"""bpf(2) for programs of cgroups: load, attach, detach, query. Callers need CAP_BPF or CAP_SYS_ADMIN.

Descriptors returned are the caller's and close-on-exec. An attached program lives as long as its cgroup.
Source: bpf(2), linux/bpf.h (union bpf_attr).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from crishim.linux.syscall import Long, call, call_restarting, number

PROG_TYPE_CGROUP_DEVICE = 15
ATTACH_CGROUP_DEVICE = 6
F_ALLOW_MULTI = 2
F_REPLACE = 4

_PROG_LOAD = 5
_PROG_ATTACH = 8
_PROG_DETACH = 9
_PROG_GET_FD_BY_ID = 13
_PROG_QUERY = 16
_BPF = number("bpf")
_MOST_PROGRAMS = 64  # the kernel's own limit per cgroup and kind (BPF_CGROUP_MAX_PROGS)


def prog_load(kind: int, program: bytes) -> int:
    """Descriptor of a verified program (array of struct bpf_insn).

    Raises OSError: EINVAL or EACCES when the verifier refuses it, EPERM without the capability.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    license_text = ctypes.create_string_buffer(b"Apache-2.0")
    attr = struct.pack(
        "=IIQQIIQII16sII",
        kind,
        len(program) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(license_text),
        0,
        0,
        0,
        0,
        0,
        b"crishim",
        0,
        0,
    )
    return call_restarting(_BPF, Long(_PROG_LOAD), attr, Long(len(attr)))


def prog_attach(target: int, program: int, kind: int, flags: int = 0, replace: int = 0) -> None:
    """Attach to the cgroup directory `target`; `replace` is the program that F_REPLACE exchanges (Linux 5.6)."""
    attr = struct.pack("=IIIII", target, program, kind, flags, replace)
    call(_BPF, Long(_PROG_ATTACH), attr, Long(len(attr)))


def prog_detach(target: int, program: int, kind: int) -> None:
    """Detach one program; ENOENT when it is not attached."""
    attr = struct.pack("=III", target, program, kind)
    call(_BPF, Long(_PROG_DETACH), attr, Long(len(attr)))


def prog_query(target: int, kind: int) -> list[int]:
    """Ids of the programs attached to this very cgroup, those of its ancestors not included."""
    ids = (ctypes.c_uint32 * _MOST_PROGRAMS)()
    attr = ctypes.create_string_buffer(
        struct.pack("=IIIIQII", target, kind, 0, 0, ctypes.addressof(ids), _MOST_PROGRAMS, 0), 32
    )
    call(_BPF, Long(_PROG_QUERY), attr, Long(32))
    return list(ids[: struct.unpack_from("=I", attr.raw, 24)[0]])


def prog_by_id(identity: int) -> int | None:
    """Descriptor of a loaded program, None when it is gone."""
    attr = struct.pack("=III", identity, 0, 0)
    try:
        return call(_BPF, Long(_PROG_GET_FD_BY_ID), attr, Long(len(attr)))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def replace_programs(target: int, program: int, kind: int) -> None:
    """Make `program` the only one of its kind on the cgroup, with no moment in which there is none.

    One program attached before is exchanged in one call; with several, the new one is attached first.
    """
    old = [fd for fd in map(prog_by_id, prog_query(target, kind)) if fd is not None]
    try:
        if len(old) == 1:
            prog_attach(target, program, kind, F_ALLOW_MULTI | F_REPLACE, old[0])
            return
        prog_attach(target, program, kind, F_ALLOW_MULTI)
        for fd in old:
            prog_detach(target, fd, kind)
    finally:
        for fd in old:
            os.close(fd)
