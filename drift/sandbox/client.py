"""The trainer's side: a pool of zygotes that judges programs and loses none."""

import contextlib
import json
import logging
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drift.common.errors import SandboxError
from drift.sandbox import wire

log = logging.getLogger("drift")
ROOT = Path(__file__).resolve().parents[2]  # where the package drift is
START = """
import sys
sys.path.append(sys.argv.pop(1))
from drift.sandbox.zygote import main
main()
"""
START_S = 60.0
GRACE_S = 5.0  # beyond the checker's own limits, until its zygote is killed
MAX_REPORT = 1 << 20
ATTEMPTS = 3  # of a program whose checker or zygote was killed
VERDICTS = ("pass", "wrong", "error", "timeout", "memory", "unsupported")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asserts:
    """A program whose functions are called by tests.

    Asserts(source="def f(a): return a + 1", tests=["assert f(1) == 2"], names=["f"],
            entry_point="f")
    """

    source: str
    tests: Sequence[str]  # each is one test: Python code that raises where it fails
    names: Sequence[str]  # what the tests use of the program
    entry_point: str = ""  # the tested name, `candidate` for the tests too; not theirs to replace
    setup: str = ""  # test code before the tests
    time_limit: float = 1.0  # CPU seconds of loading, and of each test


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdio:
    """A program that reads and prints: Stdio(source="print(input())", stdin="3", expected="3")."""

    source: str
    stdin: str
    expected: str  # standard output, but for blanks at line ends and empty lines at the end
    time_limit: float = 1.0  # CPU seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Verdict(verdict="wrong", passed=2, detail="an assertion failed")"""

    verdict: str  # one of VERDICTS
    passed: int  # tests passed, of an Asserts' tests or a Stdio's one
    detail: str  # why, in the words of the program or the checker


Request = Asserts | Stdio


@dataclass(slots=True)
class Zygote:
    """One fork server process and the socket to it."""

    config: dict[str, Any]
    control: socket.socket | None = field(default=None, init=False)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    isolation: str = field(default="", init=False)

    def start(self, attempts: int = ATTEMPTS) -> dict[str, Any]:
        """Start the process, again if something kills it; what it says of its isolation."""
        self.stop()
        self.control, theirs = socket.socketpair()
        config = self.config | {"control": theirs.fileno(), "parent": os.getpid()}
        command = [base_interpreter(), "-S", "-s", "-P", "-B", "-c", START, str(ROOT)]
        with theirs:
            self.process = subprocess.Popen(  # exec, so that nothing of this process is in it
                [*command, json.dumps(config)],
                env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the trainer, which then ends the zygote
            )
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            try:
                hello = wire.receive(self.control.fileno(), MAX_REPORT, in_time(START_S))
            except (wire.ClosedError, TimeoutError):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(1.0)  # whoever closes the socket is about to end
                code = self.process.poll()
                if code is not None and code < 0 and attempts > 1:
                    return self.start(attempts - 1)
                self.process.kill()
                said = stderr.read().decode("utf-8", "replace").strip().splitlines()
                silence = "no reply in time" if code is None else f"exit code {code}"
                reason = said[-1] if said else silence
                raise SandboxError(f"the sandbox does not start: {reason}") from None
        self.isolation = hello["name"]
        return hello

    def judge(self, request: Request) -> Verdict | None:
        """Have one program judged; None if nobody came back with a verdict.

        Raises:
            TimeoutError: neither came in the time that the checker has for it.
        """
        assert self.control is not None
        nonce = secrets.token_hex(16)
        kind = "stdio" if isinstance(request, Stdio) else "asserts"
        message = wire.pack({"nonce": nonce, "kind": kind, **asdict(request)})
        parts = 1 if isinstance(request, Stdio) else len(request.tests) + 2
        seconds = parts * (2 * request.time_limit + 2) + GRACE_S
        mine, theirs = socket.socketpair()
        with mine:
            try:
                with theirs:
                    socket.send_fds(self.control, [b"x"], [theirs.fileno()])
                mine.settimeout(seconds)
                mine.sendall(message)
                report = wire.receive(mine.fileno(), MAX_REPORT, in_time(seconds))
            except TimeoutError:
                raise  # it is an OSError too
            except (wire.ClosedError, OSError, ValueError):
                return None
        if report.pop("nonce", None) != nonce:
            return None
        return Verdict(**report)

    def stop(self) -> None:
        """End the process and all that it started; wait until it is gone."""
        if self.control is not None:
            self.control.close()
        if self.process is not None:
            try:
                self.process.wait(3.0)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)  # a group of its own: its session
                self.process.wait()
        self.control = self.process = None


