"""A command on a real pseudo-terminal, and what a person sees there."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte

from tests.conftest import ROOT

CTRL_C = b"\x03"


class Terminal:
    """`python -m drift.<command>` as the foreground process of a terminal."""

    def __init__(self, folder: Path, *words: str, columns: int = 80, rows: int = 40):
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self.screen)
        self._end, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm-256color",
        }  # fmt: skip
        for name in ("COLUMNS", "LINES", "NO_COLOR", "TTY_COMPATIBLE", "FORCE_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=folder, env=environment,
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)

    def lines(self) -> list[str]:
        """Everything above and on the screen, without the empty lines at its end."""
        above = [
            "".join(row[x].data for x in range(self.screen.columns)).rstrip()
            for row in self.screen.history.top
        ]
        return "\n".join([*above, *(line.rstrip() for line in self.screen.display)]).splitlines()

    def read(self) -> bool:
        """Take what the command has written; False when it has ended."""
        try:
            self._stream.feed(os.read(self._end, 1 << 16))
        except OSError:  # EIO: nobody has the other side open
            return False
        return True

    def until(self, seen: Callable[[str], bool], timeout_s: float = 120) -> str:
        """The screen as soon as `seen` is true of it."""
        end = time.monotonic() + timeout_s
        while not seen(text := "\n".join(self.lines())):
            assert time.monotonic() < end and self.read(), text
        return text

    def write(self, keys: bytes) -> None:
        os.write(self._end, keys)

    def finish(self) -> int:
        """Read to the end; the exit code."""
        while self.read():
            pass
        os.close(self._end)
        return self.process.wait(timeout=60)
