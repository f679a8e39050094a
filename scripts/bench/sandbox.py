"""Programs per second of the sandbox at each level of isolation, and what they leave behind.

scripts/run python scripts/bench/sandbox.py [--count 500] [--workers 2] [--levels namespaces ...]
Prints JSON; run it on an idle machine.
"""

import argparse
import json
import os
import platform
import time
from collections import Counter
from pathlib import Path
from typing import Any

from drift.sandbox import Asserts, Request, Sandbox, Stdio
from drift.sandbox.isolation import LEVELS

PROGRAMS: dict[str, Request] = {
    "asserts": Asserts(
        source="def f(a): return a + 1",
        tests=("assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 4"),
        names=("f",),
        entry_point="f",
    ),
    "stdio": Stdio(source="print(int(input()) + 1)", stdin="1\n", expected="2\n"),
}


def processes() -> set[int]:
    return {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def files() -> set[str]:
    return {str(path) for place in ("/tmp", "/dev/shm") for path in Path(place).iterdir()}


def measure(level: str, workers: int, count: int) -> dict[str, Any]:
    """Figures of one level; `left` is what was there afterwards and not before."""
    processes_before, files_before = processes(), files()
    with Sandbox(workers=workers, level=level, allow_unsafe=level == "none") as sandbox:
        figures: dict[str, Any] = {"isolation": sandbox.isolation}
        pids = [z.process.pid for z in sandbox._zygotes if z.process is not None]
        sandbox.run_all([*PROGRAMS.values()] * workers)
        open_before = [descriptors(pid) for pid in (os.getpid(), *pids)]
        for name, request in PROGRAMS.items():
            started = time.perf_counter()
            verdicts = Counter(v.verdict for v in sandbox.run_all([request] * count))
            seconds = time.perf_counter() - started
            figures[f"{name}_per_s"] = round(count / seconds, 1)
            figures[f"{name}_verdicts"] = dict(verdicts)
        time.sleep(0.2)  # the last checkers are reaped
        open_after = [descriptors(pid) for pid in (os.getpid(), *pids)]
    left = [pid for pid in processes() - processes_before if is_ours(pid)]
    figures["left"] = {
        "processes": len(left),
        "files": sorted(files() - files_before),
        "descriptors": [
            after - before for before, after in zip(open_before, open_after, strict=True)
        ],
    }
    return figures


def is_ours(pid: int) -> bool:
    """Whether a zygote of this process started it: its children keep the command line."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
        return "drift.sandbox.zygote" in command and f'"parent": {os.getpid()}' in command
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--levels", nargs="*", default=list(LEVELS), choices=list(LEVELS))
    arguments = parser.parse_args()
    report = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "root": os.getuid() == 0,
        "workers": arguments.workers,
        "count": arguments.count,
        "levels": {
            level: measure(level, arguments.workers, arguments.count) for level in arguments.levels
        },
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
