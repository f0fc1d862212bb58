"""`python -m tests.e2e.critest`: the suite by hand, one spec at a time; prints what did not pass, and the sums.

Ends with 1 when a spec failed, or skipped itself for a reason that is not known.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from tests.e2e import tools
from tests.e2e.critest.suite import DEADLINE_S, PROGRAMS, problems, serving
from tests.e2e.node import Node


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.critest", description=__doc__)
    parser.add_argument("--parallel", action="store_true", help="several processes of ginkgo; else one spec at a time")
    parser.add_argument("--focus", default="", metavar="REGEXP", help="only these specs")
    parser.add_argument("--skip", action="append", default=[], metavar="REGEXP", help="not these specs")
    parser.add_argument("--deadline", type=float, default=DEADLINE_S, metavar="S", help="seconds until it is given up")
    parser.add_argument("--keep-logs", type=Path, metavar="DIR", help="where logs and the report are copied at the end")
    parser.add_argument("flags", nargs="*", help="further flags of critest, after --")
    arguments = parser.parse_args()
    tools.build(PROGRAMS)
    with Node() as node, serving(node) as suite:
        started = time.monotonic()
        try:
            specs = suite.run(
                *arguments.flags,
                parallel=arguments.parallel,
                focus=arguments.focus,
                skip=arguments.skip,
                deadline_s=arguments.deadline,
            )
        finally:
            if arguments.keep_logs is not None:
                arguments.keep_logs.mkdir(parents=True, exist_ok=True)
                for path in [*node.directory.glob("*.log"), *node.directory.glob("critest.json")]:
                    shutil.copy(path, arguments.keep_logs)
    wrong = problems(specs)
    for line in wrong:
        print(line)
    sums = Counter(spec.state for spec in specs)
    print(", ".join(f"{count} {state}" for state, count in sums.items()), f"in {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
