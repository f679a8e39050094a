"""A run that stands still is ended: every rank says where it stands, with its stacks."""

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import torch.distributed as dist

from drift.common import terminal

STUCK = "drift/stuck"  # the key by which one rank tells the others
LAST_WORDS_S = 5.0  # for a rank to go on after all, then for all ranks to write their stacks
LOOK_EVERY_S = 1.0


class Watchdog:
    """Ends the process when nothing is done for `timeout_s`, or launch.py that started it is gone.

    Done is what calls `terminal.beat`: a phase that begins or ends, a bar that moves (rows are
    decoded or graded, tensors loaded), a forward of the learner, a file or tensor of a checkpoint.
    """

    def __init__(self, timeout_s: float, rank: int):
        self.timeout_s = timeout_s
        self.rank = rank
        self.place = "the start"
        self._parent = multiprocessing.parent_process()  # none: a shell's run outlives its shell
        self._stopped = threading.Event()
        self._store: dist.Store | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        if dist.is_initialized() and dist.get_world_size() > 1:
            # a connection of its own: the main thread may hold the other one while it waits
            store: Any = dist.distributed_c10d._get_default_store()  # its stubs lack `clone`
            self._store = store.clone()
        terminal.beat()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def enter(self, place: str) -> None:
        """Something begins: `step 3, phase update`."""
        self.place = place
        terminal.beat()

    def _watch(self) -> None:
        while not self._stopped.wait(LOOK_EVERY_S):
            if self._parent is not None and os.getppid() != self._parent.pid:
                self._say("the process that started it is gone; it ends in")
                os._exit(1)
            last = terminal.alive_at
            still = time.monotonic() - last
            if still > self.timeout_s:
                self._say(f"nothing has happened for {still:.0f} s (cluster.timeout_s) in", True)
                if self._stopped.wait(LAST_WORDS_S) or terminal.alive_at != last:
                    self._say("it goes on after all in")
                    continue
                with suppress(Exception):  # as below
                    if self._store is not None:
                        self._store.set(STUCK, "1")
            elif self._others_are_stuck():
                self._say("another rank is stuck; this one stands in", True)
            else:
                continue
            time.sleep(LAST_WORDS_S)
            os._exit(1)

    def _others_are_stuck(self) -> bool:
        with suppress(Exception):  # the rank that holds the store is gone: its own words say why
            return self._store is not None and self._store.check([STUCK])
        return False

    def _say(self, words: str, stacks: bool = False) -> None:
        with suppress(OSError):  # whoever read it is gone
            end = "; its stacks:" if stacks else ""
            print(f"drift: rank {self.rank}: {words} {self.place}{end}", file=sys.stderr)
            if stacks:
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
