"""What a signal does, with and without a handler that was there before (submitit's)."""

import os
import signal
import time

import pytest

from drift.cluster.launch import Forwarder
from drift.cluster.preemption import StopRequest
from drift.common.errors import PreemptedError
from drift.config.cluster import ClusterConfig, SlurmConfig


def test_without_another_handler_the_run_ends() -> None:
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signum == signal.SIGTERM
        with pytest.raises(PreemptedError, match="SIGTERM: the run is saved; go on"):
            request.end(request.signum, 0, "the run is saved; go on with it")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.fixture
def heard() -> list[int]:
    calls: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda signum, _: calls.append(signum))
    yield calls  # type: ignore[misc]
    signal.signal(signal.SIGUSR2, before)


def test_a_handler_that_was_there_is_called_at_the_end_of_the_step(heard: list[int]) -> None:
    with StopRequest(patience_s=60) as request:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert heard == []
        request.end(signal.SIGUSR2, 0, "")
        assert (heard, request.signum) == ([signal.SIGUSR2], 0)


def test_it_is_called_in_a_step_that_is_too_long(heard: list[int]) -> None:
    with StopRequest(patience_s=0.2):
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.5)
        assert heard == [signal.SIGUSR2]


def test_it_is_called_in_a_long_step_of_ranks_that_were_started_here(heard: list[int]) -> None:
    for cluster, calls in (
        (ClusterConfig(name="local"), []),
        (SlurmConfig(name="slurm", signal_delay_s=1), [signal.SIGUSR2]),
    ):
        with Forwarder([], cluster):
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(1.0)  # 0.8 of the delay are the step's
            assert heard == calls
