"""A run that stands still is ended: every rank says where it stands, with its stacks."""

import faulthandler
import os
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import torch.distributed as dist

STUCK = "drift/stuck"  # the key by which one rank tells the others
LAST_WORDS_S = 5.0  # for all ranks to write their stacks
LOOK_EVERY_S = 1.0


class Watchdog:
    """Ends the process when nothing is done for `timeout_s`, or its parent is gone.

    Done is a phase that begins or ends, a denoising step, a file or a tensor of a checkpoint.
    """

    def __init__(self, timeout_s: float, rank: int):
        self.timeout_s = timeout_s
        self.rank = rank
        self.place = "the start"
        self.since = time.monotonic()
        self._parent = os.getppid()
        self._stopped = threading.Event()
        self._store: dist.Store | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        if dist.is_initialized() and dist.get_world_size() > 1:
            # a connection of its own: the main thread may hold the other one while it waits
            store: Any = dist.distributed_c10d._get_default_store()  # its stubs lack `clone`
            self._store = store.clone()
        self.since = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def enter(self, step: int, phase: str) -> None:
        """A step's phase begins, or ends."""
        self.place, self.since = f"step {step}, phase {phase}", time.monotonic()

    def beat(self) -> None:
        """Something was done in a long phase."""
        self.since = time.monotonic()

    def _watch(self) -> None:
        while not self._stopped.wait(LOOK_EVERY_S):
            if os.getppid() != self._parent:  # whoever started this rank is dead
                os._exit(1)
            still = time.monotonic() - self.since
            if still > self.timeout_s:
                self._say(f"nothing has happened for {still:.0f} s (cluster.timeout_s) in")
            elif self._others_are_stuck():
                self._say("another rank is stuck; this one stands in")

    def _others_are_stuck(self) -> bool:
        with suppress(Exception):  # the rank that holds the store is gone: its own words say why
            return self._store is not None and self._store.check([STUCK])
        return False

    def _say(self, words: str) -> None:
        with suppress(Exception):  # as above
            if self._store is not None:
                self._store.set(STUCK, "1")
        print(f"drift: rank {self.rank}: {words} {self.place}; its stacks:", file=sys.stderr)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        sys.stderr.flush()
        time.sleep(LAST_WORDS_S)
        os._exit(1)
