"""`python -m tests.bench [PART...]` prints the tables of the parts named, of all parts without a name.

The parts: `processes` (run and exec beside runc and crun), `memory` (a monitor), `logs` (throughput), `cri` (a pod's
life beside containerd), `lists` (lists and statuses with 500 containers beside containerd). Everything runs in one
process after the other on the same machine, so the ratios hold.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench import cri, lists, ours
from tests.bench.measure import Sample, table
from tests.support.image_archive import write_rootfs

MOUNTS = (50, 1000)
MONITORS = 100
LINES_BYTES = (64, 256, 16384)
LOG_BYTES = 128 << 20


def processes(count: int) -> None:
    for seccomp in (False, True):
        for mounts in MOUNTS:
            figures = _figures_with(mounts, count, seccomp)
            title = f"Processes, {mounts} mounts on the host, {'RuntimeDefault' if seccomp else 'no'} seccomp"
            rows = [
                (figure, runtime, *_columns(sample))
                for figure in ("run", "run in a new sandbox", "exec")
                for runtime, samples in figures.items()
                if (sample := samples.get(figure)) is not None
            ]
            print(table(title, ("`true`", "runtime", "p50 ms", "p99 ms", "CPU ms"), rows), flush=True)


def _figures_with(mounts: int, count: int, seccomp: bool) -> dict[str, dict[str, Sample]]:
    command = ["unshare", "-m", sys.executable, "-m", "tests.bench.processes", f"--mounts={mounts}", f"--count={count}"]
    answer = subprocess.run([*command, *["--seccomp"] * seccomp], check=True, stdout=subprocess.PIPE).stdout
    return {
        runtime: {figure: Sample(**values) for figure, values in samples.items()}
        for runtime, samples in json.loads(answer).items()
    }


def memory(count: int) -> None:
    del count  # the number of monitors is the figure's own
    with _executor() as executor:
        pss = executor.monitors_pss_mb(MONITORS)
    title = f"Memory of one monitor with {MONITORS} of them, after a start, an exec and a rotation"
    print(table(title, ("runtime", "PSS MB"), [("crishim", pss)]), flush=True)


def logs(count: int) -> None:
    del count
    with _executor() as executor:
        rows = [(size, executor.log_mb_per_s(size, LOG_BYTES)) for size in LINES_BYTES]
    title = "Log throughput from a container's stdout to its file"
    print(table(title, ("bytes a line", "MB/s of payload"), rows), flush=True)


def _executor() -> ours.Executor:
    directory = Path(tempfile.mkdtemp(prefix="crishim-bench-", dir="/tmp"))
    return ours.Executor(directory, write_rootfs(directory / "rootfs"), seccomp=True)


def through_cri(count: int) -> None:
    reports = {name: cri.measure(name, count=count) for name in ("containerd", "crishim")}
    columns = [f"{name} {what}" for name in reports for what in ("p50 ms", "p99 ms", "CPU ms")]
    rows = [
        (operation, *(cell for report in reports.values() for cell in _columns(report.samples[operation])))
        for operation in reports["crishim"].samples
    ]
    print(table("A pod's life through CRI", ("operation", *columns), rows), flush=True)
    rows = [(f"PSS MB of the runtime, {pods} pods", *_pss(reports, pods)) for pods in (0, *cri.PODS)]
    most = cri.PODS[-1]
    per_pod = [(report.pss_mb[most] - report.pss_mb[0]) / most for report in reports.values()]
    rows += [(f"PSS MB a pod, of {most}", *per_pod)]
    rows += [(f"idle cores, {most} pods", *(report.idle_cores for report in reports.values()))]
    print(table("What pods cost", ("figure", *reports), rows), flush=True)


def of_a_full_node(count: int) -> None:
    runtimes = ("containerd", "crishim")
    columns = [f"{name} {what}" for name in runtimes for what in ("p50 ms", "p99 ms", "CPU ms")]
    rows = [
        (call, *(cell for name in runtimes for cell in _columns(samples[name])))
        for call, samples in lists.measure(runtimes, count=count).items()
    ]
    title = f"{lists.PODS} pods with {lists.CONTAINERS} containers each, one pod frozen"
    print(table(title, ("call", *columns), rows), flush=True)


def _pss(reports: dict[str, cri.Report], pods: int) -> list[float]:
    return [report.pss_mb[pods] for report in reports.values()]


def _columns(sample: Sample) -> tuple[float, float, float | None]:
    return sample.p50_ms, sample.p99_ms, sample.cpu_ms


PARTS: dict[str, Callable[[int], None]] = {
    "processes": processes,
    "memory": memory,
    "logs": logs,
    "cri": through_cri,
    "lists": of_a_full_node,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--count", type=int, default=100, help="operations of each kind (default 100)")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("containers need root")
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    print(
        f"Linux {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}, {options.count} each"
    )
    for part in options.parts or PARTS:
        PARTS[part](options.count)


if __name__ == "__main__":
    main()
