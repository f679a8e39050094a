"""Signals that ask a job to stop: noted when they come, followed at the end of a step."""

import signal
import time
from types import FrameType
from typing import Any

from drift.common.errors import PreemptedError
from drift.config.cluster import ClusterConfig, SlurmConfig

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
REQUEUE_S = 120.0  # that another rank gives the first one to requeue the job


class RequeuedExit(SystemExit):
    """submitit has put the job into the queue again, where it will be taken up."""


def patience_s(cluster: ClusterConfig) -> float | None:
    """How long after a signal SLURM leaves the run to finish its step; None where none counts."""
    return 0.8 * cluster.signal_delay_s if isinstance(cluster, SlurmConfig) else None


class StopRequest:
    """Listens inside a `with` block; `signum` is the last signal that came, 0 if none did."""

    def __init__(self, patience_s: float | None = None):
        """With `patience_s`, submitit's handler runs after that time also inside a long step."""
        self.signum = 0
        self.patience_s = patience_s

    def __enter__(self) -> "StopRequest":
        self.before: dict[int, Any] = {s: signal.signal(s, self.note) for s in SIGNALS}
        self.before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self.lose_patience)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in self.before.items():
            signal.signal(signum, handler)

    def note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        if self.patience_s and callable(self.before[signum]):
            signal.setitimer(signal.ITIMER_REAL, self.patience_s)

    def lose_patience(self, *_: object) -> None:
        """The step is longer than the time that is left: requeue, and lose the step."""
        if self.signum:
            self.hand_over(self.before[self.signum], self.signum)

    def hand_over(self, handler: Any, signum: int) -> None:
        try:
            handler(signum, None)
        except SystemExit as error:
            raise RequeuedExit(error.code) from None

    def end(self, signum: int, rank: int, resume: str) -> None:
        """Leave, after the checkpoint; under submitit do what its own handler does instead.

        Its handler of USR2 requeues the job and ends the first rank, SLURM then ends the others;
        its handler of TERM does nothing, and the run goes on until it is killed.

        Args:
            signum: what any rank was sent.
            rank: of this process.
            resume: what is saved and how to go on.

        Raises:
            PreemptedError: nobody else decides.
        """
        handler = self.before[signum]
        name = signal.Signals(signum).name
        if not callable(handler):
            raise PreemptedError(f"{name}: {resume}")
        self.signum = 0
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.hand_over(handler, signum)
        if rank and signum != signal.SIGTERM:
            time.sleep(REQUEUE_S)
            raise PreemptedError(f"{name}: it was not requeued; {resume}")
