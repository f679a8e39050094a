"""The fork server: an interpreter of its own that holds no secret and forks a checker per program.

Started by `client.py` as `python -c ... CONFIG`, with an empty environment and one descriptor, the
control socket. Each message on it carries the connection of one request, which is never read here.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import site
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from drift.sandbox import checker, isolation, kernel, wire

PRELOADED = (  # common modules: imported once, and all that there is where no file can be opened
    "abc array ast asyncio base64 bisect calendar cmath collections colorsys contextlib copy csv "
    "dataclasses datetime decimal difflib enum fractions functools getpass hashlib heapq html "
    "inspect io itertools json keyword locale math numbers operator pprint queue random re sched "
    "secrets shlex statistics string struct tempfile textwrap threading time timeit token tokenize "
    "traceback types typing unicodedata uuid weakref zlib"
)
POLL_S = 1.0  # between looks at whether the trainer is still there


def main() -> None:
    config = json.loads(sys.argv[1])
    control = socket.socket(fileno=config["control"])
    sys.path.pop()  # where this package is; programs import the standard library alone
    for name in PRELOADED.split():
        importlib.import_module(name)
    site.setquit()  # exit() and quit(), which -S leaves out
    os.environ.clear()
    os.environ["HOME"] = "/tmp"
    kernel.use_one_heap()
    chosen, refused = isolation.choose(config["level"], config["memory_mb"])
    os.dup2(0, 2)  # what is said from here on, by tests too, nobody reads
    wire.send(control.fileno(), {"level": chosen.level, "name": chosen.name, "refused": refused})
    if chosen.level == "none" and not config["allow_unsafe"]:
        return
    isolation.enter(chosen)
    gc.collect()
    gc.freeze()  # no collection touches, and so copies, the pages that children share
    serve(control, chosen, config)


class Children:
    """Processes of this one, reaped as they end, orphans of a killed checker too."""

    def __init__(self) -> None:
        self.alive: set[int] = set()
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGCHLD, self._reap)

    def _reap(self, *_: Any) -> None:
        with contextlib.suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self.alive.discard(pid)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Within, a process id in `alive` is that child's and not yet given to another."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def kill(self) -> None:
        with self.unchanged():
            for pid in self.alive:
                os.kill(pid, signal.SIGKILL)

    def wait(self, patience_s: float) -> bool:
        """Until every descendant is gone; False if one is not."""
        until = time.monotonic() + patience_s
        try:
            while time.monotonic() < until:
                if not os.waitpid(-1, os.WNOHANG)[0]:
                    time.sleep(0.002)
        except ChildProcessError:
            return True
        return False


def serve(control: socket.socket, chosen: isolation.Isolation, config: dict[str, Any]) -> None:
    """Fork a checker for each connection that comes, until the trainer is gone."""
    children = Children()
    while os.getppid() == config["parent"]:
        if not wire.wait_until(time.monotonic() + POLL_S, control.fileno()):
            continue
        message, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            break
        children.kill()  # one program at a time: whoever is left has been given up
        with children.unchanged():
            pid = os.fork()
            if pid == 0:
                check(control, fds[0], chosen, config["memory_mb"])
            children.alive.add(pid)
        os.close(fds[0])
    children.kill()
    if not children.wait(2.0) and os.getpid() == os.getpgid(0):
        os.killpg(0, signal.SIGKILL)  # with this process


def check(control: socket.socket, connection: int, chosen: isolation.Isolation, mb: int) -> None:
    """A begins; never returns."""
    try:
        control.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        checker.main(connection, chosen, mb)
    finally:
        os._exit(71)
