"""`python -m tests.node [--command SHELL | PYTEST ARGUMENTS]`: boots the node with this tree, runs, powers it off.

Without arguments it runs what a cgroup v1 or hybrid machine cannot show. The console of the node is our output; the
status is that of the command inside. Emulated, so about ten times slower than the machine; no KVM is asked for, since
a machine that is itself virtual often has a KVM that hangs.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from tests.node import boot, image, policy

#: what depends on the kind of cgroup tree, on init or on the kernel's security modules
TESTS = (
    "tests/integration/test_cgroups.py",
    "tests/integration/executor",
    "tests/integration/test_seccomp.py",
    "tests/integration/test_server_pods.py",
    "tests/node/on_node",
)


def main() -> int:
    """Status of the command on the node; 1 when the node ended without telling it."""
    parser = argparse.ArgumentParser(prog="python -m tests.node", description=__doc__)
    parser.add_argument("--command", metavar="SHELL", help="run this instead of pytest")
    parser.add_argument("--timeout", type=int, default=3600, metavar="S", help="seconds until the node is killed")
    parser.add_argument("--driver", choices=("cgroupfs", "systemd"), default="cgroupfs", help="of servers of tests")
    parser.add_argument("--tool", metavar="NAME", action="append", default=[], help="take a built program of tests.e2e")
    parser.add_argument("--selinux", action="store_true", help="boot it with SELinux instead of AppArmor")
    arguments, tests = parser.parse_known_args()
    node = image.build(boot.LOCK)
    command = arguments.command or f"{boot.PYTEST} {shlex.join(tests or TESTS)}"
    command = f"export CRISHIM_TEST_DRIVER={arguments.driver}; {command}"
    kernel = policy.BOOT if arguments.selinux else ()
    return boot.run(node, command, arguments.timeout, with_tools=arguments.tool, kernel=kernel)


if __name__ == "__main__":
    sys.exit(main())
