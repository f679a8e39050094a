"""What a signal does, with and without a handler that was there before (submitit's)."""

import multiprocessing
import signal
import time

from drift.cluster.launch import end


def test_ranks_are_given_the_time_that_is_asked_for() -> None:
    context = multiprocessing.get_context("spawn")
    for seconds, patience_s, code in ((600.0, 0.2, -signal.SIGKILL), (1.0, 60.0, 0)):
        process = context.Process(target=time.sleep, args=(seconds,))
        process.start()
        end([process], patience_s)
        assert process.exitcode == code
