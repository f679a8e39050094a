"""Processes that grade: killed and replaced when one hangs or dies, replies in order."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from drift.common import terminal
from drift.common.errors import GradingError
from drift.graders.serve import READY

START_LIMIT_S = 120.0  # imports on a busy machine with a cold disk
WALL_FACTOR = 10.0  # of the processor time: a busy machine is no hang
TRIES = 2  # a worker may die of something that is not the request's fault
# executed, never forked: a fork of the trainer would carry its threads' locks
BOOT = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
importlib.import_module(sys.argv.pop(1)).main()
"""
ROOT = str(Path(__file__).resolve().parents[2])


class Worker:
    """One process and the request it works on."""

    def __init__(self, module: str, cpu_limit_s: float):
        path = json.dumps([ROOT, *filter(None, sys.path)])
        kept = ("PATH", "LD_LIBRARY_PATH", "LANG")
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", BOOT, path, module, str(cpu_limit_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env={"OMP_NUM_THREADS": "1"} | {k: os.environ[k] for k in kept if k in os.environ},
        )
        for pipe in (self.stdin, self.stdout):
            os.set_blocking(pipe.fileno(), False)
        self.ready = False
        self.request: int | None = None  # its index
        self.hung = False  # over one of the limits
        self.outgoing = self.incoming = b""
        self.deadline = time.monotonic() + START_LIMIT_S

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    @property
    def idle(self) -> bool:
        return self.ready and self.request is None

    def assign(self, index: int, line: bytes, limit_s: float) -> None:
        self.request, self.outgoing = index, line
        self.deadline = time.monotonic() + limit_s

    def write(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # read() sees the end
            self.outgoing = self.outgoing[os.write(self.stdin.fileno(), self.outgoing) :]

    def read(self) -> bytes | None:
        """A whole line if there is one; EOFError when the process is gone."""
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self.stdout.fileno(), 1 << 16)
            if not chunk:
                raise EOFError
            self.incoming += chunk
        line, newline, rest = self.incoming.partition(b"\n")
        if not newline:
            return None
        self.incoming = rest
        return line

    def end(self) -> str:
        """Kill the process and all it started; what it said on stderr before it was ready."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        said = b"" if self.ready else self.process.communicate()[1]
        self.hung |= self.process.wait() == -signal.SIGPROF
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return said.decode(errors="replace").strip()


class WorkerPool:
    """Up to `num_workers` processes that run `module.main`; started when first needed."""

    def __init__(self, module: str, *, num_workers: int, cpu_limit_s: float):
        self.module = module
        self.num_workers = num_workers
        self.cpu_limit_s = cpu_limit_s
        self.workers: list[Worker] = []
        self._killed_starting = 0  # workers in a row, by a signal
        self._lock = threading.Lock()
        weakref.finalize(self, end_all, self.workers, os.getpid())

    def close(self) -> None:
        """End the workers; the next request starts new ones."""
        with self._lock:
            end_all(self.workers, os.getpid())

    def map(self, requests: Sequence[Any]) -> list[Any]:
        """A reply for each request, in order; None where a worker hung, or died on it twice.

        Raises:
            GradingError: a worker cannot start, or something kills each as it starts.
        """
        replies: list[Any] = [None] * len(requests)
        lines = [json.dumps(request).encode() + b"\n" for request in requests]
        waiting, tries = deque(range(len(requests))), [0] * len(requests)
        with self._lock, terminal.bar("grading answers", len(requests)) as bar:
            try:
                while waiting or any(worker.request is not None for worker in self.workers):
                    for index in self._assign(waiting, lines):
                        tries[index] += 1
                    replied, lost = self._exchange()
                    for index, reply in replied:
                        replies[index] = reply
                    bar.advance(len(replied))
                    waiting.extendleft(index for index in lost if tries[index] < TRIES)
            except BaseException:  # a worker in the middle of a request cannot be used again
                end_all(self.workers, os.getpid())
                raise
        return replies

    def _assign(self, waiting: deque[int], lines: list[bytes]) -> list[int]:
        """Give the next requests to idle workers; returns their indices."""
        for worker in [w for w in self.workers if w.idle and w.process.poll() is not None]:
            self.workers.remove(worker)  # it died idle: that is no try of a request
            worker.end()
        for _ in range(min(self.num_workers, len(waiting)) - len(self.workers)):
            self.workers.append(Worker(self.module, self.cpu_limit_s))
        assigned: list[int] = []
        for worker in self.workers:
            if waiting and worker.ready and worker.request is None:
                assigned.append(waiting.popleft())
                limit_s = WALL_FACTOR * self.cpu_limit_s
                worker.assign(assigned[-1], lines[assigned[-1]], limit_s)
        return assigned

    def _exchange(self) -> tuple[list[tuple[int, Any]], list[int]]:
        """Write and read until something happens: replies, and requests of dead workers."""
        replied: list[tuple[int, Any]] = []
        lost: list[int] = []
        busy = [w for w in self.workers if w.request is not None or not w.ready]
        for worker in wait(busy):
            try:
                line = worker.read()
                if line is None:
                    worker.write()
                elif not worker.ready:
                    worker.ready = json.loads(line) == READY
                    self._killed_starting = 0
                elif worker.request is not None:
                    replied.append((worker.request, json.loads(line)))
                    worker.request = None
                if worker.idle or time.monotonic() <= worker.deadline:
                    continue
                worker.hung = True
            except EOFError:
                pass
            self.workers.remove(worker)
            said = worker.end()
            if not worker.ready:
                self._count_killed(worker, said)
            if worker.request is not None and not worker.hung:
                lost.append(worker.request)
        return replied, lost

    def _count_killed(self, worker: Worker, said: str) -> None:
        """A worker ended before it was ready: an error, unless something killed it by chance."""
        self._killed_starting += 1
        code = worker.process.returncode
        if code < 0 and not worker.hung and self._killed_starting < TRIES * self.num_workers:
            return
        silence = f"ended with exit code {code}"
        if worker.hung:
            silence = f"no reply in {START_LIMIT_S:g} s"
        elif code < 0:
            silence = f"killed by {signal.Signals(-code).name} each time"
        raise GradingError(f"{self.module} cannot start: {said[-500:] or silence}")


def wait(workers: list[Worker]) -> list[Worker]:
    """Block until a worker can be read from or written to, or is over its time; returns those."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.stdout, selectors.EVENT_READ, worker)
            if worker.outgoing:
                selector.register(worker.stdin, selectors.EVENT_WRITE, worker)
        first = min(worker.deadline for worker in workers)
        events = selector.select(max(0.0, first - time.monotonic()))
    now = time.monotonic()
    late = [worker for worker in workers if worker.deadline < now]
    return list(dict.fromkeys([key.data for key, _ in events] + late))


def end_all(workers: list[Worker], owner: int) -> None:
    """End the workers, unless this is a fork of the process that they belong to."""
    while workers and os.getpid() == owner:
        workers.pop().end()