def in_time(seconds: float) -> Callable[[int], None]:
    """Waits for a descriptor, over all its calls no longer than `seconds`: else TimeoutError."""
    deadline = time.monotonic() + seconds

    def wait(fd: int) -> None:
        if not wire.wait_until(deadline, fd):
            raise TimeoutError

    return wait


def base_interpreter() -> str:
    """The interpreter behind a virtual environment, which is all that a program needs."""
    return os.path.realpath(sys.executable)


class Sandbox:
    """Judges programs, several at a time. Use it as a context manager, or close it.

    Args:
        workers: programs at the same time; each may use `memory_mb`.
        memory_mb: address space of a program.
        allow_unsafe: run programs with limits alone where there is no isolation; otherwise that
            is a SandboxError.
        level: the first of isolation.LEVELS to try; for tests and measurements of the others.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        memory_mb: int = 512,
        allow_unsafe: bool = False,
        level: str = "namespaces",
    ):
        if sys.platform != "linux":
            raise SandboxError(f"programs cannot be isolated on {sys.platform}; use Linux")
        config = {"memory_mb": memory_mb, "level": level, "allow_unsafe": allow_unsafe}
        self.workers = workers
        self._zygotes = [Zygote(config) for _ in range(workers)]
        self._idle: queue.SimpleQueue[Zygote] = queue.SimpleQueue()
        self._close = weakref.finalize(self, _stop_all, self._zygotes, os.getpid())
        with ThreadPoolExecutor(workers) as pool:
            hello, *_ = pool.map(Zygote.start, self._zygotes)
        self.isolation: str = hello["name"]
        if hello["level"] == "none" and not allow_unsafe:
            self.close()
            raise SandboxError(
                f"programs cannot be isolated on this machine ({'; '.join(hello['refused'])}); "
                "run where user namespaces, Landlock or seccomp are allowed, or set "
                "task.allow_unsafe=true to run them with limits alone"
            )
        for zygote in self._zygotes:
            if zygote.isolation != self.isolation:
                self._restart(zygote)
            self._idle.put(zygote)
        for reason in hello["refused"]:
            log.warning("sandbox: not in use: %s", reason)
        log.info("sandbox: %d workers, isolation %s", workers, self.isolation)

    def run_all(
        self, requests: Sequence[Request], count: Callable[[], object] | None = None
    ) -> list[Verdict]:
        """The verdict of each request, in order; `count` is called after each."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox")
        try:
            verdicts: list[Verdict] = []
            for verdict in pool.map(self.run, requests):
                verdicts.append(verdict)
                if count:
                    count()
            return verdicts
        finally:
            pool.shutdown(cancel_futures=True)

    def run(self, request: Request) -> Verdict:
        """The verdict of one request; waits for a free worker."""
        zygote = self._idle.get()
        try:
            for _ in range(ATTEMPTS):
                try:
                    verdict = zygote.judge(request)
                except TimeoutError:
                    verdict = Verdict(verdict="timeout", passed=0, detail="no verdict in time")
                    self._restart(zygote)
                if verdict is not None:
                    return verdict
                self._restart(zygote)
            return Verdict(verdict="error", passed=0, detail="its checker was killed each time")
        finally:
            self._idle.put(zygote)

    def _restart(self, zygote: Zygote) -> None:
        """A fresh process in place of one that failed, behind the same isolation."""
        for _ in range(ATTEMPTS):
            zygote.start()
            if zygote.isolation == self.isolation:
                return
        raise SandboxError(
            f"the sandbox had isolation {self.isolation} and comes back with {zygote.isolation}"
        )

    def close(self) -> None:
        """End every process."""
        self._close()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _stop_all(zygotes: list[Zygote], owner: int) -> None:
    if os.getpid() == owner:  # a forked copy of the trainer has no say
        for zygote in zygotes:
            zygote.stop()
