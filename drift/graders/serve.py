"""The loop of a worker: one JSON value per line in, one per line out, within limits."""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

READY = "ready"
MEMORY_BYTES = 2 << 30  # address space; sympy or reasoning-gym alone take 0.3 GiB
PR_SET_PDEATHSIG = 1


def serve(handle: Callable[[Any], Any], cpu_limit_s: float) -> None:
    """Answer requests until the input ends.

    A request over the processor time or the memory kills the process; its client starts another.

    Args:
        handle: from a request to a reply that is not None.
        cpu_limit_s: processor time of one request.
    """
    if sys.platform == "linux":  # die with the parent, however it dies
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # pipes have no such limit
    with os.fdopen(os.dup(1), "w") as replies:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):  # what a library prints is no reply
            os.dup2(nowhere, descriptor)
        send(replies, READY)
        for line in sys.stdin:
            signal.setitimer(signal.ITIMER_PROF, cpu_limit_s)  # its signal kills
            try:
                reply: Any = handle(json.loads(line))
            except MemoryError:
                os.kill(os.getpid(), signal.SIGPROF)  # over a limit like any other
            signal.setitimer(signal.ITIMER_PROF, 0)
            send(replies, reply)


def send(replies: Any, value: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # the client is gone; the input ends next
        replies.write(json.dumps(value) + "\n")
        replies.flush()
